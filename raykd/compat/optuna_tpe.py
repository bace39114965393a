"""Optuna's TPE with cached trials: a draw takes nearly constant time in a long search.

For each parameter that it draws, Optuna 5 reads all trials, splits them into good and bad ones, and
looks up the parameter in each of them.  A conditional space has many parameters, a long search many
trials.  Here the trials are read and split once for each new trial, the parameters of a finished
trial are looked up once, and equal candidates are scored once.  The draws are identical, number for
number (tests/compat/test_optuna_tpe.py compares them), with one exception: infeasible points.

Optuna ignores a failed trial, and counts an infeasible one among the good ones if there are few
feasible ones.  With hundreds of slots, feasible points are running, which count as bad, so that it
looks for infeasible ones.  Here a failed trial that violates a constraint is bad, and no infeasible
point is good.

A trial that has paused, and has not ended, counts as one that was stopped with its last values.

This uses private parts of Optuna 5.0.  If they are different, `make_tpe` returns Optuna's own
sampler, which draws the same values and takes longer.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import sampler as _tpe
from optuna.trial import FrozenTrial, TrialState

LEARNABLE_STATES = (TrialState.COMPLETE, TrialState.PRUNED)

PAUSED = "raykd.paused"
"""Attribute of a trial that has paused at a rung; it stays when the trial is promoted."""


class _Split(NamedTuple):
    """Trials from which the two models of a draw are built."""

    trial: int  # number of the trial that is drawn
    below: list[FrozenTrial]  # the good ones
    above: list[FrozenTrial]  # the bad ones
    numbers: tuple[np.ndarray, np.ndarray]  # of the good ones and of the bad ones


class _Column:
    """Values of one parameter in all trials, in Optuna's internal representation.

    Args:
        name: of the parameter.
        distribution: that the parameter is drawn from now.
    """

    def __init__(self, name: str, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self._name = name
        self._values = np.zeros(64)  # by the trial's number; nan if it has none
        self._is_cached = np.zeros(64, dtype=bool)

    def of(
        self,
        trials: Sequence[FrozenTrial],
        numbers: np.ndarray,
        params_of: Callable[[FrozenTrial], Mapping[str, Any]],
    ) -> np.ndarray:
        """Return the trials' values, shape (trials,).

        Values of trials that are not drawn completely are looked up each time.
        """
        count = int(numbers.max(initial=0)) + 1
        self._values, self._is_cached = (
            _extend(self._values, count),
            _extend(self._is_cached, count),
        )
        for place in np.flatnonzero(~self._is_cached[numbers]).tolist():
            trial = trials[place]
            params = params_of(trial)
            value = np.nan
            if self._name in params:
                value = self.distribution.to_internal_repr(params[self._name])
            self._values[trial.number] = value
            # A value that was drawn for a running trial stays; one that was only enqueued may not.
            self._is_cached[trial.number] = trial.state.is_finished() or self._name in trial.params
        return self._values[numbers]


def _extend(array: np.ndarray, size: int) -> np.ndarray:
    """Return the array, extended by zeros to at least this size."""
    if size <= len(array):
        return array
    return np.append(array, np.zeros(max(size, 2 * len(array)) - len(array), array.dtype))


class CachedTPE(TPESampler):
    """Optuna's `TPESampler` with cached lookups; for one study.

    Args:
        arguments: of `TPESampler`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._split: _Split | None = None
        self._columns: dict[str, _Column] = {}
        self._has_models = False  # whether enough trials have ended to build models
        self._common: dict[str, BaseDistribution] | None = None  # of all of them
        # By a trial's number, which is its index among all:
        self._ended = np.zeros(64, dtype=bool)
        self._learnable = np.zeros(64, dtype=bool)  # ended in a state that TPE learns from
        self._infeasible = np.zeros(64, dtype=bool)  # ended in any state, violates a constraint
        self._beaten = np.zeros(64, dtype=bool)  # can never be among the good ones

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._split = None
        super().before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._split = None
        super().after_trial(study, trial, state, values)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self._group or not self._is_multivariate(study):
            return super().infer_relative_search_space(study, trial)
        # Optuna reads all trials again that began after the first one that is still running.
        trials = study._get_trials(deepcopy=False, use_cache=True)
        self._learnable_trials([_as_stopped(each) for each in trials])
        common = sorted((self._common or {}).items())
        return {name: each for name, each in common if not each.single()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._has_models:  # the number of trials only grows: no need to count them again
            return self._sample(study, trial, {param_name: param_distribution})[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._has_models = True
        split = self._split_for(study, trial)
        good = self._build_parzen_estimator(study, search_space, split.below, handle_below=True)
        bad = self._build_parzen_estimator(study, search_space, split.above, handle_below=False)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(candidates, self._scores(candidates, good, bad))
        return {name: each.to_external_repr(best[name]) for name, each in search_space.items()}

    def _scores(self, candidates: dict[str, np.ndarray], good: Any, bad: Any) -> np.ndarray:
        """Return the acquisition function of each candidate; equal candidates are scored once."""
        if len(candidates) > 1:
            return self._compute_acquisition_func(candidates, good, bad)
        ((name, values),) = candidates.items()
        distinct, places = np.unique(values, return_inverse=True)
        return self._compute_acquisition_func({name: distinct}, good, bad)[places]

    def _split_for(self, study: optuna.Study, trial: FrozenTrial) -> _Split:
        """Split the trials for a new one, unless that has been done."""
        if self._split is None or self._split.trial != trial.number:
            trials = [_as_stopped(each) for each in study.get_trials(deepcopy=False)]
            mask = self._learnable_trials(trials)
            mask[trial.number] = False
            below = self._below(study, trials, mask)
            good = np.array([each.number for each in below], dtype=int)
            mask[good] = False
            bad = np.flatnonzero(mask)
            above = [trials[number] for number in bad.tolist()]
            self._split = _Split(trial.number, below, above, (good, bad))
        return self._split

    def _learnable_trials(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """Return a mask of the trials that TPE learns from, shape (trials,)."""
        count = len(trials)
        self._ended, self._learnable, self._infeasible, self._beaten = (
            _extend(each, count)
            for each in (self._ended, self._learnable, self._infeasible, self._beaten)
        )
        mask = (self._learnable | self._infeasible)[:count]
        for number in np.flatnonzero(~self._ended[:count]).tolist():
            trial = trials[number]
            if not trial.state.is_finished():
                mask[number] = self._constant_liar and trial.state == TrialState.RUNNING
                continue
            self._ended[number] = True
            self._learnable[number] = trial.state in LEARNABLE_STATES
            self._infeasible[number] = _tpe._get_infeasible_trial_score(trial) > 0
            mask[number] = self._learnable[number] or self._infeasible[number]
            if self._learnable[number]:
                self._intersect(trial.distributions)
        return mask

    def _intersect(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Keep the common distributions that a trial has, too."""
        if self._common is None:
            self._common = dict(distributions)
        else:
            self._common = {
                name: each for name, each in self._common.items() if distributions.get(name) == each
            }

    def _below(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], mask: np.ndarray
    ) -> list[FrozenTrial]:
        """Return the good ones of the masked trials, in order of their numbers.

        With one objective, the number of good trials is limited and the order of two trials never
        changes.  So a trial with that many better ones is skipped from then on.
        """
        single = len(study.directions) == 1
        gamma = self._gamma or (_tpe.default_gamma if single else _tpe.default_gamma_multiobjective)
        finished = mask & self._learnable[: len(mask)]
        feasible = int(np.count_nonzero(finished & ~self._infeasible[: len(mask)]))
        count = min(gamma(int(np.count_nonzero(finished))), feasible)
        remaining = np.flatnonzero(mask & ~self._beaten[: len(mask)] if single else mask)
        candidates = [trials[number] for number in remaining.tolist()]
        below, _ = _tpe._split_trials(study, candidates, count)
        limit = gamma(sys.maxsize)
        if single and len(candidates) > 4 * limit:
            # a paused trial may still become one of the good ones
            ended = (each for each in candidates if each.state in LEARNABLE_STATES)
            candidates = [each for each in ended if PAUSED not in each.user_attrs]
            _, beaten = _tpe._split_trials(study, candidates, limit)
            self._beaten[[each.number for each in beaten]] = True
        return below

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,
    ) -> dict[str, np.ndarray]:
        assert self._split is not None, "models are built after the split"
        numbers = self._split.numbers[0 if trials is self._split.below else 1]
        values = {
            name: self._column(name, distribution).of(
                trials, numbers, lambda trial: self._get_params(trial, study)
            )
            for name, distribution in search_space.items()
        }
        is_complete = ~np.isnan(np.array(list(values.values()))).any(axis=0)
        return {name: column[is_complete] for name, column in values.items()}

    def _column(self, name: str, distribution: BaseDistribution) -> _Column:
        column = self._columns.get(name)
        if column is None or column.distribution != distribution:
            column = self._columns[name] = _Column(name, distribution)
        return column


def _as_stopped(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial that has paused as one that was stopped; others as they are."""
    if trial.state != TrialState.RUNNING or PAUSED not in trial.user_attrs:
        return trial
    stopped = copy.copy(trial)
    stopped.state = TrialState.PRUNED
    return stopped


# Methods that `CachedTPE` overrides or calls, with their parameters.
_PARTS: dict[str, tuple[str, ...]] = {
    "infer_relative_search_space": ("self", "study", "trial"),
    "_is_multivariate": ("self", "study"),
    "_sample": ("self", "study", "trial", "search_space"),
    "_get_internal_repr": ("self", "trials", "search_space", "study"),
    "_get_params": ("self", "trial", "study"),
    "_build_parzen_estimator": ("self", "study", "search_space", "trials", "handle_below"),
    "_compute_acquisition_func": ("self", "samples", "mpe_below", "mpe_above"),
    "_compare": ("samples", "acquisition_func_vals"),
}
_FIELDS = ("_rng", "_gamma", "_n_ei_candidates", "_constant_liar", "_group")
_FUNCTIONS = (
    "_split_trials",
    "_get_infeasible_trial_score",
    "default_gamma",
    "default_gamma_multiobjective",
)


def fits() -> bool:
    """Return whether this Optuna has the private parts that `CachedTPE` uses."""

    def has(name: str, parameters: tuple[str, ...]) -> bool:
        method = getattr(TPESampler, name, None)
        return method is not None and tuple(inspect.signature(method).parameters) == parameters

    return (
        all(has(name, parameters) for name, parameters in _PARTS.items())
        and all(field in vars(TPESampler()) for field in _FIELDS)
        and all(hasattr(_tpe, name) for name in _FUNCTIONS)
    )


def make_tpe(**arguments: Any) -> TPESampler:
    """Return a TPE sampler with these arguments; a cached one if this Optuna allows it."""
    return CachedTPE(**arguments) if fits() else TPESampler(**arguments)
