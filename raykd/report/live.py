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
from raykd.report.failures import FailureAnnouncer
from raykd.report.format import outputs_line
from raykd.report.lines import Display, setup_lines
from raykd.report.run_state import TRAININGS, RunState, run_name
from raykd.report.sparkline import front_text, trial_sparkline
from raykd.study.objectives import COSTS
from raykd.study.short_names import target_noun
from raykd.terminal_tables import Column, Grid, shrink_widths, truncate
from raykd.tracking.events import Event, RunEnded, TeacherCacheChanged, WarningIssued
from raykd.tuning.number_format import clock, compact, metric, time_left, words
from raykd.tuning.records import Record, cost, learns_from, pairs_name, student_name

CHECK_INTERVAL_S = 0.25
"""Seconds between two checks for updates; the clock itself is updated once a second."""

PAIRS_MIN_WIDTH = 100
"""Minimum terminal width, in columns, for layer pairs to be shown."""

LOSSES_MIN_WIDTH = 72
"""Minimum terminal width, in columns, for losses to be shown."""

TALL_HEIGHT = 16
"""Minimum terminal height, in lines, for the sparkline and the front to be shown."""

STYLES = {
    "running": "cyan",
    "front": "bold green",
    "finished": "green",
    "paused": "dim",
    "stopped": "dim",
    "failed": "red",
}


class LiveDisplay(Display):
    """Shows a search while it runs; redrawn at most four times a second.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console, state: RunState | None = None) -> None:
        self._console = console
        self._state = state or RunState()
        self._failures = FailureAnnouncer()
        self._lock = threading.Lock()
        self._changed = True
        self._stopped = threading.Event()
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._thread = threading.Thread(target=self._draw, name="raykd-display", daemon=True)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._state.apply(event)
            self._changed = True
        for line, style in remarks(event):
            self._console.print(Text(line, style=style))
        match event:
            case TeacherCacheChanged() if event.status != "begun":
                self._console.print(Text(outputs_line(event), style="dim"))
            case RunEnded(status="failed"):
                failure = self._failures.line(self._state.records[event.id])
                self._console.print(Text(failure, style="red"))
            case _:
                style = "yellow" if isinstance(event, WarningIssued) else "dim"
                for line in setup_lines(event):
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
        self._stopped.set()
        self._thread.join()
        self._live.stop()

    def _draw(self) -> None:
        ticks = 0
        while not self._stopped.wait(CHECK_INTERVAL_S):
            ticks += 1
            if not self._changed and ticks % 4:
                continue
            try:
                self._live.update(self._picture(), refresh=True)
            except Exception as error:  # noqa: BLE001 - the search continues after any error
                text = f"raykd's display failed ({type(error).__name__}: {error})"
                self._console.print(Text(f"{text}; the search continues"))
                return

    def _picture(self) -> RenderableType:
        with self._lock:
            self._changed = False
            return picture(self._state, self._console.options)


def picture(state: RunState, options: ConsoleOptions) -> RenderableType:
    """Return the current display, as wide as the console at most and one line shorter."""
    width = options.max_width
    head = [*_header(state, width), Text(), *_progress(state, width), Text()]
    foot = _foot(state, width, short=options.size.height < TALL_HEIGHT)
    # One line for the table heading, and one free line so that nothing scrolls.
    room = options.size.height - len(head) - len(foot) - 2
    trainings = list_trainings(state, max(0, room))
    return Group(*head, *([_table(state, trainings, width)] if trainings else []), *foot)


def list_trainings(state: RunState, room: int) -> list[tuple[Record, str]]:
    """Return at most `room` trainings with their status.

    Running trainings come first, then the best ones that ran their whole budget, then the most
    recent of the others.
    """
    name = state.main_metric
    worst = float("-inf") if state.objectives.get(name, "max") == "max" else float("inf")
    front = {record.id for record in state.front}
    trials = state.records.of("trial")
    finished = sorted(
        (r for r in trials if r.status == "finished"),
        key=lambda r: r.metrics.get(name, worst),
        reverse=worst < 0,
    )
    incomplete = [r for r in reversed(trials) if r.status in ("paused", "stopped", "failed")]
    listed = [(record, "running") for record in state.records.running(*TRAININGS)]
    listed += [(record, "front" if record.id in front else "finished") for record in finished]
    listed += [(record, record.status) for record in incomplete]
    return listed[:room]


def _header(state: RunState, width: int) -> list[Text]:
    left = f"raykd · {state.study.name}" if state.study else "raykd"
    right = str(state.plan) if state.plan is not None else ""
    title = Text(left, style="bold")
    if right and len(left) + len(right) + 2 <= width:
        title.append(" " * (width - len(left) - len(right)) + right, style="not bold dim")
    facts = " · ".join(_facts(state))
    return [title, _line(facts, width, "dim")] if facts else [title]


def _facts(state: RunState) -> Iterable[str]:
    if state.study:
        name = f"val_{state.lead}"
        reached = f" {metric(name, state.teacher.metrics.get(name))}" if state.teacher else ""
        yield f"teacher {state.teacher_name}{reached}"
    if state.data:
        yield f"{state.data.name} {'/'.join(map(str, state.data.sizes.values()))}"
    if state.study:
        yield ", ".join(f"{way} {words(name)}" for name, way in state.objectives.items())


def _progress(state: RunState, width: int) -> list[RenderableType]:
    estimate, done = state.estimate, state.estimate.progress
    times = f"{done:4.0%}  {clock(estimate.elapsed)}, {time_left(estimate.time_left)}"
    times = times.removesuffix(", ")
    bar = ProgressBar(total=1.0, completed=done, width=max(4, width - len(times) - 1))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=bar.width)
    grid.add_column(no_wrap=True)
    grid.add_row(bar, Text(times, no_wrap=True))
    return [_line(state.phase, width, "bold"), grid]


OPTIONAL_COLUMNS = ("pairs", "learns from", "params", "epoch", "status")
"""Columns that are dropped, in this order, if the terminal is too narrow.

