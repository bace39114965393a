"""Summary of a search: Pareto front, test results of chosen students, next commands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from raykd.report.commands import Command, commands, state, unfinished
from raykd.report.data import WARNING, remarks
from raykd.report.failures import causes, failure_lines
from raykd.report.progress import ALL, asked_costs
from raykd.study.objectives import COSTS
from raykd.terminal_tables import Column, Grid, Paragraph, unbroken
from raykd.tracking.events import Event, Note, StudyStarted
from raykd.tracking.journal import events
from raykd.tuning.number_format import (
    compact,
    duration,
    interval,
    metric,
    percent,
    points,
    whole,
    words,
)
from raykd.tuning.records import (
    Record,
    Records,
    cost,
    learns_from,
    pairs_name,
    scheme_name,
    student_name,
    teacher_name,
)
from raykd.tuning.result import METRIC, Finalist, StudyResult
from raykd.tuning.statistics import MIN_SEEDS, Estimate, paired_gain
from raykd.tuning.study_dir import open_folder
from raykd.tuning.teacher_warnings import BELOW_STUDENT

MOST_ASSISTANTS = 6


def summary(result: StudyResult, told: Sequence[Event] | None = None) -> RenderableType:
    """Return a summary of a search, finished or not, for a `rich` console.

    Args:
        result: the result of the search.
        told: events of its journal, if already read.
    """
    told = _told(result) if told is None else told
    parts = [
        [_headline(result, told)],
        _remarks(told, warnings=True),
        _front(result),
        _chosen(result),
        _teachers(result, told),
        _failures(result),
        _remarks(told, warnings=False),
        _left_out(told),
        _commands(commands(result, told)),
    ]
    blocks: list[RenderableType] = []
    for part in filter(None, parts):
        blocks += [*part, Text()]
    return unbroken(blocks[:-1])


def facts(result: StudyResult, told: Sequence[Event] | None = None) -> dict[str, Any]:
    """Return the summary as plain data."""
    told = _told(result) if told is None else told
    return {
        "study": result.name,
        "id": result.study_id,
        "folder": str(result.folder),
        "status": state(result, told),
        "seconds": seconds_at_work(told),
        "trials": dict(Counter(record.status for record in result.records.of("trial"))),
        "objectives": dict(result.objectives),
        "best": result.best.id if result.best is not None else None,
        "front": [_record_facts(record) for record in result.pareto],
        "chosen": [_finalist_facts(finalist) for finalist in result.finalists],
        "differences": [
            {
                "first": a.trial.id,
                "second": b.trial.id,
                **asdict(found),
                "is_clear": found.clear_of_zero,
            }
            for a, b, found in differences(result)
        ],
        "teachers": [_record_facts(record) for record in result.teachers],
        "assistants": [_record_facts(record) for record in result.records.assistants],
        "teacher_falls_short": (
            result.teacher_falls_short.trial.id if result.teacher_falls_short else None
        ),
        "failed": {r.id: r.reason for r in _failed(result)},
        "failures": [cause.plain() for cause in causes(_failed(result))],
        "left_out": left_out(told),
        "warnings": [line for line, _ in _remarks_in(told, warnings=True)],
        "notes": [line for line, _ in _remarks_in(told, warnings=False)],
        "unfinished": unfinished(result, told),
        "commands": {found.name: found.text for found in commands(result, told)},
    }


def seconds_at_work(told: Sequence[Event]) -> float:
    """Return the running time of the search in seconds, without pauses before it was resumed."""
    total, began, last = 0, None, None
    for event in told:
        if isinstance(event, StudyStarted):
            total += last - began if began is not None and last is not None else 0
            began = event.at
        last = event.at
    return (total + (last - began if began is not None and last is not None else 0)) / 1000


def differences(result: StudyResult) -> list[tuple[Finalist, Finalist, Estimate]]:
    """Return the difference in test accuracy for each pair of chosen students.

    The second accuracy is subtracted from the first, paired by seed.
    """
    found = []
    for first, second in combinations(result.finalists, 2):
        estimate = paired_gain(_by_seed(result, first), _by_seed(result, second))
        if estimate is not None:
            found.append((first, second, estimate))
    return found


def _by_seed(result: StudyResult, finalist: Finalist) -> Mapping[int, float]:
    return {
        record.job.seed: record.metrics[METRIC]
        for record in result.records.children(finalist.trial.id, "replicate")
        if record.status == "finished" and math.isfinite(record.metrics.get(METRIC, math.nan))
    }


def _told(result: StudyResult) -> list[Event]:
    return events(result.folder / "journal.jsonl")


def left_out(told: Sequence[Event]) -> list[str]:
    """Return the candidates that were excluded before sampling, with reasons.

    These are pairs that no loss can compare, and winners of other studies that do not fit.
    """
    notes = [event.tags for event in told if isinstance(event, Note)]
    keys = ("pairs_left_out", "start_left_out")
    return [line for tags in notes for key in keys if key in tags for line in tags[key].split("\n")]


def _left_out(told: Sequence[Event]) -> list[RenderableType]:
    found = left_out(told)
    return [_title("Excluded", ""), *_indented(map(Text, found))] if found else []


def _remarks(told: Sequence[Event], *, warnings: bool) -> list[RenderableType]:
    """Return warnings about data and weights, or notes about changes to weights."""
    return [Text(line, style=style) for line, style in _remarks_in(told, warnings=warnings)]


def _remarks_in(told: Sequence[Event], *, warnings: bool) -> list[tuple[str, str]]:
    """Return each remark once, in order."""
    found = (remark for event in told for remark in remarks(event))
    of_data = ("data: ",)
    wanted = [
        (line, style)
        for line, style in found
        if line.startswith(WARNING) == warnings and not line.startswith(of_data)
    ]
    return list(dict.fromkeys(wanted))


# The headline


def _headline(result: StudyResult, told: Sequence[Event]) -> Text:
    trials = result.records.of("trial")
    counts = Counter(record.status for record in trials)
    names = {"finished": "completed", "stopped": "stopped early", "failed": "failed"}
    status = state(result, told)
    names["running"] = "running" if status == "running" else "interrupted"
    parts = [f"{counts[end]} {said}" for end, said in names.items() if counts[end]]
    how = "" if status == "finished" else f" ({status})"
    text = Text.assemble((result.name, "bold"), how)
    what = _counted(len(trials), "trial") if trials else _counted(len(result.teachers), "teacher")
    said = f": {what} in {duration(seconds_at_work(told))}"
    return text.append(said + (f"; {', '.join(parts)}" if parts else ""))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# The front


def _front(result: StudyResult) -> list[RenderableType]:
    trials = len(result.records.of("trial"))
    if not trials:
        return []
    if not result.pareto:
        return [Text("No trial completed, so there is no Pareto front.", style="yellow")]
    ways = ", ".join(f"{way} {words(name)}" for name, way in result.objectives.items())
    title = "Pareto front" if len(result.objectives) > 1 else "Best trial"
    title = title if trials > 1 else "Trial"
    metrics = [name for name in result.objectives if name not in COSTS]
    metrics += [] if "val_accuracy" in metrics else ["val_accuracy"]
    headings = [words(name).replace("accuracy", "acc") for name in (*metrics, *COSTS[:2])]
    figures_columns = [Column(heading, right=True, whole=True) for heading in headings]
    table = _table("trial", "student", "scheme", "learns from", more=figures_columns)
    for record in result.pareto:
        figures = [metric(name, cost(record, name)) for name in metrics]
        costs = whole(cost(record, "params")), compact(cost(record, "macs"))
        table.add(*_description(record), *figures, *costs)
    return [_title(title, f"({ways}; validation split)"), table, *_costs(result.pareto)]


def _costs(front: Sequence[Record]) -> list[RenderableType]:
    """Return a table of the front's measured costs other than parameters and MACs."""
    names = asked_costs(front)
    if not names:
        return []
    table = _table("trial", more=[Column(words(name), right=True) for name in names])
    for record in front:
        table.add(record.id, *(metric(name, cost(record, name)) for name in names))
    on = next(filter(None, (record.job.tags.get("latency_on") for record in front)), "")
    return [Text(), _title("Costs", f"(measured on {on})" if on else ""), table]


