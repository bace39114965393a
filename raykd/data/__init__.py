"""Data: sources, their splits, and the loading of batches."""

from raykd.data.augment import AUGMENTATIONS, Augment
from raykd.data.batch import Batch, ExtraInputs, Inputs, channels_last_for, to_memory_format
from raykd.data.cifar import Cifar10, Cifar100
from raykd.data.coco import Coco
from raykd.data.dataset import (
    SOURCES,
    AnySource,
    AnySplit,
    Dataset,
    FileSplit,
    Raw,
    Source,
    Split,
    Survey,
)
from raykd.data.digits import Digits
from raykd.data.fashion_mnist import FashionMnist
from raykd.data.image_folder import ImageFolder
from raykd.data.loader import BatchLoader, Placement, ViewOptions
from raykd.data.mask_folder import MaskFolder
from raykd.data.samples import dataset_of_samples
from raykd.data.tabular import TabularSource
from raykd.data.text import Texts

SOURCES.add(
    Digits,
    FashionMnist,
    Cifar10,
    Cifar100,
    ImageFolder,
    MaskFolder,
    Coco,
    Texts,
    TabularSource,
)

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "AnySource",
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
    "channels_last_for",
    "dataset_of_samples",
    "to_memory_format",
]