Costs that are objectives are dropped together with `learns from`.
"""

NARROW_COLUMNS = ("trial", "student", "epoch", "params", "status")
"""Columns in a narrow terminal, in addition to the metric."""

MIN_WIDTHS = {"student": 14, "learns from": 14, "pairs": 12}
"""Minimum width of columns whose cells may be truncated between words."""


def _table(state: RunState, trainings: list[tuple[Record, str]], width: int) -> Grid:
    rows = [_cells(state, record, status) for record, status in trainings]
    names = list(rows[0])
    if width < PAIRS_MIN_WIDTH:
        names.remove("pairs")
    if width < LOSSES_MIN_WIDTH:
        columns = (*NARROW_COLUMNS, _short_metric(state.main_metric))
        names = [name for name in names if name in columns]
    for name in OPTIONAL_COLUMNS:
        if _min_width(rows, names) > width and name in names:
            names.remove(name)
    sizes = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lowest = [min(sizes[name], MIN_WIDTHS.get(name, sizes[name])) for name in names]
    room = width - 2 * (len(names) - 1)
    widths = dict(zip(names, shrink_widths([*sizes.values()], lowest, room), strict=True))
    left = ("trial", "student", "learns from", "pairs", "status")
    grid = Grid([Column(name, right=name not in left, whole=True) for name in names])
    for row, (_, status) in zip(rows, trainings, strict=True):
        grid.add(*(truncate(row[name], widths[name]) for name in names), style=_style(status))
    return grid


def _min_width(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    """Return the minimum width of a table with these columns."""
    width = 2 * (len(names) - 1)
    for name in names:
        size = max(len(name), *(len(row[name]) for row in rows))
        width += min(size, MIN_WIDTHS.get(name, size))
    return width


def _cells(state: RunState, record: Record, status: str) -> dict[str, str]:
    """Return all cells of a row by column heading."""
    taught = record.role not in ("teacher", "alone")
    costs = [name for name in state.objectives if name in COSTS and name != "params"]
    main = state.main_metric
    return {
        "trial": run_name(record.id),
        "student": student_name(record),
        "learns from": learns_from(record) if taught else target_noun(record.job.study),
        "pairs": pairs_name(record) if taught else "",
        "epoch": f"{len(record.epochs)}/{record.job.epochs}",
        _short_metric(main): metric(main, record.metrics.get(main)),
        "params": compact(cost(record, "params")),
        **{_short_metric(name): metric(name, cost(record, name)) for name in costs},
        "status": status,
    }


def _foot(state: RunState, width: int, *, short: bool) -> list[Text]:
    """Return the lines below the table: trials so far, the best one, the front.

    In a short terminal only the best one.
    """
    if not state.front:
        return []
    best = state.front[0]
    figures = [
        f"{_short_metric(name)} {metric(name, cost(best, name))}" for name in state.objectives
    ]
    line = f"best so far: {best.id} {student_name(best)}, {', '.join(figures)}"
    if short:
        return [Text(), _line(line, width)]
    front = front_text(state)
    lines = [_line(trial_sparkline(state, width), width, "cyan"), _line(line, width)]
    return [*lines, _line(front, width)] if front else lines


def _short_metric(name: str) -> str:
    return words(name).replace("accuracy", "acc")


def _style(status: str) -> str:
    return STYLES.get(status, "")


def _line(text: str, width: int, style: str = "") -> Text:
    """Return one line, truncated between words at the width of the terminal."""
    return Text(truncate(text, width), style=style, no_wrap=True, overflow="ellipsis")
