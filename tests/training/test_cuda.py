"""GPU training: no step synchronizes, and results equal the CPU."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers.cache_cases import FLIP, LAYERS, ROWS, data, described
from helpers.study_cases import CLASS_LOSSES
from helpers.training_cases import (
    DIGITS,
    alone,
    forgetful,
    scheme_of,
    taught,
    teacher,
    teachers,
    untimed,
)
from raykd.data import Batch, Dataset, Placement
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Mlp, Resnet
from raykd.schemes import SCHEMES, LiveTeacher, MultiTeacher, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.train_config import SGD, AdamW
from raykd.training.build import signature_of
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache import (
    CacheBuilder,
    CachedOutputs,
    CacheStore,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.trainer import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA = torch.device("cuda")

WAITS = {"svd": "cuSOLVER's eigenvalues are checked on the CPU"}
"""Losses that wait for the device by nature."""

STAGES = (Pair(hint="stage2", guided="stage2"),)


@pytest.fixture(scope="module")
def there() -> Dataset:
    return data().to(CUDA)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, there: Dataset) -> CachedOutputs:
    """Outputs of the shared teacher, computed on the GPU, without augmentation."""
    study, store = cacheable_study(), CacheStore(Storage(str(tmp_path_factory.mktemp("kept"))))
    description = described(study, LAYERS, views=1)
    network = copy.deepcopy(teacher()).to(CUDA)
    live = LiveTeacher(to_device(network, CUDA), LAYERS, signature_of(there))
    build = CacheBuilder(description, study, lambda: live, there, store, Placement(CUDA))
    while build.advance():
        pass
    assert build.finish()
    cached = open_cached_outputs(store, description.key, there, device=CUDA)
    assert cached is not None
    return cached


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions in full float32; no compilation left disabled."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()


def cacheable_study(*terms: Term, **train: Any) -> Study:
    """Study without augmentation, so that all epochs read one table of outputs."""
    study = taught(*terms, **{"epochs": 3, "optimizer": SGD(lr=0.02), "precision": "fp32", **train})
    source = dataclasses.replace(DIGITS, limit=ROWS, augment=())
    return dataclasses.replace(study, data=source, cache=Cache(dtype="fp32", seed=5))


def on_gpu(study: Study, there: Dataset, teacher: Any = None, seed: int = 5) -> Training:
    teachers_ = copy.deepcopy(teachers(study)) if teacher is None else teacher
    return Training(study, there, seed=seed, teacher=teachers_, placement=Placement(CUDA))


def epoch_without_sync(training: Training, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run an epoch in which no step may synchronize; only its start and end may."""
    batches = training.loader.epoch

    def watched(epoch: int, **options: Any) -> Iterator[Batch]:
        coming = batches(epoch, **options)
        torch.cuda.set_sync_debug_mode("error")
        yield from coming
        torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patch:
        patch.setattr(training.loader, "epoch", watched)
        return training.run_epoch()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_no_step_of_any_loss_synchronizes(
    name: str, there: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in WAITS:
        pytest.skip(WAITS[name])
    training = on_gpu(cacheable_study(Term(loss=LOSSES[name]())), there)
    training.run_epoch()
    assert math.isfinite(epoch_without_sync(training, monkeypatch)[f"term_{name}"])


@pytest.mark.parametrize("name", list(SCHEMES.members))
def test_no_step_of_any_scheme_synchronizes(
    name: str, there: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = scheme_of(name)
    terms = (Term(loss=LOSSES["kd"]()),) if scheme.takes_knowledge else ()
    study = dataclasses.replace(cacheable_study(), scheme=scheme, knowledge=terms)
    training = on_gpu(study, there)
    training.run_epoch()
    assert math.isfinite(epoch_without_sync(training, monkeypatch)["term_task"])


@pytest.mark.parametrize("optimizer", [SGD(lr=0.02), AdamW()], ids=lambda option: option.name)
def test_steps_with_augmentation_clipping_and_cached_outputs_do_not_synchronize(
    optimizer: Any, there: Dataset, outputs: CachedOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = (Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"](), pairs=STAGES))
    study = cacheable_study(*terms, optimizer=optimizer, clip_norm=1.0, label_smoothing=0.1)
    training = on_gpu(study, there, TeacherHandle(never, outputs))
    training.run_epoch()
    epoch_without_sync(training, monkeypatch)
    flipped = dataclasses.replace(study, data=dataclasses.replace(study.data, augment=(FLIP,)))
    training = on_gpu(flipped, there)
    training.run_epoch()
    epoch_without_sync(training, monkeypatch)


def never() -> torch.nn.Module:
    raise AssertionError("the teacher's network was asked for")


@pytest.mark.parametrize("name", ["kd", "hint", "rkd", "attention_map"])
def test_cached_and_live_teachers_are_equal(
    name: str, there: Dataset, outputs: CachedOutputs
) -> None:
    study = cacheable_study(Term(loss=LOSSES[name]()))
    live, cached = on_gpu(study, there), on_gpu(study, there, TeacherHandle(never, outputs))
    for _ in range(study.train.epochs):
        assert losses(cached.run_epoch()) == pytest.approx(losses(live.run_epoch()), rel=1e-2)


def losses(metrics: dict[str, float]) -> dict[str, float]:
    """Without accuracies, which rounding may change by a whole sample."""
    return {name: metrics[name] for name in metrics if "loss" in name or "term" in name}


@pytest.mark.parametrize("name", ["kd", "hint", "crd", "svd"])
@pytest.mark.parametrize("kind", ["live", "kept"])
def test_replayed_steps_are_equal(
    name: str, kind: str, there: Dataset, outputs: CachedOutputs
) -> None:
    """Two of four steps per epoch are replayed; the last has a smaller batch."""
    study = cacheable_study(Term(loss=LOSSES[name]()), batch_size=28, clip_norm=1.0)
    histories = [
        on_gpu(variant, there, TeacherHandle(never, outputs) if kind == "kept" else None)
        for variant in (study, replayed(study))
    ]
    for _ in range(study.train.epochs):
        written, recorded = (losses(training.run_epoch()) for training in histories)
        assert recorded == pytest.approx(written, rel=2e-3)
    replay = histories[1].cuda_graph
    assert replay is not None and replay._failed is (name in WAITS)


@pytest.mark.parametrize("name", list(SCHEMES.members))
def test_replayed_steps_of_every_scheme_are_equal(name: str, there: Dataset) -> None:
    scheme = scheme_of(name)
    terms = (Term(loss=LOSSES["kd"]()),) if scheme.takes_knowledge else ()
    study = dataclasses.replace(cacheable_study(), scheme=scheme, knowledge=terms)
    written, recorded = on_gpu(study, there), on_gpu(replayed(study), there)
    for _ in range(study.train.epochs):
        expected = losses(written.run_epoch())
        assert losses(recorded.run_epoch()) == pytest.approx(expected, rel=5e-3)
    assert recorded.cuda_graph is not None and not recorded.cuda_graph._failed


def test_steps_that_differ_are_not_replayed(there: Dataset) -> None:
    ramp = replayed(cacheable_study(Term(loss=LOSSES["kd"](), ramp_epochs=2)))
    assert on_gpu(ramp, there).cuda_graph is None
    two = (Teacher(model=Mlp(depth=2, width=16), seed=1),)
    dropping = dataclasses.replace(
        replayed(cacheable_study()), scheme=MultiTeacher(others=two, drop=0.5)
    )
    assert on_gpu(dropping, there).cuda_graph is None


def test_replayed_steps_draw_new_random_numbers(there: Dataset) -> None:
    """Dropout differs between steps and is equal for equal seeds."""
    study = replayed(dataclasses.replace(forgetful(), data=cacheable_study().data))
    study = dataclasses.replace(study, train=dataclasses.replace(study.train, batch_size=16))
    first, same = on_gpu(study, there), on_gpu(study, there)
    for _ in range(2):
        assert losses(first.run_epoch()) == pytest.approx(losses(same.run_epoch()), rel=1e-5)
    written = on_gpu(
        dataclasses.replace(study, train=cacheable_study(epochs=4, batch_size=16).train), there
    )
    assert losses(written.run_epoch()).keys() == losses(first.history[0]).keys()


def replayed(study: Study) -> Study:
    return dataclasses.replace(study, train=dataclasses.replace(study.train, compile="graph"))


def test_gpu_training_equals_cpu_training(there: Dataset) -> None:
    study = cacheable_study(Term(loss=LOSSES["kd"]()), epochs=1)
    there_, here = on_gpu(study, there), Training(study, data(), seed=5, teacher=teacher())
    assert losses(there_.run_epoch()) == pytest.approx(losses(here.run_epoch()), rel=1e-3)


def test_training_resumes_from_its_state(there: Dataset) -> None:
    terms = (Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"](), pairs=STAGES))
    study = cacheable_study(*terms, optimizer=AdamW(lr=3e-3))
    whole = on_gpu(study, there)
    whole.run_epoch()
    state = whole.state()
    assert all(tensor.device.type == "cpu" for tensor in state["student"].values())
    resumed = on_gpu(study, there)
    resumed.load_state(state)
    for _ in range(2):
        assert losses(resumed.run_epoch()) == pytest.approx(losses(whole.run_epoch()), rel=1e-3)


def test_default_precision_is_bfloat16(there: Dataset) -> None:
    study = cacheable_study(Term(loss=LOSSES["hint"](), pairs=STAGES), precision="auto", epochs=3)
    training = on_gpu(study, there)
    dtypes: list[torch.dtype] = []
    training.student.get_submodule("stage2").register_forward_hook(
        lambda *arguments: dtypes.append(arguments[2].dtype)
    )
    values = [training.run_epoch()["train_loss"] for _ in range(3)]
    assert set(dtypes) == {torch.bfloat16}
    assert all(map(math.isfinite, values)) and values[-1] < values[0]
    assert {parameter.dtype for parameter in training.distiller.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("study", [alone(), taught()], ids=["alone", "kd"])
def test_compiled_student_learns_same(mode: Any, study: Study, there: Dataset) -> None:
    study = dataclasses.replace(study, student=Student(model=Resnet(depth=8, width=16)))
    exact = dataclasses.replace(study.train, precision="fp32", optimizer=SGD(lr=0.02))
    written = dataclasses.replace(study, train=exact)
    compiled = dataclasses.replace(study, train=dataclasses.replace(exact, compile=mode))
    for ours, theirs in zip(trained(compiled, there), trained(written, there), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=5e-3)


def trained(study: Study, there: Dataset) -> list[dict[str, float]]:
    training = on_gpu(study, there)
    return [untimed(training.run_epoch()) for _ in range(study.train.epochs)]
