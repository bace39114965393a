"""A term: one loss, its weight and its layer pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raykd.knowledge.loss import Pair
from raykd.knowledge.losses import LOSSES
from raykd.option import option

if TYPE_CHECKING:
    from raykd.knowledge.loss import Loss

    AnyLoss = Loss
else:
    AnyLoss = LOSSES.annotation


@option
class Term:
    """One loss x its weight (x its layer pairs) in a trial's objective.

    A term whose `loss` is null, or whose weight is 0, takes no part.
    """

    loss: AnyLoss | None = None
    weight: Annotated[float | None, Field(ge=0, description="null: the loss's own default")] = None
    pairs: Annotated[
        tuple[Pair, ...] | None,
        Field(description="hint layer of the teacher -> guided layer of the student"),
    ] = None

    @property
    def active(self) -> bool:
        return self.loss is not None and self.effective_weight > 0

    @property
    def effective_weight(self) -> float:
        if self.weight is not None:
            return self.weight
        return self.loss.default_weight if self.loss is not None else 0.0
