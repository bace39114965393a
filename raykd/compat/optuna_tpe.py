"""Optuna's TPE, whose draws do not grow dear with the number of trials.

Optuna 5 begins anew for each parameter that it draws: it reads all trials, parts them into good and
bad ones, and looks up what each of them had for that parameter.  A conditional space has many
parameters, a long search many trials.  Here the trials are read and parted once for each trial that
is drawn, what a finished trial had is looked up once, and of equal candidates one is weighed.  The
draws are the same, number for number (tests/search/test_tpe.py compares them).

This leans on private parts of Optuna.  Where they are not as they were in 5.0, `make_tpe` gives
Optuna's own sampler, which draws the same and takes longer.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe import sampler as _theirs
from optuna.trial import FrozenTrial, TrialState

SEEN = (TrialState.COMPLETE, TrialState.PRUNED)


class _Parted(NamedTuple):
    """What the models of one draw are made of: the good trials, and the others."""

    trial: int  # which is drawn
    below: list[FrozenTrial]
    above: list[FrozenTrial]
    numbers: tuple[np.ndarray, np.ndarray]  # of the good ones and of the others


class _Column:
    """What each trial had for one parameter, as the number Optuna makes of it.

    Args:
        name: of the parameter.
        distribution: what it is drawn from now.
    """

    def __init__(self, name: str, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self._name = name
        self._values = np.zeros(64)  # by the trial's number; nan where it had none
        self._known = np.zeros(64, dtype=bool)

    def of(
        self,
        trials: Sequence[FrozenTrial],
        numbers: np.ndarray,
        params_of: Callable[[FrozenTrial], Mapping[str, Any]],
    ) -> np.ndarray:
        """The trials' values, shape (trials,); what isn't drawn yet is looked up each time."""
        count = int(numbers.max(initial=0)) + 1
        self._values, self._known = _longer(self._values, count), _longer(self._known, count)
        for place in np.flatnonzero(~self._known[numbers]).tolist():
            trial = trials[place]
            params = params_of(trial)
            value = np.nan
            if self._name in params:
                value = self.distribution.to_internal_repr(params[self._name])
            self._values[trial.number] = value
            # What was drawn for a trial under way stays so; what was only promised may not.
            self._known[trial.number] = trial.state.is_finished() or self._name in trial.params
        return self._values[numbers]


def _longer(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a longer one that begins with it: of at least this size, filled with zeros."""
    if size <= len(array):
        return array
    return np.append(array, np.zeros(max(size, 2 * len(array)) - len(array), array.dtype))


