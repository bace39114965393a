"""Decoding of tables in text files: encodings, byte order marks, and characters that are broken."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class ReadLog:
    """Sentences collected while a file is read."""

    notes: list[str]
    warnings: list[str]


def read_text(file: Path, encoding: str | None, log: ReadLog) -> str:
    """Read and decode the text of a table.

    Args:
        file: path of the table.
        encoding: its encoding; None: UTF-8, or by the byte order mark.
        log: gets notes and warnings.

    Raises:
        ValueError: the file cannot be read, is empty, has another format or another encoding.
    """
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
    encoding = encoding or mark or "utf-8"
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


def _without_inner_marks(file: Path, text: str, log: ReadLog) -> str:
    """Remove byte order marks at the starts of lines, which concatenated files contain."""
    if "\ufeff" not in text:
        return text
    rest, count = re.subn("(?<=[\r\n])\ufeff", "", text)
    if count:
        marks = "byte order mark" if count == 1 else f"{count:,} byte order marks"
        log.notes.append(f"{file.name}: {marks} between lines removed; were files concatenated?")
    return rest


def _note_encoding(file: Path, content: bytes, text: str, encoding: str, log: ReadLog) -> None:
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
