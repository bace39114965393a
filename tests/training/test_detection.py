"""Trainings of detectors; `test_every_training` has tests of every task."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from helpers.detection_cases import (
    BOX_LOSSES,
    BOX_MODELS,
    METRICS,
    SAME_SHAPE,
    alone,
    data,
    drawn,
    taught,
    teacher,
)
from raykd.data import AUGMENTATIONS, BatchLoader, Dataset
from raykd.losses import LOSSES, Progress, Term
from raykd.models import MODELS, Retinanet
from raykd.models.detector import MOST_BOXES
from raykd.study.config import Student, Study
from raykd.tasks import Detection
from raykd.train_config import AdamW
from raykd.training.metrics import evaluate_split
from raykd.training.trainer import Training


def training_of(study: Study) -> Training:
    return Training(study, data(), seed=0, teacher=teacher())


def finished(training: Training) -> Training:
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


def learner(**train: object) -> Study:
    """Study of a student that learns the boxes."""
    fields = {"epochs": 12, "batch_size": 8, "optimizer": AdamW(lr=0.01), **train}
    study = dataclasses.replace(alone(), student=Student(model=Retinanet(width=4, levels=2)))
    return dataclasses.replace(study, train=dataclasses.replace(study.train, **fields))


@pytest.fixture(scope="module")
def learned() -> Training:
    return finished(training_of(learner()))


def test_training_learns(learned: Training) -> None:
    first, last = learned.history[0], learned.history[-1]
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert last["val_loss"] < first["val_loss"]
    assert last["val_map_50"] > 0.05 + first["val_map_50"]
    assert last["train_anchor_accuracy"] > first["train_anchor_accuracy"]


def test_metrics_equal_torchmetrics_on_whole_split(learned: Training) -> None:
    batch = next(BatchLoader(data().val, data(), batch_size=64, shuffle_seed=None).epoch(0))
    network = learned.student.eval()
    with torch.no_grad():
        response = network(batch.inputs)
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    for rows, truth in zip(network.detections(response), batch.targets, strict=True):  # type: ignore[operator]
        best, real = rows[rows[:, 5] >= 0], truth[truth[:, 4] >= 0]
        predicted = {"boxes": best[:, :4], "scores": best[:, 4], "labels": best[:, 5].int()}
        metric.update([predicted], [{"boxes": real[:, :4], "labels": real[:, 4].int()}])
    expected = metric.compute()
    assert 0.05 < expected["map"] < expected["map_50"]
    for batch_size in (1, 4):
        values = evaluate_split(
            network, data(), "val", task=alone().learning_task, batch_size=batch_size
        )
        assert list(values) == [f"val_{name}" for name in ("loss", *METRICS)]
        for name in METRICS:
            assert values[f"val_{name}"] == pytest.approx(expected[name].item(), abs=1e-6), name


def test_loss_is_a_mean_over_images() -> None:
    """Losses of parts of a batch add up to that of the batch, also of images without boxes."""
    task = Detection().for_network(teacher())
    batch = next(BatchLoader(data().train, data(), batch_size=20, shuffle_seed=None).epoch(0))
    assert (batch.targets[:, :, 4] < 0).all(1).any(), "an image without a box"
    response = teacher()(batch.inputs)
    loss = task.label_loss(data().train.targets, 3)
    parts = torch.arange(20).split(7)
    mean = sum(loss(response[p], batch.targets[p]) * len(p) for p in parts) / 20
    torch.testing.assert_close(mean, loss(response, batch.targets))
    torch.testing.assert_close(task.loss_sum(response, batch.targets).float() / 20, mean)


def test_rows_without_a_box_change_nothing() -> None:
    task = Detection().for_network(teacher())
    targets = data().train.targets[:6]
    response = teacher()((data().train.take(torch.arange(6)) / 255).float())  # type: ignore[operator]
    padded = torch.cat([targets.new_full((6, 3, 5), -1.0), targets.flip(1)], dim=1)
    torch.testing.assert_close(task.loss_sum(response, padded), task.loss_sum(response, targets))
    statistic = task.statistic("anchor_accuracy")
    assert statistic.sums(response, padded) == statistic.sums(response, targets)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_every_loss_that_fits_trains(name: str) -> None:
    pairs = SAME_SHAPE[-LOSSES[name].least_pairs :]
    student = Retinanet(width=4, channels=16, levels=2)
    study = dataclasses.replace(
        taught(Term(loss=LOSSES[name](), pairs=pairs), epochs=1), student=Student(model=student)
    )
    training = training_of(study)
    before = [parameter.detach().clone() for parameter in training.student.parameters()]
    metrics = training.run_epoch()
    assert math.isfinite(metrics[f"term_{name}"]) and metrics[f"term_{name}"] != 0
    assert 0 <= metrics["val_map"] <= 1
    assert not any(map(torch.equal, before, training.student.parameters()))


@pytest.mark.parametrize("name", [name for name in BOX_MODELS if "/" not in name])
def test_every_model_that_fits_trains(name: str) -> None:
    study = dataclasses.replace(alone(epochs=1), student=Student(model=MODELS[name]()))
    assert math.isfinite(training_of(study).run_epoch()["train_loss"])


def test_gradients_of_parts_add_up_to_that_of_the_batch() -> None:
    training = training_of(taught())
    batch = next(training.loader.epoch(0))
    gradients = []
    for sizes in ([len(batch)], [4, len(batch) - 4]):
        training.clear_gradients()
        start = 0
        for size in sizes:
            rows = slice(start, start + size)
            inputs = batch.inputs[rows]  # type: ignore[index]
            part = dataclasses.replace(
                batch, inputs=inputs, targets=batch.targets[rows], index=batch.index[rows]
            )
            training.add_gradient(part, size / len(batch), Progress(0, 2))
            start += size
        gradients.append([p.grad.clone() for p in training.parameters if p.grad is not None])
    assert len(gradients[0]) == len(training.parameters)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_boxes_move_with_their_images() -> None:
    """A picture drawn from the moved boxes equals the moved picture, and a view is replayable."""
    study = dataclasses.replace(alone().data, augment=(AUGMENTATIONS["horizontal_flip"](),))
    training = training_of(dataclasses.replace(alone(), data=study))
    views = [next(training.loader.epoch(0, view=view)) for view in (0, 1, 0)]
    assert torch.equal(views[0].targets, views[2].targets)
    assert not torch.equal(views[0].targets, views[1].targets)
    for batch in views:
        assert isinstance(batch.inputs, Tensor)
        levels = ((batch.inputs * 0.3 + 0.2) * 255).round().to(torch.uint8)
        assert torch.equal(levels, drawn(batch.targets))


def test_responses_hold_a_fixed_number_of_boxes() -> None:
    response = teacher()(torch.rand(3, 1, 32, 32))
    detections = teacher().detections(response + 3)  # type: ignore[operator]
    assert detections.shape == (3, MOST_BOXES, 6)
    scores = detections[:, :, 4]
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "the best first"


def test_arrays_keep_boxes() -> None:
    back = Dataset.from_arrays(data().arrays())
    assert back.has_boxes and not back.is_dense
    assert torch.equal(back.train.targets, data().train.targets)
    assert data().class_counts("train") == []
