"""Tables in files: CSV, TSV, JSON, Parquet and Arrow, with the position of each row.

All rows of a file are read, or an error names the line.  CSV values are text; values of other
formats keep their types.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from raykd.data.arrow_size import unpacked_size
from raykd.data.csv_records import Malformed, Quoting, has_row_names, read_records
from raykd.data.text_encoding import ReadLog, read_text

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""Format of a table by the suffix of its file; folders are those of `Dataset.save_to_disk`."""

MAX_UNPACKED, MAX_RATIO = 1 << 28, 100
"""Largest size of a table in memory, in bytes, and relative to its file; the larger one."""

BATCH_ROWS = 1024
"""Rows of a Parquet file that are read at once: each may repeat a large value of a dictionary."""


@dataclass(frozen=True)
class Dialect:
    """Options for reading text files.

    Attributes:
        delimiter: separator of CSV fields; None: a tab for .tsv, a comma for .csv.
        quoting: meaning of double quotes in CSV.
        encoding: encoding of CSV and JSON; None: UTF-8, or by the byte order mark.
        columns: column names of a CSV file without a header; empty: in the first line.
    """

    delimiter: str | None = None
    quoting: Quoting = "auto"
    encoding: str | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns of a table.

    Attributes:
        file: path of the table.
        columns: values of each requested column, of equal lengths.
        places: line or row of each row in the file, from 1.
        unit: unit of `places`.
        typed: values have types; False for CSV, where all are text.
        notes, warnings: sentences on how the file was read.
    """

    file: Path
    columns: Mapping[str, Sequence[object]]
    places: Sequence[int]
    unit: Literal["line", "row"]
    typed: bool
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def place(self, row: int) -> str:
        """Return the place of a row (from 0) for messages: "line 7"."""
        return f"{self.unit} {self.places[row]}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_repr(value: object) -> str:
    """Return a value for messages, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_dialect(dialect: Dialect) -> None:
    """Check the options of a dialect without reading a file.

    Raises:
        ValueError: an unknown encoding, a delimiter that is not one character, or a repeated
            column.
    """
    if dialect.encoding is not None:
        try:
            " ".encode(dialect.encoding)
        except (LookupError, UnicodeError, ValueError):
            raise ValueError(
                f"text: unknown encoding {dialect.encoding!r}; use one that Python knows, such as "
                "utf-8, utf-16, latin-1, cp1252 or shift_jis"
            ) from None
    delimiter = _delimiter(dialect.delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\\'):
        raise ValueError(
            f"text: the delimiter is {dialect.delimiter!r}; it must be one character, but not "
            'a quote, backslash or line end; write a tab as "\\t"'
        )
    twice = [name for name in dialect.columns if dialect.columns.count(name) > 1]
    if twice:
        raise ValueError(f"text: data.columns holds {twice[0]!r} twice")


def check_table(file: Path) -> None:
    """Check quickly that a file or folder can be a table.

    Raises:
        ValueError: it does not exist, or has an unknown format.
    """
    for path in _files(file):
        if path.is_dir():
            _check_folder(path)
        elif path.suffix.lower() not in FORMATS:
            raise ValueError(
                f"text: {path.name} is not a supported table; supported are {', '.join(FORMATS)} "
                "and folders written by Dataset.save_to_disk"
            )


def read_table(
    file: Path, columns: Sequence[str], dialect: Dialect, *, whole: bool = False
) -> Iterator[Table]:
    """Read columns of a table, or of all tables that match a pattern such as `train-*.parquet`.

    Args:
        file: path or pattern.
        columns: names of the columns to read.
        dialect: options of text files.
        whole: whether to read all other columns with a name too, after these.

    Raises:
        ValueError: a file cannot be read, or lacks a column or rows; names the faulty line, if
            any, and the remedies.
    """
    names = list(dict.fromkeys(columns))
    for path in _files(file):
        kind = "folder" if path.is_dir() else FORMATS[path.suffix.lower()]
        if kind == "csv":
            table = _csv(path, names, dialect, whole)
        elif kind == "json":
            table = _json(path, names, dialect, whole)
        else:
            table = _arrow(path, kind, names, whole)
        if not len(table):
            raise ValueError(f"text: {path} has no rows")
        yield table


def _files(file: Path) -> list[Path]:
    if file.exists():
        return [file]
    matches = sorted(file.parent.glob(file.name)) if set(file.name) & set("*?[") else []
    if not matches:
        raise ValueError(f"text: there is no {file}; name a table in data.file")
    return matches


def _check_folder(folder: Path) -> None:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return
    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    fix = f"; it holds {', '.join(tables[:8])}: name one of them" if tables else ""
    raise ValueError(
        f"text: {folder} is a folder that Dataset.save_to_disk did not write{fix}; for several "
        "files of one table give a pattern, such as train-*.parquet"
    )


# CSV ----------------------------------------------------------------------------------------------


def _with_others(names: Sequence[str], header: Sequence[str], whole: bool) -> list[str]:
    """Return the names, and for a whole table those of all other columns."""
    plain = {*map(_plain, names)}
    remaining = [name for name in header if _plain(name) and _plain(name) not in plain]
    return [*names, *dict.fromkeys(remaining if whole else ())]


def _csv(file: Path, names: Sequence[str], dialect: Dialect, whole: bool) -> Table:
    log = ReadLog([], [])
    text = read_text(file, dialect.encoding, log)
    delimiter = _delimiter(dialect.delimiter) or _detect_delimiter(file, text, names, dialect, log)
    try:
        records = read_records(text, delimiter, dialect.quoting, names[-1], not dialect.columns)
    except ValueError as error:
        raise ValueError(f"text: {file}: {error}") from None
    if not records.fields:
        raise ValueError(f"text: {file} is empty")
    if records.note:
        log.notes.append(f"{file.name}: {records.note}")
    header = [*dialect.columns] if dialect.columns else records.fields[0]
    first = 0 if dialect.columns else 1
    rows, lines = records.fields[first:], records.lines[first:]
    if not first and [*map(_plain, rows[0])] == [*map(_plain, header)]:
        raise ValueError(
            f"text: {file}: the first line holds the names of the columns; leave out data.columns"
        )
    plain = [*map(_plain, header)]
    width = len(plain)
    if repeated := [
        line
        for row, line in zip(rows, lines, strict=True)
        if len(row) == width and _plain(row[0]) == plain[0] and [*map(_plain, row)] == plain
    ]:
        raise ValueError(f"text: {file}: line {repeated[0]} repeats the header; remove it")
    if first and has_row_names(header, rows):
        log.notes.append(f"{file.name}: the first column, which has no name, holds row numbers")
        rows = [row[1:] for row in rows]
    indices = {
        name: _column(name, header, file, log, has_header=bool(first), typed=False)
        for name in _with_others(names, header, whole)
    }
    _check_widths(file, header, rows, lines, max(indices.values()), log)
    if inner := records.blank:
        log.notes.append(f"{file.name}: {counted(inner, 'blank line')} between rows skipped")
    columns = {name: [row[index] for row in rows] for name, index in indices.items()}
    return Table(file, columns, lines, "line", False, tuple(log.notes), tuple(log.warnings))


def _delimiter(written: str | None) -> str | None:
    return "\t" if written in ("\\t", "tab") else written


def _detect_delimiter(
    file: Path, text: str, names: Sequence[str], dialect: Dialect, log: ReadLog
) -> str:
    """Return the usual delimiter, or the one that splits the header into the columns."""
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    head = _head(text)
    if dialect.columns:
        return usual
    for other in (usual, *(mark for mark in ",;\t|" if mark != usual)):
        fields = {_plain(name.strip('"')) for name in head.split(other)}
        if len(fields) > 1 and {_plain(name) for name in names} <= fields:
            if other != usual:
                log.notes.append(f"{file.name}: fields are separated by {_plural(other)}")
            return other
    return usual


def _head(text: str) -> str:
    return next((line for line in text[:100_000].splitlines() if line.strip()), "")


def _plural(delimiter: str) -> str:
    return {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}[delimiter]


def _plain(name: str) -> str:
    """Return the name of a column in lower case, without white space around it."""
    return name.strip().strip("\ufeff\u200b").casefold()


def _check_widths(
    file: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    lines: Sequence[int],
    last: int,
    log: ReadLog,
) -> None:
    """Check that no row has more fields than the header, or lacks a field that is used."""
    short = 0
    for row, line in zip(rows, lines, strict=True):
        if len(row) > len(header) or len(row) <= last:
            raise ValueError(
                f"text: {file}: line {line} has {counted(len(row), 'field')}, the header "
                f"{len(header)}; put quotes around fields that hold the delimiter or a line end, "
                "or name another data.delimiter"
            )
        short += len(row) < len(header)
    if short:
        log.notes.append(f"{file.name}: {counted(short, 'row')} without the last fields")


# Columns ------------------------------------------------------------------------------------------


def _column(
    name: str, header: Sequence[str], file: Path, log: ReadLog, *, has_header: bool, typed: bool
) -> int:
    """Return the index of a column; its name may differ in case and in white space around it."""
    exact = [index for index, other in enumerate(header) if other == name]
    alike = exact or [index for index, other in enumerate(header) if _plain(other) == _plain(name)]
    if len(alike) > 1:
        names = ", ".join(repr(header[index]) for index in alike)
        raise ValueError(
            f"text: {file} has {len(alike)} columns for '{name}' ({names}); rename all but one"
        )
    if not alike:
        raise _no_column(name, header, file, first_line=has_header and not typed)
    if not exact:
        log.notes.append(f"{file.name}: column {header[alike[0]]!r} is used for '{name}'")
    return alike[0]


def _no_column(name: str, header: Sequence[str], file: Path, *, first_line: bool) -> ValueError:
    close = get_close_matches(name, header, n=1, cutoff=0.6)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    listed = ", ".join(other if len(other) <= 40 else f"{other[:39]}…" for other in header[:20])
    more = f" and {len(header) - 20} more" if len(header) > 20 else ""
    if first_line and not close:
        guess = (
            "; if its first line is not a header, name its columns in data.columns; if other "
            "characters separate the fields, set data.delimiter"
        )
    return ValueError(f"text: {file} has no column '{name}'; it has {listed}{more}{guess}")


# JSON ---------------------------------------------------------------------------------------------


def _json(file: Path, names: Sequence[str], dialect: Dialect, whole: bool) -> Table:
    log = ReadLog([], [])
    text = read_text(file, dialect.encoding, log)
    unit: Literal["line", "row"] = "line"
    try:
        lines, rows = _json_lines(text)
    except (Malformed, RecursionError) as error:
        unit = "row"
        rows = _json_document(file, text, error)
        lines = list(range(1, len(rows) + 1))
    records: list[dict[str, object]] = []
    for row, line in zip(rows, lines, strict=True):
        if not isinstance(row, dict):
            raise ValueError(
                f"text: {file}: {unit} {line} holds {short_repr(row)}; it must be an object with "
                "the columns as keys"
            )
        records.append(row)
    keys = list(dict.fromkeys(key for record in records for key in record))
    header = {
        name: keys[_column(name, keys, file, log, has_header=True, typed=True)]
        for name in _with_others(names, keys, whole)
    }
    columns = {name: [record.get(key) for record in records] for name, key in header.items()}
    return Table(file, columns, lines, unit, True, tuple(log.notes), tuple(log.warnings))


def _json_lines(text: str) -> tuple[list[int], list[object]]:
    lines: list[int] = []
    rows: list[object] = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=_unique))
            except ValueError as error:
                raise Malformed(number, str(error)) from None
            lines.append(number)
    if len(rows) == 1 and not _is_row(rows[0]):
        raise Malformed(1, "a single value")  # a whole document in one line
    return lines, rows


