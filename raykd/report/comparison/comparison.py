"""Comparison of members: arms, tests, differences, fronts, choices, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.report.comparison.arms import Arm, Metric, arms_of, choose_metric
from raykd.report.comparison.choices import Association, associations
from raykd.report.comparison.comparability import Comparability, check_members
from raykd.report.comparison.contrasts import UNPAIRED, ArmContrast, contrasts_with
from raykd.report.comparison.differences import (
    DifferenceRow,
    arm_params_that_differ,
    params_that_differ,
    settings_that_differ,
)
from raykd.report.comparison.fronts import Fronts, fronts_of
from raykd.report.comparison.members import Member
from raykd.report.comparison.texts import difference_text, mean_text
from raykd.tuning.estimates import MIN_SEEDS
from raykd.tuning.number_format import words

if TYPE_CHECKING:
    import pandas as pd

MAX_NAMED = 5
"""Maximum number of arms that a sentence names."""

TAUGHT = ("finalist", "trial", "arm", "run")
"""Kinds of arms that can be the reference."""


@dataclass(frozen=True)
class ArmGroup:
    """Arms on the same data, compared with their best one.

    Attributes:
        arms: the arms, the best first.
        reference: the arm that the others are compared with; None without one of several seeds.
        contrasts: difference of each arm and the reference, by its index.
    """

    arms: tuple[Arm, ...]
    reference: Arm | None
    contrasts: dict[int, ArmContrast] = field(default_factory=dict)

    @property
    def tied(self) -> list[Arm]:
        """Student arms over seeds that do not differ significantly from the reference."""
        return [
            self.arms[index]
            for index, contrast in self.contrasts.items()
            if not contrast.is_significant and self.arms[index].kind != "baseline"
        ]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Comparison of studies and other runs.

    Attributes:
        members: members of the comparison, with different names.
        metric: metric that is compared.
        reference: ID or label of the arm to compare with; "": the best arm over several seeds.
    """

    members: tuple[Member, ...]
    metric: Metric
    reference: str = ""

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in self.members)
        return f"Comparison({names}; {self.metric.name}, {len(self.arms)} arms)"

    def _repr_html_(self) -> str:
        """Return the comparison as a card for notebooks."""
        return comparison_card(self).html()

    @cached_property
    def comparability(self) -> Comparability:
        """Differences in data, splits, objectives and epochs."""
        return check_members(self.members)

    @cached_property
    def groups(self) -> tuple[ArmGroup, ...]:
        """Arms by data, each group compared with its reference."""
        groups = [self._group(members) for members in self.comparability.groups]
        if self.reference and not any(group.reference for group in groups):
            named = [arm.id for group in groups for arm in group.arms if arm.mean.count > 1]
            raise StudyError(
                Problem(
                    f"no arm over several seeds has the ID or label {self.reference!r}",
                    fix=f"it can be: {', '.join(named[:12]) or 'none, as all have one seed'}",
                )
            )
        return tuple(groups)

    @property
    def arms(self) -> list[Arm]:
        """All arms, by data, the best first."""
        return [arm for group in self.groups for arm in group.arms]

    @cached_property
    def fronts(self) -> tuple[Fronts, ...]:
        """Fronts of the members on the same data."""
        computed = [fronts_of(members) for members in self.comparability.groups]
        return tuple(fronts for fronts in computed if fronts is not None)

    @cached_property
    def associations(self) -> list[Association]:
        """Association of the drawn values with the metric of the trials."""
        return associations(self.members, self.search_metric)

    @property
    def search_metric(self) -> Metric:
        """Metric of the trials: the compared one, or the first objective if trials lack it."""
        trials = [trial for member in self.members for trial in member.trials]
        if not trials or any(self.metric.name in trial.metrics for trial in trials):
            return self.metric
        of_trials = [
            Member(member.name, tuple(member.trials), member.objectives, member.data, member.place)
            for member in self.members
        ]
        return choose_metric(of_trials, None, None)

    @property
    def best_arms(self) -> list[Arm]:
        """Best student arm of each member, over several seeds where it has any."""
        best = []
        for member in self.members:
            arms = [arm for arm in self.arms if arm.member == member.name and arm.kind in TAUGHT]
            repeated = [arm for arm in arms if arm.mean.count > 1]
            best += (repeated or arms)[:1]
        return best

    @property
    def setting_differences(self) -> list[DifferenceRow]:
        """Settings that are not the same in all members."""
        return settings_that_differ(self.members)

    @cached_property
    def param_differences(self) -> list[DifferenceRow]:
        """Params of trials whose values differ between the members."""
        return params_that_differ(self.members)

    @property
    def best_arm_differences(self) -> list[DifferenceRow]:
        """Params that differ between the best arms of the members."""
        return arm_params_that_differ(self.best_arms)

    @property
    def verdicts(self) -> list[str]:
        """Sentences that answer the comparison, the most important first."""
        lines: list[str] = []
        for group in self.groups:
            lines += _verdicts(group, self.metric)
        return lines

    @property
    def table(self) -> pd.DataFrame:
        """One row for each arm, see `comparison_table`."""
        from raykd.report.comparison.table import comparison_table

        return comparison_table(self)

    def write(self, file: str | Path) -> Path:
        """Write the comparison as `.html`, `.csv` or `.parquet`.

        Raises:
            StudyError: the file has another suffix, or cannot be written.
        """
        from raykd.report.comparison.files import write_comparison

        return write_comparison(self, file)

    def log(self, tracking_uri: str | None = None) -> str:
        """Write the comparison as a run of MLflow that links its members.

        Args:
            tracking_uri: URI of the store; None: that of the first member.

        Returns:
            Address of the run's page.

        Raises:
            StudyError: the store does not respond.
        """
        from raykd.report.comparison.mlflow_run import log_as_run

        return log_as_run(self, tracking_uri)

    def _group(self, members: Sequence[Member]) -> ArmGroup:
        arms = [arm for member in members for arm in arms_of(member, self.metric)]
        arms.sort(key=lambda arm: self.metric.rank(arm.mean.mean))
        reference = self._reference_of(arms)
        if reference is None:
            return ArmGroup(tuple(arms), None)
        by_name = {member.name: member for member in members}
        home = by_name[reference.member]
        tested = [arm for arm in arms if arm.mean.count > 1 or arm is reference]
        paired = {m.name: self.comparability.can_pair(m, home) for m in members}
        contrasts = contrasts_with(reference, tested, self.metric, paired=paired)
        index = {id(arm): number for number, arm in enumerate(arms)}
        by_index = {index[id(tested[i])]: contrast for i, contrast in contrasts.items()}
        return ArmGroup(tuple(arms), reference, by_index)

    def _reference_of(self, arms: Sequence[Arm]) -> Arm | None:
        repeated = [arm for arm in arms if arm.mean.count > 1]
        if self.reference:
            named = (
                arm
                for arm in repeated
                if self.reference in (arm.id, arm.label, f"{arm.member}:{arm.id}")
            )
            return next(named, None)
        return next((arm for arm in repeated if arm.kind in TAUGHT), None)


