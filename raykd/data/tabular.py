"""Tables of numbers and categories, with a number, a class, labels or a vector as target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raykd.data.augment import Augments
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
from raykd.data.inputs import columns_text
from raykd.data.splits import split_rows
from raykd.data.table import Dialect, Table, check_dialect, check_table, read_table
from raykd.data.table_inputs import (
    Columns,
    InputGroups,
    TableInputs,
    column_of,
    fingerprint_of,
    forms_of,
    parts_of,
    rows_of,
    stored_inputs,
)
from raykd.data.targets import (
    TASK_OF,
    Tables,
    TargetKind,
    is_missing,
    parsed,
    read_targets,
    refusal,
    standardization,
)
from raykd.registry import option
from raykd.tasks import Task

MOST_CATEGORIES = 10_000
"""Maximum number of values of a column of categories."""

FEWEST_ROWS = 10
"""Minimum number of rows of a training table."""

T = TypeVar("T")


@option
class TabularSource(Source):
    """Numbers and categories from a table, with one or several target columns.

    Columns of numbers are standardized with mean and standard deviation of the training split; a
    missing number becomes the mean.  Columns with other values are categories: their values in the
    training table get the codes 1, 2, ..., and missing or new values the code 0.  A sample is a row
    of float32 values, first the numbers, then the codes; `model: {name: mlp}` embeds the codes.  A
    split without a table is split off the training table, stratified if the target is a class.

    Groups of columns with a name, `inputs: {all: [a, b, c], few: [a]}`, are inputs that the teacher
    and the student choose (`teacher.input`, `student.input`); a whole sample has the columns of all
    groups.  A group may also be a column of image files; then every network chooses a group.
    """

    mixes = False

    name: Literal["table"] = "table"
    file: Annotated[
        str,
        Field(
            min_length=1,
            description="CSV, TSV, JSON, Parquet or Arrow file, or a glob pattern for several "
            "files of one table (train-*.parquet)",
        ),
    ]
    val_file: Annotated[
        str | None, Field(description="Table of this split. null: split it off the training table")
    ] = None
    test_file: Annotated[
        str | None, Field(description="Table of this split. null: split it off the training table")
    ] = None
    target: Annotated[
        str | Columns,
        Field(min_length=1, description="Column of the target, or a list of columns"),
    ]
    kind: Annotated[
        TargetKind,
        Field(
            description="Meaning of the target. number: real values, standardized; class: one "
            "class; labels: columns of 0 and 1, one a label; vector: a column of lists of numbers, "
            "such as the embeddings of a teacher"
        ),
    ] = "number"
    inputs: Annotated[
        Annotated[Columns, Field(min_length=1)] | InputGroups | None,
        Field(
            description="Columns of the inputs, or groups of columns by name, for `teacher.input` "
            "and `student.input`. null: all others"
        ),
    ] = None
    ignore: Annotated[Columns, Field(description="Columns that are neither input nor target")] = ()
    categories: Annotated[
        Columns, Field(description="Columns of numbers that are read as categories")
    ] = ()
    delimiter: Annotated[
        str | None,
        Field(
            description="CSV field delimiter. null: tab for .tsv, comma for .csv, otherwise "
            "detected from the header"
        ),
    ] = None
    encoding: Annotated[
        str | None,
        Field(
            description="Encoding of CSV and JSON files, such as cp1252. null: UTF-8, or "
            "detected from a byte order mark"
        ),
    ] = None
    columns: Annotated[
        Columns | None,
        Field(min_length=1, description="Column names of CSV files without a header line"),
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
        if self.kind in ("class", "vector") and len(self.targets) > 1:
            fix = "write `kind: labels` for several columns of 0 and 1"
            raise ValueError(f"`kind: {self.kind}` has one target column; name one, or {fix}")
        used = [*self.targets, *(self._input_columns or ()), *self.ignore]
        if isinstance(self.inputs, InputGroups) and self.inputs.problem:
            raise ValueError(self.inputs.problem)
        twice = next((name for name in used if used.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"column '{twice}' is listed twice in `target`, `inputs` and `ignore`; a column "
                "has one use"
            )
        columns = self._input_columns
        stray = [name for name in self.categories if columns and name not in columns]
        if stray:
            raise ValueError(f"column '{stray[0]}' of `categories` is missing in `inputs`; add it")
        _in_table_words(lambda: check_dialect(self._dialect))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the target columns."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def groups(self) -> InputGroups:
        """The named inputs; none if `inputs` is a list or null."""
        return self.inputs if isinstance(self.inputs, InputGroups) else InputGroups({})

    @property
    def _input_columns(self) -> tuple[str, ...] | None:
        """Columns of numbers and categories that are inputs, each once; None: all others."""
        if not isinstance(self.inputs, InputGroups):
            return self.inputs
        groups = self.inputs.columns.values()
        return tuple(dict.fromkeys(name for group in groups for name in group))

    def input_names(self) -> tuple[str, ...]:
        return tuple(self.groups)

    @property
    def needs_input(self) -> bool:
        return bool(self.groups.pictures)

    def default_task(self) -> Task:
        return TASK_OF[self.kind]()  # type: ignore[call-arg]  # a task has defaults

    def check(self) -> None:
        for file in self._files().values():
            _in_table_words(lambda file=file: check_table(file))

    def load(self) -> Dataset:
        return _in_table_words(self._load)

    def _load(self) -> Dataset:
        tables = {split: self._tables(file) for split, file in self._files().items()}
        rows = _rows_of(tables)
        if len(rows["train"]) < FEWEST_ROWS:
            raise ValueError(
                f"table: {self.file} has {len(rows['train'])} rows; at least {FEWEST_ROWS} are "
                "needed for training, validation and test"
            )
        target = read_targets(tables, self.kind, self.targets)
        is_class = self.kind == "class"
        strata = target.values if is_class else np.zeros(len(target.values), np.int64)
        rows = split_rows(rows, strata, self, target.names if is_class else ())
        inputs = _read_inputs(tables, self, rows["train"])
        stored = stored_inputs(tables, self.groups, inputs)
        mean, scale = standardization(target, self.kind, rows["train"])
        values = torch.from_numpy(target.values if is_class else (target.values - mean) / scale)
        values = values if is_class else values.float()
        splits = {}
        for part in PARTS:
            chosen = torch.from_numpy(rows[part].astype(np.int64))
            splits[part] = Split(rows_of(stored, chosen), values[chosen], chosen)
        is_number = self.kind == "number"
        read = [table for parts in tables.values() for table in parts]
        return Dataset(
            name=self.name,
            train=splits["train"],
            val=splits["val"],
            test=splits["test"],
            classes=len(target.names),
            class_names=target.names,
            input_shape=(inputs.values.shape[1],) if isinstance(stored, Tensor) else (),
            mean=(),
            std=(),
            fingerprint=fingerprint_of(splits, self.groups),
            origin=str(_path(self.file)),
            notes=(*(note for table in read for note in table.notes), *inputs.notes),
            warnings=(*(text for table in read for text in table.warnings), *inputs.warnings),
            raw=Raw(
                preparation=columns_text(inputs.names),
                mean=inputs.mean,
                scale=inputs.scale,
            ),
            categories=inputs.categories,
            target_mean=tuple(mean.tolist()) if is_number else (),
            target_scale=tuple(scale.tolist()) if is_number else (),
            forms=forms_of(self.groups, inputs),
            parts=parts_of(self.groups, inputs, splits["train"]),
        )

    @property
    def _dialect(self) -> Dialect:
        return Dialect(self.delimiter, "auto", self.encoding, self.columns or ())

    def _files(self) -> dict[str, Path]:
        named = {"train": self.file, "val": self.val_file, "test": self.test_file}
        return {part: _path(file) for part, file in named.items() if file is not None}

    def _tables(self, file: Path) -> list[Table]:
        pictures = [picture.images for picture in self.groups.pictures.values()]
        columns = self._input_columns or ()
        names = [*columns, *pictures, *self.ignore, *self.categories, *self.targets]
        return [*read_table(file, names, self._dialect, whole=self.inputs is None)]


def _path(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _in_table_words(read: Callable[[], T]) -> T:
    """Call a function of the reader of tables, whose messages begin with the source of texts."""
    try:
        return read()
    except ValueError as error:
        message = str(error).removeprefix("text: ").removeprefix("table: ")
        raise ValueError(f"table: {message}") from None


def _rows_of(tables: Tables) -> dict[str, np.ndarray]:
    """Return the rows of each split that has a table, counted over all tables."""
    rows: dict[str, np.ndarray] = {}
    start = 0
    for split, parts in tables.items():
        rows[split] = np.arange(start, start + sum(map(len, parts)))
        start += len(rows[split])
    return rows


def _read_inputs(tables: Tables, source: TabularSource, train: np.ndarray) -> TableInputs:
    """Read the input columns: numbers first, in the order of the table, then categories."""
    first, names = tables["train"][0], source._input_columns
    if names is None:
        excluded = (*source.targets, *source.ignore)
        names = tuple(name for name in first.columns if name not in excluded)
    if not names and not source.groups.pictures:
        raise ValueError(f"table: {first.file} has no column besides the target; add inputs")
    is_number = {
        name: name not in source.categories and _are_numbers(tables["train"], name)
        for name in names
    }
    notes, warnings = [], []
    columns: list[np.ndarray] = []
    mean, scale, sizes = [], [], []
    numbers = [name for name in names if is_number[name]]
    texts = [name for name in names if not is_number[name]]
    for name in numbers:
        column = _number_column(tables, name)
        taught = column[train]
        present = taught[~np.isnan(taught)]
        centre, spread = (present.mean(), present.std()) if len(present) else (0.0, 0.0)
        if spread == 0:
            warnings.append(f"column '{name}' has one value in the training split; ignore it")
        spread = spread or 1.0
        columns.append(np.nan_to_num((column - centre) / spread))
        mean.append(float(centre))
        scale.append(float(spread))
    for name in texts:
        codes, size = _code_column(tables, name, train)
        if size - 1 > len(train) / 2:
            warnings.append(
                f"column '{name}' has {size - 1:,} categories in {len(train):,} training rows; "
                "list it in data.ignore if it names the rows"
            )
        columns.append(codes)
        mean.append(0.0)
        scale.append(1.0)
        sizes.append(size)
    if texts:
        notes.append(f"categories: {', '.join(texts)}")
    count = sum(len(table) for parts in tables.values() for table in parts)
    return TableInputs(
        values=np.stack(columns, 1).astype(np.float32) if columns else np.empty((count, 0)),
        names=(*numbers, *texts),
        mean=tuple(mean),
        scale=tuple(scale),
        categories=tuple(sizes),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _are_numbers(tables: Sequence[Table], name: str) -> bool:
    """Return whether all values of a column that are not missing are numbers."""
    values = [value for table in tables for value in table.columns[name] if not is_missing(value)]
    return all(parsed(value) is not None for value in values)


def _number_column(tables: Tables, name: str) -> np.ndarray:
    """Return the numbers of all rows, NaN for missing ones."""
    numbers: list[float] = []
    for table in (table for parts in tables.values() for table in parts):
        for row, value in enumerate(column_of(table, name)):
            number = math.nan if is_missing(value) else parsed(value)
            if number is None or math.isinf(number):
                needed = "the training table has finite numbers there: correct or remove the row"
                raise refusal(table, name, row, needed)
            numbers.append(number)
    return np.array(numbers, dtype=np.float64)


def _code_column(tables: Tables, name: str, train: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the codes of all rows, and the number of codes."""
    texts: list[str] = []
    for table in (table for parts in tables.values() for table in parts):
        for row, value in enumerate(column_of(table, name)):
            if isinstance(value, list | dict):
                raise refusal(table, name, row, "an input must be a number or a category")
            texts.append("" if is_missing(value) else str(value).strip())
    present = sorted({texts[row] for row in train.tolist()} - {""})
    if len(present) > MOST_CATEGORIES:
        raise ValueError(
            f"table: column '{name}' has {len(present):,} categories, at most "
            f"{MOST_CATEGORIES:,} are allowed; list it in data.ignore"
        )
    code_of = {text: code for code, text in enumerate(present, start=1)}
    return np.array([code_of.get(text, 0) for text in texts], np.float64), len(present) + 1
