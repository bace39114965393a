"""Students derived from the teacher: Gou et al. 2021 (arXiv:2006.05525), section 4."""

from raykd.architecture.derived.compact import Separable
from raykd.architecture.derived.derived import Derived, inherited
from raykd.architecture.derived.fewer_channels import ChannelPruning
from raykd.architecture.derived.fewer_layers import LayerPruning
from raykd.architecture.derived.low_rank import LowRank
from raykd.architecture.derived.quantised import Quantized
from raykd.architecture.derived.same import Copy

DERIVED: tuple[type[Derived], ...] = (
    LayerPruning,
    ChannelPruning,
    LowRank,
    Separable,
    Quantized,
    Copy,
)
"""Models made of another model, as a rule the teacher's."""

__all__ = [
    "DERIVED",
    "ChannelPruning",
    "Copy",
    "Derived",
    "LayerPruning",
    "LowRank",
    "Quantized",
    "Separable",
    "inherited",
]
