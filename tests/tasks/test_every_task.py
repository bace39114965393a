"""Conformance tests of every task; new members of TASKS are included.

`test_every_training` and `test_training_workers` have those of whole trainings, and
`test_losses_of_tasks` those of losses.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.reference_metrics import reference_metric
from helpers.task_cases import full
from raykd.data import Batch
from raykd.metrics import facts_of
from raykd.models import Retinanet, Signature
from raykd.models.detector import Detector
from raykd.tasks import ALL_KINDS, TASKS, Task
from raykd.tasks.detection import NO_BOX, boxes_of
from raykd.tasks.statistics import IGNORED, MeanStatistic
from raykd.training.metrics import evaluate

OUTPUTS, SAMPLES = 6, 90
POSITIONS = (5, 4)

every_task = pytest.mark.parametrize("cls", list(TASKS), ids=lambda cls: cls.name)


def default(cls: type[Task]) -> Task:
    """Return a task with its defaults."""
    return TASKS[cls.name]()


class GivenResponses(nn.Module):
    """Network whose samples are the responses of a detector."""

    def __init__(self) -> None:
        super().__init__()
        signature = Signature((1, 32, 32), OUTPUTS, boxes=True)
        detector = Retinanet(width=1, channels=8, levels=2).build(signature)
        assert isinstance(detector, Detector)
        self.detector = detector
        self.box_losses = self.detector.box_losses
        self.detections = self.detector.detections
        self.anchor_scores = self.detector.anchor_scores

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@lru_cache(maxsize=1)
def detector() -> GivenResponses:
    return GivenResponses()


def boxes(generator: torch.Generator) -> Tensor:
    """(SAMPLES, 2, 5) boxes that do not overlap; every fourth image has one alone."""
    corners = torch.randint(0, 3, (SAMPLES, 2, 2), generator=generator)
    corners[:, 1] += 16
    sizes = torch.randint(10, 14, (SAMPLES, 2, 2), generator=generator)
    classes = torch.randint(OUTPUTS, (SAMPLES, 2, 1), generator=generator)
    targets = torch.cat([corners, corners + sizes, classes], dim=2).float()
    targets[::4, 1] = NO_BOX
    return targets


def encoded(targets: Tensor) -> Tensor:
    """Return the responses that give these boxes."""
    from torchvision.models.detection._utils import BoxCoder, Matcher
    from torchvision.ops import box_iou

    anchors = detector().detector.anchors
    response = torch.zeros(len(targets), len(anchors), 4 + OUTPUTS)
    response[:, :, 4:] = -30
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    for rows, (corners, classes) in zip(response, boxes_of(targets), strict=True):
        matches = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(corners, anchors))
        [used] = torch.nonzero(matches >= 0, as_tuple=True)
        rows[used, :4] = coder.encode_single(corners[matches[used]], anchors[used])
        rows[used, 4 + classes[matches[used]]] = 30
    return response


def targets_of(task: Task) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if task.kind == "boxes":
        return boxes(generator)
    if task.kind == "dense":
        targets = torch.randint(OUTPUTS, (SAMPLES, *POSITIONS), generator=generator)
        ignored = torch.rand(targets.shape, generator=generator) < 0.3
        return targets.masked_fill(ignored, IGNORED)
    if task.kind == "softmax":
        return torch.randint(OUTPUTS, (SAMPLES,), generator=generator)
    values = torch.randn(SAMPLES, OUTPUTS, generator=generator)
    return (values > 0.4).float() if task.kind == "sigmoid" else values


def right_response(task: Task, targets: Tensor) -> Tensor:
    """Return a response that is as good as can be."""
    if task.kind == "boxes":
        return encoded(targets)
    if task.kind == "softmax":
        return 20 * torch.nn.functional.one_hot(targets, OUTPUTS).float()
    if task.kind == "dense":
        present = torch.nn.functional.one_hot(targets % OUTPUTS, OUTPUTS)
        return 20 * present.permute(0, 3, 1, 2).float()
    return 40 * targets - 20 if task.kind == "sigmoid" else targets


def random_response(task: Task, seed: int) -> Tensor:
    shape = (OUTPUTS, *POSITIONS) if task.kind == "dense" else (OUTPUTS,)
    if task.kind == "boxes":
        shape = (len(detector().detector.anchors), 4 + OUTPUTS)
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(seed))


def measured(
    task: Task, response: Tensor, targets: Tensor, size: int, **options: Any
) -> dict[str, float]:
    rows = torch.arange(SAMPLES).split(size)
    batches = [Batch(response[row], targets[row], row) for row in rows]
    teacher = right_response(task, targets)
    return evaluate(network_of(task), batches, task=task, teacher=teacher, **options)


def network_of(task: Task) -> nn.Module:
    """Return a network that returns its samples."""
    return detector() if task.kind == "boxes" else nn.Identity()


@every_task
def test_options_are_whole(cls: type[Task]) -> None:
    task = default(cls)
    assert task.kind in ALL_KINDS
    assert task.lead == task.metrics[0]
    assert isinstance(task.statistic(task.train_metric), MeanStatistic)
    assert pickle.loads(pickle.dumps(task)) == task
    assert not task.training_settings(), "defaults leave the keys of teachers as they are"


@every_task
def test_batches_do_not_matter(cls: type[Task]) -> None:
    task = full(cls)
    targets = targets_of(task)
    response = random_response(task, 4)
    whole = measured(task, response, targets, SAMPLES)
    assert measured(task, response, targets, 7) == pytest.approx(whole, abs=1e-6)
    assert list(whole) == ["loss", *task.metrics]


@every_task
@pytest.mark.parametrize("size", [SAMPLES, 32, 1])
def test_metrics_equal_torchmetrics_on_whole_split(cls: type[Task], size: int) -> None:
    """Responses are partly right; values have units of their own."""
    task = full(cls)
    targets = targets_of(task)
    teacher = right_response(task, targets)
    mixed = torch.cat([targets[:30].roll(1, 0), targets[30:]])
    noise = 0.3 if cls.kind == "boxes" else 1.5 * teacher.std()
    response = right_response(task, mixed) + noise * random_response(task, 6)
    scale = tuple(range(1, 1 + OUTPUTS)) if cls.name == "regression" else ()
    values = measured(task, response, targets, size, scale=scale)
    bound = task.for_network(network_of(task))
    for name in task.metrics:
        reference = reference_metric(cls, name, OUTPUTS, scale)
        truth = teacher if name == "teacher_agreement" else targets
        expected = reference(bound.summary(response), truth)
        assert values[name] == pytest.approx(expected, abs=1e-5), name
        facts = facts_of(name)
        assert facts.low < values[name] < facts.high, f"{name}: the case says nothing"


@every_task
def test_right_responses_are_better_than_random_ones(cls: type[Task]) -> None:
    task = full(cls)
    targets = targets_of(task)
    random = random_response(task, 5)
    good = measured(task, right_response(task, targets), targets, 32)
    poor = measured(task, random, targets, 32)
    for name in ("loss", *task.metrics):
        facts = facts_of(name)
        best = facts.high if facts.direction == "max" else facts.low
        assert good[name] == pytest.approx(best, abs=1e-6), name
        assert (good[name] > poor[name]) == (facts.direction == "max"), name
        assert facts.low <= poor[name] <= facts.high, name


@every_task
def test_label_loss_trains_response(cls: type[Task]) -> None:
    task = default(cls)
    task = task.for_network(network_of(task))
    targets = targets_of(task)
    response = torch.zeros_like(random_response(task, 0), requires_grad=True)
    loss = task.label_loss(targets, OUTPUTS)
    before = loss(response, targets)
    before.backward()
    assert response.grad is not None
    after = loss(response.detach() - 10 * response.grad, targets)
    assert before.dim() == 0 and after < before
    total = task.loss_sum(response.detach(), targets)
    assert total.item() / float(task.count(targets)) == pytest.approx(before.item(), rel=1e-5)
