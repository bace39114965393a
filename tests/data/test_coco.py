"""Images with boxes in the format of COCO: classes, splits, layouts, resizing, faults."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.box_files import NAMES, entries_of, write_coco, write_split
from raykd.data import Coco, Split
from raykd.data.coco import LAYOUTS, Picture, fitted
from raykd.data.dataset import PARTS

Content = dict[str, Any]


def coco(root: Path, **fields: Any) -> Coco:
    return Coco(root=str(root), **fields)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "data")


def edited(root: Path, edit: Callable[[Content], object]) -> Coco:
    """Return the source with a change of its annotations."""
    file = root / "train" / "annotations.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return coco(root)


def test_classes_are_ordered_by_their_categories(root: Path) -> None:
    data = coco(root).load()
    assert data.class_names == NAMES
    assert data.has_boxes and data.input_shape == (3, 40, 48)
    assert coco(root).declared_shape() == ((3, 40, 48), 3)
    assert {len(data.split(part)) for part in ("val", "test")} == {2, 6}
    assert sorted(torch.cat([data.split(p).index for p in PARTS])) == [*range(30)]  # type: ignore[arg-type]


def test_boxes_show_in_their_images(root: Path) -> None:
    split = coco(root).load().train
    assert isinstance(split, Split) and isinstance(split.inputs, torch.Tensor)
    count = 0
    for image, rows in zip(split.inputs, split.targets, strict=True):
        real = rows[rows[:, 4] >= 0]
        for x1, y1, x2, y2, number in real[-1:].tolist():  # the last one is in front
            inside = image[0, int(y1) : int(y2 - 0.5), int(x1) : int(x2)]
            assert (inside == 60 + 80 * number).all()
            assert x2 - x1 in (12, 13) and y2 - y1 == 15.5
            count += 1
    assert count > 10
    assert (split.targets[:, :, 4] < 0).any(), "rows without a box"


def test_a_split_without_file_is_drawn_at_random(root: Path) -> None:
    write_split(root, entries_of(4, seed=1), "val/annotations.json", "val/images")
    data = coco(root, test=0.5).load()
    assert data.sizes == {"train": 15, "val": 4, "test": 15}
    assert "drawn from the training images: test (0.5)" in data.notes
    again = coco(root, test=0.5).load()
    assert again.fingerprint == data.fingerprint
    assert coco(root, test=0.5, split_seed=1).load().fingerprint != data.fingerprint
    limited = coco(root, limit=5, val_limit=2)
    assert limited.load().sizes == {"train": 5, "val": 2, "test": 6}
    survey = limited.survey()
    assert survey is not None and survey.sizes == {"train": 5, "val": 2, "test": 6}


@pytest.mark.parametrize(("file", "folder"), LAYOUTS)
def test_known_layouts_are_read(tmp_path: Path, file: str, folder: str) -> None:
    for part in PARTS:
        names = [each.format(part=part) for each in (file, folder)]
        write_split(tmp_path, entries_of(6), names[0], names[1])
    assert coco(tmp_path).load().sizes == {"train": 6, "val": 6, "test": 6}


def test_changed_files_are_read_again(root: Path) -> None:
    before = coco(root).load()
    after = edited(root, lambda content: content["annotations"].pop()).load()
    assert before.fingerprint != after.fingerprint


def test_images_are_cut_and_resized_with_their_boxes(root: Path) -> None:
    data = coco(root, size=20).load()
    assert data.input_shape == (3, 20, 20)
    picture = Picture("a", (60, 40), ((5.0, 10, 15, 30, 1), (20.0, 10, 40, 30, 0)))
    # the centered part spans x from 10 to 50: the center of the first box is at its border
    [box] = fitted(picture, (20, 20)).tolist()
    assert box == [5, 5, 15, 15, 0]
    wider = Picture("a", (60, 40), ((5.0, 10, 35, 30, 1),))
    assert fitted(wider, (20, 20)).tolist() == [[0, 5, 12.5, 15, 1]], "cut at the border"


def test_crowds_and_overhanging_boxes(root: Path) -> None:
    def edit(content: Content) -> None:
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["bbox"] = [-0.4, 5, 48.9, 10]

    data = edited(root, edit).load()
    assert any("1 boxes around several objects" in note for note in data.notes)
    boxes = torch.cat([data.split(p).targets for p in PARTS]).flatten(0, 1)
    assert boxes[:, :4].min() >= -1
    cut = boxes[(boxes[:, 4] >= 0) & (boxes[:, 0] == 0)]
    assert cut[:, 2].tolist() == [48.0]


def first(content: Content, key: str) -> Content:
    return content[key][0]


FAULTS: list[tuple[Callable[[Content], object], str]] = [
    (lambda c: c.pop("annotations"), "no list `annotations`"),
    (lambda c: c.update(images=[]), "the list `images` of train/annotations.json is empty"),
    (lambda c: first(c, "annotations").update(category_id=4), "has category_id 4; the file has"),
    (lambda c: first(c, "annotations").update(category_id=[4]), "has category_id [4]"),
    (lambda c: first(c, "annotations").update(image_id=999), "image_id 999, which no entry"),
    (lambda c: first(c, "annotations").update(image_id=[]), "image_id [], which no entry"),
    (lambda c: first(c, "annotations").update(bbox=[1, 2, 3]), "must be [x, y, width, height]"),
    (lambda c: first(c, "annotations").update(bbox=[1, 2, 0, 3]), "is empty; remove it"),
    (lambda c: first(c, "annotations").update(bbox=[1, 2, 3, 60]), "leaves the image of 48x40"),
    (lambda c: first(c, "annotations").update(bbox=[-9, 2, 30, 6]), "leaves the image of 48x40"),
    (lambda c: first(c, "annotations").pop("bbox"), "has bbox null"),
    (lambda c: first(c, "images").update(file_name="gone.png"), "there is no image"),
    (lambda c: first(c, "images").update(file_name="001.png"), "'001.png' twice"),
    (lambda c: first(c, "images").update(id=11), "`id` of the images 11 twice"),
    (lambda c: first(c, "images").update(width=50), "has 48x40 pixels, and its entry says 50x40"),
    (lambda c: first(c, "images").pop("height"), "`width` and `height` in pixels"),
    (lambda c: first(c, "images").update(file_name="../../../out.png"), "outside of"),
    (lambda c: first(c, "images").update(file_name="/etc/hostname"), "outside of"),
    (lambda c: first(c, "categories").update(name="cat"), "'cat' twice"),
    (lambda c: first(c, "categories").pop("name"), "`name`, a text"),
]


@pytest.mark.parametrize(("edit", "message"), FAULTS, ids=[row[1][:40] for row in FAULTS])
def test_faults_of_annotations(root: Path, edit: Callable[[Content], object], message: str) -> None:
    source = edited(root, edit)
    with pytest.raises(ValueError, match=f"^coco: .*{re.escape(message)}"):
        source.check()


def test_faults_of_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"looked for train/annotations\.json"):
        coco(tmp_path).check()
    (root / "val").mkdir()
    (root / "val" / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match=r"val/annotations\.json cannot be read as JSON"):
        coco(root).check()
    other = entries_of(3)
    other["categories"][0]["name"] = "fox"
    write_split(root, other, "val/annotations.json", "val/images")
    with pytest.raises(ValueError, match=r"categories of val are cat, dog, fox, those of train"):
        coco(root).check()


def test_links_out_of_the_root_are_refused(root: Path, tmp_path: Path) -> None:
    picture = root / "train" / "images" / "003.png"
    picture.rename(tmp_path / "003.png")
    picture.symlink_to(tmp_path / "003.png")
    with pytest.raises(
        ValueError, match=r"^coco: .*003\.png is a link to .*, outside of .*data\.links: anywhere"
    ):
        coco(root).check()
    coco(root, links="anywhere").check()
    inside = root / "003.png"
    (tmp_path / "003.png").rename(inside)
    picture.unlink()
    picture.symlink_to(inside)
    coco(root).check()


def test_images_of_several_sizes_need_a_size(root: Path) -> None:
    content = entries_of(30)
    content["images"][4].update(width=60, height=44)
    write_split(root, content, "train/annotations.json", "train/images")
    with pytest.raises(ValueError, match=r"004\.png has 60x44 pixels, .* set data\.size"):
        coco(root).check()
    assert coco(root, size=16).load().input_shape == (3, 16, 16)


def test_turned_images_are_refused(root: Path) -> None:
    content = json.loads((root / "train" / "annotations.json").read_text())
    entry = content["images"][2]
    entry["file_name"] = "002.jpg"
    (root / "train" / "annotations.json").write_text(json.dumps(content))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train" / "images" / "002.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"002\.jpg is turned by its EXIF orientation"):
        coco(root, size=16).load()


def test_classes_without_boxes_are_told(root: Path) -> None:
    write_split(root, entries_of(2), "val/annotations.json", "val/images")
    assert any("classes are in no val image" in each for each in coco(root).load().warnings)
    empty = {**entries_of(2), "annotations": []}
    write_split(root, empty, "val/annotations.json", "val/images")
    with pytest.raises(ValueError, match="the images of val have no box"):
        coco(root).load()


def test_gray_images(root: Path) -> None:
    data = dataclasses.replace(coco(root), channels=1).load()
    assert data.input_shape == (1, 40, 48)
