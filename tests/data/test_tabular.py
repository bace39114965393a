"""Tables: inputs, targets of every kind, and errors that name file, line and column."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from raykd.data import SOURCES, Dataset
from raykd.data.dataset import Split
from raykd.models import Mlp, Signature
from raykd.training.build import signature_of
from raykd.training.stored_networks import raw_samples, with_preprocessing

ROWS = 40


def table(folder: Path, lines: list[str] | None = None, name: str = "table.csv") -> str:
    """Write a table of a number, a category with gaps, a class and a price."""
    if lines is None:
        lines = [
            f"{row * 1.5 if row != 3 else ''},{['red', 'blue', ''][row % 3]},{'xy'[row % 2]},{row}"
            for row in range(ROWS)
        ]
    (folder / name).write_text("\n".join(["size,color,shape,price", *lines]) + "\n")
    return str(folder / name)


def loaded(file: str, **options: object) -> Dataset:
    return SOURCES["table"](file=file, **options).load()


def resident(data: Dataset, part: str) -> tuple[torch.Tensor, Split]:
    split = {"train": data.train, "val": data.val, "test": data.test}[part]
    assert isinstance(split, Split) and isinstance(split.inputs, torch.Tensor)
    return split.inputs, split


def test_numbers_are_standardized_and_categories_have_codes(tmp_path: Path) -> None:
    data = loaded(table(tmp_path), target="price")
    inputs, train = resident(data, "train")
    assert data.input_shape == (3,) and data.categories == (3, 3)
    assert inputs.dtype == torch.float32
    codes = inputs[:, 1:]
    assert set(codes[:, 0].tolist()) == {0.0, 1.0, 2.0}, "0 for missing values"
    assert set(codes[:, 1].tolist()) == {1.0, 2.0}
    present = inputs[train.index != 3]
    assert present[:, 0].mean().item() == pytest.approx(0, abs=1e-5)
    assert present[:, 0].std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    raw = raw_samples(data, torch.arange(len(train)), "train")
    assert isinstance(raw, torch.Tensor)
    expected = (train.index * 1.5).float()
    torch.testing.assert_close(raw[train.index != 3, 0], expected[train.index != 3])


def test_targets_are_standardized_on_the_training_split(tmp_path: Path) -> None:
    data = loaded(table(tmp_path), target="price")
    values = torch.cat([split.targets[:, 0] for split in (data.train, data.val, data.test)])
    index = torch.cat([split.index for split in (data.train, data.val, data.test)])
    restored = values * data.target_scale[0] + data.target_mean[0]
    torch.testing.assert_close(restored, index.float())
    assert data.train.targets.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.class_names == ("price",) and data.classes == 1


def test_saved_networks_take_and_give_the_units_of_the_table(tmp_path: Path) -> None:
    data = loaded(table(tmp_path), target="price")
    network = Mlp(depth=1, width=4).build(signature_of(data)).eval()
    inputs, _ = resident(data, "test")
    whole = with_preprocessing(network, data)
    raw = raw_samples(data, torch.arange(len(data.test)))
    assert isinstance(raw, torch.Tensor)
    expected = network(inputs) * data.target_scale[0] + data.target_mean[0]
    torch.testing.assert_close(whole(raw), expected, rtol=1e-4, atol=1e-4)
    raw[0, 0] = float("nan")
    assert whole(raw).isfinite().all()


def test_classes_labels_and_vectors_are_targets(tmp_path: Path) -> None:
    file = table(tmp_path)
    classes = loaded(file, target="shape", kind="class")
    assert classes.class_names == ("x", "y") and classes.train.targets.dtype == torch.int64
    rows = [
        {"a": row, "wide": row % 2, "tall": row % 3 == 0, "vector": [row, -row, 1.5]}
        for row in range(ROWS)
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    labels = loaded(str(lines), target=("wide", "tall"), kind="labels", ignore=("vector",))
    assert labels.class_names == ("wide", "tall") and labels.input_shape == (1,)
    expected = torch.stack([labels.train.index % 2, labels.train.index % 3 == 0], 1).float()
    assert torch.equal(labels.train.targets, expected)
    vectors = loaded(str(lines), target="vector", kind="vector", inputs=("a",))
    index = vectors.val.index.float()
    assert torch.equal(vectors.val.targets[:, 1], -index) and vectors.target_scale == ()


def test_splits_of_their_own(tmp_path: Path) -> None:
    new = table(tmp_path, ["1,green,x,1", "2,red,y,2"], "val.csv")
    data = loaded(table(tmp_path), target="price", val_file=new)
    inputs, val = resident(data, "val")
    assert inputs[:, 1].tolist() == [0.0, 2.0], "green is in no training row"
    assert val.index.tolist() == [ROWS, ROWS + 1]


def test_categories_are_embedded() -> None:
    signature = Signature((3,), 2, categories=(3, 40))
    torch.manual_seed(2)  # one network of four units in twenty is constant for these inputs
    network = Mlp(depth=1, width=4).build(signature).eval()
    sizes = [tuple(each.weight.shape) for each in network.get_submodule("columns.tables")]  # type: ignore[union-attr]
    assert sizes == [(3, 2), (40, 16)]
    inputs = torch.tensor([[0.5, 1.0, 7.0], [0.5, 2.0, 7.0], [0.5, 2.0, 99.0]])
    outputs = network(inputs)
    assert not torch.equal(outputs[0], outputs[1]) and outputs.isfinite().all()


WRONG: list[tuple[list[str], dict[str, object], str]] = [
    (["1,a,x,high"], {}, "line 2 holds 'high' in column 'price'; the target must be a finite"),
    (["1,a,x,"], {}, "line 2 holds '' in column 'price'"),
    (["1,a,x,inf"], {}, "line 2 holds 'inf' in column 'price'"),
    (["inf,a,x,1"], {}, "line 2 holds 'inf' in column 'size'"),
    ([], {"target": "cost"}, "has no column 'cost'; it has size, color, shape, price"),
    ([], {"target": "prize"}, "did you mean 'price'?"),
    ([], {"inputs": ("weight",)}, "has no column 'weight'"),
    ([], {"ignore": ("weight",)}, "has no column 'weight'"),
    ([], {"ignore": ("size", "color", "shape")}, "has no column besides the target"),
    ([], {"kind": "labels"}, "a label must be 0 or 1"),
    ([], {"kind": "vector"}, "a vector must be a list of finite numbers"),
    ([], {"target": ("price", "size"), "kind": "class"}, "`kind: class` has one target column"),
    ([], {"inputs": ("size", "price")}, "column 'price' is listed twice"),
    ([], {"inputs": ("size",), "categories": ("color",)}, "column 'color' of `categories`"),
]


@pytest.mark.parametrize(("lines", "options", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_wrong_tables(
    tmp_path: Path, lines: list[str], options: dict[str, object], message: str
) -> None:
    rest = [f"{row},red,x,{row}" for row in range(2, 20)]
    file = table(tmp_path, [*lines, *rest])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        loaded(file, **{"target": "price", **options})
    assert "text:" not in str(caught.value)


def test_constant_targets_and_short_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the value 5 in all training rows"):
        loaded(table(tmp_path, [f"{row},red,x,5" for row in range(20)]), target="price")
    with pytest.raises(ValueError, match="has 3 rows; at least 10"):
        loaded(table(tmp_path, [f"{row},red,x,{row}" for row in range(3)]), target="price")


def test_parquet_equals_csv(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    sizes = np.arange(ROWS) * 1.5
    columns = {"size": sizes, "color": ["ab"[row % 2] for row in range(ROWS)], "price": sizes + 1}
    parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    rows = [f"{size},{'ab'[row % 2]},{size + 1}" for row, size in enumerate(sizes)]
    (tmp_path / "table.csv").write_text("\n".join(["size,color,price", *rows]))
    first, second = (
        loaded(str(tmp_path / f"table.{suffix}"), target="price") for suffix in ("csv", "parquet")
    )
    assert first.fingerprint == second.fingerprint
