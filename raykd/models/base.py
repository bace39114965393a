"""The shape every model option has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from torch import nn

from raykd.models.normalization import Normalization
from raykd.registry import Registry, option


@dataclass(frozen=True)
class Text:
    """How texts reach a model: as mappings of (B, length) int64 tensors.

    Attributes:
        vocabulary: how many tokens there are.
        padding: the token that short texts are filled up with.
        inputs: the mapping's keys; `input_ids` holds tokens, `attention_mask` 1 for those of the
            text and 0 for those that fill up, `token_type_ids` which of two texts one belongs to.
        sample: one text of the data by these keys, with all that the tokenizer adds; () where none
            is at hand.  Descriptions that differ in it are equal.
    """

    vocabulary: int
    padding: int = 0
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    sample: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), compare=False, repr=False)

    @property
    def last(self) -> int | None:
        """The last token of the sample that does not fill up, such as the end of a text."""
        held = dict(self.sample)
        tokens, mask = held.get("input_ids", ()), held.get("attention_mask", ())
        shown = [
            token for token, read in zip(tokens, mask or [1] * len(tokens), strict=True) if read
        ]
        return shown[-1] if shown else None


class UnfitShape(ValueError):
    """A model that cannot take samples of the data's shape, and might take larger ones."""


@dataclass(frozen=True)
class Task:
    """What a model must take and give.

    Attributes:
        input_shape: one sample's shape without the batch: (C, H, W) for pictures, (length,) for
            texts.
        classes: number of classes.
        text: how texts come; None: the inputs are one tensor.
        class_names: of the data; () where they are not known.  Tasks that differ in them are equal.
    """

    input_shape: tuple[int, ...]
    classes: int
    text: Text | None = None
    class_names: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PretrainingImages:
    """The pictures that weights were trained on.

    Attributes:
        normalization: of their pixels.
        size: (height, width); None: unknown.
        source: the file that says so, or the library's words.
    """

    normalization: Normalization
    size: tuple[int, int] | None
    source: Path | str


@option
class Model:
    """Base of every model option: a family of architectures, one concrete member per instance.

    Class attributes:
        paper: author, year, arXiv number; empty where there is none.
        takes_text: whether members can be built for texts.
        foreign: whether their networks are other libraries' code.
        runs_code: whether a study that names one has code of its own run.
    """

    name: str
    paper: ClassVar[str] = ""
    takes_text: ClassVar[bool] = False
    foreign: ClassVar[bool] = False
    runs_code: ClassVar[bool] = False

    def build(self, task: Task) -> nn.Module:
        """The untrained network: (B, *input_shape) -> (B, classes).

        Raises:
            ValueError: this member cannot take such inputs, with the fields to change.
        """
        raise NotImplementedError

    def blueprint(self, task: Task) -> nn.Module:
        """The same network with whatever weights cost least, to be measured or filled.

        Raises:
            ValueError: as `build`.
        """
        return self.build(task)

    @property
    def origin(self) -> Model | None:
        """The model whose trained network its networks inherit from; None: they start on their own.

        A study must have that network ready before it trains one of these (`build_from`).
        """
        return None

    def build_from(self, trained: nn.Module, task: Task) -> nn.Module:
        """The network with what it inherits from a trained network of `origin`, on the CPU.

        `trained` stays as it is.

        Raises:
            ValueError: nothing is inherited, or `trained` is no network of `origin`.
        """
        raise ValueError(f"{self.name} inherits nothing; build it without a trained network")

    def bind_teacher(self, teacher: Model | None) -> Model:
        """The same with the teacher's model where it leaves open what it is derived from."""
        return self

    def deployed(self, network: nn.Module) -> nn.Module:
        """What is kept of a trained network, on its device: itself, or what it is converted to."""
        return network

    def pretraining_images(self) -> PretrainingImages | None:
        """The pictures that weights of this model were trained on, by its own configuration.

        Returns:
            None where nothing says it.
        """
        return None

    def files(self) -> tuple[Path, ...]:
        """The files that decide, beside its fields, what is built."""
        return ()

    def head_classes(self) -> tuple[str, ...]:
        """Class names of the classifier that its networks start with, in the order of the outputs.

        () where they are not known, or the classifier is a new one.
        """
        return ()

    def remarks(self, task: Task) -> tuple[str, ...]:
        """Sentences on what is done to the weights that its networks start from."""
        return ()

    def prepare(self, task: Task) -> None:
        """See that all it starts from can be had, and fetch it where it must be fetched.

        Called once on the machine a study is started on.

        Raises:
            ValueError: it cannot; says what was tried and the remedies.
        """


MODELS = Registry("model", base=Model, entry_points="raykd.models")
"""Models that a study may name; `raykd.models` adds them."""

AnyModel = Annotated[Model, MODELS]
"""Type of a field that holds a model."""


def picture_shape(task: Task, family: str) -> tuple[int, int, int]:
    """(channels, height, width) of the task's pictures.

    Raises:
        ValueError: the task's samples are no pictures; `family` is the model's name.
    """
    if len(task.input_shape) != 3 or min(task.input_shape) < 1:
        raise ValueError(
            f"{family} takes pictures of shape (channels, height, width), the data's samples "
            f"have shape {task.input_shape}; use model {{name: mlp}}, which takes any shape"
        )
    channels, height, width = task.input_shape
    return channels, height, width


def written(value: Any) -> str:
    """An option as a study file writes it, without what is left at its default."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(held)}" for key, held in value.items()) + "}"
    if not is_dataclass(value):
        return json.dumps(value).strip('"')
    changed = {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name == "name" or getattr(value, field.name) != field.default
    }
    if list(changed) == ["name"]:
        return changed["name"]
    return "{" + ", ".join(f"{key}: {written(held)}" for key, held in changed.items()) + "}"
