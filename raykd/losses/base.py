"""Base classes of losses, and the modules that they build.

A loss is a frozen dataclass (an `option`): its fields are its configuration, and its `__call__` is
the formula of the paper.  `connector` or `build` builds its learned parts (connectors, memories).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

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
)
from raykd.registry import Registry, option

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LossContext:
    """Shapes and sizes from which a loss builds its learned parts.

    Attributes:
        pairs: the layer pairs of its term, shallow to deep.
        guided_shapes: the student's layer shapes, one a pair.
        hint_shapes: the teacher's layer shapes, one a pair.
        classes: number of classes.
        train_size: number of training samples (`Batch.index` is below the data set's size, not
            below this).
        data_size: one more than the largest `Batch.index`.
        weight: of its term, for parts that must not be weighted.
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

    `value` computes the loss.  Its inputs are float32 at least, autocast is off and the teacher is
    detached: products and softmaxes of a loss lose too much in the eight bits of a bfloat16's
    mantissa.

    Args:
        context: the shapes of layers that `forward` checks; None: only batches are checked.
    """

    sometimes_unused: bool = False
    """Whether some of its parameters get no gradient in some steps in which it acts (for DDP)."""

    def __init__(self, context: LossContext | None = None) -> None:
        super().__init__()
        self._guided: dict[str, Shape] = {}
        self._hints: dict[str, Shape] = {}
        for number, pair in enumerate(context.pairs if context is not None else ()):
            assert context is not None
            self._guided[pair.guided] = context.guided_shapes[number]
            self._hints[pair.hint] = context.hint_shapes[number]

    def give_projector(self, signed: bool) -> nn.Module:
        """Return the module that carries the guided layer to the hint layer.

        Only where the loss `deploys`.  From then on the student's outputs hold the output of
        the projector, as layer `PROJECTED`.

        Args:
            signed: whether the hint layer shows negative values.
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
            ValueError: a shape is not that of the batch, or not the one the loss was built for.
        """
        return self.checked_value(loss_inputs(student, teacher, targets, index, progress))

    def checked_value(self, inputs: LossInputs) -> Tensor:
        """Compute the loss of inputs that `loss_inputs` made.

        Raises:
            ValueError: as `forward`.
        """
        batch = len(inputs.student.logits)
        check_integers("the targets", inputs.targets, batch)
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
    """Make the inputs of losses: the teacher detached, half precision widened to float32."""
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
        knowledge: which of the survey's three kinds of knowledge it transfers.
        paper: author, year, arXiv number.
        default_weight: the weight of a term that names none.
        weight_source: one sentence: where the default weight comes from, how it was scaled.
        takes_pairs: whether its term may bear `pairs`.
        default_pairs: the pairs of a term that names none: "stages" pairs the stages one to one
            counted from the deepest, "last" pairs the deepest stages, "embedding" pairs the
            inputs of the two classifiers, "none" for losses on logits.
        least_pairs: how many pairs it needs at least.
        most_pairs: how many it takes at most; None: any number.
        reads_logits: whether it reads the teacher's logits (else its forward may end earlier).
        zero_at_teacher: whether its value is 0 (its minimum) where the student shows just what
            the teacher shows, in the teacher's shapes.
        relates_samples: whether a sample's share depends on the others of its batch; if not, the
            value is the mean over samples, and several workers train as one does.
        random: whether it draws random numbers.
        deploys: whether the network that is kept is not the student as it stands but the student
            up to the guided layer, the loss's projector, and the teacher after the hint layer.
    """

    name: str
    knowledge: ClassVar[Literal["response", "feature", "relation"]]
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
    deploys: ClassVar[bool] = False

    @property
    def pairs_apart(self) -> bool:
        """True if the value is a sum over pairs, so that a pair may have a separate weight or
        loss."""
        return False

    def build(self, context: LossContext) -> LossModule:
        """Build the module of the loss for one trial.

        Raises:
            ValueError: the layers it is given cannot be bridged; names both layers and shapes.
        """
        raise NotImplementedError


