"""Inputs of the samples of a table: named groups of columns, and columns of image files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PlainSerializer, WithJsonSchema
from torch import Tensor

from raykd.data.dataset import Channels, InputFacts, Raw, Split
from raykd.data.decode import decode_all
from raykd.data.directory_tree import Root
from raykd.data.inputs import column_facts
from raykd.data.named_inputs import NamedInputs
from raykd.data.splits import channel_statistics, fingerprint
from raykd.data.table import Table
from raykd.data.targets import Tables, is_missing, refusal
from raykd.errors import StudyError
from raykd.input_forms import ColumnForm, InputForm, PartForm
from raykd.registry import option

Columns = tuple[Annotated[str, Field(min_length=1)], ...]

Stored = Tensor | dict[str, Tensor]
"""Inputs of all rows."""

FORMS = "a list of columns, or `{images: COLUMN, size: PIXELS}` for image files"


@option
class PictureColumn:
    """Images in files, as one input of the samples of a table.

    A file that is not square is cropped to its center.
    """

    images: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(ge=1)]
    channels: Channels = 3


_GROUP_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "description": "Groups of columns by name",
    "additionalProperties": {
        "anyOf": [
            {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            {
                "type": "object",
                "description": "Images in files",
                "properties": {
                    "images": {
                        "type": "string",
                        "minLength": 1,
                        "description": "Column of image files, relative to the table's folder",
                    },
                    "size": {
                        "type": "integer",
                        "minimum": 1,
                        "description": "Height and width of the images, in pixels",
                    },
                    "channels": {"enum": [1, 3], "default": 3},
                },
                "required": ["images", "size"],
                "additionalProperties": False,
            },
        ]
    },
}


class InputGroups(NamedInputs["Columns | PictureColumn"]):
    """Groups of columns: the inputs of a table's samples.

    Attributes:
        problem: reason why the groups cannot be used; "" if they can.

    Args:
        groups: lists of columns, and fields of `PictureColumn`, by name.
    """

    def __init__(self, groups: Mapping[str, object]) -> None:
        self.problem = "" if groups else "`inputs` is an empty mapping; name groups of columns"
        usable: dict[str, Columns | PictureColumn] = {}
        for name, group in groups.items():
            try:
                usable[name] = _group(group)
            except ValueError as error:
                self.problem = self.problem or f"`inputs.{name}` {error}"
        super().__init__(usable)
        self.problem = self.problem or self.wrong_name

    @property
    def pictures(self) -> dict[str, PictureColumn]:
        """Inputs that are images."""
        return {name: each for name, each in self.items() if isinstance(each, PictureColumn)}

    @property
    def columns(self) -> dict[str, Columns]:
        """Inputs that are columns."""
        return {name: each for name, each in self.items() if not isinstance(each, PictureColumn)}

    def plain(self) -> dict[str, object]:
        pictures = {name: dataclasses.asdict(each) for name, each in self.pictures.items()}
        columns = {name: list(each) for name, each in self.columns.items()}
        return {name: {**columns, **pictures}[name] for name in self}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> object:
        read = Annotated[
            dict[str, object],
            AfterValidator(cls),
            PlainSerializer(cls.plain),
            WithJsonSchema(_GROUP_SCHEMA),
        ]
        return handler.generate_schema(read)


def _group(value: object) -> Columns | PictureColumn:
    """Read a group of a study file.

    Raises:
        ValueError: it cannot be used; continues a sentence that begins with its name.
    """
    if isinstance(value, PictureColumn):
        return value
    if isinstance(value, Mapping):
        try:
            return PictureColumn(**cast("dict[str, Any]", value))
        except StudyError as error:
            raise ValueError(f"is no column of images: {error.problems[0].message}") from None
        except TypeError:
            raise ValueError(f"must be {FORMS}") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"is {value!r}; it must be {FORMS}")
    if not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"is {list(value)!r}; it must be {FORMS}")
    twice = next((name for name in value if value.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"has column '{twice}' twice; list it once")
    return tuple(value)


@dataclass(frozen=True)
class TableInputs:
    """Inputs of all rows.

    Attributes:
        values: (N, F) float32, standardized numbers, then codes of categories.
        names: of the columns, in this order.
        mean, scale: (F,) of the columns on the training split; 0 and 1 for categories.
        categories: number of codes of each column of categories.
        notes, warnings: sentences on the columns.
    """

    values: np.ndarray
    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    categories: tuple[int, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def stored_inputs(tables: Tables, groups: InputGroups, inputs: TableInputs) -> Stored:
    """Return the inputs of all rows as they are stored: one tensor, or one for each group."""
    pictures = groups.pictures
    if not pictures:
        return torch.from_numpy(inputs.values)
    images = {name: _pictures_of(tables, picture) for name, picture in pictures.items()}
    columns = {
        form.name: torch.from_numpy(inputs.values[:, list(form.columns)])
        for form in _column_forms(groups, inputs)
    }
    return {**images, **columns}


def rows_of(stored: Stored, rows: Tensor) -> Stored:
    """Return some rows of the inputs."""
    if isinstance(stored, Tensor):
        return stored[rows]
    return {name: values[rows] for name, values in stored.items()}


def _pictures_of(tables: Tables, picture: PictureColumn) -> Tensor:
    """Return the images of all rows, (N, C, H, W) uint8.

    Raises:
        ValueError: a path is missing, leads outside the folder of its table, or has no image.
    """
    shape = (picture.channels, picture.size, picture.size)
    parts = []
    for table in (table for parts in tables.values() for table in parts):
        paths = column_of(table, picture.images)
        root = Root.of("table", str(table.file.parent.absolute()), option=None)
        for row, path in enumerate(paths):
            if not isinstance(path, str) or is_missing(path):
                raise refusal(table, picture.images, row, "the path of an image is needed")
            root.check_entry(path)
        parts.append(torch.from_numpy(decode_all(str(table.file.parent), paths, shape)))  # type: ignore[arg-type]
    return torch.cat(parts)


def fingerprint_of(splits: Mapping[str, Split], groups: InputGroups) -> str:
    """Return the fingerprint of the splits, and of the groups: their names stand for columns."""
    digest = fingerprint(splits, {})
    if not groups:
        return digest
    return hashlib.sha256(f"{digest} {json.dumps(groups.plain())}".encode()).hexdigest()


def _column_forms(groups: InputGroups, inputs: TableInputs) -> list[ColumnForm]:
    """Return the groups of columns; in each, categories come last, as in `TableInputs.names`."""
    first = len(inputs.names) - len(inputs.categories)
    forms = []
    for name, columns in groups.columns.items():
        places = tuple(place for place, each in enumerate(inputs.names) if each in columns)
        codes = tuple(inputs.categories[place - first] for place in places if place >= first)
        names = tuple(inputs.names[place] for place in places)
        forms.append(ColumnForm(name, places, names, codes))
    return forms


def forms_of(groups: InputGroups, inputs: TableInputs) -> tuple[InputForm, ...]:
    """Return the inputs that networks may take, in the order of the groups."""
    columns = {form.name: form for form in _column_forms(groups, inputs)}
    if not groups.pictures:
        return tuple(columns.values())
    parts = {
        name: PartForm(name, (each.channels, each.size, each.size))
        for name, each in groups.pictures.items()
    }
    for name, form in columns.items():
        parts[name] = PartForm(name, (len(form.columns),), form.codes)
    return tuple(parts[name] for name in groups)


def parts_of(groups: InputGroups, inputs: TableInputs, train: Split) -> dict[str, InputFacts]:
    """Return the facts of the inputs that are stored as tensors of their own."""
    if not groups.pictures:
        return {}
    assert isinstance(train.inputs, Mapping), "stored as several tensors"
    facts = {}
    for name, picture in groups.pictures.items():
        images = train.inputs[name]
        raw = Raw(preparation=f"images of column '{picture.images}'")
        facts[name] = InputFacts(tuple(images.shape[1:]), *channel_statistics(images), raw)
    for form in _column_forms(groups, inputs):
        facts[form.name] = column_facts(form, inputs.mean, inputs.scale)
    return facts


def column_of(table: Table, name: str) -> Sequence[object]:
    if name not in table.columns:
        raise ValueError(
            f"table: {table.file} has no column '{name}', which the training table has"
        )
    return table.columns[name]
