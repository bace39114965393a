"""Losses: the knowledge that a student learns from its teacher, as weighted terms."""

from raykd.losses.ab_ofd import ActivationBoundaries, OverhaulFeature
from raykd.losses.base import (
    LOSSES,
    AnyLoss,
    Loss,
    LossContext,
    LossModule,
    Pair,
    PairLoss,
    ResponseLoss,
)
from raykd.losses.crd import Crd
from raykd.losses.cwd import Cwd, CwdFeature
from raykd.losses.fsp import Fsp
from raykd.losses.ft import Ft
from raykd.losses.hint_at import AttentionTransfer, Hint
from raykd.losses.irg import Irg
from raykd.losses.logits import KD, Dist, Dkd, LogitMse, LogitStd, Nkd
from raykd.losses.mgd import Mgd
from raykd.losses.model_outputs import LossInputs, ModelOutputs, Progress
from raykd.losses.nst_pkt import Nst, Pkt
from raykd.losses.relations import (
    Cka,
    CorrelationCongruence,
    RelationalKD,
    SimilarityPreserving,
)
from raykd.losses.reviewkd import ReviewKD
from raykd.losses.semckd import Semckd
from raykd.losses.shapes import Shape
from raykd.losses.simkd import SimKD
from raykd.losses.svd import Svd
from raykd.losses.terms import LayerShapes, Term, Terms, term_names
from raykd.losses.transformer import AttentionMap, ValueRelation
from raykd.losses.values import BoundedRegression, CosineResponse
from raykd.losses.vid import Vid

LOSSES.add(
    KD,
    LogitMse,
    Dkd,
    Nkd,
    Dist,
    LogitStd,
    BoundedRegression,
    CosineResponse,
    Cwd,
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
    CwdFeature,
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
    "BoundedRegression",
    "Cka",
    "CorrelationCongruence",
    "CosineResponse",
    "Crd",
    "Cwd",
    "CwdFeature",
    "Dist",
    "Dkd",
    "Fsp",
    "Ft",
    "Hint",
    "Irg",
    "LayerShapes",
    "LogitMse",
    "LogitStd",
    "Loss",
    "LossContext",
    "LossInputs",
    "LossModule",
    "Mgd",
    "ModelOutputs",
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
