"""Private parts of Optuna: each test fails when its part is gone."""

from __future__ import annotations

import optuna

from raykd.compat.optuna_trials import resume_trial


def test_interrupted_trial_is_drawn_to_its_end() -> None:
    """Its first value stays, and it is finished like any other trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first = study.ask().suggest_float("x", 0, 1)
    [frozen] = study.get_trials()
    trial = resume_trial(study, frozen)
    assert trial.number == 0
    assert trial.suggest_float("x", 0, 1) == first
    trial.suggest_int("depth", 1, 3)
    study.tell(trial, 0.5)
    [finished] = study.get_trials()
    assert finished.values == [0.5] and set(finished.params) == {"x", "depth"}
