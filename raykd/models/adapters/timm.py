"""Models of timm (PyTorch Image Models)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Annotated

from torch import nn

from raykd.models.adapters.hub import hub
from raykd.models.adapters.library import (
    LibraryModel,
    check_patches,
    construct,
    library,
    only_logits,
    unknown_model_message,
)
from raykd.models.adapters.stems import fit_stem
from raykd.models.adapters.torchvision import Args, Stem
from raykd.models.adapters.values import Values
from raykd.models.base import PretrainingImages, Signature, image_shape
from raykd.models.normalization import Normalization
from raykd.models.weights.class_order import find_class_names
from raykd.registry import names_like, option

_RESERVED = (
    *("num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "features_only", "scriptable", "exportable"),
)


@option
class Timm(LibraryModel):
    """A classifier of timm, `timm/resnet18` or, with its weights' tag, `timm/resnet18.a1_in1k`.

    Built for the classes and channels of the data, and for their image size if a model has a fixed
    size (`img_size`).  `stem: small` replaces the first convolution by a 3x3 one without stride or
    pooling.  Pretrained weights are those of the tag, or timm's default.
    """

    extra = "timm"

    name: Annotated[str, names_like("timm/NAME", r"^timm/.+")]
    stem: Stem = "own"
    args: Args = Values()

    @classmethod
    def library_names(cls) -> Sequence[str]:
        return library("timm", "timm", "timm/NAME").list_models()

    def blueprint(self, signature: Signature) -> nn.Module:
        return self._network(signature, pretrained=False)

    def _pretrained(self, signature: Signature) -> nn.Module:
        with hub():
            return self._network(signature, pretrained=True)

    def _pretrained_classes(self) -> tuple[str, ...]:
        timm = library("timm", "timm", self.name)
        return find_class_names(timm.get_pretrained_cfg(self.library_name))

    def _network(self, signature: Signature, *, pretrained: bool) -> nn.Module:
        channels, height, width = image_shape(signature, self.name)
        timm = library("timm", "timm", self.name)
        args = dict(self.args)
        if self._has_fixed_size(timm) and "img_size" not in args:
            args["img_size"] = [height, width]
        make = partial(
            timm.create_model,
            self.library_name,
            pretrained=pretrained,
            num_classes=signature.classes,
            in_chans=channels,
        )
        network = construct(self.name, make, Values(args), _RESERVED)
        patches = getattr(network, "patch_embed", getattr(network, "stem", None))
        check_patches(self.name, getattr(patches, "patch_size", None), height, width)
        if self.stem == "small":
            fit_stem(network, channels, small=True, model=self.name)
        return only_logits(self.name, network, signature)

    def pretraining_images(self) -> PretrainingImages | None:
        timm = library("timm", "timm", self.name)
        try:
            config = timm.get_pretrained_cfg(self.library_name)
        except RuntimeError:
            return None
        if config is None or not config.has_weights:
            return None
        height, width = config.input_size[-2:]
        return PretrainingImages(
            Normalization(mean=tuple(config.mean), std=tuple(config.std)),
            (int(height), int(width)),
            f"timm's configuration of {self.library_name}",
        )

    def _has_fixed_size(self, timm: ModuleType) -> bool:
        """Return whether the model takes images of one size.

        Raises:
            ValueError: timm has no such model.
        """
        if not timm.is_model(self.library_name):
            raise ValueError(unknown_model_message(self.name, self.library_names(), "timm"))
        try:
            config = timm.get_pretrained_cfg(self.library_name, allow_unregistered=False)
        except RuntimeError:
            architecture = self.library_name.partition(".")[0]
            names = timm.list_pretrained(f"{architecture}.*")
            raise ValueError(unknown_model_message(self.name, names, "timm")) from None
        return bool(config.fixed_input_size)
