"""Base classes of losses, and the modules that they build.

A loss is a frozen dataclass (an `option`).  Its fields are its configuration, and `__call__` is
the formula of the paper.  `connector` or `build` makes its trainable parts (connectors, memories).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.losses.model_outputs import LossInputs, ModelOutputs, Progress
from raykd.losses.shapes import (
    Shape,
    check_features,
    check_integers,
    check_layers,
    check_logits,
    check_targets,
)
from raykd.registry import Registry, option
from raykd.tasks.base import ALL_KINDS, Kind

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LossContext:
    """Shapes and sizes from which a loss builds its trainable parts.

    Attributes:
        pairs: layer pairs of the term, shallow to deep.
        guided_shapes: shape of the student's layer of each pair.
        hint_shapes: shape of the teacher's layer of each pair.
        classes: number of classes.
        train_size: number of training samples.
        data_size: one more than the largest `Batch.index`; at least `train_size`.
        weight: weight of the term, for parts whose training must not depend on it.
    """

    pairs: tuple[Pair, ...]
    guided_shapes: tuple[Shape, ...]
    hint_shapes: tuple[Shape, ...]
    classes: int
    train_size: int
    data_size: int
    weight: float = 1.0


PROJECTED = "projected"
"""Name of the layer that holds the output of a projector."""


class LossModule(nn.Module):
    """Module of a loss in one trial; its parameters are trained with those of the student.

    Subclasses implement `value`. It receives tensors in float32 or float64, with autocast off and
    the teacher detached: the products and softmaxes of a loss need more precision than bfloat16
    has.

    Args:
        context: shapes of the layers that `forward` checks; None: check the batch size only.
    """

    sometimes_unused: bool = False
    """True if some parameters get no gradient in some steps in which the loss is active (for DDP).
    """

    def __init__(self, context: LossContext | None = None) -> None:
        super().__init__()
        self._guided: dict[str, Shape] = {}
        self._hints: dict[str, Shape] = {}
        for number, pair in enumerate(context.pairs if context is not None else ()):
            assert context is not None
            self._guided[pair.guided] = context.guided_shapes[number]
            self._hints[pair.hint] = context.hint_shapes[number]

    def give_projector(self, signed: bool) -> nn.Module:
        """Return the module that maps the guided layer to the hint layer.

        Only losses that `deploys` is True for implement it. After this call the outputs of the
        student contain the output of the projector, as layer `PROJECTED`.

        Args:
            signed: whether the hint layer has negative values.
        """
        raise NotImplementedError

    def forward(
        self,
        student: ModelOutputs,
        teacher: ModelOutputs,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        """Return the value of the loss, a scalar, without the weight of its term.

        Raises:
            ValueError: a shape differs from that of the batch, or from the shape that the loss was
                built for.
        """
        return self.checked_value(loss_inputs(student, teacher, targets, index, progress))

    def checked_value(self, inputs: LossInputs) -> Tensor:
        """Check the shapes of prepared inputs (see `loss_inputs`) and compute the loss.

        Raises:
            ValueError: see `forward`.
        """
        batch = len(inputs.student.logits)
        check_targets("the targets", inputs.targets, batch)
        check_integers("the numbers of samples", inputs.index, batch)
        check_layers("student", inputs.student.layers, batch, self._guided)
        check_layers("teacher", inputs.teacher.layers, batch, self._hints)
        with torch.autocast(inputs.student.logits.device.type, enabled=False):
            return self.value(inputs)

    def value(self, inputs: LossInputs) -> Tensor:
        """Compute the loss, a scalar, from float32 (or float64) tensors with autocast off."""
        raise NotImplementedError


def loss_inputs(
    student: ModelOutputs,
    teacher: ModelOutputs,
    targets: Tensor,
    index: Tensor,
    progress: Progress,
) -> LossInputs:
    """Prepare the inputs of a loss: detach the teacher, convert half precision to float32."""
    return LossInputs(
        student.map(widened), teacher.detached().map(widened), targets, index, progress
    )


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 if it is in half precision, else unchanged."""
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.float()
    return tensor


