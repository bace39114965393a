"""Comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from raykd.report.comparison.arms import Arm
from raykd.report.comparison.comparison import TAUGHT, ArmGroup, Comparison
from raykd.report.comparison.contrasts import ArmContrast
from raykd.report.comparison.differences import DifferenceRow, short_value
from raykd.report.comparison.texts import difference_text, mean_text, p_text, volume_text
from raykd.report.data import WARNING_STYLE
from raykd.report.format import short_parameter
from raykd.report.terminal.sections import Section, join_sections, paragraphs, title
from raykd.terminal_tables import Column, Grid
from raykd.tuning.number_format import UNKNOWN, compact, duration, words

MAX_ARMS = 20
"""Maximum number of arms in the table of one group."""

MAX_COLUMNS = 8
"""Maximum number of columns of differing values; more members are compared on the page."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters of the members in tables; a study beyond the last is not listed."""

MAX_ROWS = 20
"""Maximum number of differing values."""


def render_comparison(comparison: Comparison) -> RenderableType:
    """Return a comparison as text."""
    return join_sections(_sections(comparison))


def _sections(comparison: Comparison) -> Iterator[Section]:
    yield _members(comparison)
    remarks = [str(remark) for remark in comparison.comparability.remarks]
    yield [Text(line, style=WARNING_STYLE) for line in remarks]
    yield [title("Verdict"), *paragraphs(comparison.verdicts)] if comparison.verdicts else []
    for group in comparison.groups:
        yield _arms(group, comparison)
    yield _differences(
        "Best arms: only what differs",
        comparison.best_arm_differences,
        [_letter(comparison, arm.member) for arm in comparison.best_arms],
    )
    names = [_letter(comparison, member.name) for member in comparison.members]
    yield _differences("Trials: only what differs", comparison.param_differences, names)


def _members(comparison: Comparison) -> Section:
    volumes = {front.member: front for fronts in comparison.fronts for front in fronts.members}
    grid = Grid(
        (
            *(Column(), Column("study"), Column("data")),
            *(Column("completed\ntrials", right=True), Column("front", right=True)),
            *(Column("hypervolume", whole=True), Column("training\ntime", right=True)),
        ),
        indent=1,
    )
    for letter, member in zip(LETTERS, comparison.members, strict=False):
        front = volumes.get(member.name)
        grid.add(
            letter,
            member.name,
            member.data.name or UNKNOWN,
            f"{sum(1 for trial in member.trials if trial.status == 'finished'):,}",
            UNKNOWN if front is None else str(len(front.front)),
            UNKNOWN if front is None else volume_text(front.volume),
            duration(sum(member.seconds.values())) if member.seconds else UNKNOWN,
        )
    count = len(comparison.members)
    noun = "studies" if count > 1 else "study"
    heading = f"{count} {noun} compared by {words(comparison.metric.name)}"
    hidden = count - len(LETTERS)
    more = [Text(f" {hidden} more studies", style="dim")] if hidden > 0 else []
    return [title(heading), grid, *more]


def _arms(group: ArmGroup, comparison: Comparison) -> Section:
    rows = _selected(group)
    if not rows:
        return []
    has_params = any(arm.cost("params") is not None for arm, _ in rows)
    columns = [
        *(Column(), Column("arm"), Column(words(comparison.metric.name), whole=True)),
        *(Column("difference", whole=True), Column("p (Holm)", right=True, whole=True)),
        *([Column("params", right=True)] if has_params else []),
    ]
    grid = Grid(columns, indent=1)
    for arm, contrast in rows:
        style = "bold" if arm is group.reference else ""
        grid.add(*_cells(arm, contrast, group, comparison, has_params), style=style)
    hidden = len(group.arms) - len(rows)
    unit = " in points" if comparison.metric.is_accuracy else ""
    note = "(mean ± half width of the 95% interval, for several seeds"
    note += f"; difference to the bold arm{unit})" if group.reference is not None else ")"
    section: list[RenderableType] = [title("Arms", note), grid]
    if hidden > 0:
        text = f"{hidden:,} more arms: write them with -o arms.csv or -o comparison.html"
        section.append(Text(f" {text}", style="dim"))
    return section


def _selected(group: ArmGroup) -> list[tuple[Arm, ArmContrast | None]]:
    """Return the arms to list: all over several seeds first, then the best single ones."""
    rows = [(arm, group.contrasts.get(index)) for index, arm in enumerate(group.arms)]
    repeated = [row for row in rows if row[0].mean.count > 1]
    single = [row for row in rows if row[0].mean.count == 1]
    if repeated:
        single = [row for row in single if row[0].kind not in TAUGHT]
    return (repeated + single)[:MAX_ARMS]


def _cells(
    arm: Arm,
    contrast: ArmContrast | None,
    group: ArmGroup,
    comparison: Comparison,
    has_params: bool,
) -> list[str]:
    metric = comparison.metric
    difference, p = "", ""
    if contrast is not None:
        difference = difference_text(metric, contrast.difference).partition(" (n=")[0]
        p = p_text(contrast.p_holm)
        p += "*" if contrast.is_significant else ""
    elif arm is group.reference:
        difference = "reference"
    head = [_letter(comparison, arm.member), arm.label, mean_text(metric, arm.mean)]
    cost = [compact(arm.cost("params"))] if has_params else []
    return [*head, difference, p, *cost]


def _letter(comparison: Comparison, name: str) -> str:
    """Return the letter of a member; its name if there are more members than letters."""
    number = [member.name for member in comparison.members].index(name)
    return LETTERS[number] if number < len(LETTERS) else name


def _differences(heading: str, rows: Sequence[DifferenceRow], names: Sequence[str]) -> Section:
    if not rows or not 1 < len(names) <= MAX_COLUMNS:
        return []
    grid = Grid([Column("value"), *(Column(name) for name in names)], indent=1)
    for row in rows[:MAX_ROWS]:
        grid.add(short_parameter(row.name), *map(short_value, row.values))
    section: list[RenderableType] = [title(heading), grid]
    if len(rows) > MAX_ROWS:
        section.append(Text(f" {len(rows) - MAX_ROWS} more in -o comparison.html", style="dim"))
    return section
