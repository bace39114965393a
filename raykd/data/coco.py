"""Images with boxes or outlines in the format of COCO, for detection and segmentation."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from raykd.data.augment import Augments
from raykd.data.coco_masks import BACKGROUND, Region, check_outline, check_package, mask_of
from raykd.data.dataset import (
    PARTS,
    Channels,
    Dataset,
    Fraction,
    ImageSize,
    Limit,
    Raw,
    Root,
    Source,
    Split,
    SplitSeed,
    Survey,
    TestFraction,
    ValLimit,
)
from raykd.data.decode import DecodingLog, by, center_part, decode_all, naming, open_image
from raykd.data.directory_tree import FollowedLinks
from raykd.data.directory_tree import Root as TreeRoot
from raykd.data.download import folder_path, printable
from raykd.data.mask_folder import missing_classes, shares
from raykd.data.pixels import PLAIN
from raykd.data.splits import dataset_of_splits, random_rows
from raykd.registry import option
from raykd.tasks import Detection, Segmentation, Task
from raykd.tasks.detection import NO_BOX
from raykd.tasks.statistics import IGNORED

LAYOUTS = (
    ("{part}/annotations.json", "{part}/images"),
    ("{part}/_annotations.coco.json", "{part}"),
    ("annotations/instances_{part}2017.json", "{part}2017"),
)
"""Files of annotations and folders of images that are looked for: raykd's own layout, exports of
Roboflow, and COCO 2017."""

OVERHANG = 1.0
"""Number of pixels by which a box may leave its image, as rounding does; it is cut there."""


@dataclass(frozen=True)
class Picture:
    """An image with its objects.

    Attributes:
        path: relative to the root.
        size: (width, height) in pixels.
        boxes: corners x1, y1, x2, y2 in pixels, and class; (): outlines are read.
        regions: outlines; (): boxes are read.
    """

    path: str
    size: tuple[int, int]
    boxes: tuple[tuple[float, float, float, float, int], ...]
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """A file of annotations.

    Attributes:
        names: of the classes, in the order of the numbers of their categories; of masks the first
            is the background.
        pictures: in the order of their paths.
        crowds: number of boxes around several objects, which are left out.
    """

    names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    crowds: int


@option
class Coco(Source):
    """Images with boxes or masks in the format of COCO: `root/train/annotations.json`,
    `root/train/images`.

    The files of COCO 2017 (`annotations/instances_train2017.json`, `train2017/`) and exports of
    Roboflow (`train/_annotations.coco.json`) are read, too. Splits `val` and `test` are read alike;
    a split without a file is drawn at random from the training images. Classes are the categories,
    in the order of their numbers. Boxes around several objects (`iscrowd: 1`) are left out. The
    largest centered part of each image is resized to `size`; boxes are cut at its border, and left
    out if their center is outside of it. Images are decoded once and stored in memory.

    Masks (`targets: masks`) come from the outlines of the objects (`segmentation`: polygons or run
    lengths), resized by the nearest pixel. Class 0 is the background. Pixels of objects of
    different classes, and those around several objects (`iscrowd: 1`), do not count.
    """

    name: Literal["coco"] = "coco"
    root: Root = "data"
    targets: Annotated[
        Literal["boxes", "masks"],
        Field(description="Targets: boxes for `detection`, masks for `segmentation`"),
    ] = "boxes"
    size: ImageSize = None
    channels: Channels = 3
    links: FollowedLinks = "inside"
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    def default_task(self) -> Task:
        return Detection() if self.targets == "boxes" else Segmentation()

    def declared_shape(self) -> tuple[tuple[int, ...], int] | None:
        try:
            splits = self._splits()
            return (self.channels, *self._sides(splits)), len(splits["train"].names)
        except ValueError:
            return None  # `check` reports the reason

    def check(self) -> None:
        splits = self._splits()
        self._rows(splits)
        self._check_images(splits)

    def survey(self) -> Survey | None:
        splits = self._splits()
        rows = self._rows(splits)
        self._check_images(splits)
        sizes = {part: len(rows[part]) for part in PARTS}
        return Survey(sizes, splits["train"].names, origin=self._root)

    def load(self) -> Dataset:
        splits = self._splits()
        rows = self._rows(splits)
        self._check_images(splits)
        pictures = [each for part in splits for each in splits[part].pictures]
        names, sides, log = splits["train"].names, self._sides(splits), DecodingLog()
        targets = (_boxes if self.targets == "boxes" else _masks)(pictures, sides)
        parts = {part: self._split(pictures, targets, rows[part], sides, log) for part in PARTS}
        if log.counts["turned"]:
            raise ValueError(
                f"coco: {log.first['turned']} is turned by its EXIF orientation, and "
                f"{self.targets} are not; write the pixels upright, without orientation"
            )
        sample = parts["train"].inputs
        assert isinstance(sample, torch.Tensor)
        data = dataset_of_splits(self.name, parts, sample, names, self._root)
        color, (height, width) = "RGB" if self.channels == 3 else "grayscale", sides
        if self.targets == "masks":
            about, missing = tuple(shares(parts)), missing_classes(self.name, parts, names)
        else:
            boxes = sum(len(each.boxes) for each in pictures)
            about, missing = _left_out(boxes, targets), _missing_classes(parts, names)
        return replace(
            data,
            notes=(*self._notes(splits), *about, *log.notes(PLAIN)),
            warnings=(*missing, *log.warnings(PLAIN)),
            raw=Raw(
                preparation=f"the file as {color}, its largest centered part of that ratio resized "
                f"to {height}x{width}"
            ),
        )

    @property
    def _root(self) -> str:
        return str(folder_path(self.root))

    def _splits(self) -> dict[str, Annotations]:
        """Read the annotations of each split that has a file.

        Raises:
            ValueError: there is none of the training split, or a file is not as it should be.
        """
        if self.targets == "masks":
            check_package()
        root, splits = Path(self._root), {}
        tree = TreeRoot.of(self.name, self._root, self.links)
        for part in PARTS:
            for file, images in LAYOUTS:
                path = root / file.format(part=part)
                if path.is_file():
                    tree.check_entry(file.format(part=part))
                    stamp = path.stat()
                    folder = images.format(part=part)
                    changed = (stamp.st_mtime_ns, stamp.st_size)
                    splits[part] = read_annotations(
                        str(root), str(path), folder, self.targets, changed
                    )
                    break
        if "train" not in splits:
            files = ", ".join(file.format(part="train") for file, _ in LAYOUTS)
            raise ValueError(
                f"coco: {printable(str(root))} has no annotations of the training split; looked "
                f"for {files}"
            )
        names = splits["train"].names
        for part, each in splits.items():
            if each.names != names:
                raise ValueError(
                    f"coco: the categories of {part} are {', '.join(each.names)}, those of train "
                    f"{', '.join(names)}; write the same categories into both files"
                )
        return splits

    def _rows(self, splits: Mapping[str, Annotations]) -> dict[str, np.ndarray]:
        """Return the rows of each split in the pictures of all files."""
        rows, start = {}, 0
        for part, each in splits.items():
            rows[part] = np.arange(start, start + len(each.pictures))
            start += len(each.pictures)
        place = "a file of annotations for {part}"
        return random_rows(rows, self, place=place, source=self.name)

    def _sides(self, splits: Mapping[str, Annotations]) -> tuple[int, int]:
        """Return the height and width of the images."""
        if self.size is not None:
            return self.size, self.size
        width, height = splits["train"].pictures[0].size
        return height, width

    def _check_images(self, splits: Mapping[str, Annotations]) -> None:
        """Check the headers: the images exist inside of the root, with the sizes of their entries.

        Raises:
            ValueError: names the first that does not.
        """
        tree = TreeRoot.of(self.name, self._root, self.links)
        pictures = [each for split in splits.values() for each in split.pictures]
        first = pictures[0]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            sizes = pool.map(lambda each: _size(tree, each.path), pictures)
        for each, size in zip(pictures, sizes, strict=True):
            if size != each.size:
                raise ValueError(
                    f"coco: {printable(each.path)} has {by(size)} pixels, and its entry says "
                    f"{by(each.size)}; {self.targets} are in pixels: correct the file of "
                    "annotations"
                )
            if self.size is None and size != first.size:
                raise ValueError(
                    f"coco: {printable(each.path)} has {by(size)} pixels, and "
                    f"{printable(first.path)} {by(first.size)}; set data.size to resize them"
                )

    def _split(
        self,
        pictures: Sequence[Picture],
        targets: np.ndarray,
        rows: np.ndarray,
        sides: tuple[int, int],
        log: DecodingLog,
    ) -> Split:
        paths = [pictures[row].path for row in rows]
        decoded = decode_all(self._root, paths, (self.channels, *sides), PLAIN, log)
        return Split(
            inputs=torch.from_numpy(decoded),
            targets=torch.from_numpy(targets[rows]),
            index=torch.from_numpy(rows.astype(np.int64)),
        )

    def _notes(self, splits: Mapping[str, Annotations]) -> Iterator[str]:
        drawn = {"test": self.test, "val": self.val}
        cut = [f"{part} ({share:g})" for part, share in drawn.items() if part not in splits]
        if cut:
            yield f"drawn from the training images: {', then '.join(cut)}"
        crowds = sum(each.crowds for each in splits.values())
        if crowds:
            yield f"{crowds:,} boxes around several objects (`iscrowd`) are left out"


@lru_cache(maxsize=16)
def read_annotations(
    root: str, file: str, folder: str, targets: str, changed: tuple[int, int]
) -> Annotations:
    """Read and check a file of annotations in the format of COCO.

    Args:
        root: of the data.
        file: path of the file.
        folder: of the images, relative to the root.
        targets: boxes or masks.
        changed: time of the last change in ns and size of the file, so that it is read again.

    Raises:
        ValueError: names the file, and the entry that is not as it should be.
    """
    place = printable(os.path.relpath(file, root))
    try:
        content = json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"coco: {place} cannot be read as JSON: {error}") from error
    lists = {key: _entries(content, key, place) for key in ("categories", "images", "annotations")}
    classes, names = _categories(lists["categories"], place)
    images = _images(lists["images"], folder, place)
    boxes: dict[Any, list[tuple[float, float, float, float, int]]] = {key: [] for key in images}
    regions: dict[Any, list[Region]] = {key: [] for key in images}
    crowds = 0
    for entry in lists["annotations"]:
        label = f"coco: annotation {entry.get('id', '?')} of {place}"
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, int | str) or image not in images:
            raise ValueError(f"{label} has image_id {image!r}, which no entry of `images` has")
        if type(category) is not int or category not in classes:
            allowed = ", ".join(map(str, classes))
            raise ValueError(
                f"{label} has category_id {category!r}; the file has the categories {allowed}"
            )
        path, size = images[image]
        label = f"{label}, in {printable(path)},"
        is_crowd = bool(entry.get("iscrowd"))
        if targets == "masks":
            outline = entry.get("segmentation")
            check_outline(outline, size, label)
            regions[image].append(Region(outline, IGNORED if is_crowd else classes[category] + 1))
            continue
        corners = _corners(entry.get("bbox"), size, label)
        crowds += is_crowd
        if not is_crowd:
            boxes[image].append((*corners, classes[category]))
    if targets == "masks":
        names = (BACKGROUND, *names)
        if len(names) > IGNORED:
            raise ValueError(
                f"coco: {place} has {len(names) - 1} categories, and a mask has at most "
                f"{IGNORED - 1} beside the background; use `targets: boxes`"
            )
    pictures = [
        Picture(path, size, tuple(boxes[key]), tuple(regions[key]))
        for key, (path, size) in images.items()
    ]
    return Annotations(names, tuple(sorted(pictures, key=lambda each: each.path)), crowds)


def _boxes(pictures: Sequence[Picture], sides: tuple[int, int]) -> np.ndarray:
    """Return the boxes of all images, (N, boxes, 5) float32."""
    moved = [fitted(each, sides) for each in pictures]
    most = max(1, *(len(boxes) for boxes in moved))
    targets = np.full((len(pictures), most, 5), float(NO_BOX), dtype=np.float32)
    for row, boxes in zip(targets, moved, strict=True):
        row[: len(boxes)] = boxes
    return targets


def _left_out(boxes: int, targets: np.ndarray) -> tuple[str, ...]:
    """Return a note on boxes of the files that are not among the targets."""
    outside = boxes - int((targets[:, :, 4] != NO_BOX).sum())
    text = f"{outside:,} boxes outside of the centered part of their image are left out"
    return (text,) if outside else ()


def _masks(pictures: Sequence[Picture], sides: tuple[int, int]) -> np.ndarray:
    """Return the masks of all images, (N, H, W) uint8, resized to `sides`."""
    masks = np.empty((len(pictures), *sides), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        whole = Image.fromarray(mask_of(picture.regions, picture.size))
        masks[number] = np.array(center_part(whole, *sides, nearest=True))
    return masks


def fitted(picture: Picture, sides: tuple[int, int]) -> np.ndarray:
    """Return the boxes of an image in its largest centered part, resized; see `center_part`.

    Args:
        picture: an image with its boxes.
        sides: height and width after resizing.

    Returns:
        (n, 5) corners in pixels and classes; without boxes whose center is outside.
    """
    boxes = np.array(picture.boxes, dtype=np.float64).reshape(-1, 5)
    (width, height), (high, wide) = picture.size, sides
    part = min(width, height * wide / high), min(height, width * high / wide)
    start = np.array([(width - part[0]) / 2, (height - part[1]) / 2])
    scale = np.array([wide / part[0], high / part[1]])
    boxes[:, :4] = (boxes[:, :4] - np.tile(start, 2)) * np.tile(scale, 2)
    center = (boxes[:, :2] + boxes[:, 2:4]) / 2
    boxes = boxes[((center > 0) & (center < (wide, high))).all(1)]
    boxes[:, :4] = boxes[:, :4].clip(0, [wide, high, wide, high])
    return boxes


def _entries(content: Any, key: str, place: str) -> list[dict[str, Any]]:
    """Return a list of mappings of a file."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ValueError(
            f"coco: {place} has no list `{key}` of mappings; the format of COCO has `images`, "
            "`annotations` and `categories`"
        )
    if not entries and key != "annotations":
        raise ValueError(f"coco: the list `{key}` of {place} is empty")
    return entries


