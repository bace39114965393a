"""Parts of a page: figures, tables, facts and commands, in sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GRAY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC3311",
    "#AA4499",
    "#56B4E9",
    "#8A8A8A",
)
"""Colors that color-blind readers can tell apart, readable on white and on black."""

PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00", RED, GRAY)


def color_bar(title: str, form: str | None = None) -> dict[str, object]:
    """Return the color bar of a figure; its title runs along it, where it covers no number.

    Args:
        title: quantity that the colors show.
        form: format of its numbers.
    """
    return {"tickformat": form, "title": {"text": title, "side": "right"}}


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        id: name of its files and its place in the page.
        title: short title.
        text: one or two sentences: what the axes show, and how to read them.
        figure: the plotly figure.
        height: height in pixels.
        min_width: smallest width in pixels; a narrower screen scrolls inside the figure.
    """

    id: str
    title: str
    text: str
    figure: Figure
    height: int = 420
    min_width: int = 0


@dataclass(frozen=True)
class Cells:
    """A table.

    Attributes:
        id: its place in the page.
        title: its caption.
        headings: one per column.
        rows: text of the cells.
        numbers: for each row, the values to sort by; empty: sort by text.
        searchable: whether it gets a filter and a button that copies it.
    """

    id: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[float | str]] = ()
    searchable: bool = False

    @property
    def body(self) -> list[list[tuple[str, float | str]]]:
        """Rows of cells, each with its text and the value to sort by."""
        keys = self.numbers or self.rows
        return [list(zip(row, key, strict=True)) for row, key in zip(self.rows, keys, strict=True)]


@dataclass(frozen=True)
class Commands:
    """Commands to copy.

    Attributes:
        lines: purpose and command of each.
    """

    lines: Sequence[tuple[str, str]]


Block = Picture | Cells | Commands


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        id: anchor.
        title: heading.
        text: paragraph below the heading.
        blocks: contents; a section without blocks and text is left out.
    """

    id: str
    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: name of the run.
        subtitle: one line: kind, status, duration.
        answer: sentences that answer the question of the run, the most important first.
        warnings: sentences that the reader must see.
        facts: key figures: label, value, explanation.
        sections: in order.
    """

    title: str
    subtitle: str
    answer: Sequence[str]
    warnings: Sequence[str] = ()
    facts: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = field(default=())

    @property
    def pictures(self) -> list[Picture]:
        """All figures of the page."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Picture)]
