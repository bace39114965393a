"""Every data source a study may name."""

from __future__ import annotations

from raykd.data.cifar import Cifar10, Cifar100
from raykd.data.digits import Digits
from raykd.data.fashion_mnist import FashionMnist
from raykd.data.image_folder import ImageFolder
from raykd.data.source import Source
from raykd.data.text import Texts
from raykd.option import Family

SOURCES = Family(
    "data source",
    [
        Digits,
        FashionMnist,
        Cifar10,
        Cifar100,
        ImageFolder,
        Texts,
    ],
    group="raykd.data",
    base=Source,
)
