"""Augmentations of training images, and of their masks and boxes.

All are replayable: the result for a sample is a pure function of (seed, sample index, view
number), independent of its batch (see `augmented_view`), so that teacher and student see the same
view (Beyer 2022, arXiv:2106.05237) and teacher outputs can be cached for each view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from raykd.data.rng import CounterRNG, key_of
from raykd.registry import Registry, option
from raykd.tasks.detection import NO_BOX
from raykd.tasks.statistics import IGNORED

if TYPE_CHECKING:
    from torchvision.transforms import v2

Probability = Annotated[
    float, Field(ge=0, le=1, description="Probability of applying the augmentation")
]
Level = Annotated[int, Field(ge=0, le=255, description="Gray level that fills empty areas")]
Range = tuple[float, float]


@option
class Augment:
    """Base class of augmentation options."""

    name: str
    paper: ClassVar[str] = ""
    """Author, year, arXiv number; empty where there is none."""
    batched: ClassVar[bool] = True
    """True: applied to a whole batch on its device; False: sample by sample on the CPU."""
    masks: ClassVar[Literal["moved", "unchanged", "refused"]] = "refused"
    """Masks of the images: moved like them; unchanged, since no pixel moves; or not supported."""
    boxes: ClassVar[Literal["moved", "unchanged", "refused"]] = "refused"
    """Boxes in the images, like `masks`."""

    def __call__(self, images: Tensor, rng: CounterRNG) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, C, H, W) uint8; not written to.
            rng: random numbers of the samples, on the device of the images.

        Returns:
            The augmented batch, same shape and type.
        """
        raise NotImplementedError

    def move(self, masks: Tensor, rng: CounterRNG) -> Tensor:
        """Move masks as `__call__` moves images with the same random numbers.

        Args:
            masks: (B, 1, H, W) uint8; not written to.
            rng: as that of the images.

        Returns:
            The moved masks, `IGNORED` at positions that show no part of the image.
        """
        raise NotImplementedError

    def move_boxes(self, boxes: Tensor, sides: tuple[int, int], rng: CounterRNG) -> Tensor:
        """Move boxes as `__call__` moves images with the same random numbers.

        Args:
            boxes: (B, boxes, 5) corners in pixels and class (-1: no box); not written to.
            sides: height and width of the images.
            rng: as that of the images.

        Returns:
            The moved boxes; those that are no longer in the image have the class -1.
        """
        raise NotImplementedError


@option
class TorchvisionAugment(Augment):
    """Base class of augmentations that apply a torchvision v2 transform on the CPU.

    A v2 transform draws one set of parameters per call, so it is called for each sample
    separately, with the CPU generator of torch seeded for the sample and restored afterwards.
    """

    batched = False

    def transform(self, height: int, width: int) -> v2.Transform:
        """Return the torchvision transform: (C, height, width) uint8 -> the same."""
        raise NotImplementedError

    def mask_transform(self, height: int, width: int) -> v2.Transform:
        """Return the transform of masks, which draws the same numbers as `transform`."""
        raise NotImplementedError

    def __call__(self, images: Tensor, rng: CounterRNG) -> Tensor:
        return self._each(self.transform(*images.shape[2:]), images, rng)

    def move(self, masks: Tensor, rng: CounterRNG) -> Tensor:
        return self._each(self.mask_transform(*masks.shape[2:]), masks, rng)

    def _each(self, transform: v2.Transform, images: Tensor, rng: CounterRNG) -> Tensor:
        """Transform each image with the random numbers of its sample."""
        here = images.cpu()
        done = torch.empty_like(here)
        generator = torch.default_generator
        state = generator.get_state()
        try:
            for row, seed in enumerate(rng.words().tolist()):
                generator.manual_seed(seed)
                done[row] = transform(here[row])
        finally:
            generator.set_state(state)
        return done.to(images.device)


