"""Tables in files: CSV, TSV, JSON, Parquet and Arrow, with the position of each row.

All rows of a file are read, or an error names the line.  CSV values are text; values of other
formats keep their types.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from raykd.data.csv_records import Malformed, Quoting, has_row_names, read_records

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

_BYTE_ORDER_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


_BINARY = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip or Excel",
    b"\xd0\xcf\x11\xe0": "Excel",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF": "PDF",
}
"""Formats whose files often have a wrong suffix, by their first bytes."""


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
    columns: Mapping[str, Sequence[Any]]
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


def short_repr(value: Any) -> str:
    """Return a value for messages, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


HALF_CHARACTER = (
    "it contains half of a character (an unpaired surrogate such as \\ud83d), which is not text; "
    "write the character again, or remove it"
)
"""Message for a text that `has_half_characters`."""


def has_half_characters(text: str) -> bool:
    """Return whether a text contains an unpaired surrogate, which JSON allows but not UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


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


def read_table(file: Path, columns: Sequence[str], dialect: Dialect) -> Iterator[Table]:
    """Read columns of a table, or of all tables that match a pattern such as `train-*.parquet`.

    Raises:
        ValueError: a file cannot be read, or lacks a column or rows; names the faulty line, if
            any, and the remedies.
    """
    names = list(dict.fromkeys(columns))
    for path in _files(file):
        kind = "folder" if path.is_dir() else FORMATS[path.suffix.lower()]
        if kind == "csv":
            table = _csv(path, names, dialect)
        elif kind == "json":
            table = _json(path, names, dialect)
        else:
            table = _arrow(path, kind, names)
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


# Text ---------------------------------------------------------------------------------------------


@dataclass
class _Log:
    """Sentences collected while a file is read."""

    notes: list[str]
    warnings: list[str]


def _text_of(file: Path, dialect: Dialect, log: _Log) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"text: {file} cannot be read ({error.strerror})") from None
    if not content.strip():
        raise ValueError(f"text: {file} is empty")
    if kind := next((name for magic, name in _BINARY.items() if content.startswith(magic)), ""):
        raise ValueError(
            f"text: {file} is a {kind} file, not {file.suffix} text; unpack or export it first"
        )
    mark = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    encoding = dialect.encoding or mark or "utf-8"
    if mark is not None and codecs.lookup(encoding).name == "utf-8":
        encoding = mark
    if encoding == "utf-8" and content.count(b"\0") > len(content) // 4:
        raise ValueError(
            f"text: {file} is not UTF-8 text; if it is UTF-16, set data.encoding to utf-16-le or "
            "utf-16-be, or save it as UTF-8"
        )
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise _decoding_error(file, content, encoding, error) from None
    _note_encoding(file, content, text, encoding, log)
    return _without_inner_marks(file, text, log)


def _without_inner_marks(file: Path, text: str, log: _Log) -> str:
    """Remove byte order marks at the starts of lines, which concatenated files contain."""
    if "\ufeff" not in text:
        return text
    rest, count = re.subn("(?<=[\r\n])\ufeff", "", text)
    if count:
        marks = "byte order mark" if count == 1 else f"{count:,} byte order marks"
        log.notes.append(f"{file.name}: {marks} between lines removed; were files concatenated?")
    return rest


def _note_encoding(file: Path, content: bytes, text: str, encoding: str, log: _Log) -> None:
    if not encoding.startswith("utf-8"):
        log.notes.append(f"{file.name} is read as {encoding}")
    if len(text) == len(content) and not content.isascii() and _is_utf8(content):
        log.warnings.append(
            f"{file.name} is valid UTF-8, but read as {encoding}: letters beyond ASCII are "
            "probably wrong; leave out data.encoding"
        )
    if lost := text.count("\ufffd"):
        log.warnings.append(
            f"{file.name} holds {lost} replacement characters (U+FFFD): letters were lost when it "
            "was converted to its encoding"
        )


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoding_error(file: Path, content: bytes, encoding: str, error: UnicodeError) -> ValueError:
    if not isinstance(error, UnicodeDecodeError) or "16" in encoding or "32" in encoding:
        return ValueError(
            f"text: {file} is not {encoding} text ({error}); set data.encoding to its encoding, or "
            "save it as UTF-8"
        )
    line = _line(content[: error.start].decode("latin-1"))
    if not encoding.startswith("utf-8"):
        return ValueError(
            f"text: {file}: line {line} is not {encoding} (byte 0x{content[error.start]:02x}); set "
            "data.encoding to the table's encoding, or save it as UTF-8"
        )
    begin = max(content.rfind(b"\n", 0, error.start) + 1, error.start - 20)
    around = content[begin : error.start + 1].decode("cp1252", errors="replace")
    return ValueError(
        f"text: {file}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}; read as "
        f"cp1252: {around!r}); save the table as UTF-8, or set data.encoding to its encoding, "
        "often cp1252 or latin-1"
    )


def _line(before: str) -> int:
    """Return the line (from 1) of the text that follows `before`."""
    return 1 + before.count("\n") + before.count("\r") - before.count("\r\n")


# CSV ----------------------------------------------------------------------------------------------


def _csv(file: Path, names: Sequence[str], dialect: Dialect) -> Table:
    log = _Log([], [])
    text = _text_of(file, dialect, log)
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
        for name in names
    }
    _check_widths(file, header, rows, lines, max(indices.values()), log)
    if inner := records.blank:
        log.notes.append(f"{file.name}: {counted(inner, 'blank line')} between rows skipped")
    columns = {name: [row[index] for row in rows] for name, index in indices.items()}
    return Table(file, columns, lines, "line", False, tuple(log.notes), tuple(log.warnings))


def _delimiter(written: str | None) -> str | None:
    return "\t" if written in ("\\t", "tab") else written


def _detect_delimiter(
    file: Path, text: str, names: Sequence[str], dialect: Dialect, log: _Log
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
    log: _Log,
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
    name: str, header: Sequence[str], file: Path, log: _Log, *, has_header: bool, typed: bool
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


def _json(file: Path, names: Sequence[str], dialect: Dialect) -> Table:
    log = _Log([], [])
    text = _text_of(file, dialect, log)
    unit: Literal["line", "row"] = "line"
    try:
        lines, rows = _json_lines(text)
    except (Malformed, RecursionError) as error:
        unit = "row"
        rows = _json_document(file, text, error)
        lines = list(range(1, len(rows) + 1))
    for row, line in zip(rows, lines, strict=True):
        if not isinstance(row, dict):
            raise ValueError(
                f"text: {file}: {unit} {line} holds {short_repr(row)}; it must be an object with "
                "the columns as keys"
            )
    keys = list(dict.fromkeys(key for row in rows for key in row))
    header = {
        name: keys[_column(name, keys, file, log, has_header=True, typed=True)] for name in names
    }
    columns = {name: [row.get(key) for row in rows] for name, key in header.items()}
    return Table(file, columns, lines, unit, True, tuple(log.notes), tuple(log.warnings))


def _json_lines(text: str) -> tuple[list[int], list[Any]]:
    lines: list[int] = []
    rows: list[Any] = []
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


def _is_row(value: Any) -> bool:
    """Return whether a value is a row, not a table."""
    return isinstance(value, dict) and not any(isinstance(v, list | dict) for v in value.values())


def _json_document(file: Path, text: str, error: Exception) -> list[Any]:
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


def _by_index(file: Path, document: Mapping[str, Any]) -> dict[str, Any]:
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return mapping


# Parquet and Arrow --------------------------------------------------------------------------------


def _arrow(file: Path, kind: str, names: Sequence[str]) -> Table:
    log = _Log([], [])
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
        for name in names
    }
    columns = {name: _values(table, key) for name, key in keys.items()}
    places = range(1, table.num_rows + 1)
    return Table(file, columns, places, "row", True, tuple(log.notes), tuple(log.warnings))


def _open(file: Path, kind: str) -> Any:
    if kind == "folder":
        import datasets

        return datasets.load_from_disk(str(file))
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "parquet":
        return parquet.ParquetFile(file).read()
    with pa.memory_map(str(file)) as source:
        try:  # a file, or else a stream
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _values(table: Any, column: str) -> list[Any]:
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
