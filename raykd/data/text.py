"""Texts from a table, as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raykd.compat.packages import is_installed
from raykd.data.augment import Augments
from raykd.data.csv_records import Quoting
from raykd.data.dataset import (
    PARTS,
    Dataset,
    Fraction,
    Limit,
    Raw,
    Source,
    Split,
    SplitSeed,
    TestFraction,
    ValLimit,
)
from raykd.data.duplicates import duplicate_warnings
from raykd.data.labels import listed, quoted
from raykd.data.splits import fingerprint, split_rows
from raykd.data.table import (
    Dialect,
    Table,
    check_dialect,
    check_table,
    counted,
    read_table,
    short_repr,
)
from raykd.data.targets import (
    TASK_OF,
    Tables,
    TargetKind,
    Targets,
    read_targets,
    standardization,
)
from raykd.data.text_encoding import HALF_CHARACTER, has_half_characters
from raykd.registry import option
from raykd.tasks import Task

MAX_UNKNOWN = 0.1
"""Fraction of unknown tokens above which a tokenizer does not suit the texts."""

TableFile = Annotated[
    str,
    Field(
        min_length=1,
        description="CSV, TSV, JSON, Parquet or Arrow file, a glob pattern for several "
        "files of one table (train-*.parquet), or a folder written by "
        "Dataset.save_to_disk",
    ),
]
OtherTable = Annotated[
    str | None, Field(description="Table of this split. null: split it off the training table")
]
Column = Annotated[str, Field(min_length=1, description="Column of the table")]


@option
class Texts(Source):
    """Texts and labels from a table, tokenized with a local tokenizer.

    The tokenizer is a folder written by `save_pretrained` of transformers; nothing is downloaded.
    Texts are tokenized once, truncated or padded to `max_length`, and stored in memory: a sample is
    `input_ids` and `attention_mask`, with `second` also `token_type_ids` if the tokenizer
    distinguishes two texts. A split without a table is split off the training table, stratified.
    Classes are the labels of the training table, sorted by number or by text: white space around
    labels is removed, case matters, and numbers with decimals or several labels per text are
    rejected. All rows are read, or an error names the line.

    Other targets are numbers, standardized on the training split, labels (columns of 0 and 1), or
    the vectors of a teacher.
    """

    mixes = False

    name: Literal["text"] = "text"
    file: TableFile
    val_file: OtherTable = None
    test_file: OtherTable = None
    text: Column = "text"
    second: Annotated[
        str | None, Field(description="Column of the second text, for tasks on pairs of texts")
    ] = None
    label: Annotated[
        str | tuple[Annotated[str, Field(min_length=1)], ...],
        Field(min_length=1, description="Column of the target, or a list of columns"),
    ] = "label"
    kind: Annotated[
        TargetKind,
        Field(
            description="Meaning of `label`. class: one class; number: real values, standardized; "
            "labels: columns of 0 and 1, one a label; vector: a column of lists of numbers, such "
            "as the embeddings of a teacher"
        ),
    ] = "class"
    delimiter: Annotated[
        str | None,
        Field(
            description="CSV field delimiter. null: tab for .tsv, comma for .csv, otherwise "
            "detected from the header"
        ),
    ] = None
    quoting: Annotated[
        Quoting,
        Field(
            description="CSV quoting. double: quotes enclose fields and are doubled inside; "
            "backslash: quotes inside are escaped; none: quotes are plain "
            "characters; auto: the first of these for which every row has all "
            "columns"
        ),
    ] = "auto"
    encoding: Annotated[
        str | None,
        Field(
            description="Encoding of CSV and JSON files, such as cp1252. null: UTF-8, or "
            "detected from a byte order mark"
        ),
    ] = None
    columns: Annotated[
        tuple[str, ...] | None,
        Field(min_length=1, description="Column names of CSV files without a header line"),
    ] = None
    tokenizer: Annotated[str, Field(min_length=1, description="Folder of the tokenizer")]
    max_length: Annotated[
        int, Field(ge=2, description="Tokens per text; shorter texts are padded")
    ] = 128
    test: TestFraction = 0.2
    val: Fraction = 0.1
    split_seed: SplitSeed = 0
    limit: Limit = None
    val_limit: ValLimit = None
    augment: Augments = ()

    def __post_init__(self) -> None:
        if self.augment:
            raise ValueError("augmentations need images; leave `augment` out")
        if self.kind in ("class", "vector") and len(self._label_columns) > 1:
            fix = "write `kind: labels` for several columns of 0 and 1"
            raise ValueError(f"`kind: {self.kind}` has one column `label`; name one, or {fix}")
        check_dialect(self._dialect)

    def default_task(self) -> Task:
        return TASK_OF[self.kind]()  # type: ignore[call-arg]  # a task has defaults

    def check(self) -> None:
        _check_libraries()
        for file in self._files().values():
            check_table(file)
        folder = _path(self.tokenizer)
        if not folder.is_dir():
            raise ValueError(
                f"text: there is no folder {folder} with a tokenizer; write it with "
                "tokenizer.save_pretrained(folder), and set data.tokenizer to it"
            )

    def input_names(self) -> tuple[str, ...]:
        return ()

    def load(self) -> Dataset:
        self.check()
        tables = {split: self._tables(file) for split, file in self._files().items()}
        texts = _texts(tables, self._text_columns)
        labels = self._targets(tables)
        rows = self._split_rows(tables, labels)
        mean, scale = _standardized(labels, self.kind, rows["train"])
        is_class, is_number = self.kind == "class", self.kind == "number"
        values = labels.values if is_class else (labels.values - mean) / scale
        tokens = _tokenize(_load_tokenizer(_path(self.tokenizer)), texts, self)
        splits = {part: _split(tokens.inputs, values, rows[part]) for part in PARTS}
        notes, warnings = _remarks(tables, labels, tokens)
        return Dataset(
            name=self.name,
            train=splits["train"],
            val=splits["val"],
            test=splits["test"],
            classes=len(labels.names),
            class_names=labels.names,
            input_shape=(self.max_length,),
            mean=(),
            std=(),
            fingerprint=fingerprint(splits, {}),
            origin=str(_path(self.file)),
            vocabulary=tokens.vocabulary,
            padding=tokens.padding,
            notes=notes,
            warnings=(
                *warnings,
                *(_missing_classes(tables, labels, rows) if is_class else ()),
                *_blank(texts, tables),
                *duplicate_warnings(_plain(texts), _identities(labels), rows, "text"),
                *tokens.warnings,
            ),
            raw=Raw(
                preparation=f"the tokenizer of {self.tokenizer} with truncation and padding to "
                f"{self.max_length} tokens"
            ),
            target_mean=tuple(mean.tolist()) if is_number else (),
            target_scale=tuple(scale.tolist()) if is_number else (),
        )

    def _targets(self, tables: Tables) -> Targets:
        try:
            return read_targets(tables, self.kind, self._label_columns)
        except ValueError as error:
            raise ValueError(
                f"text: {str(error).removeprefix('text: ').removeprefix('table: ')}"
            ) from None

    def _split_rows(self, tables: Tables, labels: Targets) -> dict[str, np.ndarray]:
        """Return the rows of each split, counted over all tables."""
        rows: dict[str, np.ndarray] = {}
        start = 0
        for split, parts in tables.items():
            rows[split] = np.arange(start, start + sum(map(len, parts)))
            start += len(rows[split])
        if self.kind != "class":
            return split_rows(rows, np.zeros(len(labels.values), np.int64), self)
        try:
            _check_sizes(rows, labels, self._label_columns[0])
            return split_rows(rows, labels.values, self)
        except ValueError as error:  # suspicious labels may be the reason
            raise ValueError("; ".join([str(error), *labels.warnings])) from None

    @property
    def _dialect(self) -> Dialect:
        return Dialect(self.delimiter, self.quoting, self.encoding, self.columns or ())

    @property
    def _label_columns(self) -> tuple[str, ...]:
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def _text_columns(self) -> list[str]:
        return [self.text, *([self.second] if self.second else [])]

    def _files(self) -> dict[str, Path]:
        named = {"train": self.file, "val": self.val_file, "test": self.test_file}
        return {part: _path(file) for part, file in named.items() if file is not None}

    def _tables(self, file: Path) -> list[Table]:
        return [*read_table(file, [*self._text_columns, *self._label_columns], self._dialect)]


@dataclass(frozen=True)
class _Tokens:
    """Tokens of all texts.

    Attributes:
        inputs: (N, length) int64 tensors by name.
        vocabulary: number of tokens of the tokenizer.
        padding: token that fills up short texts.
        notes, warnings: sentences on truncated texts and unknown tokens.
    """

    inputs: Mapping[str, Tensor]
    vocabulary: int
    padding: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _check_libraries() -> None:
    """Check that the libraries are installed, without importing them."""
    missing = [name for name in ("datasets", "transformers") if not is_installed(name)]
    if missing:
        raise ValueError(
            f"data source text needs {' and '.join(missing)}, which is not installed; install "
            "raykd[hf]"
        )


def _standardized(
    targets: Targets, kind: TargetKind, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    try:
        return standardization(targets, kind, train)
    except ValueError as error:
        raise ValueError(f"text: {str(error).removeprefix('table: ')}") from None


def _identities(targets: Targets) -> np.ndarray:
    """Return a number for each row; rows with equal targets have equal numbers."""
    if targets.values.ndim == 1:
        return targets.values
    return np.unique(targets.values, axis=0, return_inverse=True)[1].reshape(-1)


def _check_sizes(rows: Mapping[str, np.ndarray], labels: Targets, column: str) -> None:
    """Check that each class has a row for every split that is split off the training table."""
    least = 4 - len(rows)
    sizes = np.bincount(labels.values[rows["train"]], minlength=len(labels.names))
    small = [int(index) for index in np.argsort(sizes, kind="stable") if sizes[index] < least]
    if not small:
        return
    every = listed(f"{quoted(labels.names[i])} ({counted(int(sizes[i]), 'row')})" for i in small)
    cut = " and ".join(split for split in ("val", "test") if split not in rows)
    doubt = (
        f"; {len(small):,} of {len(sizes):,} labels are that rare: is '{column}' a column of class "
        "labels?"
        if len(small) > max(10, len(sizes) / 2)
        else ""
    )
    raise ValueError(
        f"text: too few rows of {every}; a label needs {least} rows, one for each split, as {cut} "
        f"rows are taken from the training table; add rows, remove the label, or name tables in "
        f"data.val_file and data.test_file{doubt}"
    )


def _missing_classes(
    tables: Tables, labels: Targets, rows: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Warn about classes that a validation or test table lacks."""
    for split in tables:
        present = set(labels.values[rows[split]].tolist())
        absent = [name for i, name in enumerate(labels.names) if i not in present]
        if absent and split != "train":
            yield f"the {split} table has no rows with the label {listed(map(quoted, absent))}"


