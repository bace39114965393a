"""On-the-fly native ensemble: branches of one network, whose gated ensemble teaches each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch, Inputs
from raykd.losses import Progress, Shape
from raykd.losses.connectors import PlaceMean
from raykd.losses.logits import softened_kl
from raykd.models import Layer, LayerHooks, Task, discover, resolve, stage_aliases
from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import random_inputs
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput


@option
class One(Scheme):
    """Train branches of a shared trunk on the labels and on their gated ensemble.

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
    branches: Annotated[
        int, Field(ge=2, le=8, description="Number of branches, including the student")
    ] = 3
    split: Annotated[
        str | None,
        Field(description="Last layer of the shared trunk. null: the stage before the last"),
    ] = None
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of branches and ensemble")
    ] = 3.0
    weight: Annotated[float, Field(ge=0, description="Weight of the ensemble loss")] = 1.0
    gate: Annotated[
        Literal["normalised", "plain"],
        Field(description="Gate that computes the weights of the branches"),
    ] = "normalised"
    ensemble_follows: Annotated[
        bool,
        Field(
            description="Also backpropagate the ensemble loss into the ensemble, not only "
            "into the branches"
        ),
    ] = False
    ramp_epochs: Annotated[
        float,
        Field(
            ge=0,
            description="Number of epochs over which the weight of the ensemble loss increases",
        ),
    ] = 0.0

    def weight_at(self, progress: Progress) -> float:
        """The lessons' weight in this epoch."""
        if progress.epoch >= self.ramp_epochs:
            return self.weight
        return self.weight * exp(-5 * (1 - progress.epoch / self.ramp_epochs) ** 2)

    def build(self, parts: SchemeInputs) -> Distiller:
        return Branching(self, parts)


class Branching(Distiller):
    """A student whose upper part exists several times."""

    def __init__(self, scheme: One, parts: SchemeInputs) -> None:
        super().__init__()
        cut = find_cut(parts.student, parts.task, scheme.split)
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.taps = LayerHooks(parts.student, [cut.layer])
        self.branches = nn.ModuleList(
            upper_part(parts.build_student(), cut) for _ in range(scheme.branches - 1)
        )
        self.gate = _Gate(cut.layer.shape, scheme.branches, normalised=scheme.gate == "normalised")
        self.split = cut.layer

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        shown = self.taps.run(batch.inputs)
        trunk = shown.layers[self.split.name]
        raw = self.split.restore(trunk)
        logits = [shown.logits, *(branch(batch.inputs, raw) for branch in self.branches)]
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
    """Takes the place of the trunk's last layer and returns the features that were set.

    Args:
        copies: return a copy, because the next module writes into it.
    """

    features: Tensor | None = None

    def __init__(self, *, copies: bool) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, *ignored: object, **also_ignored: object) -> Tensor:
        assert self.features is not None
        return self.features.clone() if self.copies else self.features


class _Blank(nn.Module):
    """Replacement for a module of the trunk: returns zeros of its output shape for any input."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self._was = (copy.deepcopy(module).to("meta"),)  # in a tuple: not a part of this

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the replaced module, e.g. a weight whose dtype the network reads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self._was[0], name)

    def forward(self, *inputs: object, **more: object) -> Tensor:
        given = first_tensor((*inputs, *more.values()))
        assert given is not None
        return torch.zeros(len(given), *self.shape, device=given.device)


@dataclass(frozen=True)
class Cut:
    """Position at which branches leave the trunk of a network.

    Attributes:
        layer: the trunk's last one.
        shapes: of the modules' outputs, by their dotted names.
        idle: parameters beside the modules that the trunk's features pass by, a token's position
            for example.
    """

    layer: Layer
    shapes: Mapping[str, Shape]
    idle: frozenset[str] = frozenset()


def upper_part(model: nn.Module, cut: Cut) -> Branch:
    """Build the part of a network after `cut.layer`; the network becomes part of it.

    The modules before the layer lose their weights and give zeros, so that whatever the network
    does between them (a token put in front, positions added) goes on without a fault; what comes of
    it is forgotten where the trunk's features come in.  Unlike a traced graph
    (`raykd.models.introspection.backbone`) the rest keeps its code, also where training differs.
    """
    given = _Given(copies=cut.layer.overwritten)
    parent, path = model, ""
    for name in cut.layer.module.split("."):
        _blank_before(parent, path, name, cut.shapes)
        parent, path = parent.get_submodule(name), f"{path}{name}."
    model.set_submodule(cut.layer.module, given)
    for name in cut.idle:
        model.get_parameter(name).requires_grad_(False)
    return Branch(model, given)


def _blank_before(parent: nn.Module, path: str, name: str, shapes: Mapping[str, Shape]) -> None:
    """Put blanks in place of the modules that stand before `name` and ran in a forward."""
    for child, module in list(parent.named_children()):
        if child == name:
            return
        shape = shapes.get(path + child)
        setattr(parent, child, nn.Identity() if shape is None else _Blank(module, shape))


def find_cut(student: nn.Module, task: Task, name: str | None = None) -> Cut:
    """Return the cut of the student: after the layer `name`, or before its last stage.

    Raises:
        ValueError: there is no such layer, fewer than two stages to choose from, or the part after
            the layer, given its output and nothing else of the trunk, does not give the student's
            logits.
    """
    known = discover(student, task)
    layer = _before_last_stage(known) if name is None else resolve(known, name)
    if layer.layout is not None and not layer.layout.is_clear:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: it is not known which axis of "
            f"its output {layer.raw_shape} holds the channels; name another layer in `split`"
        )
    shapes = {one.module: one.raw_shape for one in known if one.side == "output"}
    idle = _tried(student, task, Cut(layer, shapes)) if layer.side == "output" else None
    if idle is None:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: what follows does not go by "
            "that layer's output alone; name another layer in `split`, a stage's end for example"
        )
    return Cut(layer, shapes, idle)


def _before_last_stage(known: Sequence[Layer]) -> Layer:
    stages = [layer for alias, layer in stage_aliases(known).items() if alias.startswith("stage")]
    if len(stages) < 2:
        raise ValueError(
            f"scheme 'one' parts the student before its last stage and finds {len(stages)} "
            "stage(s); name the trunk's last layer in `split`"
        )
    return stages[-2]


def _tried(student: nn.Module, task: Task, cut: Cut) -> frozenset[str] | None:
    """The parameters left idle in the upper part of the student; None where it cannot be cut."""
    probe = copy.deepcopy(student).eval()
    inputs = random_inputs(task, 2, next(probe.parameters()).device)
    with torch.no_grad():
        shown = LayerHooks(probe, [cut.layer]).run(inputs)
    try:
        rest = upper_part(probe, cut)
        with torch.enable_grad():
            logits = rest(inputs, cut.layer.restore(shown.layers[cut.layer.name]))
            left = {name: p for name, p in rest.model.named_parameters() if p.requires_grad}
            found = torch.autograd.grad(logits.sum(), list(left.values()), allow_unused=True)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        return None
    if not torch.equal(logits, shown.logits):
        return None
    return frozenset(name for name, one in zip(left, found, strict=True) if one is None)


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