@option
class RandomCrop(Augment):
    """Pad all sides, then crop to the original size at a random position."""

    masks = "moved"
    boxes = "moved"

    name: Literal["random_crop"] = "random_crop"
    padding: Annotated[int, Field(ge=1, description="Padding on each side, in pixels")] = 4
    fill: Level = 0

    def __call__(self, images: Tensor, rng: CounterRNG) -> Tensor:
        return self._cropped(images, rng, self.fill)

    def move(self, masks: Tensor, rng: CounterRNG) -> Tensor:
        return self._cropped(masks, rng, IGNORED)

    def _cropped(self, images: Tensor, rng: CounterRNG, fill: int) -> Tensor:
        height, width = images.shape[2:]
        padded = functional.pad(images, (self.padding,) * 4, value=fill)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(images), device=images.device)
        return windows[rows, :, *self._place(rng)]

    def _place(self, rng: CounterRNG) -> tuple[Tensor, Tensor]:
        """Return (B,) row and column of the window in the padded image."""
        places = 2 * self.padding + 1
        place = rng.below(places**2)
        return place // places, place % places

    def move_boxes(self, boxes: Tensor, sides: tuple[int, int], rng: CounterRNG) -> Tensor:
        top, left = self._place(rng)
        shift = self.padding - torch.stack([left, top, left, top], dim=1)
        moved = boxes.clone()
        moved[:, :, :4] += shift[:, None].to(boxes.dtype)
        centers = (moved[:, :, :2] + moved[:, :, 2:4]) / 2
        ends = boxes.new_tensor([sides[1], sides[0]])
        inside = ((centers > 0) & (centers < ends)).all(2) & (boxes[:, :, 4] != NO_BOX)
        moved[:, :, :4] = moved[:, :, :4].clamp_min(0).minimum(ends.repeat(2))
        return moved.where(inside[:, :, None], NO_BOX)


@option
class HorizontalFlip(Augment):
    """Flip the image horizontally."""

    masks = "moved"
    boxes = "moved"

    name: Literal["horizontal_flip"] = "horizontal_flip"
    p: Probability = 0.5

    def __call__(self, images: Tensor, rng: CounterRNG) -> Tensor:
        # Whole bytes: on a CPU three bitwise operations take a quarter of `torch.where`'s time.
        flipped = (rng.uniform() < self.p).to(torch.uint8) * 255
        difference = (images ^ images.flip(-1)) & flipped[:, None, None, None]
        return images ^ difference

    def move(self, masks: Tensor, rng: CounterRNG) -> Tensor:
        return self(masks, rng)

    def move_boxes(self, boxes: Tensor, sides: tuple[int, int], rng: CounterRNG) -> Tensor:
        x1, y1, x2, y2, classes = boxes.unbind(2)
        mirrored = torch.stack([sides[1] - x2, y1, sides[1] - x1, y2, classes], dim=2)
        is_flipped = (rng.uniform() < self.p)[:, None] & (classes != NO_BOX)
        return mirrored.where(is_flipped[:, :, None], boxes)


