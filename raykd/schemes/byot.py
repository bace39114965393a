"""Be your own teacher: the deepest exit of a network teaches the shallow exits."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.data.batch import Batch
from raykd.losses import Progress, Shape
from raykd.losses.connectors import PlaceMean, connector
from raykd.losses.logits import softened_kl
from raykd.models import discover, stage_aliases
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, HookedModel, SchemeInputs, StepOutput

Distance = Literal["mean", "squared", "norm"]


@option
class Byot(Scheme):
    """Train early exits of the student on the labels and on its deepest exit.

    Label loss + sum over shallow stages i of (1 - alpha) x label loss_i +
    alpha KL(p_deep || p_i), both softened by T, + feature x ||F_i - F_deep||^2, means over the
    batch; the deepest exit gets no gradient as a teacher; Zhang 2019 (arXiv:1905.08094), section 3.
    `times_t2` multiplies the divergence by T^2, as kd does (the paper and the authors' code do
    not).  distance, of the features: squared, the sum of squares of a sample, as in the paper;
    mean, that sum divided by the number of features, so that one weight suits all architectures;
    norm, the root of the sum over the whole batch, as in the authors' code.

    alpha 0.3, T = 3 and feature 0.03 (with norm) are from that code; 0.03 of the mean is close to
    the weight of another implementation, 1e-6 of the sum over a batch of 128 x 512 features.

    An exit consists of a connector to the shape of the last stage, ReLU, a mean over places, and a
    linear classifier (in the paper a bottleneck of three convolutions); exits are dropped after the
    training.
    """

    paper = "Zhang 2019, arXiv:1905.08094"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["byot"] = "byot"
    alpha: Annotated[
        float, Field(ge=0, le=1, description="Weight of the deepest exit relative to the labels")
    ] = 0.3
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of student and teacher")
    ] = 3.0
    times_t2: Annotated[bool, Field(description="Multiply the divergence by T^2, as in kd")] = False
    feature: Annotated[float, Field(ge=0, description="Weight of the feature loss")] = 0.03
    distance: Annotated[
        Distance,
        Field(description="Distance between the features of an exit and of the deepest exit"),
    ] = "mean"

    def build(self, parts: SchemeInputs) -> Distiller:
        return OwnTeacher(self, parts)


class OwnTeacher(Distiller):
    """A student with an exit at each stage but the last.

    Raises:
        ValueError: the student has fewer than two stages, or no connector maps a stage to the shape
            of the last one.
    """

    def __init__(self, scheme: Byot, parts: SchemeInputs) -> None:
        super().__init__()
        aliases = stage_aliases(discover(parts.student, parts.signature))
        stages = [name for name in aliases if name.startswith("stage")]
        if len(stages) < 2:
            raise ValueError(
                f"scheme 'byot' adds exits to shallow stages and the student has {len(stages)} "
                "stage(s); use a deeper student, or another scheme"
            )
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.stages = stages
        self.watched = HookedModel(parts.student, stages, parts.signature)
        last = aliases[stages[-1]].shape
        self.exits = nn.ModuleList(
            _Exit(aliases[name].shape, last, parts.classes) for name in stages[:-1]
        )

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        outputs = self.watched(batch.inputs)
        task = self.task_loss(outputs.logits, batch.targets)
        teacher_logits, deepest = outputs.logits.detach(), outputs.layers[self.stages[-1]].detach()
        exits = [
            leave(outputs.layers[name])
            for leave, name in zip(self.exits, self.stages, strict=False)
        ]
        tasks = torch.stack([self.task_loss(logits, batch.targets) for logits, _ in exits])
        lessons = torch.stack([lesson(logits, teacher_logits, self.scheme) for logits, _ in exits])
        features = torch.stack(
            [distance(carried, deepest, self.scheme.distance) for _, carried in exits]
        )
        alpha = self.scheme.alpha
        exits_total = (1 - alpha) * tasks + alpha * lessons + self.scheme.feature * features
        values = {
            "task": task.detach(),
            "exits_task": tasks.mean().detach(),
            "exits_kd": lessons.mean().detach(),
            "exits_feature": features.mean().detach(),
        }
        return StepOutput(task + exits_total.sum(), values, outputs.logits.detach())


def lesson(logits: Tensor, teacher_logits: Tensor, scheme: Byot) -> Tensor:
    """KL(teacher || student), both (B, K) and softened, mean over the batch."""
    divergence = softened_kl(logits.float(), teacher_logits.float(), scheme.temperature)
    return divergence if scheme.times_t2 else divergence / scheme.temperature**2


def distance(features: Tensor, deepest: Tensor, kind: Distance) -> Tensor:
    """Distance of the features of an exit from the deepest ones, (B, ...) both; see `Byot`."""
    apart = (features.float() - deepest.float()).flatten(1)
    if kind == "norm":
        return apart.norm()
    squares = apart.square()
    return squares.mean() if kind == "mean" else squares.sum(dim=1).mean()


class _Exit(nn.Module):
    """Output of a stage -> (logits, features with the shape of the last stage)."""

    def __init__(self, shape: Shape, last: Shape, classes: int) -> None:
        super().__init__()
        self.carry = nn.Sequential(connector(shape, last, always=True), nn.ReLU())
        width = last[0] if len(last) != 2 else last[1]
        self.pool = nn.Identity() if len(last) == 1 else PlaceMean()
        self.classify = nn.Linear(width, classes)

    def forward(self, stage: Tensor) -> tuple[Tensor, Tensor]:
        carried = self.carry(stage)
        return self.classify(self.pool(carried)), carried
