"""Models of torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import nn

from raykd.models.adapters.find_logits import select_logits
from raykd.models.adapters.library import (
    LibraryModel,
    check_patches,
    construct,
    library,
    only_logits,
    unknown_model_message,
)
from raykd.models.adapters.stems import fit_stem
from raykd.models.adapters.values import Values
from raykd.models.base import PretrainingImages, Signature, UnfitShape, image_shape
from raykd.models.detector import Detector
from raykd.models.normalization import Normalization
from raykd.models.weights.files import weight_file
from raykd.models.weights.load import load_matching
from raykd.registry import names_like, option

if TYPE_CHECKING:
    from types import ModuleType

Stem = Annotated[
    Literal["own", "small"],
    Field(
        description="Stem of the network. small: 3x3, stride 1, no pooling, for images "
        "of about 32x32 pixels"
    ),
]
Args = Annotated[
    Values,
    Field(description="Keyword arguments of the torchvision constructor. Can contain domains"),
]

_RESERVED = ("weights", "weights_backbone", "progress", "num_classes", "aux_loss")

_FIXED_ARGS: Mapping[str, Mapping[str, Any]] = {
    # Auxiliary classifiers change the output in training.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

DETECTORS = (
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
"""Detectors of one stage: their losses are functions of the outputs of the head and the labels."""


@option
class Torchvision(LibraryModel):
    """A network of torchvision, `torchvision/resnet18` or `torchvision/lraspp_mobilenet_v3_large`.

    Built for the classes of the data: a classifier, for segmentation one of
    `torchvision.models.segmentation`, without its auxiliary classifier, or for detection one of the
    one-stage detectors of `torchvision.models.detection`, for the size of the images.  The first
    convolution is replaced by one for the channels of the images (or, with `stem: small`, by a 3x3
    one without stride or pooling); a vision transformer is built for the image size.  Pretrained
    weights are torchvision's defaults; detectors start without.
    """

    gives = ("sample", "position", "anchor")

    name: Annotated[str, names_like("torchvision/NAME", r"^torchvision/.+")]
    stem: Stem = "own"
    args: Args = Values()

    @classmethod
    def library_names(cls) -> Sequence[str]:
        models = library("torchvision.models", "torchvision", "torchvision/NAME")
        classifiers = models.list_models(module=models)  # without segmentation and detection
        return [*classifiers, *models.list_models(module=models.segmentation), *DETECTORS]

    def blueprint(self, signature: Signature) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        models = self._models(signature)
        fixed = _FIXED_ARGS.get(self.library_name, {})
        args = {**fixed, **self._size_args(height, width), **self.args}
        is_ssd = self.library_name.startswith("ssd")
        classes = signature.classes + is_ssd  # the background is a class of an SSD
        make = partial(models.get_model, self.library_name, weights=None, num_classes=classes)
        if signature.dense or signature.boxes:
            make = partial(make, weights_backbone=None)
        network = construct(self.name, make, Values(args), _RESERVED)
        check_patches(self.name, getattr(network, "patch_size", None), height, width)
        fit_stem(network, channels, small=self.stem == "small", model=self.name)
        if signature.boxes:
            return _detector(self.name, network, (channels, height, width))
        if signature.dense:  # the output is a mapping
            return select_logits(network, signature)
        return only_logits(self.name, network, signature)

    def _pretrained(self, signature: Signature) -> nn.Module:
        if self.library_name in DETECTORS:
            raise ValueError(
                f"{self.name}: pretrained weights of detectors are not supported; set "
                "`pretrained: false`, or name a file of weights for these classes: `weights: FILE`"
            )
        weights = self._models(signature).get_model_weights(self.library_name).DEFAULT
        network = self.blueprint(signature)
        tensors = weights.get_state_dict(progress=False, check_hash=True)
        load_matching(network, weight_file(self.name, tensors), signature)
        return network

    def _pretrained_classes(self) -> tuple[str, ...]:
        weights = self._library().get_model_weights(self.library_name).DEFAULT
        return tuple(weights.meta.get("categories", ()))

    def pretraining_images(self) -> PretrainingImages | None:
        if self.library_name in DETECTORS:
            return None
        config = self._library().get_model_weights(self.library_name).DEFAULT.transforms()
        sides = getattr(config, "crop_size", None)  # networks for segmentation take any size
        return PretrainingImages(
            Normalization(mean=tuple(config.mean), std=tuple(config.std)),
            None if sides is None else (sides[0], sides[0]),
            f"torchvision's weights of {self.library_name}",
        )

    def _size_args(self, height: int, width: int) -> dict[str, Any]:
        """Return the size arguments of models for one image size."""
        if self.library_name.startswith("vit_") and height == width:
            return {"image_size": height}
        return {"input_size": (height, width)} if self.library_name.startswith("maxvit") else {}

    def _models(self, signature: Signature) -> ModuleType:
        """Import `torchvision.models`, and check that it has this model for such responses."""
        models = self._library()
        dense = models.list_models(module=models.segmentation)
        names = models.list_models(module=models)  # without segmentation and detection
        boxes = models.list_models(module=models.detection)
        by_response = {"sample": names, "position": dense, "anchor": boxes}
        response = next((r for r, listed in by_response.items() if self.library_name in listed), "")
        needed = "anchor" if signature.boxes else "position" if signature.dense else "sample"
        if response == needed == "anchor" and self.library_name not in DETECTORS:
            raise ValueError(
                f"{self.name} has two stages: its second one depends on the boxes of the labels, "
                f"and has no response without them; use {', '.join(DETECTORS)}"
            )
        if response and response != needed:
            has = f"{self.name} gives a response for each"
            task = {"position": "segmentation", "anchor": "detection"}
            expected = DETECTORS if needed == "anchor" else dense
            raise ValueError(
                f"{has} {response}, which only the task {task[response]} uses; use a classifier"
                if needed == "sample"
                else f"{has} {response}, and {task[needed]} needs one for each {needed}; "
                f"torchvision has {', '.join(expected)}"
            )
        expected = by_response[needed]
        if self.library_name not in expected:
            raise ValueError(unknown_model_message(self.name, expected, "torchvision"))
        return models

    def _library(self) -> ModuleType:
        return library("torchvision.models", "torchvision", self.name)


def _detector(name: str, network: Any, shape: tuple[int, int, int]) -> nn.Module:
    """Return a detector of torchvision for images of one shape.

    Raises:
        UnfitShape: they are too small.
    """
    try:
        return Detector(network, shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UnfitShape(f"{name} cannot take samples of shape {shape}: {text}") from error
