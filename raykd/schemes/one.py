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
from raykd.models import Layer, LayerHooks, Signature, discover, resolve, stage_aliases
from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import random_inputs
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput


@option
class One(Scheme):
    """Train branches of a shared trunk on the labels and on their gated ensemble.

    Sum over branches of the label loss + label loss of the ensemble + weight x sum of
    T^2 KL(ensemble || branch).  The logits of the ensemble are those of the branches, weighted by a
    gate on the features of the trunk; Lan 2018 (arXiv:1806.04606), section 3, T = 3.  The gate is a
    mean over places, a linear layer, batch norm, ReLU and softmax; `gate: plain` leaves out batch
    norm and ReLU, so that the weights do not depend on the batch.  The ensemble gets no gradient as
    a teacher, as in the authors' code; with `ensemble_follows` it also moves towards the branches
    (other implementations).  `ramp_epochs` increases the weight of the ensemble loss as
    exp(-5 (1 - epoch / ramp_epochs)^2): 80 of 300 epochs in the authors' code.

    The branches are copies of everything after the layer `split`, each with separate weights; the
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
        Literal["normalized", "plain"],
        Field(description="Gate that computes the weights of the branches"),
    ] = "normalized"
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
        """Return the weight of the ensemble loss in this epoch."""
        if progress.epoch >= self.ramp_epochs:
            return self.weight
        return self.weight * exp(-5 * (1 - progress.epoch / self.ramp_epochs) ** 2)

    def build(self, parts: SchemeInputs) -> Distiller:
        return Branching(self, parts)


class Branching(Distiller):
    """A student whose upper part has several copies."""

    def __init__(self, scheme: One, parts: SchemeInputs) -> None:
        super().__init__()
        cut = find_cut(parts.student, parts.signature, scheme.split)
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.taps = LayerHooks(parts.student, [cut.layer])
        self.branches = nn.ModuleList(
            upper_part(parts.build_student(), cut) for _ in range(scheme.branches - 1)
        )
        self.gate = _Gate(cut.layer.shape, scheme.branches, normalized=scheme.gate == "normalized")
        self.split = cut.layer

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        outputs = self.taps.run(batch.inputs)
        trunk = outputs.layers[self.split.name]
        raw = self.split.restore(trunk)
        logits = [outputs.logits, *(branch(batch.inputs, raw) for branch in self.branches)]
        stacked = torch.stack([values.float() for values in logits])
        shares = self.gate(trunk).float().softmax(dim=1)
        ensemble = (shares.t().unsqueeze(2) * stacked).sum(dim=0)
        tasks = torch.stack([self.task_loss(values, batch.targets) for values in stacked])
        together = self.task_loss(ensemble, batch.targets)
        teacher_logits = ensemble if self.scheme.ensemble_follows else ensemble.detach()
        lessons = [
            softened_kl(values, teacher_logits, self.scheme.temperature) for values in stacked
        ]
        lesson = torch.stack(lessons)
        total = tasks.sum() + together + self.scheme.weight_at(progress) * lesson.sum()
        values = {
            "task": tasks[0].detach(),
            "ensemble": lesson[0].detach(),
            "ensemble_task": together.detach(),
        }
        return StepOutput(total, values, outputs.logits.detach())


class Branch(nn.Module):
    """A network without its trunk: `branch(inputs, features of the trunk) -> logits`."""

    def __init__(self, model: nn.Module, features: _TrunkFeatures) -> None:
        super().__init__()
        self.model = model
        self._features = [features]

    def forward(self, inputs: Inputs, trunk: Tensor) -> Tensor:
        self._features[0].features = trunk
        try:
            return self.model(inputs)
        finally:
            self._features[0].features = None


class _TrunkFeatures(nn.Module):
    """Replacement for the last layer of the trunk: returns the features that were set.

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
        source = first_tensor((*inputs, *more.values()))
        assert source is not None
        return torch.zeros(len(source), *self.shape, device=source.device)


@dataclass(frozen=True)
class Cut:
    """Position at which branches leave the trunk of a network.

    Attributes:
        layer: last layer of the trunk.
        shapes: output shapes of modules by their dotted names.
        idle: parameters outside modules that only act before the cut, e.g. position embeddings.
    """

    layer: Layer
    shapes: Mapping[str, Shape]
    idle: frozenset[str] = frozenset()


