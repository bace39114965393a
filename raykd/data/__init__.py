"""Data: sources, their splits, and the batches made of them."""

from raykd.data.augment import AUGMENTATIONS, Augment
from raykd.data.batch import Batch, Beside, Inputs
from raykd.data.batches import Batches
from raykd.data.source import AnySplit, Dataset, FileSplit, Raw, Source, Split, Survey
from raykd.data.sources import SOURCES

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "AnySplit",
    "Augment",
    "Batch",
    "Batches",
    "Beside",
    "Dataset",
    "FileSplit",
    "Inputs",
    "Raw",
    "Source",
    "Split",
    "Survey",
]
