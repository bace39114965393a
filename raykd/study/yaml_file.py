"""Study files: safe YAML with the line of every value.

YAML is read as by `yaml.safe_load`, but `1e-3` is a number, a date is text, and keys of a mapping
are unique.  Anchors, aliases and merge keys work; other tags, infinite numbers and NaN are errors.
Size, depth and number of values are limited, so that every file is read quickly.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from raykd.errors import Problem, StudyError

Json: TypeAlias = "str | int | float | bool | list[Json] | Mapping[str, Json] | None"
"""Plain data, as YAML and JSON files contain them."""

Place = tuple[str | int, ...]
"""Keys and list positions from the study's root; empty for the root."""

_STEP = re.compile(r"\.?(?P<key>[^.\[\]=\s]+)|\[(?P<index>\d+)\]")


def dotted(place: Iterable[str | int]) -> str:
    """`("knowledge", 0, "loss")` as `knowledge[0].loss`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def parse_place(text: str) -> Place:
    """`knowledge[0].loss` as `("knowledge", 0, "loss")`.

    Raises:
        ValueError: `text` is not a dotted path.
    """
    place: list[str | int] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (at == 0) != (step[0][0] not in ".["):
            raise ValueError(
                f"{text!r} is not a path; write one like knowledge[0].loss.temperature"
            )
        place.append(step["key"] if step["key"] is not None else int(step["index"]))
        at = step.end()
    if not place:
        raise ValueError("an empty path; write, e.g., knowledge[0].loss.temperature")
    return tuple(place)


def value_at(data: Json, place: Place) -> Json:
    """Return the value at `place` of plain data; None if there is none."""
    for step in place:
        if isinstance(data, Mapping) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


MOST_VALUES = 20_000
"""Maximum number of values in a file, with aliases expanded."""

MOST_BYTES = 2_000_000
"""Maximum size of a file."""

MOST_DEPTH = 100
"""Maximum depth of mappings and lists, with aliases expanded."""

COMMAND_LINE = "--set"

_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_CORE + kind for kind in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True)
class Mark:
    """Position of a value: a line of a file, counted from 1, or line 0 of the command line."""

    file: str
    line: int


@dataclass(frozen=True)
class Document:
    """A study file as plain data.

    Attributes:
        data: mappings, lists and scalars, nothing shared between two places.
        marks: position of each place.
        text: content of the file.
        file: its name.
        overrides: the `--set` arguments that are part of `data`.
        spelled: Booleans that were written as `yes`, `no`, `on` or `off`, by place.
    """

    data: Mapping[str, Any]
    marks: Mapping[Place, Mark]
    text: str
    file: str
    overrides: tuple[str, ...] = ()
    spelled: Mapping[Place, str] = field(default_factory=dict)

    def mark(self, place: Place) -> Mark:
        """Position of `place`, or of the nearest place around it."""
        for length in range(len(place), -1, -1):
            mark = self.marks.get(place[:length])
            if mark is not None:
                return mark
        return Mark(self.file, 0)

    def problem(
        self, place: Place, message: str, fix: str = "", path: str | None = None
    ) -> Problem:
        """Return a problem at `place`, which the message calls `path` if that is given."""
        mark = self.mark(place)
        return Problem(
            message=message,
            path=dotted(place) if path is None else path,
            fix=fix,
            file=mark.file,
            line=mark.line,
        )

    def get(self, place: Place) -> Any:
        """Return the value at `place`; None if there is none."""
        return value_at(self.data, place)

    def with_overrides(self, overrides: Iterable[str]) -> Document:
        """Return the same with `a.b=value` arguments applied; the values are read as YAML.

        Missing mappings are created.  A text is a single argument.

        Raises:
            StudyError: an argument cannot be read, or its path leads through a list or a scalar.
        """
        document, problems = self, []
        for override in (overrides,) if isinstance(overrides, str) else overrides:
            try:
                document = _overridden(document, override)
            except StudyError as error:
                problems += error.problems
        if problems:
            raise StudyError(problems)
        return document


def read_document(path: str | os.PathLike[str]) -> Document:
    """Read a study file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        StudyError: the file does not exist; is not text, YAML or a mapping; is too large or too
            deep; or contains a duplicate key, a tag, an infinite number or NaN.
    """
    if not isinstance(path, str | os.PathLike) or path == "":
        kind = "an empty path" if path == "" else f"a {type(path).__name__}"
        message = f"a study is the path of a YAML file or an open study (load_study), got {kind}"
        raise StudyError(Problem(message, fix="write the study to a file and give its path"))
    file = os.fspath(path)
    return parse_document(_text_of(file), file)


def parse_document(text: str, file: str = "") -> Document:
    """Read a study from text; `file` is its name in messages.

    Raises:
        StudyError: as `read_document`.
    """
    reader = _Reader(file)
    data = reader.read(text)
    if data is None:
        raise StudyError(Problem("the study is empty", file=file, fix="begin with `name: ...`"))
    if not isinstance(data, dict):
        raise StudyError(
            Problem(
                f"a study must be a mapping of keys to values, not {_kind(data)}",
                file=file,
                line=1,
                fix="begin with `name: ...`",
            )
        )
    return Document(data, reader.marks, text, file, spelled=reader.spelled)


def _text_of(file: str) -> str:
    content = _bytes_of(file)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise StudyError(
            Problem(
                "a NUL byte: a binary file, or UTF-16 text without a byte order mark",
                file=file,
                line=line,
                fix="save the file as UTF-8 text",
            )
        )
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise StudyError(_not_decoded(error, content, file)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


_BYTE_ORDER_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _bytes_of(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        beside = sorted(path.name for path in _folder(file).glob("*.y*ml"))[:12]
        fix = f"{_folder(file)} contains {', '.join(beside)}" if beside else "check the path"
        raise StudyError(Problem("no such file", file=file, fix=fix)) from None
    except IsADirectoryError:
        raise StudyError(Problem("a folder, not a study file", file=file)) from None
    except OSError as error:
        raise StudyError(Problem(f"cannot be read: {error.strerror}", file=file)) from None
    except ValueError as error:  # NUL in the path
        raise StudyError(Problem(f"cannot be read: {error}", file=repr(file))) from None
    if len(content) > MOST_BYTES:
        message = f"larger than {MOST_BYTES // 1_000_000} MB; study files are short texts"
        raise StudyError(Problem(message, file=file, fix="check the path"))
    return content


def _not_decoded(error: UnicodeDecodeError, content: bytes, file: str) -> Problem:
    line = content.count(b"\n", 0, error.start) + 1
    if error.encoding != "utf-8":
        return Problem(f"not valid {error.encoding.upper()} text", "", _SAVE, file)
    byte = content[error.start : error.start + 1]
    character = byte.decode("cp1252", errors="ignore")
    meaning = (
        f", in Windows-1252 and Latin-1 {character!r}"
        if character.isprintable() and character
        else ""
    )
    return Problem(f"not UTF-8 text: byte 0x{byte.hex()}{meaning}", "", _SAVE, file, line)


_SAVE = "save the file as UTF-8"


def _folder(file: str) -> Path:
    return Path(file).parent


class _Loader(yaml.SafeLoader):
    """Safe YAML with floats such as `1e-3`, without dates and base-60 numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (f"{_CORE}float", f"{_CORE}int", f"{_CORE}timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, within limits."""
        self.depth += 1
        self.values += not _is_key(parent, index)
        try:
            if self.depth > MOST_DEPTH or self.values > MOST_VALUES:
                message = _TOO_DEEP if self.depth > MOST_DEPTH else _TOO_MANY
                raise yaml.MarkedYAMLError(
                    problem=message, problem_mark=self.peek_event().start_mark
                )
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _is_key(parent: yaml.Node | None, index: object) -> bool:
    """Return whether a node is the key of a mapping: PyYAML then composes it without an index."""
    return isinstance(parent, yaml.MappingNode) and index is None


_Loader.add_implicit_resolver(
    f"{_CORE}float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    f"{_CORE}int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)


_TOO_DEEP = f"more than {MOST_DEPTH} nested mappings and lists"
_TOO_MANY = f"more than {MOST_VALUES:,} values, with aliases expanded"

Entries = dict[str, tuple[yaml.Node, yaml.Node]]
"""Key node and value node of each entry of a mapping, by the text of the key."""


class _Reader:
    """Turns YAML nodes into plain data and records their positions."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[Place, Mark] = {}
        self.spelled: dict[Place, str] = {}
        self.open: list[yaml.Node] = []
        self.entries: dict[int, tuple[yaml.Node, Entries]] = {}
        self.merged = 0

    def read(self, text: str) -> Json:
        loader = None
        try:
            loader = _Loader(text)
            loader.name = self.file or "the study"
            root = loader.get_single_node()
            return None if root is None else self._value(loader, root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 0
            raise StudyError(_syntax_problem(error, text, self.file, line)) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            message = f"the character {_called(text[error.position])}, which YAML does not allow"
            raise StudyError(Problem(message, "", "remove it", self.file, line)) from None
        finally:
            if loader is not None:
                loader.dispose()

    def _value(self, loader: _Loader, node: yaml.Node, place: Place) -> Json:
        self.marks.setdefault(place, Mark(self.file, node.start_mark.line + 1))
        if node in self.open:
            raise self._error(node, place, "an alias that contains itself")
        if len(self.marks) > MOST_VALUES:
            raise self._error(node, place, _TOO_MANY)
        if len(self.open) > MOST_DEPTH:
            raise self._error(node, (), _TOO_DEEP)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
                return self._mapping(loader, node, place)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
                values = enumerate(node.value)
                return [self._value(loader, value, (*place, i)) for i, value in values]
            if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
                return self._scalar(loader, node, place)
        finally:
            self.open.pop()
        raise self._tagged(node, place)

    def _scalar(self, loader: _Loader, node: yaml.ScalarNode, place: Place) -> Json:
        try:
            value = loader.construct_object(node)
        except (ValueError, KeyError):  # `!!int x`, `!!bool x`
            kind = node.tag.removeprefix(_CORE)
            written = node.value if len(node.value) <= 60 else f"{node.value[:57]}..."
            raise self._error(node, place, f"{written!r} is not a valid {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            message = f"got {node.value}; numbers must be finite"
            raise self._error(node, place, message, "omit the key, or write a finite number")
        if isinstance(value, str) and (bad := _NO_TEXT.search(value)):
            raise self._error(node, place, f"text with the character {_called(bad[0])}")
        if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
            self.spelled[place] = node.value
        return value

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, place: Place) -> dict[str, Json]:
        filled = {}
        for name, (key, value) in self._entries(node, place, ()).items():
            inner = (*place, name)
            self.marks[inner] = Mark(self.file, key.start_mark.line + 1)
            filled[name] = self._value(loader, value, inner)
        return filled

    def _entries(
        self, node: yaml.MappingNode, place: Place, merging: tuple[yaml.Node, ...]
    ) -> Entries:
        """Return the entries of a mapping, merged ones first; its own entries replace them.

        Nodes are merged instead of values, and each node once: merge keys cannot multiply the work.
        """
        if id(node) in self.entries:
            return self.entries[id(node)][1]
        if node in merging:
            raise self._error(node, place, "an alias that contains itself")
        if len(merging) > MOST_DEPTH:
            raise self._error(node, (), _TOO_DEEP)
        entries: Entries = {}
        merged: Entries = {}
        for key, value in node.value:
            if key.tag == f"{_CORE}merge":
                merged = {**self._sources(value, place, (*merging, node)), **merged}
                continue
            name = self._key(key, place)
            if name in entries:
                first = entries[name][0].start_mark.line + 1
                message = f"the key `{name}` appears twice, first in line {first}"
                raise self._error(key, (*place, name), message, "remove one of them")
            entries[name] = key, value
        combined = {name: pair for name, pair in merged.items() if name not in entries} | entries
        self.entries[id(node)] = node, combined  # a reference to the node keeps its id unique
        return combined

    def _sources(self, node: yaml.Node, place: Place, merging: tuple[yaml.Node, ...]) -> Entries:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: Entries = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, place, "`<<` must be a mapping or a list of mappings")
            if source.tag != f"{_CORE}map":
                raise self._tagged(source, place)
            merged = {**self._entries(source, place, merging), **merged}
            self.merged += len(merged)
            if self.merged > 10 * MOST_VALUES:
                raise self._error(node, place, _TOO_MANY)
        return merged

    def _key(self, key: yaml.Node, place: Place) -> str:
        if isinstance(key, yaml.ScalarNode) and key.tag == f"{_CORE}str":
            if key.value.isprintable():
                return key.value
            odd = next(letter for letter in key.value if not letter.isprintable())
            message = f"the key {key.value!r} contains the character {_called(odd)}"
            raise self._error(key, place, message, "remove it; indent with plain spaces")
        text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        kind = key.tag.rsplit(":", 1)[-1]
        fix = f'write it in quotes: "{text}"' if isinstance(key, yaml.ScalarNode) else ""
        raise self._error(key, place, f"a key must be text; `{text}` is read as {kind}", fix)

    def _tagged(self, node: yaml.Node, place: Place) -> StudyError:
        tag = node.tag.replace(_CORE, "!!")
        fix = "write it as plain text, numbers, lists and mappings"
        return self._error(node, place, f"the tag {tag} is not allowed: a study is plain data", fix)

    def _error(self, node: yaml.Node, place: Place, message: str, fix: str = "") -> StudyError:
        line = node.start_mark.line + 1
        return StudyError(Problem(message, dotted(place), fix, self.file, line))


_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""Characters that paths, names and JSON cannot contain; YAML can write them as escapes."""


def _called(letter: str) -> str:
    """Return a character as its code point and its name, if it has one."""
    name = unicodedata.name(letter, "NUL" if letter == "\0" else "")
    return f"U+{ord(letter):04X}" + (f" ({name})" if name else "")


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str, line: int) -> Problem:
    if error.problem in (_TOO_DEEP, _TOO_MANY):
        return Problem(str(error.problem), "", "", file, line)
    lines = text.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or "'\\t'" in str(error.problem):
        return Problem(
            "a tab; YAML must be indented with spaces", "", "replace it with spaces", file, line
        )
    message = f"not YAML: {error.problem}" if error.problem else "not YAML"
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        message += f" ({error.context} that began in line {error.context_mark.line + 1})"
    fix = ""
    if "mapping values are not allowed" in str(error.problem):
        fix = "check the indentation; text with `: ` needs quotes"
    elif "undefined alias" in str(error.problem):
        fix = "an `&anchor` must come before its `*alias`; text that begins with * needs quotes"
    return Problem(message, "", fix, file, line)


