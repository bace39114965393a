"""Texts of tables as tokens."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import csv as arrow_csv
from pyarrow import feather, parquet
from pydantic import TypeAdapter, ValidationError

from helpers.docstrings import MODULES, VOCABULARY
from raykd.data import AnySource, BatchLoader, Dataset, Split
from raykd.data.text import Texts
from raykd.training.build import signature_of

LENGTH = 24


@pytest.fixture(scope="module")
def source(corpus: Path) -> Texts:
    return _source(corpus, corpus / "table.csv")


@pytest.fixture(scope="module")
def dataset(source: Texts) -> Dataset:
    return source.load()


def _source(corpus: Path, file: Path, **fields: Any) -> Texts:
    usual = {"tokenizer": str(corpus / "tokenizer"), "max_length": LENGTH}
    return Texts(file=str(file), **{**usual, **fields})  # type: ignore[arg-type]


def _inputs(dataset: Dataset, part: str = "train") -> dict[str, torch.Tensor]:
    split = dataset.split(part)  # type: ignore[arg-type]
    assert isinstance(split, Split) and not isinstance(split.inputs, torch.Tensor)
    return dict(split.inputs)


def _write(file: Path, rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return file


def test_tokens_equal_tokenizers(dataset: Dataset, corpus: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(corpus / "tokenizer"))
    with open(corpus / "table.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for number in range(0, len(dataset.train), 60):
        index = int(dataset.train.index[number])
        inputs = {key: value[number] for key, value in _inputs(dataset).items()}
        ids = tokenizer(rows[index]["text"], truncation=True, max_length=LENGTH)["input_ids"]
        mask = inputs["attention_mask"].bool()
        assert inputs["input_ids"][mask].tolist() == ids
        assert inputs["input_ids"][~mask].eq(tokenizer.pad_token_id).all()
        assert dataset.class_names[int(dataset.train.targets[number])] == rows[index]["label"]


def test_facts_for_models(dataset: Dataset) -> None:
    signature = signature_of(dataset)
    assert dataset.class_names == MODULES
    assert signature.input_shape == (LENGTH,) and signature.classes == len(MODULES)
    assert signature.text is not None
    assert (signature.text.vocabulary, signature.text.padding) == (VOCABULARY, 0)
    assert signature.text.inputs == ("input_ids", "attention_mask")
    assert all(value.dtype == torch.int64 for value in _inputs(dataset).values())
    assert signature_of(Dataset.from_arrays(dataset.arrays())) == signature


def test_splits_keep_proportions(dataset: Dataset) -> None:
    total = sum(dataset.sizes.values())
    assert dataset.sizes["test"] == round(0.2 * total)
    train, test = (dataset.split(part).targets.bincount() for part in ("train", "test"))
    assert ((train / train.sum()) - (test / test.sum())).abs().max() < 0.02


def test_batches_are_mappings(dataset: Dataset) -> None:
    batches = BatchLoader(dataset.train, dataset, batch_size=32, shuffle_seed=0)
    keys = []
    for batch in batches.epoch(0):
        assert not isinstance(batch.inputs, torch.Tensor)
        assert set(batch.inputs) == {"input_ids", "attention_mask"}
        assert batch.inputs["input_ids"].shape == (len(batch), LENGTH)
        keys.append(batch.index)
    assert torch.cat(keys).sort().values.equal(dataset.train.index.sort().values)


@pytest.mark.parametrize(
    "suffix", ["csv", "tsv", "jsonl", "parquet", "arrow", "arrow stream", "feather", "folder"]
)
def test_formats_are_equivalent(
    suffix: str, dataset: Dataset, corpus: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"table.{suffix.partition(' ')[0]}"
    table = arrow_csv.read_csv(corpus / "table.csv")
    if suffix == "csv":
        shutil.copy(corpus / "table.csv", file)
    elif suffix == "tsv":
        arrow_csv.write_csv(table, file, arrow_csv.WriteOptions(delimiter="\t"))
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif suffix == "parquet":
        parquet.write_table(table, file)
    elif suffix == "feather":
        feather.write_feather(table, str(file))
    elif suffix == "folder":
        import datasets

        datasets.Dataset(table).save_to_disk(str(file))
    else:
        opened = pa.ipc.new_stream if suffix.endswith("stream") else pa.ipc.new_file
        with opened(str(file), table.schema) as writer:
            writer.write_table(table)
    assert _source(corpus, file).load().fingerprint == dataset.fingerprint


def test_limits_and_seeds(source: Texts, corpus: Path, dataset: Dataset) -> None:
    few = _source(corpus, corpus / "table.csv", limit=50, val_limit=20).load()
    assert few.sizes == {"train": 50, "val": 20, "test": dataset.sizes["test"]}
    assert few.fingerprint != dataset.fingerprint
    other = _source(corpus, corpus / "table.csv", split_seed=1).load()
    assert not torch.equal(other.train.index, dataset.train.index)


def test_separate_validation_and_test_tables(corpus: Path, tmp_path: Path) -> None:
    rows = [("the first text", "a"), ("another text", "b")]
    train = _write(tmp_path / "train.csv", rows * 5, ("text", "label"))
    val = _write(tmp_path / "val.csv", rows, ("text", "label"))
    test = _write(tmp_path / "test.csv", rows * 2, ("text", "label"))
    dataset = _source(corpus, train, val_file=str(val), test_file=str(test)).load()
    assert dataset.sizes == {"train": 10, "val": 2, "test": 4}
    assert dataset.data_size == 16
    strange = _write(tmp_path / "strange.csv", [("a text", "c")], ("text", "label"))
    with pytest.raises(
        ValueError, match=r"strange\.csv: line 2 has the label 'c', which the train"
    ):
        _source(corpus, train, test_file=str(strange)).load()


def test_pairs_of_texts(corpus: Path, tmp_path: Path) -> None:
    rows = [("is it so", "it is", 1), ("is it so", "no idea", 0)] * 20
    file = _write(tmp_path / "pairs.csv", rows, ("question", "answer", "fits"))
    source = _source(corpus, file, text="question", second="answer", label="fits")
    dataset = source.load()
    inputs = _inputs(dataset)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert dataset.class_names == ("0", "1")
    row = int(dataset.train.targets.argmax())
    kinds = inputs["token_type_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    assert kinds == sorted(kinds) and set(kinds) == {0, 1}


def test_class_order_and_names(corpus: Path, tmp_path: Path) -> None:
    import datasets

    rows = [(f"text {label}", label) for label in (2, 10, 1)] * 20
    file = _write(tmp_path / "numbered.csv", rows, ("text", "label"))
    assert _source(corpus, file, val=0.2).load().class_names == ("1", "2", "10")
    named = datasets.ClassLabel(names=["late", "early"])
    features = datasets.Features({"text": datasets.Value("string"), "label": named})
    table = {"text": ["one", "two"] * 20, "label": [0, 1] * 20}
    folder = tmp_path / "named"
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(folder))
    loaded = _source(corpus, folder).load()
    assert set(loaded.class_names) == {"late", "early"}


def test_words_that_other_readers_treat_as_missing(corpus: Path, tmp_path: Path) -> None:
    rows = [("NA", "a"), ("null", "b")] * 20
    file = _write(tmp_path / "words.csv", rows, ("text", "label"))
    ids = _inputs(_source(corpus, file).load())["attention_mask"]
    assert ids.sum(1).min() > 2


class TestMistakes:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"text": "txt"}, r"no column 'txt'; it has text, label; did you mean 'text'"),
            ({"label": "labels"}, "no column 'labels'.* did you mean 'label'"),
            ({"file": "/nowhere/table.csv"}, r"there is no /nowhere/table\.csv"),
            ({"tokenizer": "/nowhere"}, "there is no folder /nowhere with a tokenizer"),
            ({"val_file": "/nowhere/v.csv"}, r"there is no /nowhere/v\.csv"),
        ],
    )
    def test_missing_files(
        self, fields: dict[str, Any], message: str, corpus: Path, tmp_path: Path
    ) -> None:
        paths = {"file": str(corpus / "table.csv"), "tokenizer": str(corpus / "tokenizer")}
        with pytest.raises(ValueError, match=message):
            Texts(**{**paths, **fields}).load()

    def test_unusable_tables(self, corpus: Path, tmp_path: Path) -> None:
        notes = tmp_path / "notes.txt"
        notes.write_text("a text")
        with pytest.raises(ValueError, match=r"notes\.txt is not a supported table.*\.parquet"):
            _source(corpus, notes).check()
        broken = tmp_path / "broken.parquet"
        broken.write_bytes(b"no parquet")
        with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as a table"):
            _source(corpus, broken).load()
        numbers = _write(tmp_path / "numbers.csv", [(1, "a"), (2, "b")], ("text", "label"))
        with pytest.raises(ValueError, match="line 2 holds 1 in column 'text', not a text"):
            _source(corpus, numbers).load()
        fractions = _write(tmp_path / "f.csv", [("a", 0.5), ("b", 1.5)], ("text", "label"))
        with pytest.raises(ValueError, match=r"line 2 holds 0\.5 in column 'label'; a class is"):
            _source(corpus, fractions).load()
        table = _write(tmp_path / "one.csv", [("a", "x"), ("b", "x")], ("text", "label"))
        with pytest.raises(ValueError, match="a classifier needs two classes"):
            _source(corpus, table).load()

    def test_folders_without_tokenizer(self, corpus: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no tokenizer that transformers can read"):
            _source(tmp_path, corpus / "table.csv", tokenizer=str(tmp_path)).load()

    def test_tokenizer_without_padding(self, corpus: Path, tmp_path: Path) -> None:
        folder = tmp_path / "tokenizer"
        shutil.copytree(corpus / "tokenizer", folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="no padding token"):
            _source(tmp_path, corpus / "table.csv", tokenizer=str(folder)).load()

    def test_options_of_csv(self, corpus: Path) -> None:
        for wrong, message in (
            ({"delimiter": ",,"}, "one character"),
            ({"encoding": "x"}, "unknown"),
        ):
            with pytest.raises(ValueError, match=message):
                _source(corpus, corpus / "table.csv", **wrong)

    def test_augmentations(self, corpus: Path) -> None:
        with pytest.raises(ValidationError, match="augmentations need images"):
            TypeAdapter(AnySource).validate_python(
                {
                    "name": "text",
                    "file": "a.csv",
                    "tokenizer": "t",
                    "augment": [{"name": "rotation"}],
                }
            )

    def test_missing_libraries(self, source: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
        real = __import__("importlib.util").util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: None if name == "datasets" else real(name)
        )
        with pytest.raises(ValueError, match=r"needs datasets, .* install raykd\[hf\]"):
            source.check()
        assert "raykd.data.text" in sys.modules


def test_folder_of_several_tables(corpus: Path, tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"several tables \(train, test\); name the folder"):
        _source(corpus, tmp_path / "both").load()


class TestRows:
    """Notes, warnings and errors about the rows of a table."""

    WORDS = (*MODULES, "return", "the", "of", "and", "value")

    def _rows(self, count: int) -> list[tuple[str, str]]:
        words = self.WORDS
        return [
            (
                f"{words[i % 10]} {words[i // 10 % 10]} {words[i * 7 % 9]} {words[i * 3 % 8]}",
                "ab"[i % 2],
            )
            for i in range(count)
        ]

    def _load(self, corpus: Path, rows: list[tuple[str, str]], **fields: Any) -> Dataset:
        return _source(
            corpus, _write(corpus / "rows.csv", rows, ("text", "label")), **fields
        ).load()

    def test_truncated_texts(self, corpus: Path) -> None:
        rows = self._rows(60)
        assert self._load(corpus, rows, max_length=40).notes == ()
        rows[3] = (" ".join([*self.WORDS] * 5), "a")
        (note,) = self._load(corpus, rows, max_length=40).notes
        assert note.startswith("1 of 60 texts truncated to 40 tokens (data.max_length)")

    def test_training_texts_in_other_splits(self, corpus: Path) -> None:
        rows = self._rows(60)
        assert self._load(corpus, rows).warnings == ()
        test = _write(corpus / "test.csv", [*rows[:7], ("logging only", "a")], ("text", "label"))
        (warning,) = self._load(corpus, rows, test_file=str(test)).warnings
        assert warning.startswith(("7 of 8 test", "6 of 8 test"))

    def test_equal_texts_with_different_labels(self, corpus: Path) -> None:
        rows = [*self._rows(60), ("logging only", "a"), ("logging only", "b")]
        warnings = self._load(corpus, rows).warnings
        assert any("2 samples have the same text as samples" in w for w in warnings)

    @pytest.mark.parametrize("column", ["text", "label"])
    def test_lone_surrogates(self, corpus: Path, column: str) -> None:
        rows = [{"text": text, "label": label} for text, label in self._rows(60)]
        rows[4][column] += " \ud83d"
        file = corpus / "half.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ValueError, match=rf"line 5 .*'{column}'; it contains half of a char"):
            _source(corpus, file).load()

    def test_empty_texts(self, corpus: Path) -> None:
        rows = self._rows(60)
        rows[5], rows[9] = ("", "a"), (" \t", "b")
        warnings = self._load(corpus, rows).warnings
        assert any(
            w.startswith("2 texts without a word, such as rows.csv, line 7") for w in warnings
        )

    def test_tokenizer_with_unknown_words(self, corpus: Path) -> None:
        rows = [("\u4f60 \u597d \u4e16 \u754c " + text, label) for text, label in self._rows(60)]
        warnings = self._load(corpus, rows).warnings
        assert any("tokens are unknown to the tokenizer" in warning for warning in warnings)

    def test_labels_with_too_few_rows_are_named(self, corpus: Path) -> None:
        rows = [*self._rows(60), ("logging only", "zoo"), ("value", "zoo")]
        with pytest.raises(ValueError, match=r"too few rows of 'zoo' \(2 rows\); a label needs 3"):
            self._load(corpus, rows)
        test = _write(corpus / "test.csv", rows, ("text", "label"))
        dataset = self._load(corpus, rows, test_file=str(test))
        assert dataset.class_names == ("a", "b", "zoo")
        unique = [(text, f"{number}") for number, (text, _) in enumerate(rows)]
        with pytest.raises(ValueError, match="is 'label' a column of class labels"):
            self._load(corpus, unique)

    def test_classes_missing_in_test_table(self, corpus: Path) -> None:
        rows = self._rows(60)
        test = _write(corpus / "test.csv", [("logging only", "a")], ("text", "label"))
        (warning,) = self._load(corpus, rows, test_file=str(test)).warnings
        assert warning == "the test table has no rows with the label 'b'"

    def test_warnings_of_labels_explain_errors(self, corpus: Path) -> None:
        rows = [*self._rows(60), ("logging only", "A")]
        with pytest.raises(ValueError, match=r"too few rows of 'A' .*differ only in case"):
            self._load(corpus, rows)


def test_validate_rejects_other_tasks(corpus: Path, tmp_path: Path) -> None:
    from raykd.report.space import explain_file

    rows = [(text, f"{number / 7:.2f}") for number, text in enumerate(MODULES * 8)]
    file = _write(tmp_path / "scores.csv", rows, ("text", "label"))
    study = tmp_path / "study.yaml"
    study.write_text(
        f"name: x\ndata: {{name: text, file: {file}, tokenizer: {corpus / 'tokenizer'}}}\n"
        "student: {model: {name: hf/bert}}\nscheme: alone\n"
    )
    with pytest.raises(
        ValueError, match=r"study\.yaml:2: data: .*line 3 holds 0\.14 .*kind: number"
    ):
        explain_file(str(study))


# Targets that are no classes

ROWS = 24


def _target_table(file: Path, **columns: Any) -> Path:
    texts = [f"the {word} film number {row}" for row, word in enumerate(("good", "bad") * 12)]
    pd.DataFrame({"text": texts, **columns}).to_parquet(file)
    return file


def test_numbers_are_standardized(corpus: Path, tmp_path: Path) -> None:
    scores = [float(row % 7) for row in range(ROWS)]
    file = _target_table(tmp_path / "scores.parquet", score=scores)
    source = _source(corpus, file, label="score", kind="number")
    data = source.load()
    assert (source.default_task().name, data.classes, data.class_names) == (
        "regression",
        1,
        ("score",),
    )
    targets = data.train.targets
    assert targets.dtype == torch.float32 and targets.shape == (len(data.train), 1)
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    units = targets[:, 0].double() * data.target_scale[0] + data.target_mean[0]
    expected = [scores[row] for row in data.train.index.tolist()]
    assert units.tolist() == pytest.approx(expected, abs=1e-5)


def test_vectors_and_labels_are_targets(corpus: Path, tmp_path: Path) -> None:
    vectors = [[float(row), 1.0, -0.5 * row] for row in range(ROWS)]
    file = _target_table(tmp_path / "vectors.parquet", vector=vectors)
    data = _source(corpus, file, label="vector", kind="vector").load()
    assert data.classes == 3
    assert data.test.targets.tolist() == [vectors[row] for row in data.test.index.tolist()]
    labels = {"good": [1, 0] * 12, "long": [0, 1] * 12}
    file = _target_table(tmp_path / "labels.parquet", **labels)
    source = _source(corpus, file, label=("good", "long"), kind="labels")
    data = source.load()
    assert source.default_task().name == "multi_label"
    assert data.class_names == ("good", "long")
    assert data.val.targets.sum(1).tolist() == [1.0] * len(data.val)


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("number", "word", "text: .* row 1 holds 'bad' in column 'word'; the target must be"),
        ("number", "same", "text: column 'same' of the target has the value 3 in all"),
        ("vector", "same", "a vector must be a list of finite numbers"),
        ("labels", "score", "a label must be 0 or 1"),
        ("class", ("word", "same"), "`kind: class` has one column `label`"),
        ("vector", "nothing", "no column 'nothing'"),
    ],
)
def test_wrong_targets_name_the_row(
    kind: str, label: str | tuple[str, ...], message: str, corpus: Path, tmp_path: Path
) -> None:
    columns = {"word": ["bad"] * ROWS, "same": [3.0] * ROWS, "score": [0.5] * ROWS}
    file = _target_table(tmp_path / "wrong.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        _source(corpus, file, label=label, kind=kind).load()
