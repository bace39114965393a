"""On-the-fly native ensemble: branches of one network, whose gated ensemble teaches each."""

from __future__ import annotations

import copy
from math import exp
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.architecture import Layer, Task, discover, resolve, stage_aliases
from raykd.architecture.layers import blank_inputs
from raykd.architecture.taps import first_tensor
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
    T^2 KL(ensemble || branch), the ensemble's logits being the branches' weighed by a gate on the
    trunk's features; Lan 2018 (arXiv:1806.04606), section 3, T = 3.  The gate: the mean over
    places, a linear map, batch norm, ReLU, softmax; `gate: plain` leaves out the two in between,
    on which the branches' shares depend on the batch.  As a teacher the ensemble gets no gradient,
    as in the authors' code; `ensemble_follows` lets it move towards the branches too (others'
    code).  `ramp_epochs` grows the lessons' weight as exp(-5 (1 - epoch / ramp_epochs)^2): 80 of
    300 epochs in the authors' code.

    The branches are copies of all that follows the layer `split`, with weights of their own; the
    student is the trunk with the first branch.
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
    gate: Annotated[
        Literal["normalised", "plain"], Field(description="how the trunk tells the shares")
    ] = "normalised"
    ensemble_follows: Annotated[
        bool, Field(description="the lessons move the ensemble too, not the branches alone")
    ] = False
    ramp_epochs: Annotated[float, Field(ge=0, description="the lessons' weight grows so long")] = (
        0.0
    )

    def weight_at(self, progress: Progress) -> float:
        """The lessons' weight in this epoch."""
        if progress.epoch >= self.ramp_epochs:
            return self.weight
        return self.weight * exp(-5 * (1 - progress.epoch / self.ramp_epochs) ** 2)

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
            upper_part(parts.build_student(), layer, parts.task) for _ in range(scheme.branches - 1)
        )
        self.gate = _Gate(layer.shape, scheme.branches, normalised=scheme.gate == "normalised")
        self.split = layer.name

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        shown = self.watched(batch.inputs)
        trunk = shown.layers[self.split]
        logits = [shown.logits, *(branch(batch.inputs, trunk) for branch in self.branches)]
        stacked = torch.stack([one.float() for one in logits])
        shares = self.gate(trunk).float().softmax(dim=1)
        ensemble = (shares.t().unsqueeze(2) * stacked).sum(dim=0)
        tasks = torch.stack([self.task_loss(one, batch.targets) for one in stacked])
        together = self.task_loss(ensemble, batch.targets)
        taught = ensemble if self.scheme.ensemble_follows else ensemble.detach()
        lessons = [softened_kl(one, taught, self.scheme.temperature) for one in stacked]
        lesson = torch.stack(lessons)
        total = tasks.sum() + together + self.scheme.weight_at(progress) * lesson.sum()
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


class _Blank(nn.Module):
    """Stands where a module of the trunk stood: zeros of its output's shape, at no cost."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, *inputs: object, **more: object) -> Tensor:
        given = first_tensor((*inputs, *more.values()))
        assert given is not None
        return torch.zeros(len(given), *self.shape, device=given.device)


def upper_part(model: nn.Module, layer: Layer, task: Task) -> Branch:
    """What follows `layer` in a network; `check_chain` tells whether it can be had so.

    The modules before `layer` lose their weights and give zeros, so that whatever the network does
    between them (a token put in front, positions added) goes on without a fault; what it does to
    them is forgotten where the trunk's features come in.
    """
    shapes = {known.module: known.shape for known in discover(model, task) if known.side != "input"}
    model = copy.deepcopy(model)
    given = _Given()
    parent, path = model, ""
    for name in layer.module.split("."):
        _blank_before(parent, path, name, shapes)
        parent, path = parent.get_submodule(name), f"{path}{name}."
    model.set_submodule(layer.module, given)
    branch = Branch(model, given)
    _rest_idle(branch, layer, task)
    return branch


def _blank_before(parent: nn.Module, path: str, name: str, shapes: dict[str, Shape]) -> None:
    """Put blanks in place of the modules that stand before `name` and ran in a forward."""
    for child, module in list(parent.named_children()):
        if child == name:
            return
        shape = shapes.get(path + child)
        setattr(parent, child, nn.Identity() if shape is None else _Blank(shape))


def _rest_idle(branch: Branch, layer: Layer, task: Task) -> None:
    """Let the parameters rest that the trunk's features pass by, such as a token's position."""
    device = next(branch.parameters()).device
    features = torch.zeros(2, *layer.shape, device=device)
    try:
        logits = branch(blank_inputs(task, 2, device), features)
        names, parameters = zip(*branch.named_parameters(), strict=True)
        found = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    except FAULTS:
        return  # `check_chain` says it
    for name, gradient in zip(names, found, strict=True):
        branch.get_parameter(name).requires_grad_(gradient is not None)


FAULTS = (RuntimeError, AttributeError, TypeError, ValueError)
"""What a network may raise that cannot be cut where it was."""


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
    """See that the student can be cut after `layer`: the rest, given the trunk's features and
    nothing else of the trunk, gives the student's logits.

    Raises:
        ValueError: it does not.
    """
    probe = copy.deepcopy(student).eval()
    device = next(probe.parameters()).device
    inputs = torch.rand(2, *task.input_shape, device=device)
    with torch.no_grad():
        shown = Watched(probe, [layer.name], task)(inputs)
        try:
            rest = upper_part(probe, layer, task).eval()
            same = torch.equal(rest(inputs, shown.layers[layer.name]), shown.logits)
        except FAULTS:
            same = False
    if layer.side == "input" or not same:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: the modules before it do not "
            "form a chain; name another layer in `split`, a stage's end for example"
        )


class _Gate(nn.Module):
    """(B, *shape) -> (B, branches): the logarithms of the branches' shares, but for a constant.

    Raises:
        ValueError: a batch norm is asked for and there is one sample to train on.
    """

    def __init__(self, shape: Shape, branches: int, *, normalised: bool) -> None:
        super().__init__()
        width = shape[1] if len(shape) == 2 else shape[0]
        self.pool = nn.Identity() if len(shape) == 1 else PlaceMean()
        self.judge = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches) if normalised else None

    def forward(self, trunk: Tensor) -> Tensor:
        judged = self.judge(self.pool(trunk))
        if self.norm is None:
            return judged
        if self.training and len(trunk) == 1:
            raise ValueError(
                "the gate of scheme 'one' has a batch norm, which needs two samples a worker, and "
                "the batch has one; raise train.batch_size, or set gate: plain"
            )
        return F.relu(self.norm(judged))
