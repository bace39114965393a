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
from raykd.models.base import PretrainingImages, Signature, image_shape
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


@option
class Torchvision(LibraryModel):
    """A network of torchvision, `torchvision/resnet18` or `torchvision/lraspp_mobilenet_v3_large`.

    Built for the classes of the data: a classifier, or for segmentation one of
    `torchvision.models.segmentation`, without its auxiliary classifier.  The first convolution is
    replaced by one for the channels of the images (or, with `stem: small`, by a 3x3 one without
    stride or pooling); a vision transformer is built for the image size.  Pretrained weights are
    torchvision's defaults.
    """

    gives = ("sample", "position")

    name: Annotated[str, names_like("torchvision/NAME", r"^torchvision/.+")]
    stem: Stem = "own"
    args: Args = Values()

    @classmethod
    def library_names(cls) -> Sequence[str]:
        models = library("torchvision.models", "torchvision", "torchvision/NAME")
        classifiers = models.list_models(module=models)  # without segmentation and detection
        return [*classifiers, *models.list_models(module=models.segmentation)]

    def blueprint(self, signature: Signature) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        models = self._models(signature)
        fixed = _FIXED_ARGS.get(self.library_name, {})
        args = {**fixed, **self._size_args(height, width), **self.args}
        make = partial(
            models.get_model, self.library_name, weights=None, num_classes=signature.classes
        )
        if signature.dense:
            make = partial(make, weights_backbone=None)
        network = construct(self.name, make, Values(args), _RESERVED)
        check_patches(self.name, getattr(network, "patch_size", None), height, width)
        fit_stem(network, channels, small=self.stem == "small", model=self.name)
        if signature.dense:  # the output is a mapping
            return select_logits(network, signature)
        return only_logits(self.name, network, signature)

    def _pretrained(self, signature: Signature) -> nn.Module:
        weights = self._models(signature).get_model_weights(self.library_name).DEFAULT
        network = self.blueprint(signature)
        tensors = weights.get_state_dict(progress=False, check_hash=True)
        load_matching(network, weight_file(self.name, tensors), signature)
        return network

    def _pretrained_classes(self) -> tuple[str, ...]:
        weights = self._library().get_model_weights(self.library_name).DEFAULT
        return tuple(weights.meta.get("categories", ()))

    def pretraining_images(self) -> PretrainingImages | None:
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
        if self.library_name in (names if signature.dense else dense):
            has = f"{self.name} gives a response for each"
            raise ValueError(
                f"{has} sample, and segmentation needs one for each position; torchvision has "
                f"{', '.join(dense)}"
                if signature.dense
                else f"{has} position, which only the task segmentation uses; use a classifier"
            )
        expected = dense if signature.dense else names
        if self.library_name not in expected:
            raise ValueError(unknown_model_message(self.name, expected, "torchvision"))
        return models

    def _library(self) -> ModuleType:
        return library("torchvision.models", "torchvision", self.name)
