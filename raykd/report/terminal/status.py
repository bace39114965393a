"""State of studies as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from raykd.compat.packages import launcher
from raykd.report.status import StudyStatus
from raykd.report.terminal.sections import Section, join_sections, paragraphs, title, unwrapped
from raykd.terminal_tables import GAP, Column, Grid, unbroken
from raykd.tuning.number_format import duration, metric, time_left, words

STATUS_WORDS = {"finished": "completed", "stopped": "stopped early"}
STATUS_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow"}
MOST_FAILURES = 3


def status_text(status: StudyStatus) -> RenderableType:
    """Return the state of a study: what runs, the best so far, the time left, failures."""
    return join_sections(_sections(status))


def studies_table(states: Sequence[StudyStatus], width: int | None) -> RenderableType:
    """Return a table of studies, one row each.

    Args:
        states: studies to list.
        width: number of characters per line.  Columns that do not fit are left out, the least
            important first; a line too narrow for the status and the folder gets a block of lines
            for each study.  None: no limit.
    """
    if not states:
        return Text("no studies found; name their folder, or start one with raykd search")
    columns = [Column(name, whole=True) for name in STUDY_COLUMNS]
    cells = [_study_cells(state) for state in states]

    # Choose the columns that fit, the most important first.
    sizes = {c.heading: c.max_width([row[c.heading] for row in cells]) for c in columns}
    chosen: list[str] = []
    for name in IMPORTANCE:
        if width is None or sum(sizes[each] + GAP for each in (*chosen, name)) - GAP <= width:
            chosen.append(name)
    if {"status", FOLDER} <= {*chosen}:
        columns = [column for column in columns if column.heading in chosen]

    table = Grid(columns, header_style="bold")
    for row in cells:
        table.add(*(row[column.heading] for column in columns))
    return unbroken([table])


FOLDER = "folder or MLflow run"
STUDY_COLUMNS: Sequence[str] = ("study", "kind", "status", "trials", "best", "started", FOLDER)
IMPORTANCE: Sequence[str] = (FOLDER, "status", "trials", "best", "started", "kind", "study")
"""Columns of the table of studies, the most important first; the folder has the name, too."""


def _study_cells(state: StudyStatus) -> dict[str, Text]:
    folder, here = state.folder, Path.cwd()
    if folder is not None and folder.is_relative_to(here):
        folder = folder.relative_to(here)
    cells = (
        state.name,
        state.verb,
        state.status,
        _progress(state),
        state.best,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(state.started)),
        state.run_id or str(folder),
    )
    texts = dict(zip(STUDY_COLUMNS, map(Text, cells), strict=True))
    texts["status"].stylize(STATUS_STYLES.get(state.status, ""))
    return texts


def _sections(status: StudyStatus) -> Iterator[Section]:
    head = Text.assemble(
        (status.name, "bold"), ": ", (status.status, STATUS_STYLES.get(status.status, ""))
    )
    if status.driver:
        head.append(f" ({status.driver})")
    lines = [head, Text(f"  trials: {_counts(status)}")]
    lines += [Text(f"  extended: {text}") for text in status.extensions]
    if status.best:
        lines.append(Text(f"  best so far: {status.best}"))
    if len(status.front) > 1:
        lines.append(Text(f"  front: {', '.join(status.front)}"))
    if status.tested:
        lines.append(Text(f"  finalists: {status.tested} trainings with new seeds tested"))
    if status.status == "running":
        left = time_left(status.seconds_left) if status.planned_trials else ""
        quiet = f"last event {duration(status.quiet_seconds)} ago"
        lines.append(Text("  " + ", ".join(filter(None, [left, quiet])), style="dim"))
    yield lines
    yield from _details(status)


def _details(status: StudyStatus) -> Iterator[Section]:
    if status.page:
        yield [Text("read from MLflow:", style="dim"), unwrapped(f"  {status.page}", "cyan")]
    if status.running:
        name = words(status.running[0].metric).replace("accuracy", "acc")
        table = Grid([*map(Column, ("training", "student", "learns from", "epoch", name))], 1)
        for each in status.running:
            epoch = f"{each.epochs[0]}/{each.epochs[1]}"
            value = metric(each.metric, each.value)
            table.add(each.id, each.student, each.learns_from, epoch, value)
        yield [title("In progress"), table]
    if status.failures:
        yield [title("Failures"), *paragraphs(status.failures[:MOST_FAILURES])]
    if status.is_resumable:
        command = f"{launcher()}raykd {status.verb} --resume {status.folder}"
        yield [title("Continue it"), unwrapped(f"  {command}", "cyan")]


def _counts(status: StudyStatus) -> str:
    names = (
        STATUS_WORDS if status.status == "running" else {**STATUS_WORDS, "running": "unfinished"}
    )
    parts = [f"{count} {names.get(name, name)}" for name, count in status.trials.items()]
    more = f" of {status.planned_trials} planned" if status.planned_trials else ""
    return f"{sum(status.trials.values())}{more}" + (f" ({', '.join(parts)})" if parts else "")


def _progress(status: StudyStatus) -> str:
    total = f"/{status.planned_trials}" if status.planned_trials else ""
    return f"{status.ended_trials}{total}"