def upper_part(model: nn.Module, cut: Cut) -> Branch:
    """Build the part of a network after `cut.layer`; the network becomes part of it.

    The modules before the layer lose their weights and return zeros, so that the code of the
    network between them (which may prepend a token or add positions) still runs; its result is
    dropped where the features of the trunk enter.  Unlike a traced graph
    (`raykd.models.introspection.backbone`), the rest keeps its code, which may differ in training.
    """
    features = _TrunkFeatures(copies=cut.layer.overwritten)
    parent, path = model, ""
    for name in cut.layer.module.split("."):
        _blank_before(parent, path, name, cut.shapes)
        parent, path = parent.get_submodule(name), f"{path}{name}."
    model.set_submodule(cut.layer.module, features)
    for name in cut.idle:
        model.get_parameter(name).requires_grad_(False)
    return Branch(model, features)


def _blank_before(parent: nn.Module, path: str, name: str, shapes: Mapping[str, Shape]) -> None:
    """Replace the modules before `name` that ran in a forward pass."""
    for child, module in list(parent.named_children()):
        if child == name:
            return
        shape = shapes.get(path + child)
        setattr(parent, child, nn.Identity() if shape is None else _Blank(module, shape))


def find_cut(student: nn.Module, signature: Signature, name: str | None = None) -> Cut:
    """Return the cut of the student: after the layer `name`, or before its last stage.

    Raises:
        ValueError: there is no such layer, there are fewer than two stages, or the part after the
            layer needs more of the trunk than the output of this layer.
    """
    layers = discover(student, signature)
    layer = _before_last_stage(layers) if name is None else resolve(layers, name)
    if layer.layout is not None and not layer.layout.is_clear:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: it is not known which axis of "
            f"its output {layer.raw_shape} holds the channels; name another layer in `split`"
        )
    shapes = {entry.module: entry.raw_shape for entry in layers if entry.side == "output"}
    idle = (
        _idle_parameters(student, signature, Cut(layer, shapes)) if layer.side == "output" else None
    )
    if idle is None:
        raise ValueError(
            f"the student cannot be cut after layer {layer.name!r}: the layers after it need more "
            "than its output; name another layer in `split`, for example the end of a stage"
        )
    return Cut(layer, shapes, idle)


def _before_last_stage(layers: Sequence[Layer]) -> Layer:
    stages = [layer for alias, layer in stage_aliases(layers).items() if alias.startswith("stage")]
    if len(stages) < 2:
        raise ValueError(
            f"scheme 'one' splits the student before its last stage and finds {len(stages)} "
            "stage(s); name the last layer of the trunk in `split`"
        )
    return stages[-2]


def _idle_parameters(student: nn.Module, signature: Signature, cut: Cut) -> frozenset[str] | None:
    """Return the idle parameters of the student's upper part; None if it cannot be cut there."""
    probe = copy.deepcopy(student).eval()
    inputs = random_inputs(signature, 2, next(probe.parameters()).device)
    with torch.no_grad():
        outputs = LayerHooks(probe, [cut.layer]).run(inputs)
    try:
        rest = upper_part(probe, cut)
        with torch.enable_grad():
            logits = rest(inputs, cut.layer.restore(outputs.layers[cut.layer.name]))
            parameters = {name: p for name, p in rest.model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(
                logits.sum(), list(parameters.values()), allow_unused=True
            )
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        return None
    if not torch.equal(logits, outputs.logits):
        return None
    return frozenset(
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None
    )


class _Gate(nn.Module):
    """(B, *shape) -> (B, branches): logits of the weights of the branches.

    Raises:
        ValueError: the gate has a batch norm and the batch has one sample.
    """

    def __init__(self, shape: Shape, branches: int, *, normalized: bool) -> None:
        super().__init__()
        width = shape[1] if len(shape) == 2 else shape[0]
        self.pool = nn.Identity() if len(shape) == 1 else PlaceMean()
        self.judge = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches) if normalized else None

    def forward(self, trunk: Tensor) -> Tensor:
        judged = self.judge(self.pool(trunk))
        if self.norm is None:
            return judged
        if self.training and len(trunk) == 1:
            raise ValueError(
                "the gate of scheme 'one' has a batch norm, which needs two samples per worker, "
                "and the batch has one; raise train.batch_size, or set gate: plain"
            )
        return F.relu(self.norm(judged))