@option
class Loss:
    """Base class of losses.

    Class attributes:
        knowledge: kind of knowledge that the loss transfers, in the terms of the survey.
        paper: author, year, arXiv number.
        default_weight: weight of a term without `weight`.
        weight_source: sentence on the origin of the default weight.
        kinds: kinds of responses that it fits; a loss for class scores alone reads class indices.
        takes_pairs: whether the term accepts `pairs`.
        default_pairs: pairs of a term without `pairs`: "stages" pairs the stages one to one from
            the deepest, "last" pairs the deepest stages, "embedding" pairs the inputs of the two
            classifiers, "none" is for losses on logits.
        least_pairs: minimum number of pairs.
        most_pairs: maximum number of pairs; None: no limit.
        reads_logits: whether it reads the logits of the teacher; if not, the teacher's forward pass
            may end earlier.
        zero_at_teacher: whether its value is 0, its minimum, if the student's outputs equal the
            teacher's.
        relates_samples: whether the loss of a sample depends on the rest of its batch.  If not, the
            value is the mean over samples, and any number of workers gives the same training.
        random: whether it draws random numbers.
        reads_labels: whether it reads the targets, so that every training sample needs a label.
        deploys: whether it changes the deployed network: the student up to the guided layer, then
            the projector of the loss, then the teacher after the hint layer.
    """

    name: str
    knowledge: ClassVar[Literal["response", "feature", "relation"]]
    kinds: ClassVar[tuple[Kind, ...]] = ALL_KINDS
    paper: ClassVar[str]
    default_weight: ClassVar[float] = 1.0
    weight_source: ClassVar[str] = ""
    takes_pairs: ClassVar[bool] = True
    default_pairs: ClassVar[Literal["stages", "last", "embedding", "none"]] = "last"
    least_pairs: ClassVar[int] = 1
    most_pairs: ClassVar[int | None] = None
    reads_logits: ClassVar[bool] = False
    zero_at_teacher: ClassVar[bool] = True
    relates_samples: ClassVar[bool] = False
    random: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    deploys: ClassVar[bool] = False

    @property
    def pairs_apart(self) -> bool:
        """True if the value is a sum over pairs, which may have separate weights and losses."""
        return False

    def build(self, context: LossContext) -> LossModule:
        """Build the module of the loss for one trial.

        Raises:
            ValueError: the layers of a pair cannot be connected; names them and their shapes.
        """
        raise NotImplementedError


LOSSES = Registry("loss", base=Loss, entry_points="raykd.losses")
"""Losses that a term may use; packages add losses with the entry point group `raykd.losses`."""

AnyLoss = Annotated[Loss, LOSSES]
"""Type of a field that holds a loss."""


@option
class Pair:
    """Hint layer of the teacher with the guided layer of the student that it teaches.

    A pair may have a separate weight or loss.  The loss of the term must then treat each pair
    separately (`Loss.pairs_apart`).
    """

    hint: str
    guided: str
    weight: Annotated[
        float, Field(ge=0, description="Factor multiplied with the weight of the term")
    ] = 1.0
    loss: Annotated[
        AnyLoss | None, Field(description="Loss of this pair. null: the loss of the term")
    ] = None

    @property
    def is_alike(self) -> bool:
        """True if the pair has no separate weight or loss."""
        return self.loss is None and self.weight == 1


