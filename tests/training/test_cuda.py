"""Tests on a GPU: no step waits for it, and it learns the same as a CPU."""

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
from raykd.training.build import task_of
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
    """The shared teacher's, computed on the GPU, of pictures as they are."""
    study, store = kept(), CacheStore(Storage(str(tmp_path_factory.mktemp("kept"))))
    description = described(study, LAYERS, views=1)
    network = copy.deepcopy(teacher()).to(CUDA)
    live = LiveTeacher(to_device(network, CUDA), LAYERS, task_of(there))
    build = CacheBuilder(description, study, lambda: live, there, store, Placement(CUDA))
    while build.advance():
        pass
    assert build.finish()
    found = open_cached_outputs(store, description.key, there, device=CUDA)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions in whole float32; nothing left forbidden."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()


def kept(*terms: Term, **train: Any) -> Study:
    """A study whose pictures stay as they are, so that all epochs read one table of outputs."""
    study = taught(*terms, **{"epochs": 3, "optimizer": SGD(lr=0.02), "precision": "fp32", **train})
    source = dataclasses.replace(DIGITS, limit=ROWS, augment=())
    return dataclasses.replace(study, data=source, cache=Cache(dtype="fp32", seed=5))


def on_gpu(study: Study, there: Dataset, teacher: Any = None, seed: int = 5) -> Training:
    given = copy.deepcopy(teachers(study)) if teacher is None else teacher
    return Training(study, there, seed=seed, teacher=given, placement=Placement(CUDA))