LOSSES = Registry("loss", base=Loss, entry_points="raykd.losses")
"""Losses that a term may name; `raykd.losses` adds them."""

AnyLoss = Annotated[Loss, LOSSES]
"""Type of a field that holds a loss."""


@option
class Pair:
    """One hint layer of the teacher and the guided layer of the student it teaches.

    A pair may count more or less than its term's others, and may be compared by a loss of its own;
    the term's loss must then compare each pair by itself (`Loss.pairs_apart`).
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
        """True if it has no separate weight or loss."""
        return self.loss is None and self.weight == 1


@option
class ResponseLoss(Loss):
    """A loss on logits alone: `loss(student, teacher, targets)`, (B, classes) each and (B,).

    Calling it is the same as calling its module: the teacher is detached, half precision becomes
    float32, autocast is off, and shapes that do not match raise a ValueError.
    """

    knowledge = "response"
    takes_pairs = False
    default_pairs = "none"
    reads_logits = True

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "__call__" in vars(cls):
            cls.__call__ = _on_checked_logits(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def build(self, context: LossContext) -> LossModule:
        return _OnLogits(self)


@option
class PairLoss(Loss):
    """A loss on one guided and one hint layer at a time: `loss(guided, hint)`, (B, ...) each.

    The guided layer passes its connector first.  The values of several pairs are summed, each
    times its share.  Calling it is the same as calling its module: the teacher is detached, half
    precision becomes float32, autocast is off, and shapes that do not match raise a ValueError.

    Class attributes:
        same_shape: whether the guided layer, past its connector, must have the hint layer's shape;
            if not, only the batch must be the same.
    """

    same_shape: ClassVar[bool] = True

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "__call__" in vars(cls):
            cls.__call__ = _on_checked_layers(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        raise NotImplementedError

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        """The module that carries (B, *guided) to the shape the loss compares with (B, *hint)."""
        return nn.Identity()

    def shares(self, pairs: int) -> tuple[float, ...]:
        """Return the factor on the value of each pair, shallow to deep."""
        return (1.0,) * pairs

    @property
    def pairs_apart(self) -> bool:
        return all(share == 1 for share in self.shares(2))

    def judge(self, guided: Shape, hint: Shape) -> nn.Module:
        """Build the module of one pair, `(guided, hint) -> scalar`.

        A loss that learns more than a connector overrides this.
        """
        return ConnectedLoss(self, self.connector(guided, hint))

    def build(self, context: LossContext) -> LossModule:
        return PairwiseLoss(self, context)


def _on_checked_logits(formula: Callable[..., Tensor]) -> Any:
    """The formula of a loss on logits, behind the checks."""

    @functools.wraps(formula)
    def compare(self: ResponseLoss, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        check_logits(self.name, student, teacher, targets)
        with _in_full_precision(student):
            return formula(self, widened(student), widened(teacher.detach()), targets)

    return compare


def _on_checked_layers(formula: Callable[..., Tensor]) -> Any:
    """The formula of a loss on two layers, behind the checks."""

    @functools.wraps(formula)
    def compare(self: PairLoss, guided: Tensor, hint: Tensor) -> Tensor:
        check_features(self.name, guided, hint, same=self.same_shape)
        with _in_full_precision(guided):
            return formula(self, widened(guided), widened(hint.detach()))

    return compare


def _in_full_precision(tensor: Tensor) -> Any:
    """A context without autocast on the tensor's device."""
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
    """`make(guided shape, hint shape)` for each pair, in their order.

    Raises:
        ValueError: there is no pair, or one cannot be bridged; names both layers and shapes.
    """
    if not context.pairs:
        raise ValueError("the loss compares layers and its term names no pairs; name `pairs`")
    made = []
    for pair, guided, hint in zip(
        context.pairs, context.guided_shapes, context.hint_shapes, strict=True
    ):
        try:
            made.append(make(guided, hint))
        except ValueError as error:
            raise ValueError(
                f"guided layer {pair.guided!r} {guided} cannot be carried to hint layer "
                f"{pair.hint!r} {hint}: {error}"
            ) from None
    return made


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
