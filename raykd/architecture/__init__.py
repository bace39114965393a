"""Networks: families of models, their layers, what they cost, and taps on them."""

from raykd.architecture.cost import Anatomy, anatomy, dissect
from raykd.architecture.layers import Layer, discover, resolve, stage_aliases
from raykd.architecture.mlp import Mlp
from raykd.architecture.model import Model, Task
from raykd.architecture.resnet import Resnet
from raykd.architecture.taps import Observed, Taps, tapped
from raykd.architecture.vgg import Vgg
from raykd.architecture.wide_resnet import WideResnet
from raykd.option import Family

MODELS = Family(
    "model",
    [
        Resnet,
        WideResnet,
        Vgg,
        Mlp,
    ],
    group="raykd.models",
)

__all__ = [
    "MODELS",
    "Anatomy",
    "Layer",
    "Mlp",
    "Model",
    "Observed",
    "Resnet",
    "Taps",
    "Task",
    "Vgg",
    "WideResnet",
    "anatomy",
    "discover",
    "dissect",
    "resolve",
    "stage_aliases",
    "tapped",
]
