"""Trainings with cached teacher outputs equal trainings with a live teacher."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.cache_cases import EPOCHS, LAYERS, built, cropped, data, described
from helpers.study_cases import CLASS_LOSSES
from helpers.training_cases import (
    assert_same,
    scheme_of,
    teacher,
    teacher_model,
    teachers,
    untaught,
    untimed,
    weights,
)
from raykd.data import BatchLoader, ViewOptions
from raykd.losses import LOSSES, Pair, Term
from raykd.schemes import LiveTeacher, MultiTeacher, Teacher
from raykd.study.config import Cache, Study
from raykd.training.build import signature_of
from raykd.training.teacher_cache import CachedOutputs, CachedTeacher, TeacherHandle
from raykd.training.trainer import Training


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> CachedOutputs:
    study = cropped()
    return built(tmp_path_factory.mktemp("kept"), study, described(study, LAYERS))


class Untouchable(nn.Module):
    """Stand-in for a network that must not be loaded."""


def never() -> nn.Module:
    raise AssertionError("the teacher's network was asked for")


def finished(study: Study, teacher: Any, **settings: Any) -> Training:
    training = Training(study, data(), seed=5, teacher=teacher, **settings)
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


def assert_near(cached: Training, live: Training) -> None:
    """Check equality up to rounding."""
    for ours, theirs in zip(cached.history, live.history, strict=True):
        assert untimed(ours) == pytest.approx(untimed(theirs), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_every_loss(name: str, outputs: CachedOutputs) -> None:
    study = cropped(Term(loss=LOSSES[name]()))
    live = finished(study, teacher())
    lends = LOSSES[name].deploys
    cached_teacher = TeacherHandle(teacher() if lends else never, outputs)
    assert_near(finished(study, cached_teacher), live)


def test_cached_training_is_bitwise_equal(outputs: CachedOutputs) -> None:
    """On the CPU in float32, with samples whose outputs do not depend on the batch."""
    study = cropped(Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"]()))
    cached, live = finished(study, TeacherHandle(never, outputs)), finished(study, teacher())
    for ours, theirs in zip(cached.history, live.history, strict=True):
        assert untimed(ours) == pytest.approx(untimed(theirs), rel=1e-6)


@pytest.mark.parametrize("scheme", ["offline", "multi_teacher"])
def test_each_of_several_teachers_has_its_own_outputs(
    scheme: str, outputs: CachedOutputs, tmp_path: Path
) -> None:
    study = dataclasses.replace(cropped(), scheme=scheme_of(scheme))
    live = finished(study, teachers(study))
    cached_teacher = [TeacherHandle(never, outputs), *teachers(study)[1:]]
    assert_near(finished(study, cached_teacher), live)


def test_repeated_teacher_uses_same_outputs(outputs: CachedOutputs) -> None:
    spec = Teacher(model=teacher_model())
    study = dataclasses.replace(
        cropped(), scheme=MultiTeacher(others=(spec,), combine="confidence")
    )
    cached_teacher = TeacherHandle(never, outputs)
    assert_near(
        finished(study, [cached_teacher, cached_teacher]), finished(study, [teacher(), teacher()])
    )


def test_uncached_layers_run_only_required_part(tmp_path: Path) -> None:
    pairs = tuple(Pair(hint=name, guided=name) for name in ("stage1", "stage2"))
    study = cropped(Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"](), pairs=pairs))
    some = built(tmp_path, study, described(study, ("stage2",)))
    network = untaught(teacher_model(), 8)
    network.load_state_dict(teacher().state_dict())
    ran: list[str] = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    training = Training(study, data(), seed=5, teacher=TeacherHandle(network, some))
    training.run_epoch()
    ran.clear()  # the first forward goes to the end, to see where the layers lie
    training.run_epoch()
    source = training.distiller.teacher
    assert isinstance(source, CachedTeacher) and source.layers == ("stage2",)
    assert ran and not any("2" in name.split(".")[0] for name in ran), ran
    assert_near(training, finished(study, teacher()))


def test_forward_ends_early_if_logits_are_not_read() -> None:
    pair = (Pair(hint="stage1", guided="stage1"),)
    hint = Term(loss=LOSSES["hint"](), pairs=pair)
    for terms, reads_logits in (((hint,), False), ((hint, Term(loss=LOSSES["kd"]())), True)):
        training = Training(cropped(*terms), data(), seed=0, teacher=teacher())
        source = training.distiller.teacher
        assert isinstance(source, LiveTeacher) and source.logits == reads_logits


@pytest.mark.parametrize("name", [n for n in CLASS_LOSSES if not LOSSES[n].reads_logits])
def test_losses_without_logits_do_not_read_them(name: str) -> None:
    """They get no logits and give equal results."""
    study = cropped(Term(loss=LOSSES[name]()), epochs=1)
    training = Training(study, data(), seed=5, teacher=teacher())
    source = training.distiller.teacher
    assert isinstance(source, LiveTeacher) and not source.logits
    whole = Training(study, data(), seed=5, teacher=teacher())
    in_full = LiveTeacher(teacher(), source._hooked_model._hooks.names, signature_of(data()))
    vars(whole.distiller)["teacher"] = in_full
    ours, theirs = training.run_epoch(), whole.run_epoch()
    assert untimed(ours) == pytest.approx(untimed(theirs), rel=1e-5)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"cache": Cache(dtype="fp32", seed=6)}, "their views have seed 5"),
    "augment": ({"augment": ()}, "images with another augmentation"),
    "epochs": ({"epochs": EPOCHS + 1}, "they have 2 views, and the training uses 3"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_mismatched_outputs_raise(
    name: str, outputs: CachedOutputs, caplog: pytest.LogCaptureFixture
) -> None:
    changed, reason = MISFITS[name]
    study = cropped()
    if "augment" in changed:
        source = dataclasses.replace(study.data, augment=changed["augment"])
        study = dataclasses.replace(study, data=source)
    if "cache" in changed:
        study = dataclasses.replace(study, cache=changed["cache"])
    if "epochs" in changed:
        train = dataclasses.replace(study.train, epochs=changed["epochs"])
        study = dataclasses.replace(study, train=train)
    with caplog.at_level(logging.WARNING, logger="raykd"):
        training = Training(study, data(), seed=5, teacher=TeacherHandle(teacher(), outputs))
    assert isinstance(training.distiller.teacher, LiveTeacher)
    assert reason in caplog.text and "run live" in caplog.text


def test_limited_views_repeat(outputs: CachedOutputs) -> None:
    """With `views: 2` the third epoch equals the first, cached or live."""
    study = cropped(epochs=3, cache=Cache(dtype="fp32", seed=5, views=2))
    cached = finished(study, TeacherHandle(never, outputs))
    assert_near(cached, finished(study, teacher()))
    other = finished(dataclasses.replace(study, cache=Cache(seed=5)), teacher())
    assert other.history[1]["train_loss"] == cached.history[1]["train_loss"]
    assert other.history[2]["train_loss"] != cached.history[2]["train_loss"]


def test_views_depend_only_on_view_seed() -> None:
    """Trainings with different seeds have different orders and equal views."""

    def views_by_sample(seed: int, view_seed: int | None) -> dict[int, torch.Tensor]:
        batches = BatchLoader(
            data().train,
            data(),
            batch_size=16,
            shuffle_seed=seed,
            views=ViewOptions(cropped().data.augment, view_seed),
        )
        pictures: dict[int, torch.Tensor] = {}
        for batch in batches.epoch(3, view=1):
            assert batch.view == 1 and isinstance(batch.inputs, torch.Tensor)
            pictures |= dict(zip(batch.index.tolist(), batch.inputs, strict=True))
        return pictures

    first, second, third = views_by_sample(0, 7), views_by_sample(1, 7), views_by_sample(1, 8)
    assert list(first) != list(second) and first.keys() == second.keys()
    assert all(torch.equal(first[index], second[index]) for index in first)
    assert not all(torch.equal(first[index], third[index]) for index in first)
    alone = views_by_sample(1, None)
    assert all(
        torch.equal(alone[index], picture) for index, picture in views_by_sample(0, 1).items()
    )


def test_student_resumes_from_saved_state(outputs: CachedOutputs) -> None:
    study = cropped(Term(loss=LOSSES["kd"]()), Term(loss=LOSSES["hint"]()))
    whole = finished(study, TeacherHandle(never, outputs))
    first = Training(study, data(), seed=5, teacher=TeacherHandle(never, outputs))
    first.run_epoch()
    second = Training(study, data(), seed=5, teacher=TeacherHandle(never, outputs))
    second.load_state(first.state())
    second.run_epoch()
    assert_same(weights(second.student), weights(whole.student))


def test_shard_size_does_not_change_outputs(tmp_path: Path) -> None:
    study = cropped()
    whole = built(tmp_path, study, described(study, ("stage2",), shard_rows=96))
    parts = built(tmp_path, study, described(study, ("stage2",), shard_rows=7))
    batches = BatchLoader(data().train, data(), batch_size=32, shuffle_seed=0)
    for batch in batches.epoch(1):
        for name in ("@logits", "stage2"):
            assert torch.equal(whole.take(name, batch), parts.take(name, batch))
