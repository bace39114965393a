"""What `raykd list` shows: the options a study may name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from raykd.report.catalogue import Entry, Part
from raykd.report.parameters import Held, Parameter
from raykd.tables import Column, Grid, Labeled, Paragraph, unbroken

INDENT = 2
LONG = 60
"""From so many characters on, a fact has a line of its own."""


def view(found: Mapping[Part, Sequence[Entry]], *, in_full: bool) -> RenderableType:
    """What there is of those parts: of several parts a line an option, of one its parameters too.

    Args:
        in_full: whether to tell all of the one option that was found.
    """
    if len(found) > 1:
        return _overview(found)
    (listed,) = found.values()
    return _in_full(listed[0]) if in_full else _listed(listed)


def json_of(found: Mapping[Part, Sequence[Entry]]) -> str:
    """The options for machines: one JSON list of objects."""
    plain = [entry.plain() for listed in found.values() for entry in listed]
    return json.dumps(plain, indent=2, ensure_ascii=False)


def _overview(parts: Mapping[Part, Sequence[Entry]]) -> RenderableType:
    """Every option's name and what it is, part by part."""
    blocks: list[RenderableType] = []
    for part, listed in parts.items():
        table = Labeled(indent=INDENT)
        for entry in listed:
            table.add(Text(entry.name, style="cyan"), entry.summary)
        blocks += [Text(part, style="bold"), table, Text()]
    more = (
        "raykd list losses: parameters, ranges, papers; raykd list losses kd: one option in detail"
    )
    return unbroken([*blocks, Text(more, style="dim")])


def _listed(listed: Sequence[Entry]) -> RenderableType:
    """The options of one part, each with its parameters."""
    widths = _widths([parameter for entry in listed for parameter in entry.parameters])
    blocks: list[RenderableType] = []
    for entry in listed:
        told = (Paragraph(Text(line, style="dim"), INDENT) for line in _told(entry))
        body = [Paragraph(Text(entry.summary), INDENT), *told]
        body += [_parameters(entry.parameters, widths, INDENT)]
        blocks += [Text(entry.name, style="bold cyan"), *body, Text()]
    return unbroken(blocks)


def _in_full(entry: Entry) -> RenderableType:
    """All that is known of one option."""
    table = Labeled()
    for label, text in entry.labelled.items():
        table.add(Text(label, style="dim"), text)
    blocks: list[RenderableType] = [
        Text.assemble((entry.name, "bold cyan"), (f", {entry.noun}", "dim")),
        Text(entry.summary),
        *(Text(f"\n{paragraph}") for paragraph in entry.paragraphs),
    ]
    if table.row_count:
        blocks += [Text(), table]
    if entry.parameters:
        blocks += [Text(), _parameters(entry.parameters, _widths(entry.parameters))]
    blocks += [_held(one) for one in entry.held]
    return unbroken(blocks)


def _held(one: Held) -> RenderableType:
    """What stands inside an option, with its own parameters."""
    head = Text.assemble((one.name, "cyan"), ": ", one.summary)
    return unbroken([Text(), head, _parameters(one.parameters, _widths(one.parameters), INDENT)])


def _told(entry: Entry) -> list[str]:
    """Its facts: the short ones in one line, the paper and each long one in a line of its own."""
    short, long = [], []
    for label, text in entry.labelled.items():
        line = f"{label}: {text.rstrip('.')}"
        (long if label == "paper" or len(line) > LONG else short).append(line)
    return ["; ".join(short), *long] if short else long


def _widths(parameters: Sequence[Parameter]) -> tuple[int, int]:
    """Of the columns of names and defaults, so that those of several tables stand in line."""
    names = max((len(parameter.name) for parameter in parameters), default=0)
    defaults = max((len(parameter.default_text) for parameter in parameters), default=0)
    return min(names, 18), min(defaults, 12)


def _parameters(parameters: Sequence[Parameter], widths: tuple[int, int], indent: int = 0) -> Grid:
    columns = [Column(whole=True, style="green"), Column(), Column(prose=True)]
    table = Grid(columns, indent=indent, widths=(*widths, 0))
    for parameter in parameters:
        about = Text(parameter.type.text)
        if parameter.description:
            about.append(f"; {parameter.description}", style="dim")
        table.add(parameter.name, parameter.default_text, about)
    return table
