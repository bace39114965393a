"""Live display of a running search in a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raykd.report.data import remarks
from raykd.report.failures import Announcer
from raykd.report.format import outputs_line
from raykd.report.lines import Display, first_lines
from raykd.report.progress import ALL, View, run_name
from raykd.study.objectives import COSTS
from raykd.terminal_tables import Column, Grid, shrink_widths, truncate
from raykd.tracking.events import Event, RunEnded, TeacherCacheChanged, WarningIssued
from raykd.tuning.number_format import clock, compact, metric, percent, time_left, words
from raykd.tuning.records import Record, cost, learns_from, pairs_name, student_name

PERIOD = 0.25
"""Seconds between two checks for updates; the clock itself is updated once a second."""

WIDE = 100
"""Minimum terminal width, in columns, for layer pairs to be shown."""

SMALL = 72
"""Minimum terminal width, in columns, for losses to be shown."""

STYLES = {
    "running": "cyan",
    "front": "bold green",
    "finished": "green",
    "stopped": "dim",
    "failed": "red",
}


class LiveDisplay(Display):
    """Shows a search while it runs; redrawn at most four times a second.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console, view: View | None = None) -> None:
        self._console = console
        self._view = view or View()
        self._failures = Announcer()
        self._lock = threading.Lock()
        self._news = True
        self._over = threading.Event()
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._thread = threading.Thread(target=self._draw, name="raykd-display", daemon=True)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._view.apply(event)
            self._news = True
        for line, style in remarks(event):
            self._console.print(Text(line, style=style))
        match event:
            case TeacherCacheChanged() if event.status != "begun":
                self._console.print(Text(outputs_line(event), style="dim"))
            case RunEnded(status="failed"):
                failure = self._failures.line(self._view.records[event.id])
                self._console.print(Text(failure, style="red"))
            case _:
                style = "yellow" if isinstance(event, WarningIssued) else "dim"
                for line in first_lines(event):
                    self._console.print(Text(line, style=style))

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._live.stop()

    def _draw(self) -> None:
        ticks = 0
        while not self._over.wait(PERIOD):
            ticks += 1
            if not self._news and ticks % 4:
                continue
            try:
                self._live.update(self._picture(), refresh=True)
            except Exception as error:  # noqa: BLE001 - the search continues after any error
                text = f"raykd's display failed ({type(error).__name__}: {error})"
                self._console.print(Text(f"{text}; the search continues"))
                return

    def _picture(self) -> RenderableType:
        with self._lock:
            self._news = False
            return picture(self._view, self._console.options)


def picture(view: View, options: ConsoleOptions) -> RenderableType:
    """Return the current display, as wide as the console at most and one line shorter."""
    width = options.max_width
    head = [*_header(view, width), Text(), *_progress(view, width), Text()]
    foot = _best(view, width)
    # One line for the table heading, and one free line so that nothing scrolls.
    room = options.size.height - len(head) - len(foot) - 2
    shown = rows(view, max(0, room))
    return Group(*head, *([_table(view, shown, width)] if shown else []), *foot)


def rows(view: View, room: int) -> list[tuple[Record, str]]:
    """Return at most `room` trainings with their status.

    Running trainings come first, then the best ones that ran their whole budget, then the most
    recent of the others.
    """
    name = view.watched
    worst = float("-inf") if view.objectives.get(name, "max") == "max" else float("inf")
    front = {record.id for record in view.front}
    trials = view.records.of("trial")
    finished = sorted(
        (r for r in trials if r.status == "finished"),
        key=lambda r: r.metrics.get(name, worst),
        reverse=worst < 0,
    )
    others = [r for r in reversed(trials) if r.status in ("stopped", "failed")]
    shown = [(record, "running") for record in view.records.running(*ALL)]
    shown += [(record, "front" if record.id in front else "finished") for record in finished]
    shown += [(record, record.status) for record in others]
    return shown[:room]


def _header(view: View, width: int) -> list[Text]:
    left = f"raykd · {view.study.name}" if view.study else "raykd"
    right = str(view.plan) if view.plan is not None else ""
    title = Text(left, style="bold")
    if right and len(left) + len(right) + 2 <= width:
        title.append(" " * (width - len(left) - len(right)) + right, style="not bold dim")
    facts = " · ".join(_facts(view))
    return [title, _line(facts, width, "dim")] if facts else [title]


