"""Augmentations: replayable, and as their papers define them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from raykd.data.augment import (
    AUGMENTATIONS,
    Augment,
    HorizontalFlip,
    RandomCrop,
    RandomErasing,
    Rotation,
    augmented_boxes,
    augmented_masks,
    augmented_view,
)
from raykd.data.rng import CounterRNG, key_of, splitmix64, splitmix64_of
from raykd.tasks.statistics import IGNORED


def noise(count: int, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, size, size)
    return torch.randint(1, 256, shape, generator=generator).to(torch.uint8)


def augmented(augment: Augment, pictures: Tensor, index: Tensor, number: int = 0, seed: int = 0):
    return augmented_view(pictures, index, [augment], seed=seed, view=number)


@pytest.mark.parametrize("cls", list(AUGMENTATIONS), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("channels", [1, 3])
class TestEveryAugmentation:
    def test_sample_is_independent_of_its_batch(self, cls: type, channels: int) -> None:
        pictures, index = noise(40, channels), torch.arange(40) + 1000
        whole = augmented(cls(), pictures, index, number=5)
        assert whole.shape == pictures.shape
        assert whole.dtype == torch.uint8
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        for rows in order.split([1, 7, 32]):
            assert torch.equal(augmented(cls(), pictures[rows], index[rows], 5), whole[rows])

    def test_views_seeds_and_samples_differ(self, cls: type, channels: int) -> None:
        pictures, index = noise(40, channels), torch.arange(40)
        first = augmented(cls(), pictures, index)
        assert not torch.equal(first, pictures)
        assert not torch.equal(first, augmented(cls(), pictures, index, number=1))
        assert not torch.equal(first, augmented(cls(), pictures, index, seed=1))
        assert not torch.equal(first, augmented(cls(), pictures, index + 40))

    def test_images_and_global_generators_are_unchanged(self, cls: type, channels: int) -> None:
        pictures = noise(10, channels)
        before = pictures.clone()
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        once = augmented(cls(), pictures, torch.arange(10))
        assert torch.equal(torch.rand(3), expected)
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 - the global generator must not matter
        assert torch.equal(augmented(cls(), pictures, torch.arange(10)), once)
        assert torch.equal(pictures, before)

    def test_study_file_round_trip(self, cls: type, channels: int) -> None:
        adapter = TypeAdapter(Annotated[Augment, AUGMENTATIONS])
        assert adapter.validate_python({"name": cls().name}) == cls()


def test_order_and_position_matter() -> None:
    pictures, index = noise(20), torch.arange(20)
    crop, flip = RandomCrop(), HorizontalFlip()
    view = augmented_view(pictures, index, [crop, flip], seed=0, view=0)
    assert not torch.equal(view, augmented_view(pictures, index, [flip, crop], seed=0, view=0))
    twice = augmented_view(pictures, index, [flip, flip], seed=0, view=0)
    assert not torch.equal(twice, pictures), "two flips draw their own numbers"
    assert augmented_view(pictures, index, [], seed=0, view=0) is pictures


def test_crop_is_window_of_padded_image() -> None:
    pictures, index = noise(300, size=6), torch.arange(300)
    crops = augmented(RandomCrop(padding=2, fill=0), pictures, index)
    padded = torch.nn.functional.pad(pictures, (2,) * 4)
    places = []
    for row in range(300):
        windows = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[row, :, top : top + 6, left : left + 6], crops[row])
        ]
        assert len(windows) == 1
        places += windows
    assert set(places) == {(top, left) for top in range(5) for left in range(5)}


def test_flip_mirrors_given_fraction() -> None:
    pictures = noise(4000, size=4)
    flipped = augmented(HorizontalFlip(p=0.3), pictures, torch.arange(4000))
    mirrored = (flipped == pictures.flip(-1)).all((1, 2, 3))
    unchanged = (flipped == pictures).all((1, 2, 3))
    assert bool((mirrored | unchanged).all())
    assert 0.27 < float(mirrored.float().mean()) < 0.33


def test_erasing_fills_one_rectangle_of_drawn_size() -> None:
    pictures = noise(2000, size=32)
    erased = augmented(RandomErasing(p=0.5, fill=0), pictures, torch.arange(2000))
    holes = (erased == 0).all(1)
    touched = holes.any((1, 2))
    assert 0.46 < float(touched.float().mean()) < 0.54
    assert torch.equal(erased[~touched], pictures[~touched])
    holes = holes[touched]
    high, wide = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), high * wide), "a rectangle, whole"
    area = (high * wide) / 32**2
    assert float(area.min()) > 0.01
    assert float(area.max()) < 0.36
    ratio = (high / wide)[high * wide > 100]
    assert 0.25 < float(ratio.min()) < 0.5
    assert 2 < float(ratio.max()) < 4


def test_erasing_that_never_fits_changes_nothing() -> None:
    pictures = noise(10)
    whole = RandomErasing(p=1.0, scale=(1.0, 1.0), ratio=(3.0, 3.3))
    assert torch.equal(augmented(whole, pictures, torch.arange(10)), pictures)


@pytest.mark.parametrize("scale", [(0.5, 0.2), (0.0, 0.2), (0.2, 1.5)])
def test_ranges_are_checked(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="scale: got"):
        RandomErasing(scale=scale)


def test_rotation_keeps_disc() -> None:
    rows = torch.arange(17) - 8.0
    disc = ((rows[:, None] ** 2 + rows**2 < 36) * 255).to(torch.uint8).expand(5, 1, 17, 17)
    turned = augmented(Rotation(degrees=90), disc, torch.arange(5))
    assert float((turned.float() - disc.float()).abs().mean()) < 20
    bar = torch.zeros(5, 1, 17, 17, dtype=torch.uint8)
    bar[..., 8, :] = 255
    turned = augmented(Rotation(degrees=90), bar, torch.arange(5))
    assert float((turned.float() - bar.float()).abs().mean()) > 20


class TestDraws:
    def test_splitmix64_reference(self) -> None:
        # The first outputs of the generator seeded with 1234567 (Vigna's splitmix64.c).
        step = 0x9E3779B97F4A7C15
        outputs = [splitmix64((1234567 + k * step) % 2**64) for k in range(3)]
        assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    def test_tensor_and_integer_agree(self) -> None:
        states = [0, 1, 2**40 + 3, 2**63 - 1]
        words = splitmix64_of(torch.tensor(states)).tolist()
        assert [word % 2**64 for word in words] == [splitmix64(state) for state in states]

    def test_uniform_and_independent(self) -> None:
        draws = CounterRNG(key_of(0, 0, 0), torch.arange(100_000))
        first, second = draws.uniform(), draws.uniform()
        assert float(first.min()) >= 0
        assert float(first.max()) < 1
        assert abs(float(first.mean()) - 0.5) < 0.005
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.01
        assert abs(float(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1])) < 0.01
        counts = draws.below(9).bincount(minlength=9)
        assert len(counts) == 9
        assert float((counts / 100_000 - 1 / 9).abs().max()) < 0.005

    def test_vectorized_draws_equal_single_draws(self) -> None:
        draws = CounterRNG(key_of(1, 0, 0), torch.arange(10_000))
        drawn = torch.cat([draws.uniforms(4, 2, 3), draws.uniform(2, 3)[None]])
        assert drawn.shape == (5, 10_000)
        assert float(drawn.min()) >= 2
        assert float(drawn.max()) <= 3
        assert float((torch.corrcoef(drawn) - torch.eye(5)).abs().max()) < 0.04

    def test_views_of_one_sample_are_independent(self) -> None:
        index = torch.tensor([5])
        drawn = torch.cat([CounterRNG(key_of(0, view, 0), index).uniform() for view in range(2000)])
        assert abs(float(drawn.mean()) - 0.5) < 0.03
        assert abs(float(torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]))[0, 1])) < 0.08


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("cls", [RandomCrop, HorizontalFlip])
def test_gpu_view_equals_cpu_view(cls: type) -> None:
    pictures, index = noise(40), torch.arange(40)
    there = augmented(cls(), pictures.cuda(), index.cuda())
    assert torch.equal(there.cpu(), augmented(cls(), pictures, index))


MOVED = [cls for cls in AUGMENTATIONS if cls.masks == "moved"]


@pytest.mark.parametrize("cls", MOVED, ids=lambda cls: cls.__name__)
def test_masks_move_as_images(cls: type[Augment]) -> None:
    """An image of two levels and its mask show the same after any view."""
    generator = torch.Generator().manual_seed(4)
    masks = torch.randint(1, 3, (40, 1, 4, 4), generator=generator).to(torch.uint8)
    masks = masks.repeat_interleave(6, 2).repeat_interleave(6, 3)
    images, index = masks * 100, torch.arange(40) + 7
    step = [AUGMENTATIONS[cls.name]()]
    for view in (0, 3):
        shown = augmented_view(images, index, step, seed=2, view=view)[:, 0]
        moved = augmented_masks(masks[:, 0], index, step, seed=2, view=view)
        assert moved.shape == (40, 24, 24) and moved.dtype == torch.uint8
        assert not torch.equal(moved, masks[:, 0])
        counted = moved != IGNORED
        assert torch.equal(counted.flatten(1).any(1), torch.ones(40, dtype=torch.bool))
        expected = (shown[counted].float() / 100).round()  # interpolated at borders
        assert (moved[counted] == expected).float().mean() > 0.93
    assert set(moved.unique().tolist()) <= {1, 2, IGNORED}


def test_masks_stay_where_no_pixel_moves() -> None:
    masks = torch.randint(0, 3, (5, 8, 8)).to(torch.uint8)
    step = [AUGMENTATIONS["color_jitter"]()]
    assert torch.equal(augmented_masks(masks, torch.arange(5), step, seed=0, view=1), masks)
    refused = {cls.name for cls in AUGMENTATIONS if cls.masks == "refused"}
    assert refused == {"rand_augment", "trivial_augment"}


def test_empty_areas_of_masks_do_not_count() -> None:
    masks, index = torch.ones(60, 8, 8, dtype=torch.uint8), torch.arange(60)
    for step in (RandomCrop(padding=4), RandomErasing(p=1.0), Rotation(degrees=60)):
        moved = augmented_masks(masks, index, [step], seed=0, view=0)
        images = augmented_view(masks[:, None] * 9, index, [step], seed=0, view=0)
        empty = images[:, 0] == 0
        assert empty.any() and torch.equal(moved[empty], torch.full_like(moved[empty], IGNORED))


BOX_MOVERS = [cls for cls in AUGMENTATIONS if cls.boxes == "moved"]


@pytest.mark.parametrize("cls", BOX_MOVERS, ids=lambda cls: cls.__name__)
def test_boxes_move_as_images(cls: type[Augment]) -> None:
    """A picture drawn from the moved boxes equals the moved picture."""
    generator = torch.Generator().manual_seed(4)
    corners = torch.randint(8, 12, (40, 1, 2), generator=generator)
    sizes = torch.randint(5, 9, (40, 1, 2), generator=generator)
    boxes = torch.cat([corners, corners + sizes, torch.ones(40, 1, 1)], dim=2)
    boxes = torch.cat([boxes, torch.full_like(boxes, -1)], dim=1)
    index, step = torch.arange(40) + 7, [AUGMENTATIONS[cls.name]()]

    def pictures(rows: torch.Tensor) -> torch.Tensor:
        images = torch.zeros(40, 1, 24, 30, dtype=torch.uint8)
        for image, (x1, y1, x2, y2, _) in zip(images, rows[:, 0].int().tolist(), strict=True):
            image[:, y1:y2, x1:x2] = 200
        return images

    for view in (0, 3):
        moved = augmented_boxes(boxes, index, step, seed=2, view=view, sides=(24, 30))
        assert not torch.equal(moved, boxes)
        assert (moved[:, 1] == -1).all(), "rows without a box stay empty"
        shown = augmented_view(pictures(boxes), index, step, seed=2, view=view)
        assert torch.equal(shown, pictures(moved))


def test_boxes_that_leave_the_image_are_removed() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4, 2], [9, 9, 12, 12, 1]]]).expand(200, 2, 5)
    index = torch.arange(200)
    moved = augmented_boxes(boxes, index, [RandomCrop()], seed=0, view=0, sides=(12, 12))
    inside = moved[:, :, 4] >= 0
    assert inside.any(1).float().mean() > 0.7 and not inside.all()
    assert (moved[~inside] == -1).all()
    assert moved[inside][:, :4].min() >= 0 and moved[inside][:, :4].max() <= 12
    assert (moved[inside][:, 2:4] > moved[inside][:, :2]).all()


def test_augmentations_of_boxes() -> None:
    names = {
        kind: {c.name for c in AUGMENTATIONS if c.boxes == kind} for kind in ("moved", "unchanged")
    }
    assert names == {"moved": {"random_crop", "horizontal_flip"}, "unchanged": {"color_jitter"}}
