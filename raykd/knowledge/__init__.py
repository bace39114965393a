"""Losses: what a student learns from its teacher, and the weighted terms of a study."""

from raykd.knowledge.activation import ActivationBoundaries, OverhaulFeature
from raykd.knowledge.crd import Crd
from raykd.knowledge.evidence import Evidence, Lesson, Progress
from raykd.knowledge.factors import Ft
from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.flow import Fsp
from raykd.knowledge.irg import Irg
from raykd.knowledge.loss import (
    LOSSES,
    AnyLoss,
    Loss,
    LossContext,
    LossModule,
    Pair,
    PairLoss,
    ResponseLoss,
)
from raykd.knowledge.mgd import Mgd
from raykd.knowledge.nst import Nst
from raykd.knowledge.pkt import Pkt
from raykd.knowledge.relation import (
    Cka,
    CorrelationCongruence,
    RelationalKD,
    SimilarityPreserving,
)
from raykd.knowledge.response import KD, Dist, Dkd, LogitMse, LogitStd, Nkd
from raykd.knowledge.review import ReviewKD
from raykd.knowledge.semckd import Semckd
from raykd.knowledge.shapes import Shape
from raykd.knowledge.simkd import SimKD
from raykd.knowledge.svd import Svd
from raykd.knowledge.term import Term
from raykd.knowledge.terms import Terms, term_names
from raykd.knowledge.transformer import AttentionMap, ValueRelation
from raykd.knowledge.vid import Vid

LOSSES.add(
    KD,
    LogitMse,
    Dkd,
    Nkd,
    Dist,
    LogitStd,
    Hint,
    AttentionTransfer,
    Nst,
    Pkt,
    Ft,
    ActivationBoundaries,
    OverhaulFeature,
    Vid,
    Crd,
    Semckd,
    ReviewKD,
    SimKD,
    Mgd,
    Cka,
    AttentionMap,
    ValueRelation,
    Fsp,
    RelationalKD,
    CorrelationCongruence,
    SimilarityPreserving,
    Irg,
    Svd,
)

__all__ = [
    "KD",
    "LOSSES",
    "ActivationBoundaries",
    "AnyLoss",
    "AttentionMap",
    "AttentionTransfer",
    "Cka",
    "CorrelationCongruence",
    "Crd",
    "Dist",
    "Dkd",
    "Evidence",
    "Fsp",
    "Ft",
    "Hint",
    "Irg",
    "Lesson",
    "LogitMse",
    "LogitStd",
    "Loss",
    "LossContext",
    "LossModule",
    "Mgd",
    "Nkd",
    "Nst",
    "OverhaulFeature",
    "Pair",
    "PairLoss",
    "Pkt",
    "Progress",
    "RelationalKD",
    "ResponseLoss",
    "ReviewKD",
    "Semckd",
    "Shape",
    "SimKD",
    "SimilarityPreserving",
    "Svd",
    "Term",
    "Terms",
    "ValueRelation",
    "Vid",
    "term_names",
]
