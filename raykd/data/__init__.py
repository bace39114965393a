"""Data: sources, their splits, and the loading of batches."""

from raykd.data.augment import AUGMENTATIONS, Augment
from raykd.data.batch import Batch, ExtraInputs, Inputs
from raykd.data.batches import BatchLoader, Placement, ViewOptions
from raykd.data.source import AnySplit, Dataset, FileSplit, Raw, Source, Split, Survey
from raykd.data.sources import SOURCES

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "AnySplit",
    "Augment",
    "Batch",
    "BatchLoader",
    "Dataset",
    "ExtraInputs",
    "FileSplit",
    "Inputs",
    "Placement",
    "Raw",
    "Source",
    "Split",
    "Survey",
    "ViewOptions",
]