def _description(record: Record) -> Iterable[str]:
    yield record.id
    yield student_name(record)
    yield scheme_name(record)
    yield " ".join(filter(None, [learns_from(record), pairs_name(record)]))


# The chosen students


def _chosen(result: StudyResult) -> list[RenderableType]:
    judged = [finalist for finalist in result.finalists if finalist.distilled is not None]
    if not judged:
        return []
    title = _title("Chosen students", "(test accuracy over new seeds, mean ± 95% CI half-width)")
    table = _table("trial", "distilled", "without teacher", "gain (points)")
    for finalist in judged:
        row = interval(finalist.distilled), interval(finalist.alone), points(finalist.gain)
        table.add(finalist.trial.id, *row)
    verdicts = [Text(f"{c.trial.id}: {gain_in_words(c.gain)}{_missing(c)}") for c in judged]
    return [title, table, *_indented([*verdicts, *_comparisons(result)])]


def _missing(finalist: Finalist) -> str:
    if not finalist.missing:
        return ""
    noun = "training" if finalist.missing == 1 else "trainings"
    return f" ({finalist.missing} failed {noun} excluded)"


def gain_in_words(gain: Estimate | None) -> str:
    """Describe a gain over the student trained alone."""
    if gain is None:
        return "no baseline to compare with."
    reason = no_verdict(gain)
    if reason:
        return f"{reason}."
    return "better than without teacher." if gain.mean > 0 else "worse than without teacher."


def no_verdict(difference: Estimate) -> str:
    """Return the reason that an accuracy difference is inconclusive; empty if conclusive."""
    if difference.count < MIN_SEEDS:
        seeds = "1 seed is" if difference.count == 1 else f"{difference.count} seeds are"
        return f"{seeds} too few for a verdict"
    if math.isnan(difference.half_width):
        if difference.mean == 0:
            return "no difference at the resolution of the test set"
        return "no confidence interval: all seeds differ by the same number of test samples"
    return "" if difference.clear_of_zero else "not significant (95% CI includes 0)"


