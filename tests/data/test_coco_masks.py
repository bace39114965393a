"""Masks in the format of COCO: outlines, overlaps, resizing, faults."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.box_files import NAMES, entries_of, write_split
from raykd.data import Coco, Dataset, Split
from raykd.data.coco_masks import Region, check_outline, mask_of
from raykd.data.dataset import PARTS
from raykd.tasks import Segmentation
from raykd.tasks.statistics import IGNORED

SIZE = (9, 8)
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]

generator = np.random.default_rng(0)


def write(root: Path, change: dict[str, Any] | None = None) -> Coco:
    """Write images whose boxes have outlines of four corners; `change` is of the first one."""
    content = entries_of(30)
    for entry in content["annotations"]:
        x, y, wide, high = entry.pop("bbox")
        corners = [x, y, x + wide, y, x + wide, y + high, x, y + high]
        entry["segmentation"] = [corners]
        entry["bbox"] = [x, y, wide, high]
    content["annotations"][0] |= change or {}
    write_split(root, content, "train/annotations.json", "train/images")
    return Coco(root=str(root), targets="masks")


def test_masks_show_in_their_images(tmp_path: Path) -> None:
    source = write(tmp_path)
    assert isinstance(source.default_task(), Segmentation)
    assert source.declared_shape() == ((3, 40, 48), 4)
    source.check()
    data = source.load()
    assert data.class_names == ("background", *NAMES) and not data.has_boxes
    assert data.train.targets.shape == (len(data.train), 40, 48)
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, torch.Tensor)
    pixels, masks = data.train.inputs[:, 0], data.train.targets
    for number in range(3):
        shade = pixels[masks == number + 1]
        assert len(shade) > 100 and (shade == 60 + 80 * number).float().mean() > 0.9
    assert (pixels[masks == 0] == 20).float().mean() > 0.95
    assert (masks == IGNORED).any(), "objects of different classes overlap"


def test_masks_are_resized_with_their_images(tmp_path: Path) -> None:
    source = write(tmp_path)
    small = Coco(root=source.root, targets="masks", size=20).load()
    assert small.train.targets.shape[1:] == (20, 20)
    assert {*small.train.targets.unique().tolist()} <= {0, 1, 2, 3, IGNORED}


def test_run_lengths_equal_the_library(tmp_path: Path) -> None:
    mask = pytest.importorskip("faster_coco_eval.core.mask", reason="needs raykd[detection]")
    for _ in range(50):
        height, width = (int(side) for side in generator.integers(1, 40, 2))
        pixels = (generator.random((height, width)) < generator.random()).astype(np.uint8)
        counts = mask.encode(np.asfortranarray(pixels))["counts"].decode()
        outline = {"size": [height, width], "counts": counts}
        check_outline(outline, (width, height), "this")
        assert (mask_of([Region(outline, 1)], (width, height)) == pixels).all()


def test_run_lengths_as_a_list() -> None:
    outline = {"size": [2, 3], "counts": [1, 2, 3]}
    check_outline(outline, (3, 2), "this")
    assert mask_of([Region(outline, 4)], (3, 2)).tolist() == [[0, 4, 0], [4, 0, 0]]


def test_overlaps_of_classes_do_not_count() -> None:
    other = [3, 3, 8, 3, 8, 7, 3, 7]
    mask = mask_of([Region([SQUARE], 1), Region([other], 2)], SIZE)
    assert (mask[3:5, 3:5] == IGNORED).all()
    assert mask[1, 1] == 1 and mask[6, 7] == 2 and mask[0, 0] == 0
    same = mask_of([Region([SQUARE], 1), Region([other], 1)], SIZE)
    assert {*np.unique(same).tolist()} == {0, 1}
    crowd = mask_of([Region([SQUARE], IGNORED)], SIZE)
    assert {*np.unique(crowd).tolist()} == {0, IGNORED}


FAULTS: dict[str, tuple[Any, str]] = {
    "no outline": (None, "has segmentation null; it must be a list of polygons"),
    "empty": ([], r"has segmentation \[\]"),
    "two points": ([[1, 1, 2, 2]], "at least three points"),
    "an odd number": ([[*SQUARE, 1]], "at least three points"),
    "a text": ([["1"] * 6], "not of numbers"),
    "no number": ([[float("nan"), *SQUARE[1:]]], "not of numbers"),
    "outside": ([[*SQUARE[:6], 1, 9.5]], "leaves the image of 9x8 pixels"),
    "left": ([[-2, *SQUARE[1:]]], "leaves the image of 9x8 pixels"),
    "another size": ({"size": [9, 8], "counts": [72]}, r"has \[8, 9\], height and width"),
    "another sum": ({"size": [8, 9], "counts": [71]}, "of 71 pixels in all; its image has 72"),
    "negative": ({"size": [8, 9], "counts": [73, -1]}, "whole numbers from 0 on"),
    "no counts": ({"size": [8, 9]}, "`counts` must be a list or a text"),
    "signs": ({"size": [8, 9], "counts": "é"}, "cannot be read"),
    "a cut text": ({"size": [8, 9], "counts": "94400000o"}, "cannot be read"),
    "a long number": ({"size": [8, 9], "counts": "o" * 40}, "cannot be read"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_outlines(name: str) -> None:
    outline, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        check_outline(outline, SIZE, "annotation 1 of a file")


def test_a_wrong_outline_is_named_before_anything_starts(tmp_path: Path) -> None:
    source = write(tmp_path, {"segmentation": [[1, 1]]})
    with pytest.raises(ValueError, match=r"annotation 0 of train/annotations\.json, in train/im"):
        source.check()


def test_random_texts_of_run_lengths_are_refused_or_read() -> None:
    for _ in range(500):
        text = "".join(map(chr, generator.integers(40, 120, generator.integers(0, 30))))
        outline = {"size": [8, 9], "counts": text}
        with contextlib.suppress(ValueError):
            check_outline(outline, SIZE, "this")
            assert mask_of([Region(outline, 1)], SIZE).shape == (8, 9)


def test_regions_of_several_objects_do_not_count(tmp_path: Path) -> None:
    def ignored(data: Dataset) -> int:
        return sum(int((data.split(part).targets == IGNORED).sum()) for part in PARTS)

    single = write(tmp_path / "single").load()
    crowd = write(tmp_path / "crowd", {"iscrowd": 1}).load()
    assert ignored(crowd) >= ignored(single) + 100
