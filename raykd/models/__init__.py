"""Models: families, adapters to other libraries, compression, layers and costs."""

from raykd.models.adapters import ADAPTERS
from raykd.models.base import MODELS, AnyModel, Model, Signature, Text
from raykd.models.compression import COMPRESSED_MODELS, CompressedModel
from raykd.models.introspection.hooks import HookedOutputs, LayerHooks, record_layers
from raykd.models.introspection.layers import Layer, discover, resolve, stage_aliases
from raykd.models.introspection.profile import ModelProfile, profile_model, profile_network
from raykd.models.zoo.cnn import Cnn
from raykd.models.zoo.convnext import Convnext
from raykd.models.zoo.crd_benchmark import CRD_BENCHMARK
from raykd.models.zoo.mixer import Mixer
from raykd.models.zoo.mlp import Mlp
from raykd.models.zoo.mobilenet_v2 import MobilenetV2
from raykd.models.zoo.resnet import Resnet
from raykd.models.zoo.retinanet import Retinanet
from raykd.models.zoo.shufflenet_v1 import ShufflenetV1
from raykd.models.zoo.shufflenet_v2 import ShufflenetV2
from raykd.models.zoo.unet import Unet
from raykd.models.zoo.vgg import Vgg
from raykd.models.zoo.vit import Vit
from raykd.models.zoo.wide_resnet import WideResnet

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
    Unet,
    Retinanet,
)
"""Families of models, with fields that can be searched."""

MODELS.add(*FAMILIES, *CRD_BENCHMARK, *COMPRESSED_MODELS, *ADAPTERS)

__all__ = [
    "ADAPTERS",
    "COMPRESSED_MODELS",
    "CRD_BENCHMARK",
    "FAMILIES",
    "MODELS",
    "AnyModel",
    "Cnn",
    "CompressedModel",
    "Convnext",
    "HookedOutputs",
    "Layer",
    "LayerHooks",
    "Mixer",
    "Mlp",
    "MobilenetV2",
    "Model",
    "ModelProfile",
    "Resnet",
    "Retinanet",
    "ShufflenetV1",
    "ShufflenetV2",
    "Signature",
    "Text",
    "Unet",
    "Vgg",
    "Vit",
    "WideResnet",
    "discover",
    "profile_model",
    "profile_network",
    "record_layers",
    "resolve",
    "stage_aliases",
]
