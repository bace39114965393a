"""Trainings of teachers and students that take different inputs of each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import language_cases
from helpers.training_cases import assert_same, digits, taught, untimed
from raykd.data import AUGMENTATIONS, Dataset
from raykd.data.few_labels import keep_labels, labeled_samples
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Mlp, Resnet
from raykd.schemes import SCHEMES, Alone, LiveTeacher, MultiTeacher, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study, plain, read_study
from raykd.tasks import Classification
from raykd.training.build import signature_of
from raykd.training.layer_probes import ProbedPairs, probe_layers
from raykd.training.teacher_cache import (
    CacheBuilder,
    CacheStore,
    TeacherHandle,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    network_digest,
    open_cached_outputs,
)
from raykd.training.teacher_keys import spec_key
from raykd.training.teacher_responses import TeacherResponses
from raykd.training.teachers import train_teachers
from raykd.training.trainer import Training

SMALL = Student(model=Mlp(depth=1, width=16), input="4x4")
HINT = Term(loss=LOSSES["hint"](), pairs=(Pair(hint="embedding", guided="embedding"),))


def study(*terms: Term, student: Student = SMALL, **changed: Any) -> Study:
    """Study whose teacher takes whole digits, augmented."""
    base = taught(*(terms or (Term(loss=LOSSES["kd"]()),)), epochs=2)
    crop = AUGMENTATIONS["random_crop"](padding=1)
    data = replace(base.data, augment=(crop,))
    return replace(base, data=data, student=student, **changed)


def network(size: int = 8, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model = Resnet(depth=8, width=width)
    return model.build(signature_of(digits().as_input(None if size == 8 else f"{size}x{size}")))


def finished(training: Training) -> Training:
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


@dataclass(frozen=True)
class Case:
    """A study, its data, and an untrained teacher.

    Attributes:
        study: study with these terms and other changes.
        width: of the teacher's embedding.
    """

    study: Callable[..., Study]
    data: Callable[[], Dataset]
    network: Callable[[], nn.Module]
    input: str | None
    width: int


IMAGES = Case(study, digits, network, None, 32)
TEXTS = Case(language_cases.study, language_cases.languages, language_cases.teacher, "english", 8)


@pytest.mark.parametrize("terms", [(), (HINT,)], ids=["logits", "layers"])
@pytest.mark.parametrize("case", [IMAGES, TEXTS], ids=["images", "texts"])
def test_cached_outputs_equal_a_live_teacher(
    case: Case, terms: tuple[Term, ...], tmp_path: Path
) -> None:
    concrete = case.study(*terms, cache=Cache(dtype="fp32", seed=5))
    live = finished(Training(concrete, case.data(), seed=5, teacher=case.network()))
    assert live.distiller.other_inputs == (case.input or "",)
    data, teacher = case.data(), case.network().eval()
    signature = signature_of(data.as_input(case.input))
    layers = {"embedding": (case.width,)}
    outputs = TeacherOutputs("resnet", network_digest(teacher), layers, input=case.input)
    spec = cache_spec(concrete, outputs, TrainingSamples.of(data), views=2)
    store = CacheStore(Storage(str(tmp_path)))
    build = CacheBuilder(
        spec, concrete, lambda: LiveTeacher(teacher, spec.layers, signature), data, store
    )
    while build.advance():
        pass
    assert build.finish()
    cached_outputs = open_cached_outputs(store, spec.key, data)
    responses = TeacherResponses(lambda: teacher, case.input)
    handle = TeacherHandle(teacher, cached_outputs, responses)
    cached = finished(Training(concrete, data, seed=5, teacher=handle))
    assert cached.distiller.other_inputs == (), "no input of the teacher is computed"
    for ours, theirs in zip(cached.history, live.history, strict=True):
        assert untimed(ours) == pytest.approx(untimed(theirs), rel=1e-3, abs=1e-4)


def test_outputs_of_another_input_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    concrete = study(cache=Cache(dtype="fp32", seed=5))
    data, teacher = digits(), network().eval()
    outputs = TeacherOutputs("resnet", network_digest(teacher), input="4x4")
    spec = cache_spec(concrete, outputs, TrainingSamples.of(data), views=2)
    whole = cache_spec(concrete, replace(outputs, input=None), TrainingSamples.of(data), views=2)
    assert spec.key != whole.key and "input" not in whole.plain()
    store = CacheStore(Storage(str(tmp_path)))
    small = network(4)
    signature = signature_of(data.as_input("4x4"))
    build = CacheBuilder(spec, concrete, lambda: LiveTeacher(small, (), signature), data, store)
    while build.advance():
        pass
    assert build.finish()
    handle = TeacherHandle(teacher, open_cached_outputs(store, spec.key, data))
    training = Training(concrete, data, seed=5, teacher=handle)
    assert training.distiller.other_inputs == ("",)
    assert "they are of the input '4x4'" in caplog.text


def test_the_teacher_is_trained_on_its_own_input() -> None:
    concrete = study(teacher=Teacher(model=Mlp(width=8), input="2x2"), student=SMALL)
    [teacher] = train_teachers(concrete, digits())
    assert isinstance(teacher, nn.Module)
    first = next(module for module in teacher.modules() if isinstance(module, nn.Linear))
    assert first.in_features == 4
    training = finished(Training(concrete, digits(), seed=0, teacher=teacher))
    assert training.data.input_shape == (1, 4, 4)
    assert training.distiller.other_inputs == ("2x2",)
    # trained as a study of the same network on that input alone
    alone = replace(
        study(student=Student(model=Mlp(width=8), input="2x2")), scheme=Alone(), teacher=None
    )
    same = finished(Training(replace(alone, knowledge=()), digits(), seed=0))
    assert_same(same.student.state_dict(), teacher.state_dict())


def test_the_key_of_a_teacher_holds_its_input() -> None:
    keys = set()
    for name in (None, "4x4", "2x2"):
        concrete = study(teacher=Teacher(model=Mlp(width=8), input=name))
        [spec] = concrete.teacher_specs()
        keys.add(spec_key(spec, concrete, "fingerprint"))
        assert read_study(plain(concrete)) == concrete
        for other in ("4x4", None):  # the input of the student is no part of it
            student = replace(SMALL, input=other)
            assert spec_key(spec, replace(concrete, student=student), "fingerprint") in keys
    assert len(keys) == 3


def test_several_teachers_have_their_own_inputs() -> None:
    scheme = MultiTeacher(others=(Teacher(model=Mlp(width=8), input="2x2"), Teacher(model=Mlp())))
    concrete = study(scheme=scheme)
    teachers = train_teachers(concrete, digits())
    training = Training(concrete, digits(), seed=0, teacher=teachers)
    assert training.distiller.other_inputs == ("", "2x2")
    finished(training)


def test_an_assistant_may_take_a_third_input() -> None:
    scheme = SCHEMES["assistant"](chain=(Teacher(model=Mlp(width=8), input="2x2"),))
    concrete = study(scheme=scheme)
    [assistant] = train_teachers(concrete, digits())
    training = finished(Training(concrete, digits(), seed=0, teacher=assistant))
    assert training.distiller.other_inputs == ("2x2",)


def test_generations_and_peers_take_the_input_of_the_student() -> None:
    for name in ("born_again", "tf_kd_self", "dml", "kdcl", "byot", "ps_kd", "cs_kd"):
        scheme = SCHEMES[name]()
        terms = () if scheme.takes_knowledge else None
        student = Student(model=Resnet(depth=8, width=4), input="4x4")
        concrete = replace(study(student=student, scheme=scheme), teacher=None)
        if terms is None:
            concrete = replace(concrete, knowledge=())
        teachers = train_teachers(concrete, digits())
        training = finished(Training(concrete, digits(), seed=0, teacher=teachers))
        assert training.distiller.other_inputs == (), name


def test_the_baseline_takes_the_input_of_the_student() -> None:
    alone = replace(study(), scheme=Alone(), knowledge=(), teacher=None)
    training = finished(Training(alone, digits(), seed=0))
    assert training.data.input_shape == (1, 4, 4)
    assert training.evaluate("test")["test_accuracy"] > 0


def test_agreement_compares_each_network_on_its_own_input() -> None:
    task = Classification(metrics=("accuracy", "teacher_agreement"))
    teacher = network().eval()
    training = Training(study(task=task), digits(), seed=0, teacher=teacher)
    measured = finished(training).evaluate("test")["test_teacher_agreement"]
    assert training.reference is not None and training.reference.input is None
    whole = digits()
    inputs = whole.test.take(torch.arange(len(whole.test)))
    assert isinstance(inputs, torch.Tensor)
    scaled = (inputs / 255 - whole.mean[0]) / whole.std[0]
    small = training.data
    assert small.form is not None
    pixels = small.form.take(inputs)
    assert isinstance(pixels, torch.Tensor)
    taken = (pixels / 255 - small.mean[0]) / small.std[0]
    with torch.no_grad():
        student = training.student.eval()
        equal = teacher(scaled).argmax(1) == student(taken).argmax(1)
    assert measured == pytest.approx(equal.double().mean().item(), abs=0.01)


@pytest.mark.parametrize("case", [IMAGES, TEXTS], ids=["images", "texts"])
def test_a_resumed_training_is_equal(case: Case) -> None:
    concrete, data = case.study(), case.data()
    whole = finished(Training(concrete, data, seed=1, teacher=case.network()))
    first = Training(concrete, data, seed=1, teacher=case.network())
    first.run_epoch()
    second = Training(concrete, data, seed=1, teacher=case.network())
    second.load_state(first.state())
    assert_same(finished(second).student.state_dict(), whole.student.state_dict())


def test_parts_of_batches_hold_all_inputs() -> None:
    concrete = study()
    training = Training(concrete, digits(), seed=1, teacher=network())
    assert training.split_step is None
    from raykd.training.out_of_memory import split

    batch = next(iter(training.loader.epoch(0)))
    parts = list(split(batch, 4))
    joined = torch.cat([part.more_inputs[""] for part in parts])  # type: ignore[misc]
    assert torch.equal(joined, batch.more_inputs[""])  # type: ignore[arg-type]


def test_texts_with_few_labels() -> None:
    """The teacher and the student see their texts of all rows, the baseline those with labels."""
    data = keep_labels(language_cases.languages(), 2, seed=0)
    training = finished(Training(language_cases.study(), data, seed=0, teacher=TEXTS.network()))
    assert training.evaluate("test")["test_teacher_agreement"] >= 0
    baseline = language_cases.study(scheme=Alone(), knowledge=(), task=Classification())
    alone = finished(Training(baseline, labeled_samples(data), seed=0))
    [batch, *_] = alone.loader.epoch(0)
    assert isinstance(batch.inputs, dict) and batch.inputs["token_type_ids"].shape[1:] == (6,)


def test_the_teacher_of_texts_is_trained_on_its_own_input() -> None:
    concrete = language_cases.study()
    [trained] = train_teachers(concrete, language_cases.languages())
    assert isinstance(trained, nn.Module)
    assert trained.get_submodule("words").weight.shape == (40, 8)  # type: ignore[union-attr]
    training = finished(Training(concrete, language_cases.languages(), seed=0, teacher=trained))
    assert training.student.get_submodule("words").weight.shape == (12, 4)  # type: ignore[union-attr]


def test_layer_predictors_read_both_inputs() -> None:
    concrete = study(HINT, student=Student(model=Resnet(depth=8, width=4), input="4x4"))
    baseline = replace(concrete, scheme=Alone(), knowledge=())
    training = Training(baseline, digits(), seed=0)
    design = ProbedPairs(
        hints=("stage1", "stage2"),
        guided=("stage1", "stage2"),
        teacher_layers=("stage1", "stage2"),
        student_layers=("stage1", "stage2"),
        term=replace(concrete.knowledge[0], pairs=None),
        possible=((0, 0), (1, 1)),
        steps=2,
        batches=2,
    )
    predictors = probe_layers(design, training, teacher=network())
    assert torch.tensor(predictors["cka"]["steps"]).isfinite().all()
    assert predictors["gradient"][0][0] == predictors["gradient"][0][0], "not NaN"
