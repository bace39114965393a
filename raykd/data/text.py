"""Texts from a table, cut into tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raykd.data.augment import Augments
from raykd.data.source import (
    PARTS,
    Dataset,
    Fraction,
    Limit,
    Source,
    Split,
    SplitSeed,
    TestFraction,
    ValLimit,
)
from raykd.data.splitting import fingerprint, parted
from raykd.option import option

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""How a table is read, by its file's suffix; a folder is what `Dataset.save_to_disk` wrote."""

Table = Annotated[
    str, Field(min_length=1, description="CSV, TSV, JSON lines, Parquet or Arrow file")
]
OtherTable = Annotated[
    str | None, Field(description="a table of its own; null: a part of the training table")
]
Column = Annotated[str, Field(min_length=1, description="column of the table")]


@option
class Texts(Source):
    """Texts of a table and their labels, as tokens of a tokenizer that lies in a folder.

    The tables are read by Hugging Face's datasets, the tokenizer by transformers (`save_pretrained`
    writes such folders); nothing is downloaded.  Texts are cut into tokens once, cut off or filled
    up to `max_length`, and kept in memory: a sample is `input_ids` and `attention_mask`, with
    `second` also `token_type_ids` where the tokenizer tells two texts apart.  Classes are the
    labels of the training table in their order.  Where there is no table for validation or for
    test, that part of the training table is kept, stratified.
    """

    name: Literal["text"] = "text"
    file: Table
    val_file: OtherTable = None
    test_file: OtherTable = None
    text: Column = "text"
    second: Annotated[
        str | None, Field(description="column of a second text, for tasks on pairs of texts")
    ] = None
    label: Column = "label"
    tokenizer: Annotated[str, Field(min_length=1, description="folder of the tokenizer")]
    max_length: Annotated[int, Field(ge=2, description="tokens of a text, fewer are filled up")] = (
        128
    )
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    def __post_init__(self) -> None:
        if self.augment:
            raise ValueError("augmentations are for pictures; leave `augment` out")

    def check(self) -> None:
        _needed()
        for file in self._files().values():
            _check_table(file)
        folder = _path(self.tokenizer)
        if not folder.is_dir():
            raise ValueError(
                f"text: there is no folder {folder} with a tokenizer; write one by "
                "tokenizer.save_pretrained(folder), and name it in data.tokenizer"
            )

    def load(self) -> Dataset:
        self.check()
        tables = {part: self._table(file) for part, file in self._files().items()}
        names = tables["train"].class_names()
        rows: dict[str, np.ndarray] = {}
        start = 0
        for part, table in tables.items():
            rows[part] = np.arange(start, start + len(table))
            start += len(table)
        targets = np.concatenate([table.targets(names) for table in tables.values()])
        rows = parted(rows, targets, self)
        tokens = self._tokens(tables.values())
        splits = {part: _split(tokens.held, targets, rows[part]) for part in PARTS}
        return Dataset(
            name=self.name,
            train=splits["train"],
            val=splits["val"],
            test=splits["test"],
            classes=len(names),
            class_names=names,
            input_shape=(self.max_length,),
            mean=(),
            std=(),
            fingerprint=fingerprint(splits, {}),
            origin=str(_path(self.file)),
            vocabulary=tokens.vocabulary,
            padding=tokens.padding,
        )

    def _files(self) -> dict[str, Path]:
        named = {"train": self.file, "val": self.val_file, "test": self.test_file}
        return {part: _path(file) for part, file in named.items() if file is not None}

    def _table(self, file: Path) -> _Table:
        columns = [self.text, *([self.second] if self.second else []), self.label]
        found = _columns(file, columns)
        texts = [_texts(found[column], column, file) for column in columns[:-1]]
        return _Table(tuple(texts), _labels(found[self.label], self.label, file), file)

    def _tokens(self, tables: Any) -> _Tokens:
        tokenizer = _tokenizer(_path(self.tokenizer))
        parts = [_tokenised(tokenizer, table, self.max_length) for table in tables]
        wanted = [key for key in parts[0] if key != "token_type_ids" or self.second]
        held = {key: torch.cat([part[key] for part in parts]) for key in wanted}
        return _Tokens(held, len(tokenizer), int(tokenizer.pad_token_id))


@dataclass(frozen=True)
class _Tokens:
    """(N, length) int64 tensors by name, how many tokens there are, and which one fills up."""

    held: Mapping[str, Tensor]
    vocabulary: int
    padding: int


