"""Texts from a table, as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

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
from raykd.data.text_inputs import (
    Column,
    TextInputs,
    each_input,
    encoding_of,
    forms_of,
    parts_of,
    stored_tokens,
    unused_keys,
)
from raykd.data.tokens import MAX_LENGTH, Encoding, tokenize
from raykd.input_forms import WHOLE
from raykd.registry import option
from raykd.tasks import Task

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

    `inputs: {english: {text: english}, german: {text: german, tokenizer: small}}` declares inputs
    that the teacher and the student choose (`teacher.input`, `student.input`): other columns of the
    same row (`text`, `second`), another `tokenizer` or `max_length`. A key that an input leaves out
    is that of the data; an input that names `text` has no `second` unless it names one. Every
    network then names its input.
    """

    mixes = False
    aligned = False

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
        int,
        Field(ge=2, le=MAX_LENGTH, description="Tokens per text; shorter texts are padded"),
    ] = 128
    inputs: Annotated[
        TextInputs | None,
        Field(
            description="Inputs of a row by name, for `teacher.input` and `student.input`. null: "
            "one input"
        ),
    ] = None
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
        if self.inputs is not None and self.inputs.wrong_name:
            raise ValueError(self.inputs.wrong_name)
        for key in unused_keys(self.inputs or {}, self.text, self.second):
            raise ValueError(
                f"`{key}: {getattr(self, key)}` belongs to no input: each of `inputs` names its "
                f"own; remove `{key}`"
            )

    def default_task(self) -> Task:
        return TASK_OF[self.kind]()  # type: ignore[call-arg]  # a task has defaults

    def check(self) -> None:
        _check_libraries()
        for file in self._files().values():
            check_table(file)
        for encoding in self.encodings().values():
            encoding.check()

    def input_names(self) -> tuple[str, ...]:
        return tuple(self.inputs or ())

    @property
    def needs_input(self) -> bool:
        return self.inputs is not None

    def encodings(self) -> dict[str, Encoding]:
        """Return the way from texts to tokens of each input; without inputs, of `WHOLE`."""
        columns = (self.text, *([self.second] if self.second else []))
        whole = Encoding(columns, self.tokenizer, self.max_length)
        if self.inputs is None:
            return {WHOLE: whole}
        return {name: encoding_of(each, name, whole) for name, each in self.inputs.items()}

    def load(self) -> Dataset:
        self.check()
        tables = {split: self._tables(file) for split, file in self._files().items()}
        encodings = self.encodings()
        texts = _texts(tables, encodings)
        labels = self._targets(tables)
        rows = self._split_rows(tables, labels)
        mean, scale = _standardized(labels, self.kind, rows["train"])
        is_class, is_number = self.kind == "class", self.kind == "number"
        values = labels.values if is_class else (labels.values - mean) / scale
        tokens = {name: tokenize(texts, each) for name, each in encodings.items()}
        stored = stored_tokens(tokens)
        splits = {part: _split(stored, values, rows[part]) for part in PARTS}
        notes, warnings = _remarks(tables, labels)
        whole = tokens.get(WHOLE)
        return Dataset(
            name=self.name,
            train=splits["train"],
            val=splits["val"],
            test=splits["test"],
            classes=len(labels.names),
            class_names=labels.names,
            input_shape=() if whole is None else (self.max_length,),
            mean=(),
            std=(),
            fingerprint=fingerprint(splits, {}),
            origin=str(_path(self.file)),
            vocabulary=0 if whole is None else whole.vocabulary,
            padding=0 if whole is None else whole.padding,
            notes=(*notes, *each_input((name, each.notes) for name, each in tokens.items())),
            warnings=(
                *warnings,
                *(_missing_classes(tables, labels, rows) if is_class else ()),
                *each_input(
                    (name, _repeated_or_blank(each, texts, tables, labels, rows))
                    for name, each in encodings.items()
                ),
                *each_input((name, each.warnings) for name, each in tokens.items()),
            ),
            raw=Raw() if whole is None else Raw(preparation=encodings[WHOLE].preparation),
            target_mean=tuple(mean.tolist()) if is_number else (),
            target_scale=tuple(scale.tolist()) if is_number else (),
            forms=forms_of(tokens, splits["train"]),
            parts=parts_of(encodings),
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

    def _files(self) -> dict[str, Path]:
        named = {"train": self.file, "val": self.val_file, "test": self.test_file}
        return {part: _path(file) for part, file in named.items() if file is not None}

    def _tables(self, file: Path) -> list[Table]:
        encodings = self.encodings().values()
        columns = dict.fromkeys(column for each in encodings for column in each.columns)
        try:
            return [*read_table(file, [*columns, *self._label_columns], self._dialect)]
        except ValueError as error:
            raise ValueError(f"{error}{self._place_of_missing(str(error))}") from None

    def _place_of_missing(self, message: str) -> str:
        """Return which input takes the column that a table lacks, to end the message with."""
        for name, encoding in self.encodings().items():
            column = next((c for c in encoding.columns if f"has no column '{c}'" in message), None)
            if column is None or self.inputs is None:
                continue
            if column == self.text and not self.inputs[name].text:
                return f"; data.inputs.{name} has no `text`, so it takes that of data, '{column}'"
            return f"; data.inputs.{name} names this column"
        return ""


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


def _remarks(tables: Tables, labels: Targets) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the notes and the warnings of the tables and labels."""
    read = [table for parts in tables.values() for table in parts]
    notes = (
        *(f"{len(parts)} {split} files" for split, parts in tables.items() if parts[1:]),
        *(note for table in read for note in table.notes),
        *labels.notes,
    )
    return notes, (*(warning for table in read for warning in table.warnings), *labels.warnings)


def _texts(tables: Tables, encodings: Mapping[str, Encoding]) -> dict[str, list[str]]:
    """Return the texts of all tables by column.

    Raises:
        ValueError: a value is not text, or all values are numbers.
    """
    read = [table for parts in tables.values() for table in parts]
    columns = {column: each for each in encodings.values() for column in each.columns}
    for table in read:
        for column, encoding in columns.items():
            _check_texts(table, column, encoding.place)
    return {
        column: [str(text) for table in read for text in table.columns[column]]
        for column in columns
    }


def _check_texts(table: Table, column: str, place: str) -> None:
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
            f"text; name the column of texts in {place}.text, or remove the row"
        )


def _plain(texts: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the texts of each row with single spaces between words."""
    rows = zip(*texts.values(), strict=True)
    return [tuple(" ".join(text.split()) for text in row) for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _repeated_or_blank(
    encoding: Encoding,
    texts: Mapping[str, list[str]],
    tables: Tables,
    labels: Targets,
    rows: Mapping[str, np.ndarray],
) -> Iterator[str]:
    """Warn about rows without a text of an input, and about its texts in several splits."""
    columns = {column: texts[column] for column in encoding.columns}
    yield from _blank([*columns.values()], tables)
    yield from duplicate_warnings(_plain(columns), _identities(labels), rows, "text")


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
