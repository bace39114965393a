"""Inputs of a sample: the forms of it that networks take (`teacher.input`, `student.input`).

A study whose networks name no input has none of this: they take the whole sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

Shape = tuple[int, ...]

PICTURE_NAMES = re.compile(r"(?:(gray|color)(?:-(\d+)x(\d+))?|(\d+)x(\d+))")
"""Names of inputs of images."""

PICTURE_FORMS = "color, gray, a smaller size such as 16x16 (HEIGHTxWIDTH), or gray-16x16"

WHOLE = ""
"""Key of the whole sample in `Batch.more_inputs`."""

_LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in a gray level, times 65,536 (ITU-R 601-2)."""


@dataclass(frozen=True)
class Text:
    """Text inputs of a model: mappings of (B, length) int64 tensors.

    Attributes:
        vocabulary: number of tokens.
        padding: padding token.
        inputs: keys of the mapping: `input_ids` holds tokens, `attention_mask` 1 for tokens and 0
            for padding, `token_type_ids` the index of the text in a pair of texts.
        sample: one text of the data by these keys, with the special tokens of the tokenizer; may
            be empty.  Ignored in comparisons.
    """

    vocabulary: int
    padding: int = 0
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    sample: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), compare=False, repr=False)

    @property
    def last(self) -> int | None:
        """Last token of the sample before the padding, such as an end-of-text token."""
        sample = dict(self.sample)
        tokens, mask = sample.get("input_ids", ()), sample.get("attention_mask", ())
        mask = mask or (1,) * len(tokens)
        text = [token for token, is_token in zip(tokens, mask, strict=True) if is_token]
        return text[-1] if text else None

    @classmethod
    def of(cls, vocabulary: int, padding: int, inputs: Mapping[str, Tensor]) -> Text:
        """Return the text inputs of samples.

        Args:
            vocabulary: number of tokens.
            padding: padding token.
            inputs: (N, length) by key; the first is `sample`.
        """
        sample = tuple((key, tuple(rows[0].tolist())) for key, rows in inputs.items())
        return cls(vocabulary, padding, tuple(inputs), sample)


