"""Study files: YAML read safely, every value with the line it stands on.

YAML as `yaml.safe_load` understands it, but `1e-3` is a number, a date is text, and a key may
not stand twice in one mapping.  Anchors, aliases and merge keys work; other tags are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from raykd.problems import Problem, StudyError
from raykd.study.place import Place, dotted, parse_place, value_at

MOST_VALUES = 20_000
"""So many values may a file hold, its aliases written out."""

COMMAND_LINE = "--set"

_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_CORE + kind for kind in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True)
class Mark:
    """Where a value was written: a line (from 1) of a file, or 0 of the command line."""

    file: str
    line: int


@dataclass(frozen=True)
class Document:
    """A study file as plain data.

    Attributes:
        data: mappings, lists and scalars, nothing shared between two places.
        marks: where each place was written.
        text: the file as it was read.
        file: its name, as given.
        overrides: the `--set` arguments already in `data`.
    """

    data: Mapping[str, Any]
    marks: Mapping[Place, Mark]
    text: str
    file: str
    overrides: tuple[str, ...] = ()

    def mark(self, place: Place) -> Mark:
        """Where `place` was written, or else the nearest place around it."""
        for length in range(len(place), -1, -1):
            found = self.marks.get(place[:length])
            if found is not None:
                return found
        return Mark(self.file, 0)

    def problem(self, place: Place, what: str, mend: str = "", path: str | None = None) -> Problem:
        """A problem at `place`, called `path` in the message where that differs."""
        mark = self.mark(place)
        return Problem(
            what=what,
            path=dotted(place) if path is None else path,
            mend=mend,
            file=mark.file,
            line=mark.line,
        )

    def get(self, place: Place) -> Any:
        """The value at `place`; None where there is none."""
        return value_at(self.data, place)

    def with_overrides(self, overrides: Iterable[str]) -> Document:
        """The same with `a.b=value` arguments put in; the values are read as YAML.

        A mapping that is missing on the way is made.

        Raises:
            StudyError: an argument that cannot be read, or a path that cannot be walked.
        """
        document, problems = self, []
        for override in overrides:
            try:
                document = _overridden(document, override)
            except StudyError as error:
                problems += error.problems
        if problems:
            raise StudyError(problems)
        return document


def read_document(path: str | os.PathLike[str]) -> Document:
    """Read a study file.

    Raises:
        StudyError: no such file, not YAML, not a mapping, a key that stands twice, a tag.
    """
    file = os.fspath(path)
    return parse_document(_text_of(file), file)


def parse_document(text: str, file: str = "") -> Document:
    """Read a study from text; `file` is what messages call it.

    Raises:
        StudyError: as `read_document`.
    """
    reader = _Reader(file)
    data = reader.read(text)
    if data is None:
        raise StudyError(Problem("the study is empty", file=file, mend="begin with `name: ...`"))
    if not isinstance(data, dict):
        raise StudyError(
            Problem(
                f"a study is a mapping of keys to values, not {_kind(data)}",
                file=file,
                line=1,
                mend="begin with `name: ...`",
            )
        )
    return Document(data, reader.marks, text, file)


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(path.name for path in _folder(file).glob("*.y*ml"))[:12]
        mend = f"{_folder(file)} holds {', '.join(beside)}" if beside else "check the path"
        raise StudyError(Problem("no such file", file=file, mend=mend)) from None
    except IsADirectoryError:
        raise StudyError(Problem("a folder, not a study file", file=file)) from None
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise StudyError(Problem(what, file=file, mend="save the file as UTF-8")) from None
    except OSError as error:
        raise StudyError(Problem(f"cannot be read: {error.strerror}", file=file)) from None


def _folder(file: str) -> Path:
    return Path(file).parent


class _Loader(yaml.SafeLoader):
    """Safe YAML whose floats may lack a dot (`1e-3`), without dates and base-60 numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in (f"{_CORE}float", f"{_CORE}int", f"{_CORE}timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


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


class _Reader:
    """Turns YAML's nodes into plain data and remembers where each stood."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[Place, Mark] = {}
        self.open: list[yaml.Node] = []

    def read(self, text: str) -> Any:
        loader = _Loader(text)
        loader.name = self.file or "the study"
        try:
            root = loader.get_single_node()
            return None if root is None else self._value(loader, root, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 0
            raise StudyError(_syntax_problem(error, text, self.file, line)) from None
        except yaml.reader.ReaderError as error:
            what = f"a character YAML does not allow (#x{ord(str(error.character)[:1]):04x})"
            raise StudyError(Problem(what, file=self.file)) from None
        finally:
            loader.dispose()

    def _value(self, loader: _Loader, node: yaml.Node, place: Place) -> Any:
        self.marks.setdefault(place, Mark(self.file, node.start_mark.line + 1))
        if node in self.open:
            raise self._error(node, place, "an alias that holds itself")
        if len(self.marks) > MOST_VALUES:
            raise self._error(node, place, f"more than {MOST_VALUES:,} values, aliases written out")
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
        tag = node.tag.replace(_CORE, "!!")
        mend = "write it as plain text, numbers, lists and mappings"
        raise self._error(node, place, f"the tag {tag} is refused: a study is plain data", mend)

    def _scalar(self, loader: _Loader, node: yaml.ScalarNode, place: Place) -> Any:
        try:
            return loader.construct_object(node)
        except ValueError:
            kind = node.tag.removeprefix(_CORE)
            raise self._error(node, place, f"{node.value!r} is no {kind}") from None

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{_CORE}merge":
                merged = {**self._merged(loader, value, place), **merged}
                continue
            name = self._key(key, place)
            if name in own:
                first = own[name][0].start_mark.line + 1
                what = f"the key `{name}` stands twice, first in line {first}"
                raise self._error(key, (*place, name), what, "remove one of them")
            own[name] = key, value
        return self._filled(loader, own, merged, place)

    def _filled(
        self,
        loader: _Loader,
        own: Mapping[str, tuple[yaml.Node, yaml.Node]],
        merged: dict[str, Any],
        place: Place,
    ) -> dict[str, Any]:
        filled = {key: value for key, value in merged.items() if key not in own}
        for name, (key, value) in own.items():
            inner = (*place, name)
            if name in merged:
                self._forget(inner)
            self.marks[inner] = Mark(self.file, key.start_mark.line + 1)
            filled[name] = self._value(loader, value, inner)
        return filled

    def _forget(self, place: Place) -> None:
        for stale in [known for known in self.marks if known[: len(place)] == place]:
            del self.marks[stale]

    def _merged(self, loader: _Loader, node: yaml.Node, place: Place) -> dict[str, Any]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, place, "`<<` takes a mapping, or a list of mappings")
            merged = {**self._value(loader, source, place), **merged}
        return merged

    def _key(self, key: yaml.Node, place: Place) -> str:
        if isinstance(key, yaml.ScalarNode) and key.tag == f"{_CORE}str":
            return key.value
        text = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        kind = key.tag.rsplit(":", 1)[-1]
        mend = f'write it in quotes: "{text}"' if isinstance(key, yaml.ScalarNode) else ""
        raise self._error(key, place, f"a key must be text; `{text}` is read as {kind}", mend)

    def _error(self, node: yaml.Node, place: Place, what: str, mend: str = "") -> StudyError:
        line = node.start_mark.line + 1
        return StudyError(Problem(what, dotted(place), mend, self.file, line))


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str, line: int) -> Problem:
    lines = text.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or "'\\t'" in str(error.problem):
        return Problem(
            "a tab; YAML is indented by spaces", "", "put spaces in its place", file, line
        )
    what = f"not YAML: {error.problem}" if error.problem else "not YAML"
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        what += f" ({error.context} that began in line {error.context_mark.line + 1})"
    mend = ""
    if "mapping values are not allowed" in str(error.problem):
        mend = "check the indentation; text that holds `: ` stands in quotes"
    elif "undefined alias" in str(error.problem):
        mend = "an `&anchor` must stand before its `*alias`; text that begins with * needs quotes"
    return Problem(what, "", mend, file, line)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"


def _overridden(document: Document, override: str) -> Document:
    """`document` with one `a.b=value` put in."""
    name, equals, text = override.partition("=")
    if not equals:
        raise _refused(f"{override!r} has no `=`", mend="write --set a.b=value")
    try:
        place = parse_place(name.strip())
    except ValueError as error:
        raise _refused(str(error)) from None
    reader = _Reader(COMMAND_LINE)
    try:
        value = reader.read(text)
    except StudyError as error:
        raise _refused(f"{text!r}: {error.problems[0].what}", dotted(place)) from None
    marks = {known: mark for known, mark in document.marks.items() if known[: len(place)] != place}
    marks |= {(*place, *inner): Mark(COMMAND_LINE, 0) for inner in (reader.marks or {(): None})}
    for length in range(1, len(place)):
        marks.setdefault(place[:length], Mark(COMMAND_LINE, 0))
    return replace(
        document,
        data=_put(document.data, place, value, ()),
        marks=marks,
        overrides=(*document.overrides, override),
    )


def _put(old: Any, place: Place, value: Any, seen: Place) -> Any:
    """`old` with `value` at `place`, sharing nothing that changes."""
    if not place:
        return value
    step, rest = place[0], place[1:]
    here = dotted(seen) or "the study"
    if isinstance(step, int):
        if not isinstance(old, list):
            raise _refused(f"{here} is {_describe(old)}, not a list", dotted((*seen, step)))
        if step >= len(old):
            what = f"{here} has {len(old)} items, so there is no [{step}]"
            mend = f"count from 0, or give the whole list: --set '{here}=[...]'"
            raise _refused(what, dotted((*seen, step)), mend)
        changed = _put(old[step], rest, value, (*seen, step))
        return [*old[:step], changed, *old[step + 1 :]]
    if old is not None and not isinstance(old, dict):
        mend = f"give the whole of it: --set '{here}={{...}}'"
        raise _refused(f"{here} is {_describe(old)}, not a mapping", dotted((*seen, step)), mend)
    if isinstance(old, dict) and "choice" in old and step != "choice":
        what = f"{here} is a choice of {len(old['choice'] or ())}, so it has no `{step}` of its own"
        mend = f"name the option, {here}.choice[0].{step}=..., or set {here} as a whole"
        raise _refused(what, dotted((*seen, step)), mend)
    old = old or {}
    return {**old, step: _put(old.get(step), rest, value, (*seen, step))}


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _refused(what: str, path: str = "", mend: str = "") -> StudyError:
    return StudyError(Problem(what, path, mend, COMMAND_LINE))
