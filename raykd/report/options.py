"""What `raykd list` shows: the options a study may name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raykd.architecture import MODELS
from raykd.data import SOURCES
from raykd.knowledge import LOSSES
from raykd.option import Family
from raykd.schemes import SCHEMES

FAMILIES: dict[str, Family] = {
    "models": MODELS,
    "losses": LOSSES,
    "schemes": SCHEMES,
    "sources": SOURCES,
}


def options(parts: Sequence[str]) -> RenderableType:
    """Tables of those families: each option's name, what it is, and its fields."""
    blocks: list[RenderableType] = []
    for part in parts:
        blocks += [Text(part, style="bold"), _table(FAMILIES[part]), Text()]
    return Group(*blocks[:-1])


def _table(family: Family) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, cls in family.members.items():
        about = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
        cell = Text(about)
        fields = ", ".join(_fields(cls))
        if fields:
            cell.append(f"\n{fields}", style="dim")
        table.add_row(name, cell)
    return table


def _fields(cls: type) -> Iterable[str]:
    for field in dataclasses.fields(cls):
        if field.name == "name":
            continue
        given = field.default
        if given is dataclasses.MISSING:
            yield f"{field.name} (to be given)"
        else:
            yield f"{field.name}={getattr(given, 'name', given)}"
