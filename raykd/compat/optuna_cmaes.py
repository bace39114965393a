"""Optuna's CMA-ES sampler without its warning about constraints.

Infeasible points are drawn again before they are trained, so the sampler need not learn them.
`CmaEsSampler` (Optuna 5.0) warns at the end of each trial that has constraints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial, TrialState


class QuietCmaEs(CmaEsSampler):
    """Optuna's `CmaEsSampler` without its warning about constraints."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constraints have been set")
            super().after_trial(study, trial, state, values)
