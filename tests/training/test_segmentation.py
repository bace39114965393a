"""Trainings whose response has positions; `test_every_training` has tests of every task."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from helpers.segmentation_cases import (
    CLASSES,
    DENSE_LOSSES,
    DENSE_MODELS,
    METRICS,
    SIDE,
    alone,
    data,
    every_kind,
    taught,
    teacher,
)
from raykd.data import Batch, BatchLoader, Dataset
from raykd.losses import LOSSES, Pair, Progress, Term
from raykd.models import MODELS, Unet
from raykd.study.config import Student, Study
from raykd.tasks import Segmentation
from raykd.tasks.statistics import IGNORED
from raykd.training.metrics import EVALUATION_VALUES, evaluate_split, evaluation_batch
from raykd.training.output_check import SUMS_TO_ONE, check_outputs
from raykd.training.trainer import Training


def training_of(study: Study, seed: int = 0, **rest: object) -> Training:
    return Training(study, data(), seed=seed, teacher=rest.get("teacher", teacher()))  # type: ignore[arg-type]


def finished(training: Training) -> Training:
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


def whole_test_split() -> tuple[Tensor, Tensor]:
    """Return responses of the teacher and targets."""
    loader = BatchLoader(data().test, data(), batch_size=5, shuffle_seed=None)
    batches = list(loader.epoch(0))
    with torch.no_grad():
        responses = [teacher()(batch.inputs) for batch in batches]
    return torch.cat(responses), torch.cat([batch.targets for batch in batches])


def test_metrics_equal_torchmetrics_on_whole_split() -> None:
    response, targets = whole_test_split()
    options: dict[str, Any] = {"num_classes": CLASSES, "ignore_index": IGNORED}
    ious = MulticlassJaccardIndex(**options, average="none")(response, targets)
    expected = {
        "loss": cross_entropy(response, targets, ignore_index=IGNORED),
        "mean_iou": MulticlassJaccardIndex(**options)(response, targets),
        "mean_dice": MulticlassF1Score(**options)(response, targets),
        "worst_class_iou": ious.min(),
        "pixel_accuracy": MulticlassAccuracy(**options, average="micro")(response, targets),
    }
    for batch_size in (1, 4, 512):
        values = evaluate_split(
            teacher(), data(), "test", task=alone().learning_task, batch_size=batch_size
        )
        assert list(values) == [f"test_{name}" for name in ("loss", *METRICS)]
        for name, value in expected.items():
            assert values[f"test_{name}"] == pytest.approx(value.item(), abs=1e-6), name


def test_agreement_with_teacher_is_share_of_positions() -> None:
    task = Segmentation(metrics=("teacher_agreement",))
    study = dataclasses.replace(taught(epochs=1), task=task)
    training = training_of(study)
    training.run_epoch()
    response, _ = whole_test_split()
    loader = BatchLoader(data().test, data(), batch_size=13, shuffle_seed=None)
    batch = next(loader.epoch(0))
    with torch.no_grad():
        ours = training.student.eval()(batch.inputs)
    expected = (ours.argmax(1) == response.argmax(1)).double().mean().item()
    assert training.evaluate("test")["test_teacher_agreement"] == pytest.approx(expected)
    assert 0 < expected < 1


def test_positions_that_do_not_count_change_nothing() -> None:
    """Other responses at them give the same label loss and metrics."""
    response, targets = whole_test_split()
    task = alone().learning_task
    other = torch.where((targets == IGNORED)[:, None], -response, response)
    loss = task.label_loss(data().train.targets, CLASSES)
    assert loss(other, targets) == loss(response, targets)
    assert task.loss_sum(other, targets) == task.loss_sum(response, targets)
    for name in METRICS:
        statistic = task.statistic(name)
        count = getattr(statistic, "counts", None) or statistic.sums  # type: ignore[union-attr]
        assert torch.equal(count(other, targets), count(response, targets)), name


def test_every_position_has_equal_weight_in_an_epoch() -> None:
    targets = data().train.targets.long()
    counted = (targets != IGNORED).sum((1, 2))
    assert counted.min() < 0.7 * counted.max(), "samples differ in the positions that count"
    response = torch.randn(len(targets), CLASSES, SIDE, SIDE)
    loss = alone().learning_task.label_loss(data().train.targets, CLASSES)
    parts = torch.arange(len(targets)).split(19)
    mean = sum(loss(response[p], targets[p]) * len(p) for p in parts) / len(targets)
    expected = cross_entropy(response, targets, ignore_index=IGNORED)
    torch.testing.assert_close(mean, expected)


def test_gradients_of_parts_add_up_to_that_of_the_batch() -> None:
    responses = every_kind().knowledge[:3]  # the connector of a hint has batch norm
    training = training_of(taught(*responses))
    batch = next(training.loader.epoch(0))
    progress = Progress(0, 2)
    training.student.eval()
    gradients = []
    for sizes in ([len(batch)], [4, 6, len(batch) - 10]):
        training.clear_gradients()
        start = 0
        for size in sizes:
            rows = slice(start, start + size)
            part = Batch(batch.inputs[rows], batch.targets[rows], batch.index[rows])  # type: ignore[index]
            training.add_gradient(part, size / len(batch), progress)
            start += size
        gradients.append([p.grad.clone() for p in training.parameters if p.grad is not None])
    assert len(gradients[0]) == len(training.parameters)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DENSE_LOSSES)
def test_every_loss_that_fits_trains(name: str) -> None:
    stages = ("stage1", "stage2")[-LOSSES[name].least_pairs :]
    pairs = tuple(Pair(hint=stage, guided=stage) for stage in stages)
    pairs = pairs if LOSSES[name].takes_pairs else None
    student = Unet(depth=1, width=4)  # stages of the teacher's sizes
    study = taught(Term(loss=LOSSES[name](), pairs=pairs), epochs=1)
    study = dataclasses.replace(study, student=Student(model=student))
    training = training_of(study)
    before = [parameter.detach().clone() for parameter in training.student.parameters()]
    metrics = training.run_epoch()
    assert math.isfinite(metrics[f"term_{name}"]) and metrics[f"term_{name}"] != 0
    assert math.isfinite(metrics["val_mean_iou"])
    after = training.student.parameters()
    assert not any(map(torch.equal, before, after))


@pytest.mark.parametrize("name", DENSE_MODELS)
def test_every_model_that_fits_trains(name: str) -> None:
    study = dataclasses.replace(alone(epochs=1), student=Student(model=MODELS[name]()))
    assert math.isfinite(training_of(study).run_epoch()["train_loss"])


def test_training_learns() -> None:
    study = dataclasses.replace(
        alone(epochs=12, batch_size=8),
        data=dataclasses.replace(alone().data, augment=()),
        student=Student(model=Unet(depth=1, width=8)),
    )
    training = finished(training_of(study))
    first, last = training.history[0], training.history[-1]
    assert last["val_mean_iou"] > 0.6 > 0.3 > first["val_worst_class_iou"]
    assert last["train_pixel_accuracy"] > first["train_pixel_accuracy"]


def test_masks_move_with_their_images() -> None:
    """The level of a pixel gives its class, also after flips and crops."""
    training = training_of(alone())
    views = [next(training.loader.epoch(0, view=view)) for view in (0, 1, 0)]
    assert torch.equal(views[0].targets, views[2].targets), "a view is replayable"
    assert not torch.equal(views[0].targets, views[1].targets)
    for batch in views:
        assert isinstance(batch.inputs, Tensor)
        levels = ((batch.inputs[:, 0] * 0.3 + 0.4) * 255).round() // 60
        counted = batch.targets != IGNORED
        assert torch.equal(levels[counted].long(), batch.targets[counted])


def test_large_responses_are_evaluated_in_small_batches() -> None:
    assert evaluation_batch(data()) == 512
    large = dataclasses.replace(data(), input_shape=(1, 1024, 1024))
    assert evaluation_batch(large) == EVALUATION_VALUES // (CLASSES * 1024**2)
    assert evaluation_batch(large, 64) == 64


def test_probabilities_of_a_teacher_are_recognized() -> None:
    network = torch.nn.Sequential(teacher(), torch.nn.Softmax(1))
    assert check_outputs(network, data()) == {SUMS_TO_ONE: 1.0}
    assert not check_outputs(teacher(), data())


def test_arrays_keep_masks() -> None:
    back = Dataset.from_arrays(data().arrays())
    assert back.is_dense and torch.equal(back.train.targets, data().train.targets)
    assert data().class_counts("train") == []