def _remarks(
    tables: Tables, labels: Targets, tokens: _Tokens
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the notes of the tables, labels and tokens, and the warnings of tables and labels."""
    read = [table for parts in tables.values() for table in parts]
    notes = (
        *(f"{len(parts)} {split} files" for split, parts in tables.items() if parts[1:]),
        *(note for table in read for note in table.notes),
        *labels.notes,
        *tokens.notes,
    )
    return notes, (*(warning for table in read for warning in table.warnings), *labels.warnings)


def _texts(tables: Tables, columns: Sequence[str]) -> list[list[str]]:
    """Return the texts of all tables, one list per column.

    Raises:
        ValueError: a value is not text, or all values are numbers.
    """
    read = [table for parts in tables.values() for table in parts]
    for table in read:
        for column in columns:
            _check_texts(table, column)
    return [[str(text) for table in read for text in table.columns[column]] for column in columns]


def _check_texts(table: Table, column: str) -> None:
    values = table.columns[column]
    for row, value in enumerate(values):
        if isinstance(value, str) and has_half_characters(value):
            raise ValueError(
                f"text: {table.file}: {table.place(row)} holds {short_repr(value)} in column "
                f"'{column}'; {HALF_CHARACTER}"
            )
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is None and not table.typed and all(_is_number(str(value)) for value in values):
        wrong = 0
    if wrong is not None:
        value = values[wrong] if isinstance(values[wrong], str) else short_repr(values[wrong])
        raise ValueError(
            f"text: {table.file}: {table.place(wrong)} holds {value} in column '{column}', not a "
            "text; name the column of texts in data.text, or remove the row"
        )


def _plain(texts: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the texts of each row with single spaces between words."""
    return [tuple(" ".join(text.split()) for text in row) for row in zip(*texts, strict=True)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _blank(texts: Sequence[Sequence[str]], tables: Tables) -> Iterator[str]:
    """Warn about rows without text."""
    blank = [
        row for row, parts in enumerate(zip(*texts, strict=True)) if not any(map(str.strip, parts))
    ]
    if blank:
        places = [
            f"{table.file.name}, {table.place(row)}"
            for parts in tables.values()
            for table in parts
            for row in range(len(table))
        ]
        yield (
            f"{counted(len(blank), 'text')} without a word, such as {places[blank[0]]}; remove the "
            "rows if they are a mistake"
        )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a folder may hold anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"text: {folder} holds no tokenizer that transformers can read ({reason}); write one "
            "with tokenizer.save_pretrained(folder)"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"text: the tokenizer of {folder} has no padding token; set one "
            "(tokenizer.pad_token = ...) and save it again"
        )
    return tokenizer


def _tokenize(tokenizer: Any, texts: Sequence[list[str]], source: Texts) -> _Tokens:
    encoded = tokenizer(
        *texts,
        truncation=True,
        padding="max_length",
        max_length=source.max_length,
        return_attention_mask=True,
        return_tensors="np",
    )
    tokens = {
        key: torch.from_numpy(encoded[key].astype(np.int64))
        for key in encoded
        if key != "token_type_ids" or source.second
    }
    return _Tokens(
        tokens,
        len(tokenizer),
        int(tokenizer.pad_token_id),
        notes=tuple(_truncated(tokenizer, texts, tokens["attention_mask"], source.max_length)),
        warnings=tuple(_unknown(tokenizer, tokens)),
    )


def _truncated(
    tokenizer: Any, texts: Sequence[list[str]], mask: Tensor, length: int
) -> Iterator[str]:
    """Note texts that are longer than `length` tokens."""
    full = mask.all(dim=1).nonzero().flatten().tolist()
    if not full:
        return
    whole = tokenizer(*([column[row] for row in full] for column in texts), verbose=False)
    lengths = [len(ids) for ids in whole["input_ids"]]
    count = sum(size > length for size in lengths)
    if count:
        yield (
            f"{count:,} of {counted(len(mask), 'text')} truncated to {length} tokens "
            f"(data.max_length); the longest has {max(lengths):,}"
        )


def _unknown(tokenizer: Any, tokens: Mapping[str, Tensor]) -> Iterator[str]:
    """Warn about a tokenizer that does not know the words of the texts."""
    if tokenizer.unk_token_id is None:
        return
    ids = tokens["input_ids"][tokens["attention_mask"].bool()]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    words = ids[~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))]
    share = float((words == tokenizer.unk_token_id).float().mean()) if len(words) else 0.0
    if share > MAX_UNKNOWN:
        yield (
            f"{share:.0%} of the tokens are unknown to the tokenizer; use a tokenizer for "
            "the language and script of the texts"
        )


def _split(tokens: Mapping[str, Tensor], targets: np.ndarray, rows: np.ndarray) -> Split:
    chosen = torch.from_numpy(rows.astype(np.int64))
    return Split(
        inputs={key: value[chosen] for key, value in tokens.items()},
        targets=_tensor(targets[rows]),
        index=chosen,
    )


def _tensor(targets: np.ndarray) -> Tensor:
    values = torch.from_numpy(targets)
    return values.float() if values.is_floating_point() else values
