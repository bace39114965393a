"""Descriptions of a study and of its result, for its pages in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from raykd.compat.packages import launcher
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.study.short_names import model_name
from raykd.tracking.events import SummaryWritten
from raykd.tuning.number_format import compact, duration, interval, metric, points, words
from raykd.tuning.records import Record, cost, learns_from, run_name, teacher_name
from raykd.tuning.result import Finalist, StudyResult, gain_heading
from raykd.tuning.study_dir import Verb
from raykd.tuning.verdicts import gain_verdict, inconclusive_reason

KINDS = {
    "search": "Search",
    "pairs": "Layer study",
    "distill": "Distillation",
    "teacher": "Training of teachers",
    "reproduce": "Reproduction of a training",
}
MAX_OPEN = 12
"""Maximum number of open values in a description."""


def describe_start(study: OpenStudy, verb: Verb, data: str) -> SummaryWritten:
    """Describe a study that starts.

    Args:
        study: the study.
        verb: command that runs it.
        data: name of its data.
    """
    settings = study.settings
    search = settings.search
    objectives = ", ".join(f"{way} {words(name)}" for name, way in search.objectives.items())
    teachers = [model_name(plain(each.model)) for each in study.teachers() if each.model]
    paths = list(dict.fromkeys(dimension.path for dimension in study.dimensions))
    rest = f" and {len(paths) - MAX_OPEN} more" if len(paths) > MAX_OPEN else ""
    lines = [
        f"- objectives: {objectives}" if verb == "search" else "",
        f"- teacher: {' or '.join(teachers)}" if teachers else "",
        f"- epochs: {settings.train.epochs} for each training",
        f"- open values: {', '.join(f'`{path}`' for path in paths[:MAX_OPEN])}{rest}"
        if paths
        else "",
    ]
    trials = f" of up to {search.trials} trials" if verb == "search" else ""
    headline = f"{KINDS[verb]} `{settings.name}`{trials} on {data}, not finished yet."
    return SummaryWritten(headline, "\n".join(filter(None, lines)), has_result=False)


def describe_result(result: StudyResult) -> SummaryWritten:
    """Describe the result of a search or a single run: the answer first."""
    parts = [
        _finalists(result),
        _ties(result),
        _teachers(result),
        _trials(result),
        f"More: `{launcher()}raykd report {result.folder}`",
    ]
    text = "\n\n".join(filter(None, parts))
    return SummaryWritten(_headline(result), text, has_result=result.best is not None)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def _headline(result: StudyResult) -> str:
    best = result.best
    if best is None:
        ended = [record for record in result.teachers if record.status == "finished"]
        if ended and not result.records.of("trial"):
            return f"{_teacher(result, ended[0])}."
        return f"No trial of `{result.name}` finished."
    first = result.finalists[0] if result.finalists else None
    if first is None or first.distilled is None:
        name = next(iter(result.objectives))
        value = metric(name, best.metrics[name])
        return f"**{run_name(best.job)}** is the best trial: {words(name)} {value}, not tested."
    text = (
        f"**{run_name(first.trial.job)}**: {words(result.test_metric)} {interval(first.distilled)}"
    )
    return f"{text}; gain {points(first.gain)}, {gain_verdict(first.gain)}"


def _finalists(result: StudyResult) -> str:
    tested = [finalist for finalist in result.finalists if finalist.distilled is not None]
    if not tested:
        return ""
    head = (
        "finalist",
        "learns from",
        words(result.test_metric),
        "alone",
        gain_heading(result.lead),
        "verdict",
        "params",
    )
    return markdown_table(head, map(_row, tested))


def _row(finalist: Finalist) -> list[str]:
    return [
        run_name(finalist.trial.job),
        learns_from(finalist.trial),
        interval(finalist.distilled),
        interval(finalist.alone),
        points(finalist.gain),
        gain_verdict(finalist.gain),
        compact(cost(finalist.trial, "params")),
    ]


def _ties(result: StudyResult) -> str:
    lines: list[str] = []
    for first, second, difference in result.differences:
        if inconclusive_reason(difference):
            names = f"{run_name(first.trial.job)} and {run_name(second.trial.job)}"
            unit = " points" if difference.is_share else ""
            lines.append(f"- {names}: {points(difference)}{unit}")
    heading = f"No significant difference in {words(result.test_metric)}, paired by seed:"
    return "\n".join([heading, "", *lines]) if lines else ""


def _teachers(result: StudyResult) -> str:
    return "".join(f"{_teacher(result, record)}. " for record in result.teachers).strip()


def _teacher(result: StudyResult, record: Record) -> str:
    name = result.test_metric
    value = metric(name, record.metrics.get(name))
    return f"Teacher {teacher_name(record)}: {words(name)} {value}"


def _trials(result: StudyResult) -> str:
    trials = result.records.of("trial")
    if not trials:
        return ""
    ends = {"finished": "completed", "stopped": "stopped early"}
    counts = Counter(ends.get(record.status, record.status) for record in trials)
    parts = ", ".join(f"{count} {end}" for end, count in counts.items())
    front = f"{len(result.pareto)} on the Pareto front"
    return f"{len(trials)} trials in {duration(result.seconds)}: {parts}; {front}."
