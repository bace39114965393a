"""Optuna's TPE, whose draws do not grow dear with the number of trials.

Optuna 5 begins anew for each parameter that it draws: it reads all trials, parts them into good and
bad ones, and looks up what each of them had for that parameter.  A conditional space has many
parameters, a long search many trials.  Here the trials are read and parted once for each trial that
is drawn, and what a finished trial had is looked up once.  The draws are the same, number for
number (tests/search/test_tpe.py compares them).

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
        self._values = np.full(64, np.nan)  # by the trial's number; nan where it had none
        self._known = np.zeros(64, dtype=bool)

    def of(
        self,
        trials: Sequence[FrozenTrial],
        numbers: np.ndarray,
        params_of: Callable[[FrozenTrial], Mapping[str, Any]],
    ) -> np.ndarray:
        """The trials' values, shape (trials,); those still under way are looked up each time."""
        self._grow(int(numbers.max(initial=0)) + 1)
        for place in np.flatnonzero(~self._known[numbers]).tolist():
            trial = trials[place]
            params = params_of(trial)
            value = np.nan
            if self._name in params:
                value = self.distribution.to_internal_repr(params[self._name])
            self._values[trial.number] = value
            self._known[trial.number] = trial.state.is_finished()
        return self._values[numbers]

    def _grow(self, size: int) -> None:
        more = max(size, 2 * len(self._values)) - len(self._values)
        if size > len(self._values):
            self._values = np.append(self._values, np.full(more, np.nan))
            self._known = np.append(self._known, np.zeros(more, dtype=bool))


class SwiftTPE(TPESampler):
    """Optuna's `TPESampler` with its looking up done once; for one study.

    Args:
        arguments: of `TPESampler`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._parted: _Parted | None = None
        self._columns: dict[str, _Column] = {}
        self._beaten: set[int] = set()

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

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._parted is not None and self._parted.trial == trial.number:
            # There were trials enough for one of its parameters: no need to count them again.
            return self._sample(study, trial, {param_name: param_distribution})[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        parted = self._part(study, trial)
        good = self._build_parzen_estimator(study, search_space, parted.below, handle_below=True)
        others = self._build_parzen_estimator(study, search_space, parted.above, handle_below=False)
        candidates = good.sample(self._rng.rng, self._n_ei_candidates)
        gains = self._compute_acquisition_func(candidates, good, others)
        best = self._compare(candidates, gains)
        return {name: each.to_external_repr(best[name]) for name, each in search_space.items()}

    def _part(self, study: optuna.Study, trial: FrozenTrial) -> _Parted:
        if self._parted is None or self._parted.trial != trial.number:
            states = (*SEEN, TrialState.RUNNING) if self._constant_liar else SEEN
            known = study.get_trials(deepcopy=False, states=states)  # in order of their numbers
            others = {each.number: each for each in known}
            others.pop(trial.number, None)
            below = self._below(study, others)
            good = [each.number for each in below]
            above = others.keys() - good
            numbers = np.array(good, dtype=int), np.array(sorted(above), dtype=int)
            self._parted = _Parted(
                trial.number, below, [others[each] for each in numbers[1].tolist()], numbers
            )
        return self._parted

    def _below(self, study: optuna.Study, trials: Mapping[int, FrozenTrial]) -> list[FrozenTrial]:
        """The good ones of these trials, in order of their numbers.

        With one objective there is a limit to how many are good, and one trial is better than
        another for good and all.  Who has so many before him can be passed over from then on.
        """
        single = len(study.directions) == 1
        gamma = self._gamma or (
            _theirs.default_gamma if single else _theirs.default_gamma_multiobjective
        )
        finished = sum(each.state != TrialState.RUNNING for each in trials.values())
        if not single:
            return _theirs._split_trials(study, list(trials.values()), gamma(finished))[0]
        others = [each for number, each in trials.items() if number not in self._beaten]
        below, _ = _theirs._split_trials(study, others, gamma(finished))
        most = gamma(sys.maxsize)
        if len(others) > 4 * most:
            others = [each for each in others if each.state in SEEN]
            _, lost = _theirs._split_trials(study, others, most)
            self._beaten.update(each.number for each in lost)
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


# What `SwiftTPE` overrides, calls or reads, with the parameters it counts on.
_PARTS: dict[str, tuple[str, ...]] = {
    "_sample": ("self", "study", "trial", "search_space"),
    "_get_internal_repr": ("self", "trials", "search_space", "study"),
    "_get_params": ("self", "trial", "study"),
    "_build_parzen_estimator": ("self", "study", "search_space", "trials", "handle_below"),
    "_compute_acquisition_func": ("self", "samples", "mpe_below", "mpe_above"),
    "_compare": ("samples", "acquisition_func_vals"),
}
_FIELDS = ("_rng", "_gamma", "_n_ei_candidates", "_constant_liar")
_FUNCTIONS = ("_split_trials", "default_gamma", "default_gamma_multiobjective")


def fits() -> bool:
    """Whether this Optuna has the parts that `SwiftTPE` leans on."""

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
    return SwiftTPE(**arguments) if fits() else TPESampler(**arguments)
