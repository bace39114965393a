"""Inputs of a sample: gray levels, lower resolutions, groups of columns, pictures of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from raykd.data import AUGMENTATIONS, SOURCES, BatchLoader, Dataset, ViewOptions
from raykd.data.dataset import Split
from raykd.input_forms import WHOLE, PictureForm, picture_form
from raykd.models import Mlp, Signature
from raykd.training.build import signature_of
from raykd.training.stored_networks import raw_samples, with_preprocessing

GENERATOR = np.random.default_rng(0)


def write_colors(folder: Path) -> str:
    """Write 24 images of 12x12 random colors in two classes."""
    for number in range(24):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = GENERATOR.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return str(folder)


def colors(folder: Path) -> Dataset:
    return SOURCES["image_folder"](root=write_colors(folder), size=12, val=0.2, test=0.2).load()


def files(folder: Path) -> Dataset:
    """Return images that are decoded batch by batch."""
    root = write_colors(folder)
    options = {"size": 12, "val": 0.2, "test": 0.2, "resident_limit_mb": 0, "workers": 0}
    return SOURCES["image_folder"](root=root, **options).load()


def table(folder: Path) -> Dataset:
    lines = [f"{row},{row % 7},{'rgb'[row % 3]},{'xy'[row % 2]}" for row in range(40)]
    (folder / "t.csv").write_text("\n".join(["age,size,color,kind", *lines]) + "\n")
    groups = {"all": ("age", "color", "size"), "few": ("color", "size"), "one": ("age",)}
    return SOURCES["table"](
        file=str(folder / "t.csv"), target="kind", kind="class", inputs=groups
    ).load()


def pictures(folder: Path) -> Dataset:
    write_colors(folder)
    lines = [f"{'ab'[n % 2]}/{n}.png,{n},{'uv'[n % 2]},{'xy'[n % 2]}" for n in range(24)]
    (folder / "t.csv").write_text("\n".join(["file,age,color,kind", *lines]) + "\n")
    groups = {"photo": {"images": "file", "size": 8}, "facts": ("age", "color")}
    return SOURCES["table"](
        file=str(folder / "t.csv"), target="kind", kind="class", inputs=groups
    ).load()


CASES: dict[str, tuple[Callable[[Path], Dataset], str, tuple[int, ...]]] = {
    "gray": (colors, "gray", (1, 12, 12)),
    "smaller": (colors, "4x6", (3, 4, 6)),
    "gray and smaller": (colors, "gray-6x6", (1, 6, 6)),
    "files": (files, "gray-6x6", (1, 6, 6)),
    "columns": (table, "few", (2,)),
    "picture": (pictures, "photo", (3, 8, 8)),
    "facts": (pictures, "facts", (2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_input(name: str, tmp_path: Path) -> None:
    """Batches, signature, raw samples and the delivered network agree on the input."""
    load, taken, shape = CASES[name]
    whole = load(tmp_path)
    data = whole.as_input(taken)
    assert data.input == taken and data.input_shape == shape
    assert data.fingerprint == whole.fingerprint and data.train is whole.train
    signature = signature_of(data)
    assert signature.input_shape == shape and signature == signature_of(whole).as_input(taken)
    # back to the whole sample, and through the form in which data travel
    assert signature_of(data.as_input(None)) == signature_of(whole)
    assert data.as_input(None).raw == whole.raw
    travelled = Dataset.from_arrays(data.arrays())
    assert travelled.input == taken and travelled.as_input(None).input_shape == whole.input_shape
    assert whole.to("cpu").as_input(taken).mean == data.mean
    # the delivered network takes what the data source would return for the input
    [batch, *_] = BatchLoader(data.test, data, batch_size=4, shuffle_seed=None).epoch(0)
    assert isinstance(batch.inputs, Tensor) and batch.inputs.shape[1:] == shape
    network = Mlp(depth=1, width=4).build(signature).eval()
    delivered = with_preprocessing(network, data)
    raw = raw_samples(data, torch.arange(len(batch)))
    assert isinstance(raw, Tensor) and raw.shape == batch.inputs.shape
    torch.testing.assert_close(delivered(raw), network(batch.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gray", "columns", "facts"])
def test_inputs_of_one_sample_come_from_the_same_view(name: str, tmp_path: Path) -> None:
    load, taken, _ = CASES[name]
    whole = load(tmp_path)
    data, augment = whole.as_input(taken), ()
    if name == "gray":
        augment = (AUGMENTATIONS["random_crop"](padding=2), AUGMENTATIONS["horizontal_flip"]())
    others = [whole.as_input("photo") if whole.parts else whole]
    loader = BatchLoader(
        data.train,
        data,
        batch_size=5,
        shuffle_seed=3,
        views=ViewOptions(augment, more_inputs=others),
    )
    alone = BatchLoader(
        data.train, others[0], batch_size=5, shuffle_seed=3, views=ViewOptions(augment)
    )
    for batch, expected in zip(loader.epoch(1), alone.epoch(1), strict=True):
        assert torch.equal(batch.index, expected.index)
        torch.testing.assert_close(batch.more_inputs[others[0].input or WHOLE], expected.inputs)
        if name == "gray":
            assert isinstance(expected.inputs, Tensor)
            mean = torch.tensor(whole.mean).reshape(3, 1, 1)
            std = torch.tensor(whole.std).reshape(3, 1, 1)
            pixels = ((expected.inputs * std + mean) * 255).round().to(torch.uint8)
            gray = PictureForm("gray", gray=True).take(pixels).float() / 255
            normalized = (gray - data.mean[0]) / data.std[0]
            torch.testing.assert_close(batch.inputs, normalized, rtol=1e-4, atol=1e-4)


def test_without_inputs_nothing_is_added(tmp_path: Path) -> None:
    data = colors(tmp_path)
    assert data.as_input(None) is data
    signature = signature_of(data)
    assert signature.as_input(None) is signature
    [batch, *_] = BatchLoader(data.train, data, batch_size=4, shuffle_seed=0).epoch(0)
    assert batch.more_inputs == {}


def test_gray_levels_are_those_of_pillow() -> None:
    pixels = GENERATOR.integers(0, 256, (3, 7, 5, 3), dtype=np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
    taken = picture_form("gray").take(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert taken.dtype == torch.uint8
    assert np.array_equal(taken.numpy()[:, 0], expected)


def test_pixels_of_a_smaller_image_are_rounded_means() -> None:
    image = torch.tensor([[[[0, 1, 10, 20], [1, 0, 30, 43]]]], dtype=torch.uint8)
    assert picture_form("1x2").take(image).tolist() == [[[[1, 26]]]]  # 0.5 and 25.75
    assert picture_form("2x2").take(image).tolist() == [[[[1, 15], [1, 37]]]]
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    assert picture_form("gray-1x1").take(white).tolist() == [[[[255]]]]


def test_groups_of_columns_hold_numbers_before_categories(tmp_path: Path) -> None:
    whole = table(tmp_path)
    assert whole.input_shape == (3,) and whole.categories == (4,)
    few, one = whole.as_input("few"), whole.as_input("one")
    assert few.categories == (4,) and one.categories == ()
    assert few.raw.preparation.startswith("columns size, color")
    assert isinstance(whole.train, Split) and isinstance(whole.train.inputs, Tensor)
    assert few.form is not None
    columns = few.form.take(whole.train.inputs)
    assert isinstance(columns, Tensor) and torch.equal(columns, whole.train.inputs[:, 1:])


def test_the_definition_of_a_group_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "a,b,y\n" + "\n".join(f"{n},{n % 5},{n % 2}" for n in range(30))
    )
    groups = ({"x": ("a",), "all": ("a", "b")}, {"x": ("b",), "all": ("a", "b")})
    loaded = [
        SOURCES["table"](file=str(tmp_path / "t.csv"), target="y", kind="class", inputs=each).load()
        for each in groups
    ]
    assert loaded[0].fingerprint != loaded[1].fingerprint


WRONG = [
    (colors, "grey", "unknown input 'grey'; inputs of images: color, gray, a smaller size"),
    (colors, "5x5", "12x12 pixels, which are no multiples of 5 and 5"),
    (colors, "24x24", "no multiples of 24 and 24"),
    (colors, "0x4", "no multiples of 0 and 4"),
    (table, "gray", "unknown input 'gray'; inputs: all, few, one"),
    (pictures, "gray", "unknown input 'gray'; inputs: photo, facts"),
]


@pytest.mark.parametrize(("load", "name", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_inputs(
    load: Callable[[Path], Dataset], name: str, message: str, tmp_path: Path
) -> None:
    data = load(tmp_path)
    with pytest.raises(ValueError, match=r"input|pixels") as error:
        data.as_input(name)
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"input|pixels"):
        signature_of(data).as_input(name)


def test_gray_images_have_no_gray_input() -> None:
    data = SOURCES["digits"](limit=50, val_limit=20).load()
    for name in ("gray", "color"):
        with pytest.raises(ValueError, match="needs images of 3 channels; these have 1"):
            data.as_input(name)


def test_masks_and_boxes_keep_the_size_of_their_images() -> None:
    signature = Signature((3, 8, 8), 2, dense=True)
    assert signature.as_input("gray").input_shape == (1, 8, 8)
    with pytest.raises(ValueError, match="positions of the whole image"):
        signature.as_input("4x4")


def test_a_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "a" / "2.png").unlink()
    source = SOURCES["table"](
        file=str(tmp_path / "t.csv"),
        target="kind",
        kind="class",
        inputs={"photo": {"images": "file", "size": 8}},
    )
    with pytest.raises(ValueError, match=r"2\.png"):
        source.load()


@pytest.mark.parametrize("way", ["parent", "absolute", "link"])
def test_pictures_outside_of_the_folder_are_refused(way: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    folder = tmp_path / "data"
    pictures(folder)
    (folder / "a" / "2.png").rename(outside)
    (folder / "link.png").symlink_to(outside)
    path = {"parent": "../outside.png", "absolute": str(outside), "link": "link.png"}[way]
    table = folder / "t.csv"
    table.write_text(table.read_text().replace("a/2.png", path))
    source = SOURCES["table"](
        file=str(table),
        target="kind",
        kind="class",
        inputs={"photo": {"images": "file", "size": 8}},
    )
    with pytest.raises(ValueError, match=r"outside of .*data; copy the files into it$"):
        source.load()


def test_a_network_of_a_group_embeds_its_categories(tmp_path: Path) -> None:
    few = table(tmp_path).as_input("few")
    network = Mlp(depth=1, width=4).build(signature_of(few))
    assert any(isinstance(module, nn.Embedding) for module in network.modules())
