"""Augmentations: what may be done to a training picture.

Every one is replayable: what it does to a sample is a pure function of (seed, sample index, view
number), whatever batch the sample comes in (see `raykd.data.views`), so that teacher and student
see the same view (Beyer 2022, arXiv:2106.05237) and a view's teacher outputs can be kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from raykd.data.draws import Draws
from raykd.option import Family, option

if TYPE_CHECKING:
    from torchvision.transforms import v2

Probability = Annotated[
    float, Field(ge=0, le=1, description="Probability of applying the augmentation")
]
Level = Annotated[int, Field(ge=0, le=255, description="Gray level that fills empty areas")]
Range = tuple[float, float]


@option
class Augment:
    """Base of every augmentation option."""

    name: str
    paper: ClassVar[str] = ""
    """Author, year, arXiv number; empty where there is none."""
    batched: ClassVar[bool] = True
    """Whether a whole batch is done at once, on its device; else sample by sample on the CPU."""

    def __call__(self, pictures: Tensor, draws: Draws) -> Tensor:
        """Augment a batch.

        Args:
            pictures: (B, C, H, W) uint8; not written to.
            draws: each sample's random numbers, on the pictures' device.

        Returns:
            The augmented batch, same shape and type.
        """
        raise NotImplementedError


@option
class TorchvisionAugment(Augment):
    """Base of augmentations done by a torchvision v2 transform, sample by sample on the CPU.

    A v2 transform draws one set of parameters a call, so each sample gets a call of its own,
    with torch's CPU generator seeded from the sample's draw and put back afterwards.
    """

    batched = False

    def transform(self, height: int, width: int) -> v2.Transform:
        """The torchvision transform: (C, height, width) uint8 -> the same."""
        raise NotImplementedError

    def __call__(self, pictures: Tensor, draws: Draws) -> Tensor:
        transform = self.transform(*pictures.shape[2:])
        here = pictures.cpu()
        done = torch.empty_like(here)
        generator = torch.default_generator
        state = generator.get_state()
        try:
            for row, seed in enumerate(draws.words().tolist()):
                generator.manual_seed(seed)
                done[row] = transform(here[row])
        finally:
            generator.set_state(state)
        return done.to(pictures.device)


@option
class RandomCrop(Augment):
    """Pad all sides, then crop to the original size at a random position."""

    name: Literal["random_crop"] = "random_crop"
    padding: Annotated[int, Field(ge=1, description="Padding on each side, in pixels")] = 4
    fill: Level = 0

    def __call__(self, pictures: Tensor, draws: Draws) -> Tensor:
        height, width = pictures.shape[2:]
        padded = functional.pad(pictures, (self.padding,) * 4, value=self.fill)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(pictures), device=pictures.device)
        places = 2 * self.padding + 1
        place = draws.below(places**2)
        return windows[rows, :, place // places, place % places]


@option
class HorizontalFlip(Augment):
    """Flip the image horizontally."""

    name: Literal["horizontal_flip"] = "horizontal_flip"
    p: Probability = 0.5

    def __call__(self, pictures: Tensor, draws: Draws) -> Tensor:
        # Whole bytes: on a CPU three bitwise operations take a quarter of `torch.where`'s time.
        flipped = (draws.uniform() < self.p).to(torch.uint8) * 255
        difference = (pictures ^ pictures.flip(-1)) & flipped[:, None, None, None]
        return pictures ^ difference


@option
class RandomErasing(Augment):
    """Erase a random rectangle (Zhong 2020, arXiv:1708.04896, algorithm 1).

    As there, a rectangle that does not fit is drawn again; here at most 10 times, after which the
    picture stays whole.
    """

    paper = "Zhong 2020, arXiv:1708.04896"

    name: Literal["random_erasing"] = "random_erasing"
    p: Probability = 0.5
    scale: Annotated[
        Range, Field(description="Range of the erased area, as a fraction of the image")
    ] = (
        0.02,
        0.33,
    )
    ratio: Annotated[Range, Field(description="Range of the aspect ratio (height / width)")] = (
        0.3,
        3.3,
    )
    fill: Level = 0

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, float("inf"))

    def __call__(self, pictures: Tensor, draws: Draws) -> Tensor:
        height, width = pictures.shape[2:]
        erased = draws.uniform() < self.p
        high, wide, fits = self._rectangle(draws, height, width)
        top = (draws.uniform() * (height - high + 1)).long()[:, None, None]
        left = (draws.uniform() * (width - wide + 1)).long()[:, None, None]
        rows = torch.arange(height, device=pictures.device)[:, None]
        columns = torch.arange(width, device=pictures.device)
        inside = (rows >= top) & (rows < top + high[:, None, None])
        inside = inside & (columns >= left) & (columns < left + wide[:, None, None])
        inside = inside & (erased & fits)[:, None, None]
        return pictures.masked_fill(inside[:, None], self.fill)

    def _rectangle(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) heights and widths of the first of 10 rectangles that fits, and whether any does."""
        low, high = torch.tensor(self.ratio).log().tolist()
        area = draws.uniforms(10, *self.scale) * (height * width)
        ratio = draws.uniforms(10, low, high).exp()
        heights = (area * ratio).sqrt().round().long()
        widths = (area / ratio).sqrt().round().long()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(0, keepdim=True)
        return (
            heights.gather(0, first)[0].clamp(max=height),
            widths.gather(0, first)[0].clamp(max=width),
            fits.any(0),
        )


