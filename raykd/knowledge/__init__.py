"""What is transferred from teacher to student: losses and the terms that weigh them."""

from raykd.knowledge.evidence import Evidence, Progress, Shape
from raykd.knowledge.loss import Loss, LossContext, LossModule, Pair, PairLoss, ResponseLoss
from raykd.knowledge.losses import LOSSES
from raykd.knowledge.term import Term

__all__ = [
    "LOSSES",
    "Evidence",
    "Loss",
    "LossContext",
    "LossModule",
    "Pair",
    "PairLoss",
    "Progress",
    "ResponseLoss",
    "Shape",
    "Term",
]
