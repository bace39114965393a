"""Base class of models, and the signature that they are built for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from raykd.input_forms import InputForm, Text, find_form
from raykd.models.normalization import Normalization
from raykd.registry import Registry, option


class UnfitShape(ValueError):
    """A model does not support samples of this shape, but may support larger ones."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model.

    Attributes:
        input_shape: shape of a sample without the batch: (C, H, W) for images, (length,) for texts.
        classes: number of classes.
        text: text inputs; None: the input is a single tensor.
        class_names: class names of the data; () if unknown.  Ignored in comparisons.
        categories: number of codes of each column of categories, which are the last of a sample.
        dense: whether there is a response for every position of an image, (classes, H, W).
        boxes: whether a response has a prediction for each anchor, (anchors, values).
        forms: inputs that the samples declare, as in `Dataset`.  Ignored in comparisons.
        whole: of a network that takes whole samples, if this one takes one input of them.  Ignored
            in comparisons.
    """

    input_shape: tuple[int, ...]
    classes: int
    text: Text | None = None
    class_names: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[int, ...] = ()
    dense: bool = False
    boxes: bool = False
    forms: tuple[InputForm, ...] = field(default=(), compare=False, repr=False)
    whole: Signature | None = field(default=None, compare=False, repr=False)

    def as_input(self, name: str | None) -> Signature:
        """Return the signature of a network that takes one input of the samples.

        Args:
            name: of the input; None: the whole sample.

        Raises:
            ValueError: the samples have no such input; names the inputs.
        """
        whole = self.whole or self
        if name is None:
            return whole
        form = find_form(
            name,
            whole.forms,
            whole.input_shape,
            is_text=self.text is not None,
            has_positions=whole.dense or whole.boxes,
        )
        shape = form.shape(whole.input_shape)
        return replace(
            whole, input_shape=shape, categories=form.categories, text=form.text, whole=whole
        )

    def text_key(self, name: str) -> str:
        """Return the place of an option of texts in a study, such as its `tokenizer`."""
        return f"data.{name}" if self.whole is None else f"`{name}` of its input"

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Shape of a response without the batch: (classes,), or (classes, H, W) if dense.

        That of a detector, (anchors, values), is known by the detector alone.
        """
        return (self.classes, *(self.input_shape[1:] if self.dense else ()))


@dataclass(frozen=True)
class PretrainingImages:
    """Images that weights were trained on.

    Attributes:
        normalization: normalization of the pixels.
        size: (height, width), or None if unknown.
        source: configuration file, or description of the source.
    """

    normalization: Normalization
    size: tuple[int, int] | None
    source: Path | str


@option
class Model:
    """Base of every model option: a family of architectures, of which an instance is one member.

    Class attributes:
        paper: author, year, arXiv number; may be empty.
        takes_text: whether members can be built for texts.
        foreign: whether another library implements the networks.
        runs_code: whether building a network runs code of the user.
        gives: responses that its networks can give: one for each sample, (B, classes), one for
            each position of an image, (B, classes, H, W), or one for each anchor of a detector,
            (B, anchors, values); a detector is a `raykd.models.detector.Detector`.
    """

    name: str
    paper: ClassVar[str] = ""
    gives: ClassVar[tuple[Literal["sample", "position", "anchor"], ...]] = ("sample",)
    takes_text: ClassVar[bool] = False
    foreign: ClassVar[bool] = False
    runs_code: ClassVar[bool] = False

    def build(self, signature: Signature) -> nn.Module:
        """Build the untrained network: (B, *input_shape) -> (B, *signature.response_shape).

        Raises:
            ValueError: the member does not support such inputs; the message names fields to change.
        """
        raise NotImplementedError

    def blueprint(self, signature: Signature) -> nn.Module:
        """Build the network with arbitrary weights, to be profiled or loaded.

        Raises:
            ValueError: as `build`.
        """
        return self.build(signature)

    @property
    def origin(self) -> Model | None:
        """Model of the trained network that `build_from` needs; None: `build` is enough.

        A study trains that network first.
        """
        return None

    def build_from(self, trained: nn.Module, signature: Signature) -> nn.Module:
        """Build the network, on the CPU, with weights from a trained network of `origin`.

        `trained` is not modified.

        Raises:
            ValueError: this model inherits no weights, or `trained` is not a network of `origin`.
        """
        raise ValueError(f"{self.name} inherits nothing; build it without a trained network")

    def bind_teacher(self, teacher: Model | None) -> Model:
        """Return the model with the teacher's model as its base, if it has no base yet."""
        return self

    def deployed(self, network: nn.Module) -> nn.Module:
        """Return the network to save of a trained one: itself, or a converted one."""
        return network

    def pretraining_images(self) -> PretrainingImages | None:
        """Return the images that the weights of this model were trained on, if known."""
        return None

    def files(self) -> tuple[Path, ...]:
        """Return the files that affect the network, in addition to the fields."""
        return ()

    def head_classes(self) -> tuple[str, ...]:
        """Return the class names of the initial classifier, in output order.

        () if they are unknown or the classifier is randomly initialized.
        """
        return ()

    def remarks(self, signature: Signature) -> tuple[str, ...]:
        """Return sentences on what is done to the initial weights."""
        return ()

    def prepare(self, signature: Signature) -> None:
        """Download what the network needs; called once, on the machine that starts a study.

        Raises:
            ValueError: something is not available, with what was tried and how to fix it.
        """


MODELS = Registry("model", base=Model, entry_points="raykd.models")
"""Models that a study may name; `raykd.models` adds them."""

AnyModel = Annotated[Model, MODELS]
"""Type of a field that holds a model."""


def image_shape(signature: Signature, family: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of the signature's images.

    Args:
        family: name of the model, for messages.

    Raises:
        ValueError: the samples are not images.
    """
    if len(signature.input_shape) != 3 or min(signature.input_shape) < 1:
        raise ValueError(
            f"{family} takes images of shape (channels, height, width), the samples of the data "
            f"have shape {signature.input_shape}; use model {{name: mlp}}, which takes any shape"
        )
    channels, height, width = signature.input_shape
    return channels, height, width


def format_option(value: Any) -> str:
    """Format an option as in a study file, without fields that have their default."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_option, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {format_option(item)}" for key, item in value.items()) + "}"
    if not is_dataclass(value):
        return json.dumps(value).strip('"')
    changed = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name == "name" or getattr(value, field.name) != field.default
    }
    if list(changed) == ["name"]:
        return changed["name"]
    return "{" + ", ".join(f"{key}: {format_option(item)}" for key, item in changed.items()) + "}"