@option
class RandomResizedCrop(TorchvisionAugment):
    """Crop a random area and resize it to the original size (Szegedy 2015, arXiv:1409.4842)."""

    paper = "Szegedy 2015, arXiv:1409.4842"

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: Annotated[
        Range, Field(description="Range of the cropped area, as a fraction of the image")
    ] = (
        0.08,
        1.0,
    )
    ratio: Annotated[Range, Field(description="Range of the aspect ratio (width / height)")] = (
        3 / 4,
        4 / 3,
    )

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, float("inf"))

    def transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        return v2.RandomResizedCrop([height, width], self.scale, self.ratio)


@option
class Rotation(TorchvisionAugment):
    """Rotate by a random angle around the center."""

    name: Literal["rotation"] = "rotation"
    degrees: Annotated[
        float, Field(gt=0, le=180, description="Maximum angle in either direction")
    ] = 15.0
    fill: Level = 0

    def transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        bilinear = v2.InterpolationMode.BILINEAR
        return v2.RandomRotation(
            [-self.degrees, self.degrees], interpolation=bilinear, fill=self.fill
        )


@option
class ColorJitter(TorchvisionAugment):
    """Randomly change brightness, contrast, saturation and hue (torchvision's `ColorJitter`)."""

    name: Literal["color_jitter"] = "color_jitter"
    brightness: Annotated[
        float, Field(ge=0, description="Strength x; the factor is between 1 - x and 1 + x")
    ] = 0.4
    contrast: Annotated[
        float, Field(ge=0, description="Strength x; the factor is between 1 - x and 1 + x")
    ] = 0.4
    saturation: Annotated[
        float, Field(ge=0, description="Strength x; the factor is between 1 - x and 1 + x")
    ] = 0.4
    hue: Annotated[
        float, Field(ge=0, le=0.5, description="Maximum shift, as a fraction of the color wheel")
    ] = 0.0

    def transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        return v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)


@option
class RandAugment(TorchvisionAugment):
    """Apply random operations of equal strength (Cubuk 2020, arXiv:1909.13719)."""

    paper = "Cubuk 2020, arXiv:1909.13719"

    name: Literal["rand_augment"] = "rand_augment"
    operations: Annotated[
        int, Field(ge=1, description="Number of operations applied in sequence")
    ] = 2
    magnitude: Annotated[int, Field(ge=0, le=30, description="Strength of each operation")] = 9
    fill: Level = 0

    def transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        return v2.RandAugment(self.operations, self.magnitude, fill=self.fill)


@option
class TrivialAugment(TorchvisionAugment):
    """Apply one random operation of random strength (Müller 2021, arXiv:2103.10158, wide space)."""

    paper = "Müller 2021, arXiv:2103.10158"

    name: Literal["trivial_augment"] = "trivial_augment"
    fill: Level = 0

    def transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        return v2.TrivialAugmentWide(fill=self.fill)


def _check_range(field: str, given: Range, most: float) -> None:
    low, high = given
    if not 0 < low <= high <= most:
        bound = "" if most == float("inf") else f", the second at most {most:g}"
        raise ValueError(
            f"{field}: got {list(given)}; must be two numbers above 0, the first not above the "
            f"second{bound}"
        )


AUGMENTATIONS = Family(
    "augmentation",
    [
        RandomCrop,
        HorizontalFlip,
        RandomErasing,
        RandomResizedCrop,
        Rotation,
        ColorJitter,
        RandAugment,
        TrivialAugment,
    ],
    group="raykd.augmentations",
    base=Augment,
)

if TYPE_CHECKING:
    AnyAugment = Augment
else:
    AnyAugment = AUGMENTATIONS.annotation

Augments = Annotated[
    tuple[AnyAugment, ...],
    Field(description="Augmentations of training images, applied in this order"),
]
