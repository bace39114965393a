"""HTML cards that notebooks show for studies and results (without scripts)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = "text-align:left;padding:0.15em 0.8em 0.15em 0;vertical-align:top"


@dataclass
class Card:
    """Title, labeled facts, tables and sentences, in the order in which they are added.

    Text is escaped.  Colors are inherited from the page, for light and dark themes.

    Args:
        title: shown in bold.
        subtitle: shown after the title.
    """

    title: str
    subtitle: str = ""
    _blocks: list[str] = field(default_factory=list)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Add labeled facts, one per line; facts without text are skipped."""
        rows = "".join(
            f'<tr><th scope="row" style="{_STYLE};font-weight:normal;opacity:0.7">{escape(label)}'
            f'</th><td style="{_STYLE}">{escape(text)}</td></tr>'
            for label, text in facts
            if text
        )
        self._blocks.append(f'<table style="border:none">{rows}</table>')

    def table(self, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Add a table, unless it has no rows.

        Args:
            caption: shown above the table.
            headings: headings of the columns.
            rows: texts of the columns in each row.
        """
        body = "".join(
            "<tr>" + "".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in row) + "</tr>"
            for row in rows
        )
        if not body:
            return
        head = "".join(
            f'<th scope="col" style="{_STYLE};border-bottom:1px solid">{escape(heading)}</th>'
            for heading in headings
        )
        self._blocks.append(
            f'<table><caption style="caption-side:top;text-align:left;padding-top:0.6em">'
            f"<b>{escape(caption)}</b></caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def sentence(self, text: str) -> None:
        """Add a sentence."""
        self._blocks.append(f'<div style="padding-top:0.4em">{escape(text)}</div>')

    def html(self) -> str:
        """Return the card as one HTML element."""
        subtitle = f' <span style="opacity:0.7">{escape(self.subtitle)}</span>'
        return (
            '<div style="overflow-x:auto;max-width:100%">'
            f"<div><b>{escape(self.title)}</b>{subtitle if self.subtitle else ''}</div>"
            f"{''.join(self._blocks)}</div>"
        )