@dataclass(frozen=True)
class InputForm:
    """Base class of the inputs of a sample.

    Attributes:
        name: in the study.
    """

    name: str

    @property
    def categories(self) -> tuple[int, ...]:
        """Number of codes of each column of categories; these are the last columns."""
        return ()

    @property
    def text(self) -> Text | None:
        """Text inputs of its networks; None: the input is one tensor."""
        return None

    def shape(self, whole: Shape) -> Shape:
        """Return the shape of the input, without the batch.

        Args:
            whole: shape of a whole sample.

        Raises:
            ValueError: samples of this shape have no such input.
        """
        raise NotImplementedError

    def take(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """Return the input of some samples.

        Args:
            inputs: (B, ...) whole samples as they are stored, on any device.

        Returns:
            (B, *shape); of a text a mapping of such tensors.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class PictureForm(InputForm):
    """An image as gray levels, or at a lower resolution, or both.

    A gray level is (19595 red + 38470 green + 7471 blue + 32768) / 65536, rounded down, as Pillow
    computes `image.convert("L")`; a pixel of a smaller image is the rounded mean of a block of
    pixels.  Integers: equal on every device.

    Attributes:
        gray: whether colors become gray levels.
        size: (height, width); None: that of the image.
    """

    gray: bool = False
    size: tuple[int, int] | None = None

    def shape(self, whole: Shape) -> Shape:
        if len(whole) != 3:
            raise ValueError(f"'{self.name}' is an input of images; samples have shape {whole}")
        channels, height, width = whole
        if self.name.startswith(("gray", "color")) and channels != 3:
            raise ValueError(f"'{self.name}' needs images of 3 channels; these have {channels}")
        rows, columns = self.size or (height, width)
        if min(rows, columns) < 1 or height % rows or width % columns:
            raise ValueError(
                f"'{self.name}': the images have {height}x{width} pixels, which are no multiples "
                f"of {rows} and {columns}"
            )
        return (1 if self.gray else channels, rows, columns)

    def take(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        assert isinstance(inputs, Tensor), "an image is one tensor"
        if self.gray:
            red, green, blue = inputs.to(torch.int32).unbind(1)
            level = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 32768
            inputs = (level >> 16).to(torch.uint8).unsqueeze(1)
        if self.size is None or self.size == tuple(inputs.shape[2:]):
            return inputs
        batch, channels, height, width = inputs.shape
        rows, columns = self.size
        blocks = inputs.reshape(batch, channels, rows, height // rows, columns, width // columns)
        pixels = (height // rows) * (width // columns)
        total = blocks.sum((3, 5), dtype=torch.int32) + pixels // 2
        return total.div(pixels, rounding_mode="floor").to(torch.uint8)


@dataclass(frozen=True)
class ColumnForm(InputForm):
    """Some columns of a table.

    Attributes:
        columns: numbers of the columns in a whole sample, ascending.
        names: of these columns.
        codes: number of codes of each column of categories among them.
    """

    columns: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()

    @property
    def categories(self) -> tuple[int, ...]:
        return self.codes

    def shape(self, whole: Shape) -> Shape:
        return (len(self.columns),)

    def take(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        assert isinstance(inputs, Tensor), "the columns of a table are one tensor"
        return inputs.index_select(1, _on_device(self.columns, inputs.device))


@dataclass(frozen=True)
class PartForm(InputForm):
    """One of several tensors that a sample is stored as, under the name of the input.

    Attributes:
        part_shape: shape of the tensor, without the batch.
        codes: number of codes of each column of categories.
    """

    part_shape: Shape = ()
    codes: tuple[int, ...] = ()

    @property
    def categories(self) -> tuple[int, ...]:
        return self.codes

    def shape(self, whole: Shape) -> Shape:
        return self.part_shape

    def take(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        assert isinstance(inputs, Mapping), "a sample has several tensors"
        return inputs[self.name]


@dataclass(frozen=True)
class TextForm(InputForm):
    """Texts as tokens, stored as `NAME/KEY` for each key of `text.inputs`.

    Attributes:
        length: tokens of a sample.
        tokens: text inputs of the networks.
    """

    length: int
    tokens: Text

    @property
    def text(self) -> Text:
        return self.tokens

    def shape(self, whole: Shape) -> Shape:
        return (self.length,)

    def take(self, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(inputs, Mapping), "a text has several tensors"
        return {key: inputs[f"{self.name}/{key}"] for key in self.tokens.inputs}


def find_form(
    name: str,
    forms: Sequence[InputForm],
    whole: Shape,
    *,
    is_text: bool = False,
    has_positions: bool = False,
) -> InputForm:
    """Return the input of this name.

    Args:
        name: in the study.
        forms: inputs that the data declare; (): those of images.
        whole: shape of a whole sample.
        is_text: whether the samples are texts, which have one input unless they declare several.
        has_positions: whether the targets are positions of the whole image.

    Raises:
        ValueError: there is no such input; names the inputs.
    """
    if is_text and not forms:
        raise ValueError(f"unknown input '{name}'; texts have one input: leave `input` out")
    form = next((form for form in forms if form.name == name), None)
    if form is None and forms:
        raise ValueError(f"unknown input '{name}'; inputs: {', '.join(f.name for f in forms)}")
    if form is None:
        form = picture_form(name)
    if has_positions and form.shape(whole)[1:] != whole[1:]:
        raise ValueError(f"'{name}': targets are positions of the whole image; keep its size")
    form.shape(whole)
    return form


def picture_form(name: str) -> PictureForm:
    """Return the input of images of this name.

    Raises:
        ValueError: the name has another form.
    """
    match = PICTURE_NAMES.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown input '{name}'; inputs of images: {PICTURE_FORMS}")
    color, height, width, *only = match.groups()
    sides = (height, width) if height else tuple(only)
    size = (int(sides[0]), int(sides[1])) if sides[0] else None
    return PictureForm(name, color == "gray", size)


@lru_cache(maxsize=64)
def _on_device(columns: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(columns, device=device)
