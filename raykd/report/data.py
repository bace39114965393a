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

MAX_NAMES = 8
"""Maximum number of class names in a line; the others are only counted."""

MAX_NAME_LENGTH = 24
"""Maximum number of characters of a class name."""


def classes_text(count: int, names: Sequence[str]) -> str:
    """Format the number and first names of the classes: "12 classes: ant, bee, ... (4 more)"."""
    if not names:
        return f"{count} classes"
    if names[0] == "v0":  # a vector, whose values have no names
        return f"{count} values"
    listed = ", ".join(_short_name(name) for name in names[:MAX_NAMES])
    more = f", ... ({count - MAX_NAMES} more)" if count > MAX_NAMES else ""
    noun = "classes" if count > 1 else "value"  # a single output is a real value
    return f"{count} {noun}: {listed}{more}"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Format the number of samples of each split: "60 train, 8 val, 16 test"."""
    return ", ".join(f"{size} {part}" for part, size in sizes.items())


def data_line(event: DataLoaded) -> str:
    """Return the data of a study in one line."""
    classes = classes_text(event.classes, event.class_names)
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
    table = Labeled(width=9, gap=1)
    place = data.origin if data is not None else str(getattr(source, "root", ""))
    table.add("data", Text(f"{source.name} from {place}" if place else source.name))
    names = data.class_names if data is not None else ()
    table.add("", Text(classes_text(len(names) or signature.classes, names)))
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
