"""Page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from raykd.report.comparison.arms import Arm
from raykd.report.comparison.choices import Association
from raykd.report.comparison.comparison import ArmGroup, Comparison
from raykd.report.comparison.contrasts import ArmContrast
from raykd.report.comparison.differences import DifferenceRow, short_value
from raykd.report.comparison.texts import difference_text, mean_text, p_text, volume_text
from raykd.report.format import short_parameter
from raykd.report.page.comparison_figures import (
    arms_figure,
    choices_figure,
    costs_figure,
    fronts_figure,
    importances_figure,
)
from raykd.report.page.content import Block, Cells, Page, Section
from raykd.tuning.number_format import UNKNOWN, duration, metric, points, whole, words

MAX_ARMS = 2000
"""Maximum number of arms in the table of the page; more are in the CSV file."""

MAX_PARAMS = 40
"""Maximum number of rows in a table of differing values."""


def comparison_page(comparison: Comparison) -> Page:
    """Return the page of a comparison."""
    members = comparison.members
    trainings = sum(len(member.trainings) for member in members)
    names = ", ".join(member.name for member in members[:6])
    more = f" and {len(members) - 6} more" if len(members) > 6 else ""
    sections = (
        Section("members", "Studies", "", [_members(comparison)]),
        _arms(comparison),
        _differences(comparison),
        _fronts(comparison),
        _choices(comparison),
        _costs(comparison),
    )
    return Page(
        title=f"{names}{more}",
        subtitle=(
            f"Comparison of {len(members)} studies or groups of runs, {trainings:,} trainings; "
            f"metric: {words(comparison.metric.name)}"
        ),
        answer=comparison.verdicts or ["Nothing can be compared yet."],
        warnings=[str(remark) for remark in comparison.comparability.remarks],
        facts=list(_facts(comparison)),
        sections=[section for section in sections if section.blocks],
    )


def _facts(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    for arm in comparison.best_arms[:4]:
        yield f"best of {arm.member}", mean_text(comparison.metric, arm.mean), arm.label
    yield "arms", f"{len(comparison.arms):,}", "trainings that differ by the seed alone"


def _members(comparison: Comparison) -> Cells:
    fronts = {front.member: front for each in comparison.fronts for front in each.members}
    rows = []
    for member in comparison.members:
        front = fronts.get(member.name)
        seconds = sum(member.seconds.values())
        rows.append(
            (
                member.name,
                member.data.name or UNKNOWN,
                f"{len(member.trainings):,}",
                f"{sum(1 for trial in member.trials if trial.status == 'finished'):,}",
                UNKNOWN if front is None else str(len(front.front)),
                UNKNOWN if front is None else volume_text(front.volume),
                duration(seconds) if seconds else UNKNOWN,
                str(member.place),
            )
        )
    headings = ("study", "data", "trainings", "completed trials", "front", "hypervolume")
    return Cells(
        "members-table",
        "Members of the comparison",
        (*headings, "training time", "place"),
        rows,
    )


# Arms


def _arms(comparison: Comparison) -> Section:
    blocks: list[Block] = []
    for number, group in enumerate(comparison.groups):
        data = group.arms[0].member if len(comparison.groups) > 1 and group.arms else ""
        blocks += arms_figure(group, comparison.metric, number)
        if group.arms:
            blocks.append(_arms_table(group, comparison, number, data))
    text = (
        "An arm is one setting: trainings that differ by the seed alone. Intervals are 95% "
        "(Student's t over seeds). Differences are to the reference arm: paired by seed where the "
        "splits are the same, else Welch's test; p values are corrected for the number of tests "
        "(Holm). The reference is the best of many arms, so its own mean is biased upward."
    )
    return Section("arms", "Arms", text, blocks)


def _arms_table(group: ArmGroup, comparison: Comparison, number: int, data: str) -> Cells:
    costs = [name for name in ("params",) if any(arm.cost(name) is not None for arm in group.arms)]
    arms = group.arms[:MAX_ARMS]
    rows, keys = [], []
    for index, arm in enumerate(arms):
        contrast = group.contrasts.get(index)
        cells = _arm_cells(arm, contrast, arm is group.reference, comparison)
        values = [arm.cost(name) for name in costs]
        cells += [metric(name, value) for name, value in zip(costs, values, strict=True)]
        cells.append(UNKNOWN if arm.seconds is None else duration(arm.seconds))
        rows.append(tuple(cells))
        keys.append((*_arm_keys(arm, contrast, cells), *map(_key, [*values, arm.seconds])))
    more = f" (the best {MAX_ARMS:,} of {len(group.arms):,})" if len(group.arms) > MAX_ARMS else ""
    title = f"{len(arms):,} arms{f' on the data of {data}' if data else ''}{more}"
    headings = ("arm", "study", "kind", "n", words(comparison.metric.name), "gain (points)")
    return Cells(
        f"arms-table-{number}" if number else "arms-table",
        title,
        (*headings, "difference", "test", "p (Holm)", "verdict", *map(words, costs), "time"),
        rows,
        keys,
        searchable=True,
    )


def _arm_cells(
    arm: Arm, contrast: ArmContrast | None, is_reference: bool, comparison: Comparison
) -> list[str]:
    figures = ["", "", "", "reference" if is_reference else ""]
    if contrast is not None:
        verdict = "not significant"
        if contrast.is_significant:
            is_better = comparison.metric.is_better(contrast.difference.mean)
            verdict = "better" if is_better else "worse"
        difference = difference_text(comparison.metric, contrast.difference)
        figures = [difference, contrast.test, p_text(contrast.p_holm), verdict]
    gain = points(arm.gain) if arm.gain is not None and comparison.metric.is_accuracy else ""
    mean = mean_text(comparison.metric, arm.mean)
    return [arm.label, arm.member, arm.kind, str(arm.mean.count), mean, gain, *figures]


def _arm_keys(
    arm: Arm, contrast: ArmContrast | None, cells: Sequence[str]
) -> tuple[float | str, ...]:
    """Return the values by which the table is sorted."""
    gain = None if arm.gain is None else arm.gain.mean
    difference = None if contrast is None else contrast.difference.mean
    p = math.inf if contrast is None or math.isnan(contrast.p_holm) else contrast.p_holm
    head = (*cells[:3], arm.mean.count, arm.mean.mean, _key(gain), _key(difference))
    return (*head, cells[7], p, cells[9])


def _key(value: float | None) -> float:
    return -math.inf if value is None else value


# Differences


def _differences(comparison: Comparison) -> Section:
    names = [member.name for member in comparison.members]
    best = comparison.best_arms
    tables = [
        _table(
            "best-differences",
            "Best arms: values that differ",
            [f"{arm.label} ({arm.member})" for arm in best],
            comparison.best_arm_differences,
        ),
        _table("settings", "Studies: settings that differ", names, comparison.setting_differences),
        _table(
            "values",
            "Trials: values that differ, as lists or ranges",
            names,
            comparison.param_differences,
        ),
    ]
    text = "Settings and values that are the same everywhere are left out."
    return Section("differences", "Only what differs", text, [t for t in tables if t is not None])


def _table(
    id: str, title: str, names: Sequence[str], differences: Sequence[DifferenceRow]
) -> Cells | None:
    if not differences or len(names) < 2:
        return None
    rows = [
        (short_parameter(row.name), *map(short_value, row.values))
        for row in differences[:MAX_PARAMS]
    ]
    hidden = len(differences) - len(rows)
    title += f" ({hidden} more)" if hidden > 0 else ""
    return Cells(id, title, ("value", *names), rows)


# Fronts, choices, costs


def _fronts(comparison: Comparison) -> Section:
    blocks: list[Block] = []
    for number, fronts in enumerate(comparison.fronts):
        blocks += fronts_figure(fronts, number)
        reference = ", ".join(
            f"{words(name)} {metric(name, value)}" for name, value in fronts.reference.items()
        )
        rows = [
            (front.member, str(len(front.trials)), str(len(front.front)), volume_text(front.volume))
            for front in fronts.members
        ]
        blocks.append(
            Cells(
                f"volumes-{number}",
                f"Hypervolume up to the reference point ({reference})",
                ("study", "complete trials", "front", "hypervolume"),
                rows,
            )
        )
    text = (
        "Hypervolume: share of the box between the common reference point and the best values that "
        "a front dominates (costs on a logarithmic scale). The interval holds 95% of 200 bootstrap "
        "samples of the trials; a sample misses trials, so it tends below the value itself."
    )
    return Section("fronts", "Pareto fronts", text, blocks)


def _choices(comparison: Comparison) -> Section:
    associations = comparison.associations
    name = words(comparison.search_metric.name)
    blocks: list[Block] = [*choices_figure(associations, comparison.search_metric)]
    if associations:
        rows = [_association(each, comparison) for each in associations[:MAX_PARAMS]]
        blocks.append(
            Cells(
                "choices-table",
                f"Association of each value with {name}",
                ("value", "trials", "association", "p (Holm)"),
                rows,
            )
        )
    blocks += importances_figure(comparison)
    text = (
        f"{name.capitalize()} of the trials, minus the mean of their study. Numbers: Kendall's "
        "rank correlation; choices: difference of each choice to the mean, Kruskal-Wallis test. "
        "Samplers draw good values more often and weak trials are stopped early, so these are "
        "tendencies, not effects."
    )
    return Section("choices", "Which choice goes with which result", text, blocks)


def _association(each: Association, comparison: Comparison) -> tuple[str, str, str, str]:
    text = f"tau {each.tau:+.2f}"
    if each.choices:
        searched = comparison.search_metric
        texts = [
            f"{short_value(choice.value)}: {difference_text(searched, choice.difference)}"
            for choice in each.choices[:4]
        ]
        text = "; ".join(texts)
    mark = "*" if each.is_significant else ""
    return short_parameter(each.name), whole(each.trials), text, p_text(each.p_holm) + mark


def _costs(comparison: Comparison) -> Section:
    text = "Training time of all slots together, by purpose."
    return Section("cost", "Time and cost", text, list(costs_figure(comparison)))
