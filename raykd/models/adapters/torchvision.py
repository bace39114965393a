"""Models of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import nn

from raykd.models.adapters.library import (
    LibraryModel,
    check_patches,
    constructed,
    library,
    only_logits,
    unknown_name,
)
from raykd.models.adapters.stems import fit_stem
from raykd.models.adapters.values import Values
from raykd.models.base import PretrainingImages, Task, picture_shape
from raykd.models.normalization import Normalization
from raykd.models.weights.files import weight_file
from raykd.models.weights.transfer import fill
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

_RESERVED = ("weights", "progress", "num_classes")

_ALWAYS: Mapping[str, Mapping[str, Any]] = {
    # Their further classifiers make the output in training another than in evaluation.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


@option
class Torchvision(LibraryModel):
    """A classifier of torchvision, `torchvision/resnet18`.

    Built for the data's classes.  The first convolution is exchanged for one that takes the
    pictures' channels (or, with `stem: small`, for a 3x3 one without stride or pooling); a vision
    transformer is built for the pictures' size.  Pretrained weights are torchvision's default ones.
    """

    name: Annotated[str, names_like("torchvision/NAME", r"^torchvision/.+")]
    stem: Stem = "own"
    args: Args = Values()

    def blueprint(self, task: Task) -> nn.Module:
        channels, height, width = picture_shape(task, self.name)
        models = self._models()
        given = {**_ALWAYS.get(self.called, {}), **self._sizes(height, width), **self.args}
        make = partial(models.get_model, self.called, weights=None, num_classes=task.classes)
        network = constructed(self.name, make, Values(given), _RESERVED)
        check_patches(self.name, getattr(network, "patch_size", None), height, width)
        fit_stem(network, channels, small=self.stem == "small", model=self.name)
        return only_logits(self.name, network, task)

    def _pretrained(self, task: Task) -> nn.Module:
        weights = self._models().get_model_weights(self.called).DEFAULT
        network = self.blueprint(task)
        given = weights.get_state_dict(progress=False, check_hash=True)
        fill(network, weight_file(self.name, given), task)
        return network

    def _pretrained_classes(self) -> tuple[str, ...]:
        weights = self._models().get_model_weights(self.called).DEFAULT
        return tuple(weights.meta.get("categories", ()))

    def pretraining_images(self) -> PretrainingImages | None:
        usual = self._models().get_model_weights(self.called).DEFAULT.transforms()
        (side,) = usual.crop_size
        return PretrainingImages(
            Normalization(mean=tuple(usual.mean), std=tuple(usual.std)),
            (side, side),
            f"torchvision's weights of {self.called}",
        )

    def _sizes(self, height: int, width: int) -> dict[str, Any]:
        """The arguments of those models that are built for one size."""
        if self.called.startswith("vit_") and height == width:
            return {"image_size": height}
        return {"input_size": (height, width)} if self.called.startswith("maxvit") else {}

    def _models(self) -> ModuleType:
        """`torchvision.models`, which knows this model."""
        models = library("torchvision.models", "torchvision", self.name)
        known = models.list_models(module=models)  # without those that segment or detect
        if self.called not in known:
            raise ValueError(unknown_name(self.name, known, "torchvision"))
        return models