def without_waiting(training: Training, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """An epoch of which no step may wait for the device; its beginning and its end may."""
    batches = training.loader.epoch

    def watched(epoch: int, **options: Any) -> Iterator[Batch]:
        coming = batches(epoch, **options)
        torch.cuda.set_sync_debug_mode("error")
        yield from coming
        torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patch:
        patch.setattr(training.loader, "epoch", watched)
        return training.run_epoch()


@pytest.mark.parametrize("name", list(LOSSES.members))
def test_no_step_of_any_loss_waits_for_the_device(
    name: str, there: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in WAITS:
        pytest.skip(WAITS[name])
    training = on_gpu(kept(Term(loss=LOSSES[name]())), there)
    training.run_epoch()
    assert math.isfinite(without_waiting(training, monkeypatch)[f"term_{name}"])


@pytest.mark.parametrize("name", list(SCHEMES.members))
def test_no_step_of_any_scheme_waits_for_the_device(
    name: str, there: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = scheme_of(name)
    terms = (Term(loss=LOSSES["kd"]()),) if scheme.takes_knowledge else ()
    study = dataclasses.replace(kept(), scheme=scheme, knowledge=terms)
    training = on_gpu(study, there)
    training.run_epoch()
    assert math.isfinite(without_waiting(training, monkeypatch)["term_task"])


@pytest.mark.parametrize("optimizer", [SGD(lr=0.02), AdamW()], ids=lambda one: one.name)
def test_no_step_waits_that_augments_clips_and_reads_kept_outputs(
    optimizer: Any, there: Dataset, outputs: CachedOutputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = (Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"](), pairs=STAGES))
    study = kept(*terms, optimizer=optimizer, clip_norm=1.0, label_smoothing=0.1)
    training = on_gpu(study, there, TeacherHandle(never, outputs))
    training.run_epoch()
    without_waiting(training, monkeypatch)
    flipped = dataclasses.replace(study, data=dataclasses.replace(study.data, augment=(FLIP,)))
    training = on_gpu(flipped, there)
    training.run_epoch()
    without_waiting(training, monkeypatch)


def never() -> torch.nn.Module:
    raise AssertionError("the teacher's network was asked for")


@pytest.mark.parametrize("name", ["kd", "hint", "rkd", "attention_map"])
def test_kept_and_live_teachers_teach_the_same(
    name: str, there: Dataset, outputs: CachedOutputs
) -> None:
    study = kept(Term(loss=LOSSES[name]()))
    live, cached = on_gpu(study, there), on_gpu(study, there, TeacherHandle(never, outputs))
    for _ in range(study.train.epochs):
        assert losses(cached.run_epoch()) == pytest.approx(losses(live.run_epoch()), rel=1e-2)


def losses(metrics: dict[str, float]) -> dict[str, float]:
    """Without accuracies, in which rounding may show as a whole sample."""
    return {name: metrics[name] for name in metrics if "loss" in name or "term" in name}


@pytest.mark.parametrize("name", ["kd", "hint", "crd", "svd"])
@pytest.mark.parametrize("kind", ["live", "kept"])
def test_replayed_steps_learn_the_same(
    name: str, kind: str, there: Dataset, outputs: CachedOutputs
) -> None:
    """Of four steps an epoch two are replayed, and the last has a batch of another size."""
    study = kept(Term(loss=LOSSES[name]()), batch_size=28, clip_norm=1.0)
    found = [
        on_gpu(one, there, TeacherHandle(never, outputs) if kind == "kept" else None)
        for one in (study, replayed(study))
    ]
    for _ in range(study.train.epochs):
        written, recorded = (losses(training.run_epoch()) for training in found)
        assert recorded == pytest.approx(written, rel=2e-3)
    replay = found[1].cuda_graph
    assert replay is not None and replay._failed is (name in WAITS)


@pytest.mark.parametrize("name", list(SCHEMES.members))
def test_replayed_steps_of_every_scheme_learn_the_same(name: str, there: Dataset) -> None:
    scheme = scheme_of(name)
    terms = (Term(loss=LOSSES["kd"]()),) if scheme.takes_knowledge else ()
    study = dataclasses.replace(kept(), scheme=scheme, knowledge=terms)
    written, recorded = on_gpu(study, there), on_gpu(replayed(study), there)
    for _ in range(study.train.epochs):
        expected = losses(written.run_epoch())
        assert losses(recorded.run_epoch()) == pytest.approx(expected, rel=5e-3)
    assert recorded.cuda_graph is not None and not recorded.cuda_graph._failed


def test_steps_that_differ_are_not_replayed(there: Dataset) -> None:
    ramp = replayed(kept(Term(loss=LOSSES["kd"](), ramp_epochs=2)))
    assert on_gpu(ramp, there).cuda_graph is None
    two = (Teacher(model=Mlp(depth=2, width=16), seed=1),)
    dropping = dataclasses.replace(replayed(kept()), scheme=MultiTeacher(others=two, drop=0.5))
    assert on_gpu(dropping, there).cuda_graph is None


def test_replayed_steps_draw_anew(there: Dataset) -> None:
    """Dropout is another in each step, and the same for the same seed."""
    study = replayed(dataclasses.replace(forgetful(), data=kept().data))
    study = dataclasses.replace(study, train=dataclasses.replace(study.train, batch_size=16))
    one, same = on_gpu(study, there), on_gpu(study, there)
    for _ in range(2):
        assert losses(one.run_epoch()) == pytest.approx(losses(same.run_epoch()), rel=1e-5)
    written = on_gpu(dataclasses.replace(study, train=kept(epochs=4, batch_size=16).train), there)
    assert losses(written.run_epoch()).keys() == losses(one.history[0]).keys()


def replayed(study: Study) -> Study:
    return dataclasses.replace(study, train=dataclasses.replace(study.train, compile="graph"))


def test_it_learns_what_a_cpu_learns(there: Dataset) -> None:
    study = kept(Term(loss=LOSSES["kd"]()), epochs=1)
    there_, here = on_gpu(study, there), Training(study, data(), seed=5, teacher=teacher())
    assert losses(there_.run_epoch()) == pytest.approx(losses(here.run_epoch()), rel=1e-3)


def test_a_training_goes_on_from_its_state(there: Dataset) -> None:
    terms = (Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"](), pairs=STAGES))
    study = kept(*terms, optimizer=AdamW(lr=3e-3))
    whole = on_gpu(study, there)
    whole.run_epoch()
    state = whole.state()
    assert all(tensor.device.type == "cpu" for tensor in state["student"].values())
    resumed = on_gpu(study, there)
    resumed.load_state(state)
    for _ in range(2):
        assert losses(resumed.run_epoch()) == pytest.approx(losses(whole.run_epoch()), rel=1e-3)


def test_by_default_it_computes_in_bfloat16(there: Dataset) -> None:
    study = kept(Term(loss=LOSSES["hint"](), pairs=STAGES), precision="auto", epochs=3)
    training = on_gpu(study, there)
    seen: list[torch.dtype] = []
    training.student.get_submodule("stage2").register_forward_hook(
        lambda *given: seen.append(given[2].dtype)
    )
    values = [training.run_epoch()["train_loss"] for _ in range(3)]
    assert set(seen) == {torch.bfloat16}
    assert all(map(math.isfinite, values)) and values[-1] < values[0]
    assert {one.dtype for one in training.distiller.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("study", [alone(), taught()], ids=["alone", "kd"])
def test_a_compiled_student_learns_the_same(mode: Any, study: Study, there: Dataset) -> None:
    study = dataclasses.replace(study, student=Student(model=Resnet(depth=8, width=16)))
    exact = dataclasses.replace(study.train, precision="fp32", optimizer=SGD(lr=0.02))
    written = dataclasses.replace(study, train=exact)
    compiled = dataclasses.replace(study, train=dataclasses.replace(exact, compile=mode))
    for ours, theirs in zip(trained(compiled, there), trained(written, there), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=5e-3)


def trained(study: Study, there: Dataset) -> list[dict[str, float]]:
    training = on_gpu(study, there)
    return [untimed(training.run_epoch()) for _ in range(study.train.epochs)]