def _verdicts(group: ArmGroup, metric: Metric) -> list[str]:
    reference = group.reference
    if reference is None:
        students = [arm for arm in group.arms if arm.kind in TAUGHT]
        if not students:
            return []
        best = students[0]
        return [
            f"{_name(best)} has the best {words(metric.name)}, {mean_text(metric, best.mean)}, "
            "with a single seed: no arm was trained with several seeds, so differences cannot be "
            "tested."
        ]
    lines = [f"{_name(reference)} reaches {mean_text(metric, reference.mean)}."]
    students = [arm for arm in group.arms if arm.kind in TAUGHT and arm.mean.count > 1]
    if reference is students[0]:
        lines[0] = (
            f"{_name(reference)} has the best {words(metric.name)}: "
            f"{mean_text(metric, reference.mean)}."
        )
    lines += [_against(group, member, metric) for member in _other_members(group)]
    if reference.gain is not None:
        gain = difference_text(metric, reference.gain)
        unit = " points" if metric.is_accuracy else ""
        lines.append(f"Its gain over training without a teacher: {gain}{unit}.")
    unsure = [arm for arm in group.tied if arm.mean.count >= MIN_SEEDS]
    few = [arm for arm in group.tied if arm.mean.count < MIN_SEEDS]
    if unsure:
        lines.append(
            f"No significant difference from it: {_names(unsure)}. This does not show that they "
            "are equally good; more seeds may show a difference."
        )
    if few:
        lines.append(
            f"Too few seeds for a verdict (at least {MIN_SEEDS} are needed): {_names(few)}."
        )
    return lines


def _names(arms: Sequence[Arm]) -> str:
    names = [_name(arm) for arm in arms]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _other_members(group: ArmGroup) -> list[str]:
    assert group.reference is not None
    names = dict.fromkeys(group.arms[index].member for index in group.contrasts)
    return [name for name in names if name != group.reference.member]


def _against(group: ArmGroup, member: str, metric: Metric) -> str:
    """Return the verdict on the reference and the best tested arm of another member."""
    index = min(
        (i for i in group.contrasts if group.arms[i].member == member),
        key=lambda i: (group.arms[i].kind == "baseline", i),
    )
    arm, contrast = group.arms[index], group.contrasts[index]
    difference = difference_text(metric, contrast.difference)
    difference += " points" if metric.is_accuracy else ""
    test = " (unpaired test)" if contrast.test == UNPAIRED else ""
    text = f"{_name(arm)} differs from it by {difference}{test}"
    if contrast.is_significant:
        better = metric.is_better(contrast.difference.mean)
        return f"{text}: it is {'better' if better else 'worse'} (p = {contrast.p_holm:.2g})."
    return f"{text}: {contrast.reason}."


def _name(arm: Arm) -> str:
    return f"{arm.label} ({arm.member})"


def comparison_card(comparison: Comparison) -> Card:
    """Return a comparison as a card: verdict, members and best arms."""
    metric = comparison.metric
    card = Card("Comparison", ", ".join(member.name for member in comparison.members))
    for sentence in comparison.verdicts:
        card.sentence(sentence)
    for remark in comparison.comparability.remarks:
        card.sentence(str(remark))
    contrasts = {
        id(group.arms[index]): contrast
        for group in comparison.groups
        for index, contrast in group.contrasts.items()
    }
    arms = [arm for arm in comparison.arms if arm.mean.count > 1 or arm in comparison.best_arms]
    card.table(
        f"{words(metric.name)} over seeds, mean ± half width of the 95% interval",
        ("study", "arm", "kind", words(metric.name), "difference to the reference", "p (Holm)"),
        [
            (
                arm.member,
                arm.label,
                arm.kind,
                mean_text(metric, arm.mean),
                difference_text(metric, c.difference) if (c := contrasts.get(id(arm))) else "",
                "" if c is None or math.isnan(c.p_holm) else f"{c.p_holm:.3g}",
            )
            for arm in arms[:20]
        ],
    )
    return card
