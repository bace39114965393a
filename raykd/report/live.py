"""The display of a running search in a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raykd.report.data import remarks
from raykd.report.display import Display
from raykd.report.failures import Announcer
from raykd.report.outputs import outputs_line
from raykd.report.plain import first_lines
from raykd.report.view import ALL, COSTS, View, run_name
from raykd.search.figures import clock, compact, metric, percent, time_left, words
from raykd.search.records import Record, cost, learns_from, pairs_name, student_name

PERIOD = 0.25
"""Seconds between two looks for something new; the clock alone moves once a second."""

WIDE = 100
"""Columns from which on the layer pairs are shown."""

SMALL = 72
"""Columns below which the losses are left out."""

STYLES = {
    "running": "cyan",
    "front": "bold green",
    "finished": "green",
    "stopped": "dim",
    "failed": "red",
}


class LiveDisplay(Display):
    """Shows a search while it runs; drawn at most four times a second, whatever happens.

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

    def __call__(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            self._view.apply(event)
            self._news = True
        for line, style in remarks(event):
            self._console.print(Text(line, style=style))
        if event["event"] == "warning":
            self._console.print(Text(f"warning: {event['text']}", style="yellow"))
        if event["event"] == "outputs" and event["status"] != "begun":
            self._console.print(Text(outputs_line(event), style="dim"))
        if event["event"] in ("start", "screen", "packing"):
            for line in first_lines(event):
                self._console.print(Text(line, style="dim"))
        if event["event"] == "end" and event["status"] == "failed":
            failed = self._failures.line(self._view.records[event["id"]])
            self._console.print(Text(failed, style="red"))

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
            except Exception as error:  # noqa: BLE001 - whatever it is, the search goes on
                said = (
                    f"raykd's display failed ({type(error).__name__}: {error}); the search goes on"
                )
                self._console.print(Text(said))
                return

    def _picture(self) -> RenderableType:
        with self._lock:
            self._news = False
            return picture(self._view, self._console.options)


def picture(view: View, options: ConsoleOptions) -> RenderableType:
    """The display as it stands, no wider than the console and lower by one line."""
    width = options.max_width
    head = [*_header(view, width), Text(), *_progress(view, width), Text()]
    foot = _best(view)
    # One line for the table's heading, one that stays free so that nothing scrolls.
    room = options.size.height - len(head) - len(foot) - 2
    shown = rows(view, max(0, room))
    return Group(*head, *([_table(view, shown, width)] if shown else []), *foot)


def rows(view: View, room: int) -> list[tuple[Record, str]]:
    """At most `room` trainings with their status: those that run, the best ones that ran their
    whole budget, then the last of the others."""
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
    left = f"raykd · {view.study['name']}" if view.study else "raykd"
    right = str(view.plan) if view.plan is not None else ""
    title = Text(left, style="bold")
    if right and len(left) + len(right) + 2 <= width:
        title.append(" " * (width - len(left) - len(right)) + right, style="not bold dim")
    facts = " · ".join(_facts(view))
    return [title, _line(facts, "dim")] if facts else [title]


def _facts(view: View) -> Iterable[str]:
    if view.study:
        reached = f" {percent(view.teacher.metrics.get('val_accuracy'))}" if view.teacher else ""
        yield f"teacher {view.teacher_name}{reached}"
    if view.data:
        yield f"{view.data['name']} {'/'.join(map(str, view.data['sizes'].values()))}"
    if view.study:
        yield ", ".join(f"{way} {words(name)}" for name, way in view.objectives.items())


def _progress(view: View, width: int) -> list[RenderableType]:
    done = view.progress
    times = f"{done:4.0%}  {clock(view.elapsed)}, {time_left(view.time_left)}".removesuffix(", ")
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    bar = ProgressBar(total=1.0, completed=done, width=max(4, width - len(times) - 2))
    grid.add_row(bar, Text(times, no_wrap=True))
    return [_line(view.phase, "bold"), grid]


def _table(view: View, shown: list[tuple[Record, str]], width: int) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="dim")
    cut: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    table.add_column("trial", **cut)
    table.add_column("student", **cut, max_width=max(14, width // 4))
    if width >= SMALL:
        table.add_column("learns from", **cut, ratio=2)
    if width >= WIDE:
        table.add_column("pairs", **cut, ratio=1)
    table.add_column("epoch", justify="right", **cut)
    table.add_column(_short(view.watched), justify="right", **cut)
    table.add_column("params", justify="right", **cut)
    for name in _costs(view, width):
        table.add_column(_short(name), justify="right", **cut)
    table.add_column("status", **cut)
    for record, status in shown:
        table.add_row(*map(Text, _cells(view, record, status, width)), style=_style(status))
    return table


def _cells(view: View, record: Record, status: str, width: int) -> Iterable[str]:
    yield run_name(record.id)
    yield student_name(record)
    taught = record.role not in ("teacher", "alone")
    if width >= SMALL:
        yield learns_from(record) if taught else "labels"
    if width >= WIDE:
        yield pairs_name(record) if taught else ""
    yield f"{len(record.epochs)}/{record.assignment.epochs}"
    yield metric(view.watched, record.metrics.get(view.watched))
    yield compact(cost(record, "params"))
    for name in _costs(view, width):
        yield metric(name, cost(record, name))
    yield status


def _costs(view: View, width: int) -> list[str]:
    """The costs that are objectives, beside the parameters, where there is room."""
    found = [name for name in view.objectives if name in COSTS and name != "params"]
    return found if width >= SMALL else []


def _best(view: View) -> list[Text]:
    if not view.front:
        return []
    best = view.front[0]
    figures = [f"{_short(name)} {metric(name, cost(best, name))}" for name in view.objectives]
    size = f" · front of {len(view.front)}" if len(view.objectives) > 1 else ""
    said = f"best so far: {best.id} {student_name(best)}, {', '.join(figures)}{size}"
    return [Text(), _line(said)]


def _short(name: str) -> str:
    return {"val_accuracy": "val acc", "train_accuracy": "train acc"}.get(name, words(name))


def _style(status: str) -> str:
    return STYLES.get(status, "")


def _line(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
