"""Training samples without labels: hidden by the source, taught by the teacher alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.cache_cases import built, cropped, described
from helpers.training_cases import DIGITS, alone, digits, taught, teacher, unnormalized, untimed
from raykd.data import BatchLoader, Dataset, Source
from raykd.data.dataset import Split
from raykd.data.few_labels import labeled_samples
from raykd.losses import LOSSES, Progress, Term
from raykd.study.config import Study
from raykd.tasks.classification import UNLABELED, Classification
from raykd.training.teacher_cache import TeacherHandle
from raykd.training.trainer import Training

PER_CLASS = 3


def few(count: int = PER_CLASS, **changed: object) -> Source:
    return dataclasses.replace(DIGITS, labels_per_class=count, **changed)  # type: ignore[arg-type]


def with_few(study: Study, count: int = PER_CLASS) -> Study:
    return dataclasses.replace(study, data=few(count))


def trained(study: Study, data: Dataset) -> list[dict[str, float]]:
    training = Training(study, data, seed=0, teacher=teacher() if study.teacher else None)
    while training.epoch < training.epochs:
        training.run_epoch()
    return [untimed(metrics) for metrics in training.history]


# Data


def test_source_hides_labels_of_training_samples() -> None:
    data, whole = few().load(), digits()
    assert data.class_counts("train") == [PER_CLASS] * 10
    labeled = data.train.targets != UNLABELED
    assert torch.equal(data.train.targets[labeled], whole.train.targets[labeled])
    assert torch.equal(data.train.index, whole.train.index)
    for part in ("val", "test"):
        assert torch.equal(data.split(part).targets, whole.split(part).targets)
    assert "30 of 200 training samples have a label" in data.notes[-1]


def test_choice_depends_on_split_seed_and_is_part_of_fingerprint() -> None:
    first, again, more, other = (each.load() for each in (few(), few(), few(4), few(split_seed=1)))
    assert torch.equal(first.train.targets, again.train.targets)
    prints = {each.fingerprint for each in (first, more, other, digits())}
    assert first.fingerprint == again.fingerprint and len(prints) == 4


def test_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(ValueError, match=r"class '.' has \d+ training samples, and labels_per_"):
        few(60).load()


def test_labeled_samples_are_repeated_to_size_of_split() -> None:
    data = few().load()
    repeated = labeled_samples(data)
    assert len(repeated.train) == len(data.train)
    assert repeated.train.index.unique().numel() == len(data.train)
    assert isinstance(repeated.train, Split) and isinstance(data.train, Split)
    whole = dict(zip(data.train.index.tolist(), data.train.targets.tolist(), strict=True))
    numbers = (repeated.train.index % data.data_size).tolist()
    assert [whole[each] for each in numbers] == repeated.train.targets.tolist()
    counts = torch.tensor(numbers).unique(return_counts=True)[1]
    assert len(counts) == 30 and counts.max() - counts.min() <= 1


# Losses


def test_label_loss_is_mean_over_labeled_samples_of_an_epoch() -> None:
    data = few().load()
    targets, rows = data.train.targets, torch.randperm(200)
    response = torch.randn(200, 10)
    loss = Classification().label_loss(targets, 10, smoothing=0.1)
    parts = [loss(response[part], targets[part]) * len(part) / 200 for part in rows.split(37)]
    labeled = targets >= 0
    right = F.cross_entropy(response[labeled], targets[labeled], label_smoothing=0.1)
    assert torch.stack(parts).sum().item() == pytest.approx(right.item(), rel=1e-5)


def test_gradient_is_that_of_labels_and_of_kd_on_all_samples() -> None:
    study, data = with_few(unnormalized()), few().load()
    training = Training(study, data, seed=0, teacher=teacher())
    batch = next(iter(BatchLoader(data.train, data, batch_size=64, shuffle_seed=0).epoch(0)))
    labeled = batch.targets != UNLABELED
    assert 0 < labeled.sum() < 64
    training.forward_backward(batch, Progress(0, 2, 0, 4))
    actual = [each.grad for each in training.student.parameters() if each.grad is not None]

    def value(logits: Tensor) -> Tensor:
        labels = F.cross_entropy(logits[labeled], batch.targets[labeled], reduction="sum")
        taught_by = teacher()(batch.inputs).detach()
        kd = LOSSES["kd"]()(logits, taught_by, batch.targets)
        return labels / 64 * 200 / 30 + kd * 0.9

    parameters = list(training.student.parameters())
    expected = torch.autograd.grad(value(training.student(batch.inputs)), parameters)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_training_accuracy_is_of_labeled_samples() -> None:
    study, data = with_few(taught(epochs=1)), few().load()
    training = Training(study, data, seed=0, teacher=teacher())
    metrics = training.train_epoch()
    share = metrics.compute(1)["train_accuracy"] * 30
    assert share == pytest.approx(round(share)) and 0 <= share <= 30


def test_student_alone_sees_labeled_samples_alone() -> None:
    """Pixels of the other samples do not matter."""
    data = few().load()
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, Tensor)
    inputs = data.train.inputs.clone()
    inputs[data.train.targets == UNLABELED] = 255
    changed = dataclasses.replace(data, train=dataclasses.replace(data.train, inputs=inputs))
    study = with_few(alone(epochs=1))
    assert trained(study, data) == trained(study, changed)
    kd = with_few(taught(epochs=1))
    assert trained(kd, data) != trained(kd, changed), "a taught student sees all samples"


def test_without_labels_only_teacher_teaches() -> None:
    [*_, last] = trained(with_few(taught(epochs=2), 0), few(0).load())
    assert last["term_task"] == 0 and last["term_kd"] > 0 and "train_accuracy" not in last
    with pytest.raises(ValueError, match="no training sample has a label"):
        Training(with_few(alone(), 0), few(0).load(), seed=0)


def test_cached_outputs_equal_live_ones(tmp_path: Path) -> None:
    study = cropped(Term(loss=LOSSES["kd"]()))
    study = dataclasses.replace(study, data=dataclasses.replace(study.data, labels_per_class=2))
    data = study.data.load()
    outputs = built(tmp_path, study, described(study, fingerprint=data.fingerprint))

    def never() -> torch.nn.Module:
        raise AssertionError("the teacher's network was asked for")

    histories = []
    for each in (TeacherHandle(never, outputs), teacher()):
        training = Training(study, data, seed=5, teacher=each)
        while training.epoch < training.epochs:
            training.run_epoch()
        histories.append([untimed(metrics) for metrics in training.history])
    for cached, live in zip(*histories, strict=True):
        assert cached == pytest.approx(live, rel=1e-5)
