"""Optuna's GP sampler with infeasible points that have no values.

`GPSampler` (Optuna 5.0) fits its constraints to complete trials.  A point that raykd rejects before
its training has no values, so the sampler would suggest it again, after each fit.  Here such points
join the fit with the mean of the complete trials' values and the constraint violated.

This overrides a private method.  If this Optuna has another one, `make_gp` returns its own sampler.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

MAX_INFEASIBLE = 100
"""Maximum number of infeasible points in a fit, the latest; its time grows with their cube."""

_PARAMETERS = ("self", "study", "completed_trials", "running_trials", "search_space")


class ConstrainedGP(GPSampler):
    """Optuna's `GPSampler` that also learns from infeasible points without values."""

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        infeasible = [
            trial
            for trial in study.get_trials(
                deepcopy=False, states=(TrialState.PRUNED, TrialState.FAIL)
            )
            if _is_infeasible(trial) and search_space.keys() <= trial.params.keys()
        ][-MAX_INFEASIBLE:]
        if infeasible:
            mean = np.mean([trial.values for trial in completed_trials], axis=0).tolist()
            completed_trials = [
                *(_with_one_constraint(trial, trial.values) for trial in completed_trials),
                *(_with_one_constraint(trial, mean) for trial in infeasible),
            ]
        return super()._sample_relative_impl(study, completed_trials, running_trials, search_space)


def _is_infeasible(trial: FrozenTrial) -> bool:
    return any(excess > 0 for excess in trial.constraints.values())


def _with_one_constraint(trial: FrozenTrial, values: Sequence[float]) -> FrozenTrial:
    """Return a complete copy of a trial; all trials of a fit need equally many constraints."""
    copied = create_trial(
        values=list(values),
        params=trial.params,
        distributions=trial.distributions,
        constraints={"feasible": float(_is_infeasible(trial))},
    )
    copied.number = trial.number
    return copied


def make_gp(**arguments: Any) -> GPSampler:
    """Return a GP sampler with these arguments; one that knows infeasible points, if it fits."""
    method = getattr(GPSampler, "_sample_relative_impl", None)
    fits = method is not None and tuple(inspect.signature(method).parameters) == _PARAMETERS
    return ConstrainedGP(**arguments) if fits else GPSampler(**arguments)
