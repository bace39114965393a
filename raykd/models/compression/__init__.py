"""Students derived from the teacher: Gou et al. 2021 (arXiv:2006.05525), section 4."""

from raykd.models.compression.base import CompressedModel, inheritance_metrics
from raykd.models.compression.channel_pruning import ChannelPruning
from raykd.models.compression.copy import Copy
from raykd.models.compression.layer_pruning import LayerPruning
from raykd.models.compression.low_rank import LowRank
from raykd.models.compression.quantized import Quantized
from raykd.models.compression.separable import Separable

COMPRESSED_MODELS: tuple[type[CompressedModel], ...] = (
    LayerPruning,
    ChannelPruning,
    LowRank,
    Separable,
    Quantized,
    Copy,
)
"""Models made of another model, as a rule the teacher's."""

__all__ = [
    "COMPRESSED_MODELS",
    "ChannelPruning",
    "CompressedModel",
    "Copy",
    "LayerPruning",
    "LowRank",
    "Quantized",
    "Separable",
    "inheritance_metrics",
]
