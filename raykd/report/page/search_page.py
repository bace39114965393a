"""Page of a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raykd.compat.packages import launcher
from raykd.report.commands import short_path
from raykd.report.page.content import Block, Cells, Commands, Page, Section
from raykd.report.page.search_figures import (
    accuracy_against_cost,
    front_figure,
    learning_curves,
    loss_terms,
    pairs_heatmap,
    time_by_role,
)
from raykd.report.summary.search import SearchSummary
from raykd.study.objectives import COSTS
from raykd.tracking.events import Event
from raykd.tuning.number_format import (
    compact,
    duration,
    interval,
    metric,
    points,
    titled,
    whole,
    words,
)
from raykd.tuning.records import (
    Record,
    cost,
    learns_from,
    pairs_name,
    scheme_name,
    student_name,
)
from raykd.tuning.result import Finalist, gain_heading
from raykd.tuning.stored_study import is_fetched
from raykd.tuning.verdicts import gain_verdict


def search_page(summary: SearchSummary, history: Sequence[Event], *, evaluate: bool) -> Page:
    """Return the page of a search.

    Args:
        summary: figures of the search.
        history: events of its journal.
        evaluate: load the saved students and the teacher, and compare their predictions.
    """
    result = summary.result
    counts = summary.trial_counts
    trials = sum(counts.values())
    subtitle = f"Search, {summary.status}: {trials} trials in {duration(summary.seconds)}"
    subtitle += summary.extension_text
    return Page(
        title=result.name,
        subtitle=subtitle,
        answer=list(_answer(summary)),
        warnings=list(_warnings(summary)),
        facts=list(_facts(summary)),
        sections=[
            section
            for section in (
                _finalists(summary),
                _front(summary),
                _predictions(summary, history) if evaluate else None,
                _parameters(summary),
                _training(summary),
                _pairs(summary),
                _cost(summary, history),
                _trials(summary),
                _reproduction(summary),
            )
            if section is not None and (section.blocks or section.text)
        ],
    )


# The answer


def _answer(summary: SearchSummary) -> Iterator[str]:
    result = summary.result
    tested = summary.tested_finalists
    if not tested:
        best = result.best
        if best is None:
            yield "No trial has completed yet."
            return
        name = next(iter(result.objectives))
        yield (
            f"{student_name(best)} ({best.id}) is best on validation data: "
            f"{words(name)} {metric(name, cost(best, name))}, {whole(cost(best, 'params'))} "
            "parameters."
        )
        yield "No student was trained again with new seeds, so there is no test result."
        return
    first = tested[0]
    record = first.trial
    yield (
        f"Ship {student_name(record)} ({record.id}): {interval(first.distilled)} "
        f"{words(first.metric)} with {whole(cost(record, 'params'))} parameters, "
        f"taught by {learns_from(record)}."
    )
    if first.gain is not None:
        unit = " points" if first.gain.is_share else ""
        yield (
            f"Gain over the same student without a teacher: {points(first.gain)}{unit}; "
            f"{gain_verdict(first.gain)}"
        )
    for difference in summary.differences:
        yield difference.verdict


def _warnings(summary: SearchSummary) -> Iterator[str]:
    yield from summary.warnings
    stronger = summary.result.teacher_falls_short
    if stronger is not None:
        yield (
            f"The teacher is worse than the student of {stronger.trial.id} trained without it: "
            "use a stronger teacher, or train it longer."
        )
    for cause in summary.causes:
        yield f"Failed: {cause.reason}"


def _facts(summary: SearchSummary) -> Iterator[tuple[str, str, str]]:
    tested = summary.tested_finalists
    if tested:
        first = tested[0]
        yield words(first.metric), interval(first.distilled), f"{first.trial.id}, new seeds"
        if first.gain is not None:
            unit = "percentage points, " if first.gain.is_share else ""
            yield "gain over no teacher", points(first.gain), f"{unit}paired by seed"
        yield "parameters", whole(cost(first.trial, "params")), student_name(first.trial)
    teacher = next((each for each in summary.teachers if each.test_value is not None), None)
    if teacher is not None:
        name = summary.result.test_metric
        yield "teacher", metric(name, teacher.test_value), f"{teacher.name}, {words(name)}"
    counts = summary.trial_counts
    more = f"{counts['finished']} completed, {counts['stopped']} stopped early"
    more += f", {counts['paused']} paused" if counts["paused"] else ""
    more += f", {counts['failed']} failed" if counts["failed"] else ""
    yield "trials", str(sum(counts.values())), more


# Sections


def _finalists(summary: SearchSummary) -> Section | None:
    tested = summary.tested_finalists
    if not tested:
        return None
    rows = [
        (
            finalist.trial.id,
            student_name(finalist.trial),
            learns_from(finalist.trial),
            whole(cost(finalist.trial, "params")),
            interval(finalist.distilled),
            interval(finalist.alone),
            points(finalist.gain),
            gain_verdict(finalist.gain).rstrip("."),
        )
        for finalist in tested
    ]
    table = Cells(
        id="finalists-table",
        title=f"{titled(summary.result.test_metric)} over new seeds, mean ± half width of the 95% "
        "interval",
        headings=(
            *("trial", "student", "learns from", "params", "distilled", "without teacher"),
            *(gain_heading(summary.result.lead), "verdict"),
        ),
        rows=rows,
    )
    return Section(
        "finalists",
        "Finalists",
        "Trials of the front, trained again with new seeds, with and without the teacher, and "
        "evaluated once on test data. The gain is paired by seed.",
        [table, accuracy_against_cost(summary)],
    )


def _front(summary: SearchSummary) -> Section | None:
    if not summary.result.records.of("trial"):
        return None
    ways = ", ".join(f"{way} {words(name)}" for name, way in summary.result.objectives.items())
    return Section(
        "front",
        "Pareto front",
        f"Objectives: {ways}, on validation data. Trials that were stopped early are shown with "
        "the values they had then, and cannot be on the front.",
        [front_figure(summary)],
    )


def _predictions(summary: SearchSummary, history: Sequence[Event]) -> Section | None:
    from raykd.report.page.predictions import prediction_blocks

    blocks, note = prediction_blocks(summary, history)
    if not blocks and not note:
        return None
    return Section("predictions", "Student and teacher, class by class", note, blocks)


def _parameters(summary: SearchSummary) -> Section | None:
    from raykd.report.page.parameters import parameter_blocks

    blocks = parameter_blocks(summary)
    if not blocks:
        return None
    text = (
        "The metric against the drawn values. Trials that were stopped early count with the value "
        "they reached, so these figures show tendencies, not effects; the finalists above are the "
        "test."
    )
    return Section("parameters", f"What decides the {words(summary.result.lead)}", text, blocks)


def _training(summary: SearchSummary) -> Section | None:
    blocks: list[Block] = [*learning_curves(summary), *loss_terms(summary)]
    return Section("training", "Training", "", blocks)


def _pairs(summary: SearchSummary) -> Section | None:
    return Section("pairs", "Layer pairs", "", list(pairs_heatmap(summary)))


def _cost(summary: SearchSummary, history: Sequence[Event]) -> Section | None:
    return Section("cost", "Time and cost", "", list(time_by_role(history, summary.seconds)))


def _trials(summary: SearchSummary) -> Section | None:
    records = summary.result.records.of("trial")
    if not records:
        return None
    metrics = dict.fromkeys([*summary.result.objectives, summary.result.val_metric, *COSTS[:2]])
    extra = [name for name in summary.costs if name not in metrics]
    names = [*metrics, *extra]
    front = {record.id for record in summary.result.pareto}
    chosen = {finalist.trial.id for finalist in summary.tested_finalists}
    rows, numbers = [], []
    for record in records:
        place = "finalist" if record.id in chosen else "front" if record.id in front else ""
        words_of = _description(record)
        values = [cost(record, name) for name in names]
        epochs = len(record.epochs)
        rows.append(
            (
                record.id,
                record.status,
                place,
                *words_of,
                str(epochs),
                *(
                    compact(value) if name in COSTS else metric(name, value)
                    for name, value in zip(names, values, strict=True)
                ),
            )
        )
        keys = [float("-inf") if value is None else value for value in values]
        numbers.append((record.id, record.status, place, *words_of, epochs, *keys))
    headings = ("trial", "status", "place", "student", "scheme", "learns from", "pairs", "epochs")
    table = Cells(
        "trials-table",
        f"All {len(records)} trials",
        (*headings, *map(words, names)),
        rows,
        numbers,
        searchable=True,
    )
    return Section("trials", "Trials", "", [table])


def _description(record: Record) -> tuple[str, str, str, str]:
    return student_name(record), scheme_name(record), learns_from(record), pairs_name(record)


def _reproduction(summary: SearchSummary) -> Section:
    folder = summary.result.folder
    lines = [(command.purpose, command.text) for command in summary.commands]
    if is_fetched(folder):
        return Section("commands", "Continue", "", [Commands(lines)])
    example: Finalist | None = next(iter(summary.tested_finalists), None)
    best = example.trial.id if example is not None else "trial-0000"
    lines.append((f"train {best} again", f"{launcher()}raykd distill {short_path(folder)}:{best}"))
    text = (
        "Every trial can be trained again from its record. Replace the trial in the command by any "
        "other of the table."
    )
    return Section("commands", "Reproduce and continue", text, [Commands(lines)])