@option
class RandomErasing(Augment):
    """Erase a random rectangle (Zhong 2020, arXiv:1708.04896, algorithm 1).

    As in the paper, a rectangle that does not fit is drawn again; here at most 10 times, after
    which the image stays whole.
    """

    paper = "Zhong 2020, arXiv:1708.04896"
    masks = "moved"

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

    def __call__(self, images: Tensor, rng: CounterRNG) -> Tensor:
        return self._erased(images, rng, self.fill)

    def move(self, masks: Tensor, rng: CounterRNG) -> Tensor:
        return self._erased(masks, rng, IGNORED)

    def _erased(self, images: Tensor, rng: CounterRNG, fill: int) -> Tensor:
        height, width = images.shape[2:]
        erased = rng.uniform() < self.p
        high, wide, fits = self._rectangle(rng, height, width)
        top = (rng.uniform() * (height - high + 1)).long()[:, None, None]
        left = (rng.uniform() * (width - wide + 1)).long()[:, None, None]
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + high[:, None, None])
        inside = inside & (columns >= left) & (columns < left + wide[:, None, None])
        inside = inside & (erased & fits)[:, None, None]
        return images.masked_fill(inside[:, None], fill)

    def _rectangle(self, rng: CounterRNG, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B,) height and width of the first of 10 rectangles that fits, and if one fits."""
        low, high = torch.tensor(self.ratio).log().tolist()
        area = rng.uniforms(10, *self.scale) * (height * width)
        ratio = rng.uniforms(10, low, high).exp()
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
    masks = "moved"

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

    def mask_transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        nearest = v2.InterpolationMode.NEAREST
        return v2.RandomResizedCrop([height, width], self.scale, self.ratio, nearest)


@option
class Rotation(TorchvisionAugment):
    """Rotate by a random angle around the center."""

    masks = "moved"

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

    def mask_transform(self, height: int, width: int) -> v2.Transform:
        from torchvision.transforms import v2

        nearest = v2.InterpolationMode.NEAREST
        return v2.RandomRotation([-self.degrees, self.degrees], interpolation=nearest, fill=IGNORED)


@option
class ColorJitter(TorchvisionAugment):
    """Randomly change brightness, contrast, saturation and hue (torchvision's `ColorJitter`)."""

    masks = "unchanged"
    boxes = "unchanged"

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


def _check_range(field: str, bounds: Range, most: float) -> None:
    low, high = bounds
    if not 0 < low <= high <= most:
        bound = "" if most == float("inf") else f", the second at most {most:g}"
        raise ValueError(
            f"{field}: got {list(bounds)}; must be two numbers above 0, the first not above the "
            f"second{bound}"
        )


def augmented_view(
    images: Tensor, index: Tensor, augment: Sequence[Augment], *, seed: int, view: int
) -> Tensor:
    """Augment images: a pure function of (image, index, augment, seed, view).

    Args:
        images: (B, C, H, W) uint8.
        index: (B,) int64, numbers of the samples, on the device of the images.
        augment: augmentations, in this order.
        seed: seed of the augmentations.
        view: number of the view.

    Returns:
        (B, C, H, W) uint8; `images` itself if `augment` is empty.
    """
    for position, step in enumerate(augment):
        images = step(images, CounterRNG(key_of(seed, view, position), index))
    return images


def augmented_masks(
    masks: Tensor, index: Tensor, augment: Sequence[Augment], *, seed: int, view: int
) -> Tensor:
    """Move masks as `augmented_view` moves the images of the same samples.

    Args:
        masks: (B, H, W) uint8.
        index, augment, seed, view: as for the images.

    Returns:
        (B, H, W) uint8.
    """
    moved = masks[:, None]
    for position, step in enumerate(augment):
        if step.masks == "moved":
            moved = step.move(moved, CounterRNG(key_of(seed, view, position), index))
    return moved[:, 0]


def augmented_boxes(
    boxes: Tensor,
    index: Tensor,
    augment: Sequence[Augment],
    *,
    seed: int,
    view: int,
    sides: tuple[int, int],
) -> Tensor:
    """Move boxes as `augmented_view` moves the images of the same samples.

    Args:
        boxes: (B, boxes, 5).
        index, augment, seed, view: as for the images.
        sides: height and width of the images.

    Returns:
        (B, boxes, 5).
    """
    for position, step in enumerate(augment):
        if step.boxes == "moved":
            boxes = step.move_boxes(boxes, sides, CounterRNG(key_of(seed, view, position), index))
    return boxes


AUGMENTATIONS = Registry("augmentation", base=Augment, entry_points="raykd.augmentations")
AUGMENTATIONS.add(
    RandomCrop,
    HorizontalFlip,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    ColorJitter,
    RandAugment,
    TrivialAugment,
)

Augments = Annotated[
    tuple[Annotated[Augment, AUGMENTATIONS], ...],
    Field(description="Augmentations of training images, applied in this order"),
]