def _is_row(value: object) -> bool:
    """Return whether a value is a row, not a table."""
    return isinstance(value, dict) and not any(isinstance(v, list | dict) for v in value.values())


def _json_document(file: Path, text: str, error: Exception) -> list[object]:
    """Return the rows of a JSON document: a list of rows, or columns by name."""
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as other:
        in_lines = isinstance(error, Malformed) and text.lstrip()[:1] == "{"
        reason = f"line {error.line}: {error}" if in_lines else str(other)  # type: ignore[union-attr]
        raise ValueError(f"text: {file} cannot be read as JSON ({reason})") from None
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ValueError(
            f"text: {file} holds {short_repr(document)}; it must hold one object per line, or a "
            "list of objects"
        )
    columns = _by_index(file, document)
    lengths = {len(value) for value in columns.values() if isinstance(value, list)}
    if len(lengths) != 1 or not all(isinstance(value, list) for value in columns.values()):
        keys = ", ".join(map(str, document))
        raise ValueError(
            f"text: {file} is one object ({keys}) whose values are not columns of equal length; "
            "write one object per line, or a list of objects"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _by_index(file: Path, document: Mapping[str, object]) -> dict[str, object]:
    """Return the columns of a document; mappings of row names in the order of the first.

    Raises:
        ValueError: two columns have values for different rows.
    """
    mappings = {key: value for key, value in document.items() if isinstance(value, dict)}
    first, order = next(iter(mappings.items()), ("", {}))
    for key, value in mappings.items():
        if different := order.keys() ^ value.keys():
            raise ValueError(
                f"text: {file}: columns {first!r} and {key!r} have values for different rows, such "
                f"as {short_repr(min(different))}; write one object per row"
            )
    return {
        key: [value[row] for row in order] if isinstance(value, dict) else value
        for key, value in document.items()
    }


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return mapping


# Parquet and Arrow --------------------------------------------------------------------------------


def _arrow(file: Path, kind: str, names: Sequence[str], whole: bool) -> Table:
    log = ReadLog([], [])
    try:
        table = _open(file, kind)
    except Exception as error:  # a file may hold anything
        cause = error.__cause__ or error
        raise ValueError(
            f"text: {file} cannot be read as a table ({' '.join(str(cause).split())[:200]})"
        ) from error
    if isinstance(table, dict):
        raise ValueError(
            f"text: {file} holds several tables ({', '.join(map(str, table))}); name the folder of "
            "one of them"
        )
    header = list(table.column_names)
    keys = {
        name: header[_column(name, header, file, log, has_header=True, typed=True)]
        for name in _with_others(names, header, whole)
    }
    columns = {name: _values(table, key) for name, key in keys.items()}
    places = range(1, table.num_rows + 1)
    return Table(file, columns, places, "row", True, tuple(log.notes), tuple(log.warnings))


def _open(file: Path, kind: str) -> Any:
    if kind == "folder":
        import datasets

        for part in sorted(file.glob("*.arrow")):
            _check_size(part, unpacked_size(part))
        return datasets.load_from_disk(str(file))
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "parquet":
        with parquet.ParquetFile(file) as source:
            groups = map(source.metadata.row_group, range(source.num_row_groups))
            _check_size(file, sum(group.total_byte_size for group in groups))
            return _read_batches(file, source.iter_batches(BATCH_ROWS), source.schema_arrow)
    _check_size(file, unpacked_size(file))
    with pa.memory_map(str(file)) as source:
        try:  # a file, or else a stream
            batches = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            return _read_batches(file, stream, stream.schema)
        parts = map(batches.get_batch, range(batches.num_record_batches))
        return _read_batches(file, parts, batches.schema)


def _read_batches(file: Path, batches: Iterable[Any], schema: Any) -> Any:
    """Return a table of batches, unless it takes far more memory than its file.

    Equal rows take nearly no space in a file: 10 KB may hold more than any memory.

    Raises:
        ValueError: it unpacks to more than `MAX_UNPACKED` bytes and `MAX_RATIO` times its file.
    """
    import pyarrow as pa

    parts, size = [], 0
    for part in batches:
        parts.append(part)
        size += part.nbytes
        _check_size(file, size)
    return pa.Table.from_batches(parts, schema)


def _check_size(file: Path, size: int) -> None:
    """Raise `ValueError` if this many bytes are too many for a file."""
    limit = max(MAX_UNPACKED, MAX_RATIO * file.stat().st_size)
    if size > limit:
        raise ValueError(f"it unpacks to more than {limit >> 20:,} MiB; split it into files")


def _values(table: Any, column: str) -> list[object]:
    """Return the values of a column; class numbers as names, if the table has names for them."""
    names = _class_names(table, column)
    values = table[column]
    listed = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    if names is None:
        return listed
    return [None if number is None or number < 0 else names[number] for number in listed]


def _class_names(table: Any, column: str) -> Sequence[str] | None:
    if hasattr(table, "features"):
        return getattr(table.features[column], "names", None)
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = (metadata.get("info") or {}).get("features", {}).get(column, {})
    return feature.get("names") if feature.get("_type") == "ClassLabel" else None