def _facts(view: View) -> Iterable[str]:
    if view.study:
        reached = f" {percent(view.teacher.metrics.get('val_accuracy'))}" if view.teacher else ""
        yield f"teacher {view.teacher_name}{reached}"
    if view.data:
        yield f"{view.data.name} {'/'.join(map(str, view.data.sizes.values()))}"
    if view.study:
        yield ", ".join(f"{way} {words(name)}" for name, way in view.objectives.items())


def _progress(view: View, width: int) -> list[RenderableType]:
    done = view.progress
    times = f"{done:4.0%}  {clock(view.elapsed)}, {time_left(view.time_left)}".removesuffix(", ")
    bar = ProgressBar(total=1.0, completed=done, width=max(4, width - len(times) - 1))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=bar.width)
    grid.add_column(no_wrap=True)
    grid.add_row(bar, Text(times, no_wrap=True))
    return [_line(view.phase, width, "bold"), grid]


DROPPED = ("pairs", "learns from", "params", "epoch", "status")
"""Columns that are dropped, in this order, if the terminal is too narrow.

Costs that are objectives are dropped together with `learns from`.
"""

KEPT = ("trial", "student", "epoch", "params", "status")
"""Columns in a narrow terminal, in addition to the metric."""

LEAST = {"student": 14, "learns from": 14, "pairs": 12}
"""Minimum width of columns whose cells may be truncated between words."""


def _table(view: View, shown: list[tuple[Record, str]], width: int) -> Grid:
    rows = [_cells(view, record, status) for record, status in shown]
    names = list(rows[0])
    if width < WIDE:
        names.remove("pairs")
    if width < SMALL:
        names = [name for name in names if name in KEPT or name == _short(view.watched)]
    for name in DROPPED:
        if _least(rows, names) > width and name in names:
            names.remove(name)
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lowest = [min(sizes[name], LEAST.get(name, sizes[name])) for name in names]
    room = width - 2 * (len(names) - 1)
    widths = dict(zip(names, shrink_widths([*sizes.values()], lowest, room), strict=True))
    left = ("trial", "student", "learns from", "pairs", "status")
    grid = Grid([Column(name, right=name not in left, whole=True) for name in names])
    for row, (_, status) in zip(rows, shown, strict=True):
        grid.add(*(truncate(row[name], widths[name]) for name in names), style=_style(status))
    return grid


def _least(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    """Return the minimum width of a table with these columns."""
    sizes = (max(len(name), *(len(row[name]) for row in rows)) for name in names)
    least = [min(size, LEAST.get(name, size)) for name, size in zip(names, sizes, strict=True)]
    return sum(least) + 2 * (len(names) - 1)


def _cells(view: View, record: Record, status: str) -> dict[str, str]:
    """Return all cells of a row by column heading."""
    taught = record.role not in ("teacher", "alone")
    costs = [name for name in view.objectives if name in COSTS and name != "params"]
    return {
        "trial": run_name(record.id),
        "student": student_name(record),
        "learns from": learns_from(record) if taught else "labels",
        "pairs": pairs_name(record) if taught else "",
        "epoch": f"{len(record.epochs)}/{record.job.epochs}",
        _short(view.watched): metric(view.watched, record.metrics.get(view.watched)),
        "params": compact(cost(record, "params")),
        **{_short(name): metric(name, cost(record, name)) for name in costs},
        "status": status,
    }


def _best(view: View, width: int) -> list[Text]:
    if not view.front:
        return []
    best = view.front[0]
    figures = [f"{_short(name)} {metric(name, cost(best, name))}" for name in view.objectives]
    size = f" · Pareto front: {len(view.front)}" if len(view.objectives) > 1 else ""
    said = f"best so far: {best.id} {student_name(best)}, {', '.join(figures)}{size}"
    return [Text(), _line(said, width)]


def _short(name: str) -> str:
    return {"val_accuracy": "val acc", "train_accuracy": "train acc"}.get(name, words(name))


def _style(status: str) -> str:
    return STYLES.get(status, "")


def _line(text: str, width: int, style: str = "") -> Text:
    """Return one line, truncated between words at the width of the terminal."""
    return Text(truncate(text, width), style=style, no_wrap=True, overflow="ellipsis")
