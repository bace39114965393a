"""What is transferred from teacher to student: losses and the terms that weigh them."""

from raykd.knowledge.evidence import Evidence, Lesson, Progress, Shape
from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.loss import (
    Loss,
    LossContext,
    LossModule,
    PairLoss,
    ResponseLoss,
)
from raykd.knowledge.losses import LOSSES
from raykd.knowledge.relation import RelationalKD
from raykd.knowledge.response import KD
from raykd.knowledge.term import Pair, Term
from raykd.knowledge.terms import Terms, term_names

__all__ = [
    "KD",
    "LOSSES",
    "AttentionTransfer",
    "Evidence",
    "Hint",
    "Lesson",
    "Loss",
    "LossContext",
    "LossModule",
    "Pair",
    "PairLoss",
    "Progress",
    "RelationalKD",
    "ResponseLoss",
    "Shape",
    "Term",
    "Terms",
    "term_names",
]