@option
class ResponseLoss(Loss):
    """Loss on logits: `loss(student, teacher, targets)` with (B, classes), (B, classes) and (B,).

    If it fits responses of kind "dense", (B, classes, H, W), its formula sees their positions as
    samples, (B H W, classes), all of them, whatever their targets are; `by_position = False` gives
    it the maps themselves.  Predictions at anchors ("boxes") are no such responses.
    A direct call gives the same value as the module: it detaches the teacher, converts half
    precision to float32, turns autocast off, and raises a ValueError for shapes that do not match.
    """

    knowledge = "response"
    kinds = ("softmax", "sigmoid", "real", "dense")
    takes_pairs = False
    default_pairs = "none"
    reads_logits = True
    by_position: ClassVar[bool] = True

    def __init_subclass__(cls, **rest: object) -> None:
        super().__init_subclass__(**rest)
        if "__call__" in vars(cls):
            cls.__call__ = _on_checked_logits(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def build(self, context: LossContext) -> LossModule:
        return _OnLogits(self)


@option
class PairLoss(Loss):
    """Loss on pairs of layers: `loss(guided, hint)`, (B, ...) each.

    The connector is applied to the guided layer first.  The values of several pairs are weighted by
    `shares` and summed.  A direct call gives the same value as the module: it detaches the teacher,
    converts half precision to float32, turns autocast off, and raises a ValueError for shapes that
    do not match.

    Class attributes:
        same_shape: whether the guided layer after its connector must have the shape of the hint
            layer; if not, only the batch size must match.
    """

    same_shape: ClassVar[bool] = True

    def __init_subclass__(cls, **rest: object) -> None:
        super().__init_subclass__(**rest)
        if "__call__" in vars(cls):
            cls.__call__ = _on_checked_layers(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        raise NotImplementedError

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        """Return the module that maps (B, *guided) to the shape compared with (B, *hint)."""
        return nn.Identity()

    def shares(self, pairs: int) -> tuple[float, ...]:
        """Return the factor on the value of each pair, shallow to deep."""
        return (1.0,) * pairs

    @property
    def pairs_apart(self) -> bool:
        return all(share == 1 for share in self.shares(2))

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        """Build the module of one pair: `(guided, hint) -> scalar`.

        Override it in losses with trainable parts other than a connector.
        """
        return ConnectedLoss(self, self.connector(guided, hint))

    def build(self, context: LossContext) -> LossModule:
        return PairwiseLoss(self, context)


def _on_checked_logits(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the formula of a loss on logits with checks and conversions."""

    @functools.wraps(formula)
    def compare(self: ResponseLoss, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        check_logits(self.name, student, teacher, targets, kinds=self.kinds)
        if student.dim() == 4 and self.by_position:
            student, teacher, targets = rows_of(student), rows_of(teacher), targets.flatten()
        with _in_full_precision(student):
            return formula(self, widened(student), widened(teacher.detach()), targets)

    return compare


def rows_of(response: Tensor) -> Tensor:
    """(B, C, H, W) -> (B H W, C): the positions of all samples."""
    return response.permute(0, 2, 3, 1).flatten(0, 2)


def _on_checked_layers(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the formula of a loss on two layers with checks and conversions."""

    @functools.wraps(formula)
    def compare(self: PairLoss, guided: Tensor, hint: Tensor) -> Tensor:
        check_features(self.name, guided, hint, same=self.same_shape)
        with _in_full_precision(guided):
            return formula(self, widened(guided), widened(hint.detach()))

    return compare


def _in_full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


class _OnLogits(LossModule):
    def __init__(self, loss: ResponseLoss) -> None:
        super().__init__()
        self.loss = loss

    def value(self, inputs: LossInputs) -> Tensor:
        return self.loss(inputs.student.logits, inputs.teacher.logits, inputs.targets)


class ConnectedLoss(nn.Module):
    def __init__(self, loss: PairLoss, connector: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.connector = connector

    def forward(self, guided: Tensor, hint: Tensor) -> Tensor:
        return self.loss(self.connector(guided), hint)


class PairwiseLoss(LossModule):
    def __init__(self, loss: PairLoss, context: LossContext) -> None:
        super().__init__(context)
        self.pairs = context.pairs
        self.shares = loss.shares(len(context.pairs))
        self.judges = nn.ModuleList(for_each_pair(context, loss.judge))

    def value(self, inputs: LossInputs) -> Tensor:
        values = [
            share * judge(inputs.student.layers[pair.guided], inputs.teacher.layers[pair.hint])
            for pair, judge, share in zip(self.pairs, self.judges, self.shares, strict=True)
        ]
        return torch.stack(values).sum()


def for_each_pair(context: LossContext, make: Callable[[Shape, Shape], M]) -> list[M]:
    """Return `make(guided shape, hint shape)` for each pair, in order.

    Raises:
        ValueError: there is no pair, or the layers of a pair cannot be connected; the message names
            them and their shapes.
    """
    if not context.pairs:
        raise ValueError("the loss compares layers and its term names no pairs; name `pairs`")
    modules = []
    for pair, guided, hint in zip(
        context.pairs, context.guided_shapes, context.hint_shapes, strict=True
    ):
        try:
            modules.append(make(guided, hint))
        except ValueError as error:
            raise ValueError(
                f"guided layer {pair.guided!r} {guided} cannot be carried to hint layer "
                f"{pair.hint!r} {hint}: {error}"
            ) from None
    return modules


def require_two_pairs(loss: str, context: LossContext) -> None:
    """Check that there are at least two pairs.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    if len(context.pairs) < 2:
        raise ValueError(
            f"{loss} compares what happens between layers and has {len(context.pairs)} pair(s); "
            "name at least two, shallow to deep"
        )
