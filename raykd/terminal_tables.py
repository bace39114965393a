"""Tables and paragraphs for a terminal that break lines only between words.

On a narrow console `rich.table.Table` breaks words.  The renderables here do not: a table that
does not fit is stacked, and a word longer than the line (a path, a command) is printed whole on a
separate line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

GAP = 2
"""Number of spaces between two columns."""

PROSE = 24
"""Minimum width of a prose column; with less room, rows are stacked."""


@dataclass(frozen=True)
class Column:
    """Column of a `Grid`.

    Attributes:
        heading: heading; may have several lines.
        right: align cells to the right.
        whole: do not wrap the lines of cells.
        prose: cells are sentences, which need room for several words per line.
        style: style of the cells.
    """

    heading: str = ""
    right: bool = False
    whole: bool = False
    prose: bool = False
    style: str = ""

    def min_width(self, cells: Sequence[Text]) -> int:
        """Return the minimum width that breaks no word."""
        lines = [line for text in [self.heading, *_plain(cells)] for line in text.split("\n")]
        if self.whole:
            return max(map(cell_len, lines))
        longest = max((cell_len(word) for line in lines for word in line.split()), default=0)
        return max(longest, min(PROSE, self.max_width(cells))) if self.prose else longest

    def max_width(self, cells: Sequence[Text]) -> int:
        """Return the minimum width that wraps no line."""
        texts = [self.heading, *_plain(cells)]
        return max(cell_len(line) for text in texts for line in text.split("\n"))


@dataclass
class Grid:
    """Table without borders whose words are never broken.

    If the console is too narrow for the longest word of each column, each row becomes a block of
    `heading: cell` lines.

    Attributes:
        columns: columns from left to right.
        indent: spaces on the left.
        header_style: style of the headings.
        header: show a line of headings; stacked rows always show them.
        gap: spaces between columns.
        widths: minimum widths of the columns, to align several grids; empty: no minimum.
    """

    columns: Sequence[Column]
    indent: int = 0
    header_style: str = "dim"
    header: bool = True
    gap: int = GAP
    widths: Sequence[int] = ()
    _rows: list[tuple[list[Text], str]] = field(default_factory=list, init=False)

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row with a cell for each column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        texts = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append((texts, style))

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._fit(options.max_width - self.indent)
        if widths is None:
            yield from self._stacked(options.max_width)
        else:
            yield Padding(self._table(widths), (0, 0, 0, self.indent), expand=False)

    def _fit(self, room: int) -> list[int] | None:
        """Return the widths of the columns; None if they do not fit without breaking words."""
        parts = [[cells[i] for cells, _ in self._rows] for i in range(len(self.columns))]
        room -= self.gap * (len(self.columns) - 1)
        pairs = list(zip(self.columns, parts, strict=True))
        lowest = [column.min_width(cells) for column, cells in pairs]
        if sum(lowest) > room:
            return None
        fewest = self.widths or [0] * len(pairs)
        widest = [
            max(column.max_width(cells), least)
            for (column, cells), least in zip(pairs, fewest, strict=True)
        ]
        return shrink_widths(widest, lowest, room)

    def _table(self, widths: Sequence[int]) -> Table:
        headed = self.header and any(column.heading for column in self.columns)
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, self.gap, 0, 0),
            show_header=headed,
            header_style=self.header_style,
        )
        last = len(widths) - 1
        for number, (column, width) in enumerate(zip(self.columns, widths, strict=True)):
            table.add_column(
                column.heading,
                justify="right" if column.right else "left",
                width=width,
                style=column.style or None,
            )
            table.columns[number].no_wrap = column.whole and number != last
        for cells, style in self._rows:
            table.add_row(*cells, style=style)
        return table

    def _stacked(self, width: int) -> Iterator[Text]:
        for cells, style in self._rows:
            for number, (column, cell) in enumerate(zip(self.columns, cells, strict=True)):
                if not cell.plain.strip():
                    continue
                heading = " ".join(column.heading.split())
                label = (f"{heading}: ", self.header_style) if heading else ""
                value = Text(style=column.style or style).append_text(cell)
                indent = self.indent + (2 if number else 0)
                text = Text.assemble(label, value)
                yield from paragraph(text, width, " " * indent)


@dataclass
class Labeled:
    """Labels, each with a paragraph to its right.

    If there is too little room, paragraphs are shown below their labels.

    Attributes:
        width: width of the labels; 0: width of the longest label.
        gap: spaces between label and paragraph.
        indent: spaces on the left.
    """

    width: int = 0
    gap: int = GAP
    indent: int = 0
    _rows: list[tuple[Text, Text]] = field(default_factory=list, init=False)

    def add(self, label: str | Text, text: str | Text) -> None:
        """Add a paragraph; an empty label continues the one above."""
        first, second = (part if isinstance(part, Text) else Text(part) for part in (label, text))
        self._rows.append((first, second))

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((label.cell_len for label, _ in self._rows), default=0)
        width = max(self.width, longest) + self.gap
        room = options.max_width - self.indent - width
        fits = room >= min(PROSE, max((text.cell_len for _, text in self._rows), default=0))
        for label, text in self._rows:
            if fits:
                lines = list(paragraph(text, room)) or [Text()]
                heads = [label, *(Text() for _ in lines[1:])]
                for head, line in zip(heads, lines, strict=True):
                    space = " " * (width - head.cell_len)
                    yield _whole_line(Text.assemble(" " * self.indent, head, space, line))
            else:
                if label.plain.strip():
                    yield _whole_line(Text.assemble(" " * self.indent, label))
                yield from paragraph(text, options.max_width, " " * (self.indent + 2))


@dataclass(frozen=True)
class Paragraph:
    """Text wrapped between words; a word longer than the line is put on a separate line.

    Attributes:
        text: the text; wrapped lines repeat the spaces at the beginning of their line.
        indent: additional spaces on the left.
    """

    text: Text
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from paragraph(self.text, options.max_width, " " * self.indent)


def unbroken(blocks: Iterable[RenderableType]) -> Group:
    """Stack blocks, with their texts wrapped between words."""
    return Group(*(Paragraph(b) if isinstance(b, Text) and not b.no_wrap else b for b in blocks))


def paragraph(text: Text, width: int, indent: str = "") -> Iterator[Text]:
    """Wrap a text between words; each line begins with `indent`."""
    for line in text.split("\n", allow_blank=True):
        for part in wrap(line, width - len(indent)):
            yield _whole_line(Text.assemble(indent, part))


def wrap(line: Text, room: int) -> Iterator[Text]:
    """Wrap a line into parts of at most `room` characters, unless a word is longer."""
    indent = len(line.plain) - len(line.plain.lstrip(" "))
    room = max(1, room - indent)
    start, used = indent, 0
    breaks = [start]
    for word in re.finditer(r"\S+\s*", line.plain[indent:]):
        size = cell_len(word.group().rstrip())
        if used and used + size > room:
            breaks.append(indent + word.start())
            used = 0
        used += cell_len(word.group())
    for begin, end in zip(breaks, [*breaks[1:], len(line.plain)], strict=True):
        part = line[begin:end]
        part.rstrip()
        yield Text.assemble(" " * indent, part)


def shrink_widths(widths: Sequence[int], lowest: Sequence[int], room: int) -> list[int]:
    """Reduce widths, the widest first, until they fit `room`; none below its value in `lowest`."""
    fitted = [max(width, low) for width, low in zip(widths, lowest, strict=True)]
    while sum(fitted) > room:
        spare = [i for i, low in enumerate(lowest) if fitted[i] > low]
        if not spare:
            break
        fitted[max(spare, key=lambda i: fitted[i])] -= 1
    return fitted


def truncate(text: str, room: int) -> str:
    """Truncate a text between words to at most `room` characters, ending with `…`."""
    if cell_len(text) <= room:
        return text
    short = ""
    for word in re.finditer(r"\s*\S+", text):
        if cell_len(short + word.group()) > room - 2:
            break
        short += word.group()
    return f"{short.rstrip(' ,·;:')} …" if short.strip() else "…"[:room]


def _whole_line(line: Text) -> Text:
    """Return the line with wrapping and truncation turned off."""
    line.no_wrap, line.overflow = True, "ignore"
    return line


def _plain(cells: Sequence[Text]) -> Iterator[str]:
    return (cell.plain for cell in cells)