class CachedTPE(TPESampler):
    """Optuna's `TPESampler` with its looking up done once; for one study.

    Args:
        arguments: of `TPESampler`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._parted: _Parted | None = None
        self._columns: dict[str, _Column] = {}
        self._enough = False  # whether trials have ended that models can be made of
        self._common: dict[str, BaseDistribution] | None = None  # what all of them were drawn from
        # By a trial's number, which is its place among all:
        self._ended = np.zeros(64, dtype=bool)
        self._seen = np.zeros(64, dtype=bool)  # ended in one of the ways that TPE learns from
        self._beaten = np.zeros(64, dtype=bool)  # by as many as can ever be good

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._parted = None
        super().before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._parted = None
        super().after_trial(study, trial, state, values)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if self._group or not self._is_multivariate(study):
            return super().infer_relative_search_space(study, trial)
        # Optuna meets all trials anew that began after the first one that is still under way.
        self._learnt_from(study._get_trials(deepcopy=False, use_cache=True))
        common = sorted((self._common or {}).items())
        return {name: each for name, each in common if not each.single()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._enough:  # and there are ever more: no need to count them again
            return self._sample(study, trial, {param_name: param_distribution})[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._enough = True
        parted = self._part(study, trial)
        good = self._build_parzen_estimator(study, search_space, parted.below, handle_below=True)
        others = self._build_parzen_estimator(study, search_space, parted.above, handle_below=False)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(candidates, self._gains(candidates, good, others))
        return {name: each.to_external_repr(best[name]) for name, each in search_space.items()}

    def _gains(self, candidates: dict[str, np.ndarray], good: Any, others: Any) -> np.ndarray:
        """What Optuna expects of each candidate, looked at once where several are the same."""
        if len(candidates) > 1:
            return self._compute_acquisition_func(candidates, good, others)
        ((name, values),) = candidates.items()
        distinct, places = np.unique(values, return_inverse=True)
        return self._compute_acquisition_func({name: distinct}, good, others)[places]

    def _part(self, study: optuna.Study, trial: FrozenTrial) -> _Parted:
        if self._parted is None or self._parted.trial != trial.number:
            trials = study.get_trials(deepcopy=False)
            known = self._learnt_from(trials)
            known[trial.number] = False
            below = self._below(study, trials, known)
            good = np.array([each.number for each in below], dtype=int)
            known[good] = False
            others = np.flatnonzero(known)
            above = [trials[number] for number in others.tolist()]
            self._parted = _Parted(trial.number, below, above, (good, others))
        return self._parted

    def _learnt_from(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """Whether TPE learns from each of the study's trials, shape (trials,)."""
        count = len(trials)
        self._ended, self._seen, self._beaten = (
            _longer(each, count) for each in (self._ended, self._seen, self._beaten)
        )
        known = self._seen[:count].copy()
        for number in np.flatnonzero(~self._ended[:count]).tolist():
            state = trials[number].state
            self._ended[number] = state.is_finished()
            known[number] = self._seen[number] = state in SEEN
            if state in SEEN:
                self._meet(trials[number].distributions)
            if self._constant_liar and state == TrialState.RUNNING:
                known[number] = True
        return known

    def _meet(self, drawn_from: Mapping[str, BaseDistribution]) -> None:
        """Leave of what all trials were drawn from what this one was drawn from too."""
        if self._common is None:
            self._common = dict(drawn_from)
        else:
            self._common = {
                name: each for name, each in self._common.items() if drawn_from.get(name) == each
            }

    def _below(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], known: np.ndarray
    ) -> list[FrozenTrial]:
        """The good ones of the trials that are known, in order of their numbers.

        With one objective there is a limit to how many are good, and one trial is better than
        another for good and all.  Who has so many before him can be passed over from then on.
        """
        single = len(study.directions) == 1
        gamma = self._gamma or (
            _theirs.default_gamma if single else _theirs.default_gamma_multiobjective
        )
        finished = int(np.count_nonzero(known & self._seen[: len(known)]))
        near = np.flatnonzero(known & ~self._beaten[: len(known)] if single else known)
        others = [trials[number] for number in near.tolist()]
        below, _ = _theirs._split_trials(study, others, gamma(finished))
        most = gamma(sys.maxsize)
        if single and len(others) > 4 * most:
            others = [each for each in others if each.state in SEEN]
            _, lost = _theirs._split_trials(study, others, most)
            self._beaten[[each.number for each in lost]] = True
        return below

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: optuna.Study,
    ) -> dict[str, np.ndarray]:
        assert self._parted is not None, "models are made of trials that were parted"
        numbers = self._parted.numbers[0 if trials is self._parted.below else 1]
        values = {
            name: self._column(name, distribution).of(
                trials, numbers, lambda trial: self._get_params(trial, study)
            )
            for name, distribution in search_space.items()
        }
        whole = ~np.isnan(np.array(list(values.values()))).any(axis=0)
        return {name: column[whole] for name, column in values.items()}

    def _column(self, name: str, distribution: BaseDistribution) -> _Column:
        column = self._columns.get(name)
        if column is None or column.distribution != distribution:
            column = self._columns[name] = _Column(name, distribution)
        return column


# What `CachedTPE` overrides, calls or reads, with the parameters it counts on.
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
_FUNCTIONS = ("_split_trials", "default_gamma", "default_gamma_multiobjective")


def fits() -> bool:
    """Whether this Optuna has the parts that `CachedTPE` leans on."""

    def as_known(name: str, parameters: tuple[str, ...]) -> bool:
        found = getattr(TPESampler, name, None)
        return found is not None and tuple(inspect.signature(found).parameters) == parameters

    return (
        all(as_known(name, parameters) for name, parameters in _PARTS.items())
        and all(field in vars(TPESampler()) for field in _FIELDS)
        and all(hasattr(_theirs, name) for name in _FUNCTIONS)
    )


def make_tpe(**arguments: Any) -> TPESampler:
    """TPE with these arguments of Optuna's `TPESampler`, swift where this Optuna allows it."""
    return CachedTPE(**arguments) if fits() else TPESampler(**arguments)
