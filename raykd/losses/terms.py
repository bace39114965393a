"""Terms: one loss each, with its weight, layer pairs and active epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.errors import Problem
from raykd.losses.base import LOSSES, AnyLoss, Loss, LossContext, LossModule, Pair, loss_inputs
from raykd.losses.model_outputs import ModelOutputs, Progress
from raykd.losses.shapes import Shape
from raykd.registry import option


@option
class Term:
    """Loss x weight (x layer pairs) in the objective of a trial.

    A term whose `loss` is null or whose weight is 0 is inactive. A term is active in the epochs
    `start_epoch` <= epoch < `stop_epoch`, counted from 0. Its weight increases linearly from 0
    over the first `ramp_epochs` of them.

    Raises:
        ValueError: `stop_epoch` is not after `start_epoch`.
    """

    loss: AnyLoss | None = None
    weight: Annotated[
        float | None,
        Field(ge=0, description="Weight of the term. null: the default weight of the loss"),
    ] = None
    pairs: Annotated[
        tuple[Pair, ...] | None,
        Field(description="Layer pairs: hint layer of the teacher -> guided layer of the student"),
    ] = None
    start_epoch: Annotated[
        int, Field(ge=0, description="First epoch in which the term is active")
    ] = 0
    ramp_epochs: Annotated[
        float, Field(ge=0, description="Number of epochs over which the weight increases linearly")
    ] = 0.0
    stop_epoch: Annotated[
        int | None, Field(ge=1, description="Epoch from which the term is inactive. null: never")
    ] = None

    def __post_init__(self) -> None:
        if self.stop_epoch is not None and self.stop_epoch <= self.start_epoch:
            raise ValueError(
                f"stop_epoch {self.stop_epoch} is not after start_epoch {self.start_epoch}, so "
                "the term would never act; set a later stop_epoch, or null"
            )

    def conflicts(self) -> Iterator[Problem]:
        """Yield pairs that do not fit the loss of the term."""
        loss, pairs = self.loss, self.pairs
        if loss is None or pairs is None:
            return
        if pairs and not loss.takes_pairs:
            message = f"loss '{loss.name}' works on logits and takes no pairs"
            yield Problem(message, path="pairs", fix="remove `pairs`")
        if not loss.takes_pairs:
            return
        if not pairs and loss.default_pairs != "none":
            yield Problem(
                "an empty list of pairs", path="pairs", fix="name pairs, or leave `pairs` out"
            )
        yield from _pair_conflicts(loss, pairs)

    @property
    def active(self) -> bool:
        return self.loss is not None and self.effective_weight > 0

    @property
    def effective_weight(self) -> float:
        if self.weight is not None:
            return self.weight
        return self.loss.default_weight if self.loss is not None else 0.0

    @property
    def parts(self) -> tuple[Term, ...]:
        """Split the term into one term for each loss and weight among its pairs.

        Without separate losses or weights the result is the term alone. If `weight` is null, each
        loss has its default weight, times the factor of the pair.
        """
        if self.loss is None or all(pair.is_alike for pair in self.pairs or ()):
            return (self,)
        groups: dict[tuple[Loss, float], list[Pair]] = {}
        for pair in self.pairs or ():
            alike = Pair(hint=pair.hint, guided=pair.guided)
            groups.setdefault((pair.loss or self.loss, pair.weight), []).append(alike)
        return tuple(self._part(*of, pairs=tuple(pairs)) for of, pairs in groups.items())

    def _part(self, loss: Loss, factor: float, pairs: tuple[Pair, ...]) -> Term:
        weight = loss.default_weight if self.weight is None else self.weight
        return replace(self, loss=loss, weight=factor * weight, pairs=pairs)

    @property
    def always_acts(self) -> bool:
        """True if it is active in every epoch, so that its parameters always have gradients."""
        return self.start_epoch == 0 and self.stop_epoch is None

    def acts(self, progress: Progress) -> bool:
        """Return whether the term is active in this epoch."""
        before_stop = self.stop_epoch is None or progress.epoch < self.stop_epoch
        return self.active and self.start_epoch <= progress.epoch and before_stop

    def weight_at(self, progress: Progress) -> float:
        """Return the weight in this step."""
        if not self.acts(progress):
            return 0.0
        if not self.ramp_epochs:
            return self.effective_weight
        acted = progress.step / progress.steps_per_epoch - self.start_epoch
        return self.effective_weight * min(1.0, max(0.0, acted) / self.ramp_epochs)


def _pair_conflicts(loss: Loss, pairs: Sequence[Pair]) -> Iterator[Problem]:
    layers: set[tuple[str, str]] = set()
    for number, pair in enumerate(pairs):
        path = f"pairs[{number}]"
        if (pair.hint, pair.guided) in layers:
            message = f"{pair.hint} -> {pair.guided} is listed twice"
            yield Problem(message, path=path, fix="remove one of them")
        layers.add((pair.hint, pair.guided))
        if not pair.is_alike:
            yield from _separate_conflicts(loss, pair, path)


def _separate_conflicts(loss: Loss, pair: Pair, path: str) -> Iterator[Problem]:
    """Yield the conflicts of a pair with a separate weight or loss."""
    key = "loss" if pair.loss is not None else "weight"
    if pair.loss is not None and not pair.loss.pairs_apart:
        message = (
            f"loss '{pair.loss.name}' {_comparison(pair.loss)}, so it cannot be the loss of a "
            "single pair"
        )
        separate = [name for name, cls in LOSSES.members.items() if cls().pairs_apart]
        fix = f"use a loss that compares pairs one by one: {', '.join(separate)}"
        yield Problem(message, path=f"{path}.{key}", fix=fix)
    elif not loss.pairs_apart:
        message = f"loss '{loss.name}' {_comparison(loss)}, so no pair can have a {key} of its own"
        fix = f"remove the pair's `{key}`"
        fix += ", or set the weight of the term" if key == "weight" else ""
        yield Problem(message, path=f"{path}.{key}", fix=fix)


def _comparison(loss: Loss) -> str:
    return "compares all its pairs together" if loss.takes_pairs else "works on logits"


@dataclass(frozen=True)
class LayerShapes:
    """Shapes of the layers that terms compare, without the batch.

    Attributes:
        guided: shapes of the student's layers by name.
        hint: shapes of the teacher's layers by name.
    """

    guided: Mapping[str, Shape] = field(default_factory=dict)
    hint: Mapping[str, Shape] = field(default_factory=dict)


class Terms(nn.Module):
    """Active terms of a trial, with the trainable parts of their losses.

    Args:
        terms: knowledge to transfer, with pairs resolved to layer names.  Inactive terms are left
            out; a term whose pairs have separate losses or weights becomes several.
        shapes: shape of every layer in a pair.
        classes, train_size, data_size: see `LossContext`.
        deployable: whether a loss may change the deployed network (`Loss.deploys`).

    Attributes:
        deploying: name of the term whose loss changes the deployed network; None if there is none.

    Raises:
        ValueError: layers that cannot be connected, a layer without a shape, or a loss that changes
            the deployed network where that is not possible or where another loss does so.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        classes: int,
        train_size: int,
        data_size: int,
        shapes: LayerShapes | None = None,
        deployable: bool = False,
    ) -> None:
        super().__init__()
        shapes = shapes or LayerShapes()
        active = [part for term in terms for part in term.parts if part.active]
        self.terms = dict(zip(term_names(active), active, strict=True))
        self.deploying = _deploying(self.terms, deployable)
        self.losses = nn.ModuleDict()
        for name, term in self.terms.items():
            assert term.loss is not None
            pairs = term.pairs or ()
            context = LossContext(
                pairs=pairs,
                guided_shapes=_shapes(pairs, "guided", shapes.guided),
                hint_shapes=_shapes(pairs, "hint", shapes.hint),
                classes=classes,
                train_size=train_size,
                data_size=data_size,
                weight=term.effective_weight,
            )
            self.losses[name] = term.loss.build(context)

    def forward(
        self,
        student: ModelOutputs,
        teacher: ModelOutputs,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and the unweighted value of each active term by name."""
        inputs = loss_inputs(student, teacher, targets, index, progress)
        total = torch.zeros((), device=student.logits.device)
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if not term.acts(progress):
                continue
            module = self.losses[name]
            assert isinstance(module, LossModule)
            since_start = replace(inputs, progress=progress.since(term.start_epoch))
            value = module.checked_value(since_start)
            total = total + term.weight_at(progress) * value
            values[name] = value.detach()
        return total, values

    @property
    def guided_layers(self) -> tuple[str, ...]:
        """Layers of the student that the terms use, by the names in their pairs."""
        return layer_names(self.terms.values(), "guided")

    @property
    def hint_layers(self) -> tuple[str, ...]:
        """Layers of the teacher that the terms use, by the names in their pairs."""
        return layer_names(self.terms.values(), "hint")

    @property
    def reads_logits(self) -> bool:
        """True if any term reads the logits of the teacher."""
        return any(term.loss is not None and term.loss.reads_logits for term in self.terms.values())

    @property
    def ramps(self) -> bool:
        """True if the weight of a term changes from step to step."""
        return any(term.ramp_epochs > 0 for term in self.terms.values())

    @property
    def sometimes_unused(self) -> bool:
        """True if some trainable parameters have no gradient in some steps."""
        return any(
            self.losses[name].sometimes_unused
            or (not term.always_acts and any(True for _ in self.losses[name].parameters()))
            for name, term in self.terms.items()
        )


def any_reads_logits(terms: Iterable[Term]) -> bool:
    """Return whether any active term reads the logits of the teacher."""
    return any(term.active and term.loss and term.loss.reads_logits for term in terms)


def _deploying(terms: Mapping[str, Term], deployable: bool) -> str | None:
    deploying = [
        name for name, term in terms.items() if term.loss is not None and term.loss.deploys
    ]
    if deploying and not deployable:
        raise ValueError(
            f"loss '{deploying[0]}' deploys the classifier of the teacher, which needs a scheme "
            "with one frozen teacher; use `scheme: {name: offline}`, or another loss"
        )
    if len(deploying) > 1:
        raise ValueError(
            f"terms {' and '.join(map(repr, deploying))} each replace the classifier of the "
            "student; keep one of them"
        )
    return deploying[0] if deploying else None


def term_names(terms: Sequence[Term]) -> list[str]:
    """Return a name for each term: that of its loss, with _2, _3 ... if the loss occurs more than
    once.
    """
    names: list[str] = []
    for term in terms:
        assert term.loss is not None
        loss = term.loss.name.rpartition(":")[2]  # of `losses.py:Focal`
        count = 1 + sum(name == loss or name.startswith(f"{loss}_") for name in names)
        candidate = loss if count == 1 else f"{loss}_{count}"
        names.append(candidate)
    return names


def layer_names(terms: Iterable[Term], side: Literal["guided", "hint"]) -> tuple[str, ...]:
    """Return the layers of one side in the pairs of active terms, without duplicates."""
    names: dict[str, None] = {}
    for term in terms:
        if term.active:
            names.update(dict.fromkeys(getattr(pair, side) for pair in term.pairs or ()))
    return tuple(names)


def _shapes(pairs: Sequence[Pair], side: str, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    names = [getattr(pair, side) for pair in pairs]
    for name in names:
        if name not in shapes:
            raise ValueError(
                f"{side} layer {name!r} has no known shape; known are "
                f"{', '.join(sorted(shapes)) or 'none'}"
            )
    return tuple(shapes[name] for name in names)