def _comparisons(result: StudyResult) -> Iterable[Text]:
    for first, second, found in differences(result):
        pair = f"{first.trial.id} and {second.trial.id}"
        reason = no_verdict(found)
        if not reason:
            better = first if found.mean > 0 else second
            text = f"{pair} differ by {points(found)}: {better.trial.id} is better on test data."
        else:
            text = f"{pair} differ by {points(found)}, paired by seed: {reason}."
        yield Text(text)


# The teacher and what failed


def _teachers(result: StudyResult, told: Sequence[Event]) -> list[RenderableType]:
    lines = []
    for record in result.teachers:
        if record.status == "failed":
            lines.append(Text(f"Teacher {teacher_name(record)} failed: {record.reason}", "red"))
            continue
        val, test = record.metrics.get("val_accuracy"), record.metrics.get(METRIC)
        figures = f"val accuracy {percent(val)}, test accuracy {percent(test)}"
        lines.append(Text(f"Teacher {teacher_name(record)}: {figures}"))
        file = _weights(result, record)
        if file and record.status == "finished":
            lines.append(_whole(f"  weights: {file}", "dim"))
    lines += _assistants(result.records)
    short = result.teacher_falls_short
    is_said = any(BELOW_STUDENT in line for line, _ in _remarks_in(told, warnings=True))
    if short is not None and short.alone is not None and not is_said:
        text = (
            f"The teacher is worse than the student of {short.trial.id} trained without it "
            f"({percent(_best_teacher(result))} vs. {interval(short.alone)} on test data). "
            "Use a stronger teacher, or train it longer."
        )
        lines.append(Text(text, style="yellow"))
    return lines


def _assistants(records: Records) -> list[RenderableType]:
    """Return lines about networks trained as teachers: assistants and earlier generations."""
    lines: list[RenderableType] = []
    by_file = {record.job.network_file: record for record in records.of("teacher")}
    for record in records.assistants[:MOST_ASSISTANTS]:
        above = [by_file[file] for file in record.job.teachers if file in by_file]
        by = " and ".join(map(teacher_name, above))
        name = f"{teacher_name(record)}, taught by {by}" if by else teacher_name(record)
        reached = f"val accuracy {percent(record.metrics.get('val_accuracy'))}"
        outcome = f"failed: {record.reason}" if record.status == "failed" else reached
        lines.append(Text(f"Intermediate teacher {name}: {outcome}"))
    if len(records.assistants) > MOST_ASSISTANTS:
        lines.append(Text(f"  and {len(records.assistants) - MOST_ASSISTANTS} more"))
    return lines


def _weights(result: StudyResult, record: Record) -> str:
    """Return the path of a teacher's weights, usable as `teacher.weights` in a study."""
    name = record.job.network_file
    storage = open_folder(result.folder)[0].storage
    return f"{storage.rstrip('/')}/{name}" if name else ""


def _best_teacher(result: StudyResult) -> float | None:
    reached = [r.metrics[METRIC] for r in result.teachers if METRIC in r.metrics]
    return max(reached, default=None)


def _failed(result: StudyResult) -> list[Record]:
    return [r for r in result.records.of(*ALL) if r.status == "failed"]


def _failures(result: StudyResult) -> list[RenderableType]:
    failed = _failed(result)
    if not failed:
        return []
    return [_title("Failed"), *_indented(map(Text, failure_lines(failed, result.folder)))]


# Next commands


def _commands(found: Sequence[Command]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for command in found:
        # Each command is on its own line so that it is easy to copy.
        lines += [_whole(f"  {command.what}:", "dim"), _whole(f"    {command.text}", "cyan")]
    return [_title("Next steps"), *lines]


def _whole(text: str, style: str) -> Text:
    """Return a line that the terminal can wrap but that contains no line breaks."""
    return Text(text, no_wrap=True, overflow="ignore", style=style)


def _title(text: str, more: str = "") -> Text:
    return Text.assemble((text, "bold"), f" {more}" if more else "")


def _table(*headings: str, more: Sequence[Column] = ()) -> Grid:
    return Grid([*map(Column, headings), *more], indent=1)


def _indented(lines: Iterable[Text]) -> Iterable[RenderableType]:
    return (Paragraph(line, 2) for line in lines)


# Plain data


def _record_facts(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "status": record.status,
        "student": student_name(record),
        "scheme": scheme_name(record),
        "learns_from": learns_from(record),
        "pairs": pairs_name(record),
        "metrics": {**record.job.metrics, **record.metrics},
        "params": dict(record.job.params),
    }


def _finalist_facts(finalist: Finalist) -> dict[str, Any]:
    arms = {"distilled": finalist.distilled, "alone": finalist.alone, "gain": finalist.gain}
    return {
        "id": finalist.trial.id,
        **{name: asdict(found) if found else None for name, found in arms.items()},
        "gain_is_clear": finalist.gain is not None and finalist.gain.clear_of_zero,
        "verdict": gain_in_words(finalist.gain),
        "missing": finalist.missing,
    }
