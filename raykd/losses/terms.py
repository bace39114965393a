"""A term: one loss, its weight, its layer pairs and when it acts."""

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
    """One loss x its weight (x its layer pairs) in a trial's objective.

    A term whose `loss` is null, or whose weight is 0, takes no part.  It acts in the epochs
    `start_epoch` <= epoch < `stop_epoch`, counted from 0, and its weight grows linearly from 0
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
        """Pairs that do not fit the term's loss."""
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
        """The terms it is the sum of: one for each loss and weight among its pairs.

        Itself alone where no pair has a loss or weight of its own.  Where `weight` is null each
        loss has its own default, times the pair's factor.
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
        """True if it is active in every epoch; if not, its parameters miss gradients in some."""
        return self.start_epoch == 0 and self.stop_epoch is None

    def acts(self, progress: Progress) -> bool:
        """Return whether it is active in this epoch."""
        before_stop = self.stop_epoch is None or progress.epoch < self.stop_epoch
        return self.active and self.start_epoch <= progress.epoch and before_stop

    def weight_at(self, progress: Progress) -> float:
        """Return its weight in this step."""
        if not self.acts(progress):
            return 0.0
        if not self.ramp_epochs:
            return self.effective_weight
        acted = progress.step / progress.steps_per_epoch - self.start_epoch
        return self.effective_weight * min(1.0, max(0.0, acted) / self.ramp_epochs)


def _pair_conflicts(loss: Loss, pairs: Sequence[Pair]) -> Iterator[Problem]:
    seen: set[tuple[str, str]] = set()
    for number, pair in enumerate(pairs):
        path = f"pairs[{number}]"
        if (pair.hint, pair.guided) in seen:
            message = f"{pair.hint} -> {pair.guided} is listed twice"
            yield Problem(message, path=path, fix="remove one of them")
        seen.add((pair.hint, pair.guided))
        if not pair.is_alike:
            yield from _separate_conflicts(loss, pair, path)


def _separate_conflicts(loss: Loss, pair: Pair, path: str) -> Iterator[Problem]:
    """Conflicts of a pair with a weight or a loss of its own."""
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
    """Every active term of a trial; what their losses learn is registered here.

    Args:
        terms: the knowledge to transfer, pairs resolved to layer names; inactive ones are left
            out, and one whose pairs have losses or weights of their own becomes several.
        shapes: shapes of every layer named in a pair.
        classes, train_size, data_size: as in `LossContext`.
        deployable: whether a loss may change the network that is kept (`Loss.deploys`).

    Attributes:
        deploying: the name of the term whose loss does so; None where none does.

    Raises:
        ValueError: layers that cannot be bridged, a pair's layer without a shape, a loss that
            deploys where it cannot, or two of them.
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
        """The weighted sum, and each acting term's own value (unweighted, detached) by name."""
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
        """The student's layers that are needed, as the pairs name them."""
        return layer_names(self.terms.values(), "guided")

    @property
    def hint_layers(self) -> tuple[str, ...]:
        """The teacher's layers that are needed, as the pairs name them."""
        return layer_names(self.terms.values(), "hint")

    @property
    def reads_logits(self) -> bool:
        """True if any term reads the logits of the teacher."""
        return any(term.loss is not None and term.loss.reads_logits for term in self.terms.values())

    @property
    def ramps(self) -> bool:
        """True if a weight changes from step to step."""
        return any(term.ramp_epochs > 0 for term in self.terms.values())

    @property
    def sometimes_unused(self) -> bool:
        """True if some learned parameters get no gradient in some steps."""
        return any(
            self.losses[name].sometimes_unused
            or (not term.always_acts and any(True for _ in self.losses[name].parameters()))
            for name, term in self.terms.items()
        )


def any_reads_logits(terms: Iterable[Term]) -> bool:
    """Return whether any active term reads the logits of the teacher."""
    return any(term.active and term.loss and term.loss.reads_logits for term in terms)


def _deploying(terms: Mapping[str, Term], deployable: bool) -> str | None:
    found = [name for name, term in terms.items() if term.loss is not None and term.loss.deploys]
    if found and not deployable:
        raise ValueError(
            f"loss '{found[0]}' gives the student its teacher's classifier, which takes a scheme "
            "with one frozen teacher; take `scheme: {name: offline}`, or another loss"
        )
    if len(found) > 1:
        raise ValueError(
            f"terms {' and '.join(map(repr, found))} each replace the student's classifier; keep "
            "one of them"
        )
    return found[0] if found else None


def term_names(terms: Sequence[Term]) -> list[str]:
    """One name a term: its loss's, with _2, _3 ... where a loss is there more than once."""
    names: list[str] = []
    for term in terms:
        assert term.loss is not None
        loss = term.loss.name
        count = 1 + sum(name == loss or name.startswith(f"{loss}_") for name in names)
        candidate = loss if count == 1 else f"{loss}_{count}"
        names.append(candidate)
    return names


def layer_names(terms: Iterable[Term], side: Literal["guided", "hint"]) -> tuple[str, ...]:
    """The layers the pairs of active terms name on one side, each once."""
    found: dict[str, None] = {}
    for term in terms:
        if term.active:
            found.update(dict.fromkeys(getattr(pair, side) for pair in term.pairs or ()))
    return tuple(found)


def _shapes(pairs: Sequence[Pair], side: str, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    names = [getattr(pair, side) for pair in pairs]
    for name in names:
        if name not in shapes:
            raise ValueError(
                f"{side} layer {name!r} has no known shape; known are "
                f"{', '.join(sorted(shapes)) or 'none'}"
            )
    return tuple(shapes[name] for name in names)
