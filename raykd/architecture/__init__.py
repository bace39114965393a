"""Models: families, adapters to other libraries, compression, layers and costs."""

from raykd.architecture.adapters import ADAPTERS
from raykd.architecture.cnn import Cnn
from raykd.architecture.convnext import Convnext
from raykd.architecture.cost import Anatomy, anatomy, dissect
from raykd.architecture.crd_benchmark import CRD_BENCHMARK
from raykd.architecture.derived import DERIVED, Derived
from raykd.architecture.layers import Layer, discover, resolve, stage_aliases
from raykd.architecture.mixer import Mixer
from raykd.architecture.mlp import Mlp
from raykd.architecture.mobilenet_v2 import MobilenetV2
from raykd.architecture.model import MODELS, AnyModel, Model, Task, Text
from raykd.architecture.resnet import Resnet
from raykd.architecture.shufflenet_v1 import ShufflenetV1
from raykd.architecture.shufflenet_v2 import ShufflenetV2
from raykd.architecture.taps import HookedOutputs, Taps, record_layers
from raykd.architecture.vgg import Vgg
from raykd.architecture.vit import Vit
from raykd.architecture.wide_resnet import WideResnet

FAMILIES: tuple[type[Model], ...] = (
    Resnet,
    WideResnet,
    Vgg,
    MobilenetV2,
    ShufflenetV1,
    ShufflenetV2,
    Convnext,
    Cnn,
    Vit,
    Mixer,
    Mlp,
)
"""Families of models, with fields that can be searched."""

MODELS.add(*FAMILIES, *CRD_BENCHMARK, *DERIVED, *ADAPTERS)

__all__ = [
    "ADAPTERS",
    "CRD_BENCHMARK",
    "DERIVED",
    "FAMILIES",
    "MODELS",
    "Anatomy",
    "AnyModel",
    "Cnn",
    "Convnext",
    "Derived",
    "HookedOutputs",
    "Layer",
    "Mixer",
    "Mlp",
    "MobilenetV2",
    "Model",
    "Resnet",
    "ShufflenetV1",
    "ShufflenetV2",
    "Taps",
    "Task",
    "Text",
    "Vgg",
    "Vit",
    "WideResnet",
    "anatomy",
    "discover",
    "dissect",
    "record_layers",
    "resolve",
    "stage_aliases",
]
