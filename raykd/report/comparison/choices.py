"""Association of the drawn values with the results, over the trials of all members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raykd.layer_study.significance import LEVEL, correct_holm
from raykd.report.comparison.arms import Metric
from raykd.report.comparison.differences import as_number, is_irrelevant
from raykd.report.comparison.members import Member, Training
from raykd.tuning.estimates import Estimate, estimate

MIN_TRIALS = 8
"""Minimum number of trials of an association."""

MAX_VALUES = 12
"""Maximum number of values of a choice that are listed."""

FEW = 4
"""Numbers with at most so few values are treated as a choice."""


@dataclass(frozen=True)
class Choice:
    """One value of a parameter.

    Attributes:
        value: text of the value.
        difference: metric of its trials minus the mean of all trials of their member, with the
            95% interval.
    """

    value: str
    difference: Estimate


@dataclass(frozen=True)
class Association:
    """Association of a parameter with the metric.

    Attributes:
        name: name of the parameter.
        trials: number of trials with the parameter.
        tau: Kendall's rank correlation with the metric; NaN for choices.
        p: p value of the correlation, or of the Kruskal-Wallis test over the choices.
        p_holm: p value corrected for the number of parameters.
        choices: values, the best first; empty for numbers.
    """

    name: str
    trials: int
    tau: float
    p: float
    p_holm: float
    choices: tuple[Choice, ...]

    @property
    def is_significant(self) -> bool:
        """True if the association is significant at 5%, corrected for the parameters."""
        return self.p_holm < LEVEL


def associations(members: Sequence[Member], metric: Metric) -> list[Association]:
    """Return the association of every parameter that varies, the most significant first.

    The metric of a trial is compared with the mean of its member, so that members on other data
    can be pooled; members in which a parameter is fixed do not count for it.  Samplers draw good
    values more often, and trials that were stopped early count with the value they reached:
    associations are tendencies, not effects.
    """
    pairs: dict[str, list[tuple[str, float]]] = {}
    for member in members:
        trials = _centered(member, metric)
        names = dict.fromkeys(name for trial, _ in trials for name in trial.params)
        for name in filter(_is_drawn, names):
            of_name = [(t.params[name], value) for t, value in trials if name in t.params]
            if len({text for text, _ in of_name}) > 1:
                pairs.setdefault(name, []).extend(of_name)
    computed = {
        name: association
        for name, of_name in pairs.items()
        if (association := _association(name, of_name, metric)) is not None
    }
    corrected = correct_holm({n: a.p for n, a in computed.items() if not math.isnan(a.p)})
    results = [replace(a, p_holm=corrected.get(n, math.nan)) for n, a in computed.items()]
    return sorted(results, key=lambda a: (math.isnan(a.p_holm), a.p_holm, a.p))


def _is_drawn(name: str) -> bool:
    """Return True for a param that can change the result of a training."""
    return not is_irrelevant(name) and name.split(".")[0] not in ("search", "cluster", "cache")


def _centered(member: Member, metric: Metric) -> list[tuple[Training, float]]:
    trials = [
        (trial, trial.metrics[metric.name])
        for trial in member.trials
        if trial.status != "failed" and math.isfinite(trial.metrics.get(metric.name, math.nan))
    ]
    mean = math.fsum(value for _, value in trials) / len(trials) if trials else 0.0
    return [(trial, value - mean) for trial, value in trials]


def _association(
    name: str, pairs: Sequence[tuple[str, float]], metric: Metric
) -> Association | None:
    """Return the association of a parameter; None with too few trials or too many choices."""
    groups: dict[str, list[float]] = {}
    for text, value in pairs:
        groups.setdefault(text, []).append(value)
    if len(pairs) < MIN_TRIALS:
        return None
    numbers = [as_number(text) for text, _ in pairs]
    if None not in numbers and len(groups) > FEW:
        return _correlation(name, [n or 0.0 for n in numbers], [value for _, value in pairs])
    return _over_choices(name, groups, metric) if len(groups) <= MAX_VALUES else None


def _correlation(name: str, numbers: Sequence[float], values: Sequence[float]) -> Association:
    from scipy.stats import kendalltau

    tau, p = np.asarray(kendalltau(numbers, values), dtype=float)
    return Association(name, len(values), float(tau), float(p), math.nan, ())


def _over_choices(name: str, groups: Mapping[str, list[float]], metric: Metric) -> Association:
    from scipy.stats import kruskal

    values = [value for group in groups.values() for value in group]
    p = math.nan if len(set(values)) < 2 else float(kruskal(*groups.values())[1])
    choices = [Choice(text, estimate(group, -math.inf, math.inf)) for text, group in groups.items()]
    choices.sort(key=lambda choice: metric.rank(choice.difference.mean))
    return Association(name, len(values), math.nan, p, math.nan, tuple(choices))
