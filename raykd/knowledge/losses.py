"""Every loss a term may name."""

from __future__ import annotations

from raykd.knowledge.activation import ActivationBoundaries, OverhaulFeature
from raykd.knowledge.crd import Crd
from raykd.knowledge.factors import Ft
from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.flow import Fsp
from raykd.knowledge.irg import Irg
from raykd.knowledge.loss import Loss
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
from raykd.knowledge.simkd import SimKD
from raykd.knowledge.svd import Svd
from raykd.knowledge.transformer import AttentionMap, ValueRelation
from raykd.knowledge.vid import Vid
from raykd.option import Family

LOSSES = Family(
    "loss",
    [
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
    ],
    group="raykd.losses",
    base=Loss,
)
