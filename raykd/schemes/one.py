"""On-the-fly native ensemble: branches of one network, whose gated ensemble teaches each."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture import Layer, Task, discover, resolve, stage_aliases
from raykd.data.batch import Batch, Inputs
from raykd.knowledge import Progress, Shape
from raykd.knowledge.connectors import PlaceMean
from raykd.knowledge.response import softened_kl
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput
from raykd.schemes.watched import Watched


@option
class One(Scheme):
    """Branches on a shared trunk learn from the labels and from their gated ensemble.

    Sum over branches of the labels' loss + labels' loss of the ensemble + weight x sum of
    T^2 KL(ensemble || branch), the ensemble's logits being the branches' weighed by a gate (linear,
    softmax) on the trunk's features; Lan 2018 (arXiv:1806.04606), Eqs. 4 to 9, T = 3.  As a teacher
    the ensemble gets no gradient.  The branches are copies of all that follows the layer `split`,
    with weights of their own; the student is the trunk with the first branch.
    """

    paper = "Lan 2018, arXiv:1806.04606"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["one"] = "one"
    branches: Annotated[int, Field(ge=2, le=8, description="the student's own included")] = 3
    split: Annotated[
        str | None, Field(description="the trunk's last layer; null: the stage before the last")
    ] = None
    temperature: Annotated[float, Field(gt=0, description="softens both softmaxes")] = 3.0
    weight: Annotated[float, Field(ge=0, description="of the ensemble's teaching")] = 1.0

    def build(self, parts: Parts) -> Distiller:
        return Branching(self, parts)


class Branching(Distiller):
    """A student whose upper part exists several times."""

    def __init__(self, scheme: One, parts: Parts) -> None:
        super().__init__()
        layer = split_layer(parts.student, parts.task, scheme.split)
        check_chain(parts.student, layer, parts.task)
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.watched = Watched(parts.student, [layer.name], parts.task)
        self.branches = nn.ModuleList(
            upper_part(parts.build_student(), layer) for _ in range(scheme.branches - 1)
        )
        self.gate = _gate(layer.shape, scheme.branches)
        self.split = layer.name

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        shown = self.watched(batch.inputs)
        trunk = shown.layers[self.split]
        logits = [shown.logits, *(branch(batch.inputs, trunk) for branch in self.branches)]
        stacked = torch.stack([one.float() for one in logits])
        shares = self.gate(trunk).float().softmax(dim=1)
        ensemble = torch.einsum("bp,pbk->bk", shares, stacked)
        tasks = torch.stack([self.task_loss(one, batch.targets) for one in stacked])
        together = self.task_loss(ensemble, batch.targets)
        taught = ensemble.detach()
        lessons = [softened_kl(one, taught, self.scheme.temperature) for one in stacked]
        lesson = torch.stack(lessons)
        total = tasks.sum() + together + self.scheme.weight * lesson.sum()
        values = {
            "task": tasks[0].detach(),
            "ensemble": lesson[0].detach(),
            "ensemble_task": together.detach(),
        }
        return StepOutput(total, values, shown.logits.detach())


class Branch(nn.Module):
    """A network without its trunk: `branch(inputs, trunk's features) -> logits`."""

    def __init__(self, model: nn.Module, given: _Given) -> None:
        super().__init__()
        self.model = model
        self._given = [given]

    def forward(self, inputs: Inputs, trunk: Tensor) -> Tensor:
        self._given[0].features = trunk
        try:
            return self.model(inputs)
        finally:
            self._given[0].features = None


class _Given(nn.Module):
    """Stands where the trunk's last layer stood, and gives what it is told to."""

    features: Tensor | None = None

    def forward(self, *ignored: object) -> Tensor:
        assert self.features is not None
        return self.features


def upper_part(model: nn.Module, layer: Layer) -> Branch:
    """What follows `layer` in a network whose modules, up to it, run one after the other."""
    model = copy.deepcopy(model)
    given = _Given()
    parent = model
    *path, last = layer.module.split(".")
    for name in path:
        _forget_before(parent, name)
        parent = parent.get_submodule(name)
    _forget_before(parent, last)
    setattr(parent, last, given)
    return Branch(model, given)


def split_layer(student: nn.Module, task: Task, name: str | None) -> Layer:
    """The layer after which the branches part.

    Raises:
        ValueError: there is no such layer, or fewer than two stages to choose from.
    """
    known = discover(student, task)
    if name is not None:
        return resolve(known, name)
    stages = [layer for alias, layer in stage_aliases(known).items() if alias.startswith("stage")]
    if len(stages) < 2:
        raise ValueError(
            f"scheme 'one' parts the student before its last stage and finds {len(stages)} "
            "stage(s); name the trunk's last layer in `split`"
        )
    return stages[-2]


def check_chain(student: nn.Module, layer: Layer, task: Task) -> None:
    """See that the student can be cut after `layer`: the rest, given the trunk's features, gives
    the student's logits.

    Raises:
        ValueError: it does not.
    """
    probe = copy.deepcopy(student).eval()
    device = next(probe.parameters()).device
    inputs = torch.rand(2, *task.input_shape, device=device)
    with torch.no_grad():
        shown = Watched(probe, [layer.name], task)(inputs)
        try:
            same = torch.equal(
                upper_part(probe, layer)(inputs, shown.layers[layer.name]), shown.logits
            )
        except (RuntimeError, AttributeError, TypeError, ValueError):
            same = False
    if layer.side == "input" or not same:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: the modules before it do not "
            "form a chain; name another layer in `split`, a stage's end for example"
        )


def _forget_before(parent: nn.Module, name: str) -> None:
    """Put identities in place of the modules that stand before `name`."""
    for child, _ in list(parent.named_children()):
        if child == name:
            return
        setattr(parent, child, nn.Identity())


def _gate(shape: Shape, branches: int) -> nn.Module:
    """(B, *shape) -> (B, branches)."""
    if len(shape) == 1:
        return nn.Linear(shape[0], branches)
    channels = shape[0] if len(shape) == 3 else shape[1]
    return nn.Sequential(PlaceMean(), nn.Linear(channels, branches))
