"""Optuna's exhaustive sampler (5.0) for the ask-and-tell interface."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.samplers import BruteForceSampler
from optuna.trial import FrozenTrial, TrialState


class GridSampler(BruteForceSampler):
    """Optuna's exhaustive sampler over a conditional space.

    Optuna's sampler ends a study with `Study.stop`, which fails outside `Study.optimize`.  This one
    sets `exhausted` instead.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.exhausted = False

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        try:
            super().after_trial(study, trial, state, values)
        except RuntimeError:  # of `Study.stop`: every point was tried
            self.exhausted = True