def _categories(
    entries: Sequence[Mapping[str, Any]], place: str
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the class of each number of a category, and the names of the classes."""
    for entry in entries:
        if type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"coco: a category of {place} is {json.dumps(entry)}; it needs `id`, a whole "
                "number, and `name`, a text"
            )
    for key in ("id", "name"):
        _check_distinct([entry[key] for entry in entries], f"`{key}` of the categories", place)
    ordered = sorted(entries, key=lambda entry: entry["id"])
    return {e["id"]: n for n, e in enumerate(ordered)}, tuple(e["name"] for e in ordered)


def _images(
    entries: Sequence[Mapping[str, Any]], folder: str, place: str
) -> dict[Any, tuple[str, tuple[int, int]]]:
    """Return the path and size of each image by its number."""
    for entry in entries:
        sides = (entry.get("width"), entry.get("height"))
        is_listed = isinstance(entry.get("file_name"), str)
        is_listed = is_listed and isinstance(entry.get("id"), int | str)
        if not is_listed or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(
                f"coco: an image of {place} is {json.dumps(entry)[:200]}; it needs `id`, "
                "`file_name`, and `width` and `height` in pixels"
            )
    for key in ("id", "file_name"):
        _check_distinct([entry[key] for entry in entries], f"`{key}` of the images", place)
    return {
        entry["id"]: (os.path.join(folder, entry["file_name"]), (entry["width"], entry["height"]))
        for entry in entries
    }


def _check_distinct(values: Sequence[Any], noun: str, place: str) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"coco: {place} has the {noun} {twice[0]!r} twice; use distinct ones")


def _corners(box: Any, size: tuple[int, int], label: str) -> tuple[float, float, float, float]:
    """Return the corners of a box, [x, y, width, height], cut at the border of its image.

    Raises:
        ValueError: it is no box, is empty, or leaves the image.
    """
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(type(v) in (int, float) and math.isfinite(v) for v in box):
        raise ValueError(
            f"{label} has bbox {json.dumps(box)}; it must be [x, y, width, height] in pixels"
        )
    x, y, wide, high = map(float, box)
    width, height = size
    if wide <= 0 or high <= 0:
        raise ValueError(f"{label} has bbox {box}, which is empty; remove it")
    least, right, below = min(x, y), x + wide - width, y + high - height
    if least < -OVERHANG or max(right, below) > OVERHANG:
        raise ValueError(
            f"{label} has bbox {box}, which leaves the image of {width}x{height} pixels; boxes are "
            "[x, y, width, height], not corners, in pixels, not shares"
        )
    corners = max(x, 0.0), max(y, 0.0), min(x + wide, width), min(y + high, height)
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(f"{label} has bbox {box}, outside of the image; remove it")
    return corners


def _size(tree: TreeRoot, path: str) -> tuple[int, int]:
    """Return the (width, height) of an image inside of the root."""
    tree.check_entry(path)
    full = os.path.join(tree.path, path)
    if not os.path.isfile(full):
        raise ValueError(
            f"coco: there is no image {printable(full)}; add it, or remove its entry and its "
            "annotations"
        )
    with naming(Path(full)), open_image(Path(full)) as image:
        return image.size


def _missing_classes(splits: Mapping[str, Split], names: Sequence[str]) -> Iterator[str]:
    for part, split in splits.items():
        classes = split.targets[:, :, 4].flatten()
        present = {*classes[classes >= 0].long().tolist()}
        if not present:
            raise ValueError(f"coco: the images of {part} have no box")
        missing = [name for number, name in enumerate(names) if number not in present]
        if missing:
            yield f"{len(missing)} of {len(names)} classes are in no {part} image: {missing[0]}"
