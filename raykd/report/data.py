"""Text descriptions of a study's data: source, classes, split sizes, notes and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from raykd.terminal_tables import Labeled
from raykd.tracking.events import DataLoaded, Event, Note, StudyExtended

if TYPE_CHECKING:
    from rich.console import RenderableType

    from raykd.data import Dataset, Source, Survey
    from raykd.models import Signature

WARNING = "WARNING: "

EXTENDED = "extended: "

WARNING_STYLE = "bold yellow"

SINGULAR = {"classes": "class", "labels": "label", "values": "value"}
"""Singular of the nouns for targets."""

MAX_NAMES = 8
"""Maximum number of class names in a line; the others are only counted."""

MAX_NAME_LENGTH = 24
"""Maximum number of characters of a class name."""


def classes_text(count: int, names: Sequence[str], noun: str = "") -> str:
    """Format the number and first names of the classes: "12 classes: ant, bee, ... (4 more)".

    Args:
        count: number of classes, labels or values.
        names: their names; empty if they have none.
        noun: "classes", "labels" or "values"; "": unknown.
    """
    noun = noun or ("classes" if count > 1 else "values")  # a single output is a real value
    noun = noun if count > 1 else SINGULAR.get(noun, noun)
    if not names or names[0] == "v0":  # the values of a vector have no names
        return f"{count} {'values' if names and count > 1 else noun}"
    listed = ", ".join(_short_name(name) for name in names[:MAX_NAMES])
    more = f", ... ({count - MAX_NAMES} more)" if count > MAX_NAMES else ""
    return f"{count} {noun}: {listed}{more}"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Format the number of samples of each split: "60 train, 8 val, 16 test"."""
    return ", ".join(f"{size} {part}" for part, size in sizes.items())


def data_line(event: DataLoaded) -> str:
    """Return the data of a study in one line."""
    classes = classes_text(event.classes, event.class_names, event.targets)
    return f"data {event.name} from {event.origin}: {sizes_text(event.sizes)}; {classes}"


def remarks(event: Event) -> Iterator[tuple[str, str]]:
    """Yield each note and warning of an event with the style it is printed in."""
    if isinstance(event, DataLoaded):
        yield from _data_remarks(event)
    if isinstance(event, StudyExtended):
        yield f"{EXTENDED}{event}", "dim"
    for key, text in event.tags.items() if isinstance(event, Note) else ():
        if key.startswith("weights_notes"):
            yield from ((f"weights: {line}", "dim") for line in text.split("\n"))
        elif key == "front_finished":
            yield text, "dim"
        elif key.startswith("warning"):
            yield from ((f"{WARNING}{line}", WARNING_STYLE) for line in text.split("\n"))


def weights_block(notes: Sequence[str], warnings: Sequence[str]) -> Iterator[RenderableType]:
    """Yield the notes and warnings about weights for `raykd validate`."""
    if not notes and not warnings:
        return
    table = Labeled(width=9, gap=1)
    lines = [(note, "dim") for note in notes]
    lines += [(f"{WARNING}{warning}", WARNING_STYLE) for warning in warnings]
    for number, (line, style) in enumerate(lines):
        table.add("" if number else "weights", Text(line, style=style))
    yield table


def _data_remarks(event: DataLoaded) -> Iterator[tuple[str, str]]:
    """Yield each note and warning about the data with the style it is printed in."""
    for note in event.notes:
        yield f"data: {note}", "dim"
    for warning in event.warnings:
        yield f"{WARNING}{warning}", WARNING_STYLE


def data_block(
    source: Source, data: Survey | Dataset | None, signature: Signature
) -> RenderableType:
    """Return a description of a study's data for `raykd validate`.

    Args:
        source: the source of the data.
        data: a survey, or the loaded data; None if neither is available.
        signature: input shape and number of classes.
    """
    from raykd.tasks.base import TARGETS

    table = Labeled(width=9, gap=1)
    place = data.origin if data is not None else str(getattr(source, "root", ""))
    table.add("data", Text(f"{source.name} from {place}" if place else source.name))
    names = data.class_names if data is not None else ()
    noun = TARGETS[source.default_task().kind]
    table.add("", Text(classes_text(len(names) or signature.classes, names, noun)))
    if data is None:
        return table
    table.add("", Text(f"samples: {sizes_text(data.sizes)}"))
    for note in data.notes:
        table.add("", Text(note, style="dim"))
    for warning in data.warnings:
        table.add("", Text(f"{WARNING}{warning}", style=WARNING_STYLE))
    return table


def _short_name(name: str) -> str:
    """Return a class name on one line, truncated if it is long."""
    plain = " ".join(name.split()) or repr(name)
    return plain if len(plain) <= MAX_NAME_LENGTH else plain[: MAX_NAME_LENGTH - 1] + "…"
