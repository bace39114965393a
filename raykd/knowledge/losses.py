"""Every loss a term may name."""

from __future__ import annotations

from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.relation import RelationalKD
from raykd.knowledge.response import KD
from raykd.option import Family

LOSSES = Family(
    "loss",
    [
        KD,
        Hint,
        AttentionTransfer,
        RelationalKD,
    ],
    group="raykd.losses",
)
