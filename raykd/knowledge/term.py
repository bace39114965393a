"""A term: one loss, its weight, its layer pairs and when it acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from raykd.knowledge.evidence import Progress
from raykd.knowledge.loss import LOSSES, AnyLoss, Loss, Pair
from raykd.option import option
from raykd.problems import Problem


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
            what = f"loss '{loss.name}' works on logits and takes no pairs"
            yield Problem(what, path="pairs", mend="remove `pairs`")
        if not loss.takes_pairs:
            return
        if not pairs and loss.default_pairs != "none":
            yield Problem(
                "an empty list of pairs", path="pairs", mend="name pairs, or leave `pairs` out"
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
        """Whether it acts in every epoch (else what it learns gets no gradient in some)."""
        return self.start_epoch == 0 and self.stop_epoch is None

    def acts(self, progress: Progress) -> bool:
        """Whether it acts in this epoch."""
        before_stop = self.stop_epoch is None or progress.epoch < self.stop_epoch
        return self.active and self.start_epoch <= progress.epoch and before_stop

    def weight_at(self, progress: Progress) -> float:
        """Its weight in this step."""
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
            what = f"{pair.hint} -> {pair.guided} is listed twice"
            yield Problem(what, path=path, mend="remove one of them")
        seen.add((pair.hint, pair.guided))
        if not pair.is_alike:
            yield from _separate_conflicts(loss, pair, path)


def _separate_conflicts(loss: Loss, pair: Pair, path: str) -> Iterator[Problem]:
    """Conflicts of a pair with a weight or a loss of its own."""
    key = "loss" if pair.loss is not None else "weight"
    if pair.loss is not None and not pair.loss.pairs_apart:
        what = (
            f"loss '{pair.loss.name}' {_comparison(pair.loss)}, so it cannot be the loss of a "
            "single pair"
        )
        separate = [name for name, cls in LOSSES.members.items() if cls().pairs_apart]
        mend = f"use a loss that compares pairs one by one: {', '.join(separate)}"
        yield Problem(what, path=f"{path}.{key}", mend=mend)
    elif not loss.pairs_apart:
        what = f"loss '{loss.name}' {_comparison(loss)}, so no pair can have a {key} of its own"
        mend = f"remove the pair's `{key}`"
        mend += ", or set the weight of the term" if key == "weight" else ""
        yield Problem(what, path=f"{path}.{key}", mend=mend)


def _comparison(loss: Loss) -> str:
    return "compares all its pairs together" if loss.takes_pairs else "works on logits"
