"""Students derived from the teacher: Gou et al. 2021 (arXiv:2006.05525), section 4."""

from raykd.architecture.derived.compact import Compact
from raykd.architecture.derived.derived import Derived, inherited
from raykd.architecture.derived.fewer_channels import FewerChannels
from raykd.architecture.derived.fewer_layers import FewerLayers
from raykd.architecture.derived.low_rank import LowRank
from raykd.architecture.derived.quantised import Quantised
from raykd.architecture.derived.same import Same

DERIVED: tuple[type[Derived], ...] = (
    FewerLayers,
    FewerChannels,
    LowRank,
    Compact,
    Quantised,
    Same,
)
"""Models made of another model, as a rule the teacher's."""

__all__ = [
    "DERIVED",
    "Compact",
    "Derived",
    "FewerChannels",
    "FewerLayers",
    "LowRank",
    "Quantised",
    "Same",
    "inherited",
]
