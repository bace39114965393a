"""Tables and paragraphs for a terminal that break lines between words only.

`rich.table.Table` narrows a column below its longest word where the console is narrow, and breaks
the word.  The renderables here never do: a table that does not fit is stacked, and a word that is
longer than the line (a path, a command) is printed whole on a line of its own.
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
"""Spaces between two columns."""

PROSE = 24
"""Fewest characters a line of a prose column may have; with less room, rows are stacked."""


@dataclass(frozen=True)
class Column:
    """One column of a `Grid`.

    Attributes:
        heading: in the first line; may have several lines.
        right: whether cells are aligned to the right.
        whole: whether a cell's line is never wrapped.
        prose: whether cells are sentences, which need room for several words in a line.
        style: of its cells.
    """

    heading: str = ""
    right: bool = False
    whole: bool = False
    prose: bool = False
    style: str = ""

    def narrowest(self, cells: Sequence[Text]) -> int:
        """The fewest characters that break none of the words."""
        lines = [line for text in [self.heading, *_plain(cells)] for line in text.split("\n")]
        if self.whole:
            return max(map(cell_len, lines))
        longest = max((cell_len(word) for line in lines for word in line.split()), default=0)
        return max(longest, min(PROSE, self.widest(cells))) if self.prose else longest

    def widest(self, cells: Sequence[Text]) -> int:
        """The characters that wrap none of the lines."""
        texts = [self.heading, *_plain(cells)]
        return max(cell_len(line) for text in texts for line in text.split("\n"))


@dataclass
class Grid:
    """A table without rules whose words are never broken.

    Where the console is too narrow for each column's longest word, each row becomes a block of
    `heading: cell` lines.

    Attributes:
        columns: from left to right.
        indent: spaces on the left.
        header_style: of the headings.
        header: whether a line of headings is shown; a stacked row has them in any case.
        gap: spaces between columns.
        widths: the fewest characters of each column, to align several grids; empty: any.
    """

    columns: Sequence[Column]
    indent: int = 0
    header_style: str = "dim"
    header: bool = True
    gap: int = GAP
    widths: Sequence[int] = ()
    _rows: list[tuple[list[Text], str]] = field(default_factory=list, init=False)

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row, a cell for each column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        texts = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append((texts, style))

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._fitted(options.max_width - self.indent)
        if widths is None:
            yield from self._stacked(options.max_width)
        else:
            yield Padding(self._table(widths), (0, 0, 0, self.indent), expand=False)

    def _fitted(self, room: int) -> list[int] | None:
        """Each column's width; None where they do not fit without breaking words."""
        parts = [[cells[i] for cells, _ in self._rows] for i in range(len(self.columns))]
        room -= self.gap * (len(self.columns) - 1)
        pairs = list(zip(self.columns, parts, strict=True))
        lowest = [column.narrowest(cells) for column, cells in pairs]
        if sum(lowest) > room:
            return None
        fewest = self.widths or [0] * len(pairs)
        widest = [
            max(column.widest(cells), least)
            for (column, cells), least in zip(pairs, fewest, strict=True)
        ]
        return narrowed(widest, lowest, room)

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
    """Labels on the left and a paragraph beside each.

    Where the paragraphs would have too little room, each stands below its label.

    Attributes:
        width: of the labels; 0: that of the longest.
        gap: spaces between label and paragraph.
        indent: spaces on the left.
    """

    width: int = 0
    gap: int = GAP
    indent: int = 0
    _rows: list[tuple[Text, Text]] = field(default_factory=list, init=False)

    def add(self, label: str | Text, text: str | Text) -> None:
        """Add a paragraph; an empty label continues the one above."""
        first, second = (one if isinstance(one, Text) else Text(one) for one in (label, text))
        self._rows.append((first, second))

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((label.cell_len for label, _ in self._rows), default=0)
        width = max(self.width, longest) + self.gap
        room = options.max_width - self.indent - width
        beside = room >= min(PROSE, max((text.cell_len for _, text in self._rows), default=0))
        for label, text in self._rows:
            if beside:
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
    """Text wrapped between words; a word longer than the line has a line of its own.

    Attributes:
        text: spaces at the beginning of a line are kept, and repeated in the lines that follow.
        indent: more spaces on the left.
    """

    text: Text
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from paragraph(self.text, options.max_width, " " * self.indent)


def unbroken(blocks: Iterable[RenderableType]) -> Group:
    """The blocks below each other, their texts wrapped between words."""
    return Group(*(Paragraph(b) if isinstance(b, Text) and not b.no_wrap else b for b in blocks))


def paragraph(text: Text, width: int, indent: str = "") -> Iterator[Text]:
    """The lines of a text, wrapped between words, each after `indent`."""
    for line in text.split("\n", allow_blank=True):
        for part in wrapped(line, width - len(indent)):
            yield _whole_line(Text.assemble(indent, part))


def wrapped(line: Text, room: int) -> Iterator[Text]:
    """The lines of one line of text, each of at most `room` characters unless a word is longer."""
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


def narrowed(widths: Sequence[int], lowest: Sequence[int], room: int) -> list[int]:
    """`widths` with the widest reduced first until they fit `room`, none below its lowest."""
    fitted = [max(width, low) for width, low in zip(widths, lowest, strict=True)]
    while sum(fitted) > room:
        spare = [i for i, low in enumerate(lowest) if fitted[i] > low]
        if not spare:
            break
        fitted[max(spare, key=lambda i: fitted[i])] -= 1
    return fitted


def cut(text: str, room: int) -> str:
    """The text in at most `room` characters; what does not fit is cut between words, with `…`."""
    if cell_len(text) <= room:
        return text
    kept = ""
    for word in re.finditer(r"\s*\S+", text):
        if cell_len(kept + word.group()) > room - 2:
            break
        kept += word.group()
    return f"{kept.rstrip(' ,·;:')} …" if kept.strip() else "…"[:room]


def _whole_line(line: Text) -> Text:
    """The line as it is, neither wrapped nor cut."""
    line.no_wrap, line.overflow = True, "ignore"
    return line


def _plain(cells: Sequence[Text]) -> Iterator[str]:
    return (cell.plain for cell in cells)