def _kind(value: Json) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"


def _overridden(document: Document, override: str) -> Document:
    """`document` with one `a.b=value` applied."""
    name, equals, text = override.partition("=")
    if not equals:
        raise _refused(f"{override!r} has no `=`", fix="write --set a.b=value")
    try:
        place = parse_place(name.strip())
    except ValueError as error:
        raise _refused(str(error)) from None
    reader = _Reader(COMMAND_LINE)
    try:
        value = reader.read(text)
    except StudyError as error:
        raise _refused(f"{text!r}: {error.problems[0].message}", dotted(place)) from None
    marks = {path: mark for path, mark in document.marks.items() if path[: len(place)] != place}
    marks |= {(*place, *inner): Mark(COMMAND_LINE, 0) for inner in (reader.marks or {(): None})}
    spelled = {at: word for at, word in document.spelled.items() if at[: len(place)] != place}
    spelled |= {(*place, *inner): word for inner, word in reader.spelled.items()}
    for length in range(1, len(place)):
        marks.setdefault(place[:length], Mark(COMMAND_LINE, 0))
    return replace(
        document,
        data=_put(document.data, place, value, ()),
        marks=marks,
        overrides=(*document.overrides, override),
        spelled=spelled,
    )


def _put(old: Json, place: Place, value: Json, walked: Place) -> Json:
    """Return a copy of `old` with `value` at `place`."""
    if not place:
        return value
    step, rest = place[0], place[1:]
    path = dotted(walked) or "the study"
    if isinstance(step, int):
        if not isinstance(old, list):
            raise _refused(f"{path} is {_describe(old)}, not a list", dotted((*walked, step)))
        if step >= len(old):
            message = f"{path} has {len(old)} items, so there is no [{step}]"
            fix = f"count from 0, or give the whole list: --set '{path}=[...]'"
            raise _refused(message, dotted((*walked, step)), fix)
        changed = _put(old[step], rest, value, (*walked, step))
        return [*old[:step], changed, *old[step + 1 :]]
    if old is not None and not isinstance(old, dict):
        fix = f"replace it as a whole: --set '{path}={{...}}'"
        raise _refused(f"{path} is {_describe(old)}, not a mapping", dotted((*walked, step)), fix)
    if isinstance(old, dict) and "choice" in old and step != "choice":
        options = old["choice"]
        count = len(options) if isinstance(options, list) else 0
        message = f"{path} is a choice of {count} options, so it has no `{step}`"
        fix = f"name the option, {path}.choice[0].{step}=..., or replace {path} as a whole"
        raise _refused(message, dotted((*walked, step)), fix)
    old = old or {}
    return {**old, step: _put(old.get(step), rest, value, (*walked, step))}


def _describe(value: Json) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _refused(message: str, path: str = "", fix: str = "") -> StudyError:
    return StudyError(Problem(message, path, fix, COMMAND_LINE))