@dataclass(frozen=True)
class _Table:
    """Texts, one list a column, and their labels."""

    texts: tuple[list[str], ...]
    labels: list[Any]
    file: Path

    def __len__(self) -> int:
        return len(self.labels)

    def class_names(self) -> tuple[str, ...]:
        """The labels in their order; numbers by size."""
        kinds = set(map(type, self.labels))
        ordered = sorted(set(self.labels)) if len(kinds) == 1 else sorted(map(str, {*self.labels}))
        if len(ordered) < 2:
            raise ValueError(
                f"text: {self.file} has the label {ordered} alone; a classifier needs two classes"
            )
        return tuple(map(str, ordered))

    def targets(self, names: Sequence[str]) -> np.ndarray:
        """(N,) int64 class indices."""
        numbers = {name: number for number, name in enumerate(names)}
        strange = sorted({str(label) for label in self.labels} - set(names))
        if strange:
            raise ValueError(
                f"text: {self.file} has the label {strange[0]!r}, which the training table "
                f"({', '.join(names)}) has not; rename or remove it"
            )
        return np.array([numbers[str(label)] for label in self.labels], dtype=np.int64)


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _needed() -> None:
    """See that the libraries are there, without importing them."""
    from importlib.util import find_spec

    missing = [name for name in ("datasets", "transformers") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"data source text needs {' and '.join(missing)}, which is not installed; install "
            "raykd[hf]"
        )


def _check_table(file: Path) -> None:
    if not file.exists():
        raise ValueError(f"text: there is no {file}; name a table in data.file")
    if not file.is_dir() and file.suffix not in FORMATS:
        raise ValueError(
            f"text: {file.name} is no table raykd reads; allowed are "
            f"{', '.join(FORMATS)} and folders written by Dataset.save_to_disk"
        )


def _columns(file: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Those columns of a table."""
    with TemporaryDirectory() as cache:
        with _told_as_value_error(file):
            table = _opened(file, cache)
        if isinstance(table, dict):  # of tables
            raise ValueError(
                f"text: {file} holds several tables ({', '.join(map(str, table))}); name the "
                "folder of one"
            )
        for column in columns:
            if column not in table.column_names:
                close = get_close_matches(column, table.column_names, n=1, cutoff=0.6)
                guess = f"; did you mean '{close[0]}'?" if close else ""
                raise ValueError(
                    f"text: {file} has no column '{column}'; it has "
                    f"{', '.join(table.column_names)}{guess}"
                )
        kept = table.select_columns(list(dict.fromkeys(columns)))
        held = {column: list(kept[column]) for column in kept.column_names}
        return {column: _class_names(table, column, held[column]) for column in columns}


def _opened(file: Path, cache: str) -> Any:
    """The table as Hugging Face's datasets reads it."""
    import datasets

    if file.is_dir():
        return datasets.load_from_disk(str(file))
    kind = FORMATS[file.suffix]
    if kind == "csv":  # `NA` and `null` are words, and no text is missing
        separator = "\t" if file.suffix == ".tsv" else ","
        return datasets.Dataset.from_csv(
            str(file), cache_dir=cache, keep_in_memory=True, sep=separator, keep_default_na=False
        )
    if kind == "json":
        return datasets.Dataset.from_json(str(file), cache_dir=cache, keep_in_memory=True)
    if kind == "parquet":
        return datasets.Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
    import pyarrow as pa

    try:  # a file, or else a stream
        return datasets.Dataset(pa.ipc.open_file(file).read_all())
    except pa.ArrowInvalid:
        return datasets.Dataset.from_file(str(file), in_memory=True)


def _class_names(table: Any, column: str, values: list[Any]) -> list[Any]:
    """Values of a column of class numbers by the names that the table has for them."""
    names = getattr(table.features[column], "names", None)
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]


def _texts(values: list[Any], column: str, file: Path) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"text: column '{column}' of {file} holds {value!r} in row {row + 1}, not a text; "
                "name the column of texts in data.text"
            )
    return values


def _labels(values: list[Any], column: str, file: Path) -> list[Any]:
    for row, value in enumerate(values):
        if not isinstance(value, str | int) or value == "":
            raise ValueError(
                f"text: column '{column}' of {file} holds {value!r} in row {row + 1}; a label is "
                "a text or a whole number"
            )
    return values


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a folder may hold anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"text: {folder} holds no tokenizer that transformers can read ({reason}); write one "
            "by tokenizer.save_pretrained(folder)"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"text: the tokenizer of {folder} has no token that fills up; give it one "
            "(tokenizer.pad_token = ...) and save it again"
        )
    return tokenizer


def _tokenised(tokenizer: Any, table: _Table, length: int) -> dict[str, Tensor]:
    found = tokenizer(
        *table.texts,
        truncation=True,
        padding="max_length",
        max_length=length,
        return_attention_mask=True,
        return_tensors="np",
    )
    return {key: torch.from_numpy(found[key].astype(np.int64)) for key in found}


def _split(tokens: Mapping[str, Tensor], targets: np.ndarray, rows: np.ndarray) -> Split:
    chosen = torch.from_numpy(rows.astype(np.int64))
    return Split(
        inputs={key: value[chosen] for key, value in tokens.items()},
        targets=torch.from_numpy(targets[rows]),
        index=chosen,
    )


@contextmanager
def _told_as_value_error(file: Path) -> Iterator[None]:
    """Whatever keeps a table from being read is told as a mistake in the study."""
    import datasets

    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"text: {file} cannot be read as a table ({' '.join(str(cause).split())[:200]})"
        ) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
