"""Private parts of Optuna (5.0): trials that were interrupted."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial


def resume_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Return a trial of an interrupted process, to draw the rest of its parameters.

    `Study.ask` only gives new trials; a frozen trial's database id has no public name.
    """
    return optuna.Trial(study, trial._trial_id)
