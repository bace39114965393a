"""Importances of the params of a member's trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raykd.report.comparison.differences import as_number, is_irrelevant
from raykd.report.comparison.members import Member, Training

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def member_importances(member: Member, metric: str) -> Mapping[str, float]:
    """Return the importance of each param that all trials have and that varies.

    Args:
        member: a study, or a group of runs.
        metric: metric that is explained.
    """
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState

    from raykd.report.page.parameters import importance, thinned

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = [t for t in member.trials if math.isfinite(t.metrics.get(metric, math.nan))]
    if not trials:
        return {}
    trials = thinned(trials)
    distributions = _distributions(trials)
    frozen = [
        optuna.create_trial(
            state=TrialState.COMPLETE,
            value=trial.metrics[metric],
            params={
                name: float(trial.params[name])
                if isinstance(distribution, FloatDistribution)
                else trial.params[name]
                for name, distribution in sorted(distributions.items())
            },
            distributions=distributions,
        )
        for trial in trials
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importance(frozen)


def _distributions(trials: Sequence[Training]) -> dict[str, BaseDistribution]:
    """Return the distribution of each param that all trials have and that varies."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    distributions: dict[str, BaseDistribution] = {}
    for name in set.intersection(*(set(trial.params) for trial in trials)):
        texts = {trial.params[name] for trial in trials}
        numbers = [number for text in texts if (number := as_number(text)) is not None]
        if len(texts) < 2 or is_irrelevant(name):
            continue
        if len(numbers) == len(texts):
            distributions[name] = FloatDistribution(min(numbers), max(numbers))
        else:
            distributions[name] = CategoricalDistribution(sorted(texts))
    return distributions
