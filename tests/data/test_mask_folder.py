"""Folders of images with masks: what is read, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.mask_files import CLASSES, write_mask_folder, write_pairs
from raykd.data import MaskFolder, Split
from raykd.data.dataset import PARTS
from raykd.errors import StudyError
from raykd.study.checks.load import check_data, load_study


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mask_folder(tmp_path / "pairs")


def split(source: MaskFolder, part: str = "train") -> Split:
    content = source.load().split(part)  # type: ignore[arg-type]
    assert isinstance(content, Split)
    return content


def test_masks_belong_to_their_images(root: Path) -> None:
    data = MaskFolder(root=str(root)).load()
    assert data.sizes == {"train": 22, "val": 2, "test": 6}
    assert data.class_names == CLASSES and data.is_dense
    assert data.input_shape == (3, 10, 12)
    for part in PARTS:
        content = data.split(part)
        assert isinstance(content, Split) and content.targets.dtype == torch.uint8
        assert torch.equal(torch.as_tensor(content.inputs)[:, 0], content.targets)
    assert any("0.8% of the positions" in note for note in data.notes)


def test_folders_of_splits_are_used(root: Path) -> None:
    write_pairs(root / "val", 5, seed=1)
    write_pairs(root / "test", 4, seed=2)
    source = MaskFolder(root=str(root), limit=12, val_limit=3)
    assert source.load().sizes == {"train": 12, "val": 3, "test": 4}
    survey = source.survey()
    assert survey is not None and survey.sizes == {"train": 12, "val": 3, "test": 4}
    assert survey.class_names == CLASSES


def test_masks_are_resized_by_nearest_pixel(root: Path) -> None:
    mask = split(MaskFolder(root=str(root), size=5, test=0.1)).targets
    assert mask.shape[1:] == (5, 5)
    assert set(mask.unique().tolist()) <= {0, 1, 2, 255}
    # The centered 10x10 of 12x10 pixels, every second of them
    source = MaskFolder(root=str(root), size=5)
    row = int(split(source).index[0])
    with Image.open(root / "train" / "masks" / f"{row:03}.png") as image:
        stored = np.asarray(image)
    assert np.array_equal(split(source).targets[0].numpy(), stored[1::2, 2:12:2])


def test_masks_with_palettes_and_of_two_values(root: Path) -> None:
    for file in (root / "train" / "masks").iterdir():
        with Image.open(file) as image:
            image.putpalette([level for level in range(256) for _ in range(3)][::-1])
            assert image.mode == "P"
            image.save(file)
    data = MaskFolder(root=str(root)).load()
    assert torch.equal(torch.as_tensor(data.train.inputs)[:, 0], data.train.targets)  # type: ignore[union-attr]
    for file in (root / "train" / "masks").iterdir():
        Image.fromarray(np.eye(10, 12, dtype=bool)).save(file)
    assert split(MaskFolder(root=str(root))).targets.unique().tolist() == [0, 1]


def test_classes_without_names_are_counted(root: Path) -> None:
    (root / "classes.txt").unlink()
    source = MaskFolder(root=str(root))
    assert source.declared_shape() is None
    assert source.load().class_names == ("0", "1", "2")
    named = MaskFolder(root=str(root), class_names=("a", "b", "c", "d"))
    assert named.declared_shape() == ((3, 10, 12), 4)
    assert any("1 of 4 classes are in no train mask: d" in text for text in named.load().warnings)


def test_content_decides_fingerprint(root: Path) -> None:
    before = MaskFolder(root=str(root)).load().fingerprint
    assert MaskFolder(root=str(root)).load().fingerprint == before
    assert MaskFolder(root=str(root), split_seed=1).load().fingerprint != before
    file = root / "train" / "masks" / "003.png"
    with Image.open(file) as image:
        mask = np.array(image)
    mask[5, 5] = (mask[5, 5] + 1) % 3
    Image.fromarray(mask).save(file)
    assert MaskFolder(root=str(root)).load().fingerprint != before


def _rewrite(root: Path, mask: np.ndarray, name: str = "004.png") -> None:
    Image.fromarray(mask).save(root / "train" / "masks" / name)


def _turn(root: Path) -> None:
    file = root / "train" / "images" / "002.png"
    with Image.open(file) as image:
        exif = image.getexif()
        exif[274] = 3  # orientation: turned by half
        image.save(file, exif=exif)


Spoil = Callable[[Path], object]
WRONG: dict[str, tuple[Spoil, str]] = {
    "no mask": (
        lambda root: (root / "train" / "masks" / "007.png").unlink(),
        "train/images/007.png has no mask; add train/masks/007.png, or remove",
    ),
    "no image": (
        lambda root: [(root / "train" / "images" / f"00{n}.png").unlink() for n in (3, 5)],
        r"train/masks/003.png has no image \(and 1 more files\)",
    ),
    "other size": (
        lambda root: _rewrite(root, np.zeros((12, 10), np.uint8)),
        "train/masks/004.png has 10x12 pixels, and its image train/images/004.png 12x10",
    ),
    "class number": (
        lambda root: _rewrite(root, np.full((10, 12), 7, np.uint8)),
        "004.png has the class number 7, and there are 3 classes, 0 to 2",
    ),
    "colors": (
        lambda root: _rewrite(root, np.zeros((10, 12, 3), np.uint8)),
        "has the mode RGB of Pillow; a mask has one channel",
    ),
    "16 bits": (
        lambda root: _rewrite(root, np.zeros((10, 12), np.uint16)),
        "has the mode I;16 of Pillow",
    ),
    "sizes differ": (
        lambda root: write_pairs(root / "val", 2, size=(8, 8)),
        "val/images/000.png has 8x8 pixels, and train/images/000.png 12x10; set data.size",
    ),
    "lossy": (
        lambda root: (root / "train" / "masks" / "004.png").rename(
            root / "train" / "masks" / "004.jpg"
        ),
        "train/masks/004.jpg is a JPEG",
    ),
    "same name": (
        lambda root: Image.new("L", (12, 10)).save(root / "train" / "images" / "004.bmp"),
        "004.bmp and train/images/004.png have the same name",
    ),
    "no folder": (
        lambda root: (root / "train" / "masks").rename(root / "train" / "labels"),
        "there is no folder .*masks; images are read from ROOT/train/images",
    ),
    "damaged": (
        lambda root: (root / "train" / "masks" / "004.png").write_bytes(b"text"),
        "004.png cannot be decoded",
    ),
    "class twice": (
        lambda root: (root / "classes.txt").write_text("ground\ncat\ncat\n"),
        "classes.txt lists 'cat' twice",
    ),
    "one class": (lambda root: (root / "classes.txt").write_text("ground\n"), "lists 1 classes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_faults_are_found_before_anything_starts(root: Path, case: str) -> None:
    spoil, message = WRONG[case]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        MaskFolder(root=str(root)).check()
    study = root / "study.yaml"
    study.write_text(STUDY.replace("ROOT", str(root)))
    with pytest.raises(StudyError) as caught:
        load_study(study, checks=(check_data,))
    assert "study.yaml:2: data" in str(caught.value)


STUDY = """\
name: pairs
data: {name: mask_folder, root: ROOT}
teacher: {model: {name: unet, depth: 1, width: 4}}
student: {model: {name: unet, depth: 1, width: 2}}
knowledge: [{loss: kd}]
train: {epochs: 1}
"""


def test_faults_of_whole_data(root: Path) -> None:
    _turn(root)
    with pytest.raises(ValueError, match=r"002.png is turned by its EXIF orientation"):
        MaskFolder(root=str(root), test=0.1).load()
    write_pairs(root / "val", 3, seed=4)
    (root / "classes.txt").unlink()
    for file in (root / "val" / "masks").iterdir():
        Image.new("L", (12, 10), 9).save(file)
    with pytest.raises(ValueError, match="a val mask has the class number 9"):
        MaskFolder(root=str(write_mask_folder_again(root))).load()


def write_mask_folder_again(root: Path) -> Path:
    """Write upright training images; classes are not listed."""
    write_pairs(root / "train", 30)
    return root


@pytest.mark.parametrize(
    "place", ["train/images/004.png", "train/masks/004.png", "train/masks", "classes.txt"]
)
def test_links_out_of_root_are_refused(root: Path, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "elsewhere"
    (root / place).rename(outside)
    (root / place).symlink_to(outside)
    with pytest.raises(ValueError, match=r"mask_folder: .* is a link to .*data\.links: anywhere"):
        MaskFolder(root=str(root)).check()
    MaskFolder(root=str(root), links="anywhere").check()


def test_links_inside_root_are_followed(root: Path) -> None:
    (root / "train/masks").rename(root / "kept")
    (root / "train/masks").symlink_to("../kept")
    MaskFolder(root=str(root)).check()


def test_too_few_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 1)
    with pytest.raises(ValueError, match="1 training images are too few to leave some for test"):
        MaskFolder(root=str(tmp_path)).check()
