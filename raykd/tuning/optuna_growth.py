"""Trials of Optuna's study in a space that has grown.

Optuna refuses other options for a parameter it has, and samplers ignore a parameter whose range
differs between trials.  So the trials of an extended search are copied to a new study, each with
the parameters and domains that its values have in the larger space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from raykd.errors import Infeasible
from raykd.study.open_study import BoundStudy
from raykd.study.space.reuse import transfer_values
from raykd.tuning.records import Records

GROWTHS = "raykd.growths"
"""User attribute of Optuna's study: how often its space has grown; none: never."""


def copy_draws(
    source: optuna.Study, target: optuna.Study, bound: BoundStudy, records: Records
) -> None:
    """Copy all trials and user attributes of a study to one of a larger space.

    Trials keep their numbers.  A trial that has no place in the larger space becomes a failed one
    without parameters, which samplers ignore.

    Args:
        source: Optuna's study of the smaller space.
        target: a new, empty study.
        bound: the study with the larger space.
        records: of its trainings.
    """
    for name, value in source.user_attrs.items():
        target.set_user_attr(name, value)
    target.add_trials([_copied(trial, bound, records) for trial in source.get_trials(False)])


def redraw(bound: BoundStudy, params: Mapping[str, Any]) -> FixedTrial | None:
    """Return a point of a space with its domains; None if the values are not one.

    Args:
        bound: the study with the space.
        params: values of the sampler's parameters.
    """
    fixed = FixedTrial(dict(params))
    try:
        bound.draw(fixed)
    except Infeasible:
        pass  # a point whose values contradict one another has domains, too
    except ValueError:  # a value is missing or outside its domain
        return None
    return fixed


def _copied(trial: FrozenTrial, bound: BoundStudy, records: Records) -> FrozenTrial:
    if trial.state == TrialState.WAITING:
        return trial  # enqueued: it has no parameters yet
    record_id = str(trial.user_attrs.get("raykd.id"))
    params: Mapping[str, Any] = trial.params
    if record_id in records:
        params = transfer_values(bound.space, records[record_id].job.study).params
    point = redraw(bound, params)
    is_unfinished = trial.state == TrialState.RUNNING and record_id not in records
    if point is None or is_unfinished:
        return create_trial(state=TrialState.FAIL, user_attrs=trial.user_attrs)
    return create_trial(
        state=trial.state,
        values=trial.values if trial.state == TrialState.COMPLETE else None,
        params=point.params,
        distributions=point.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
