"""The models a study names, wherever it names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from raykd.architecture import Derived, Model, Task
from raykd.problems import Problem
from raykd.study.complaints import Finding
from raykd.study.place import Place, dotted
from raykd.study.schema import Study


def models_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, Model]]:
    """Every model in a concrete study, or in a part of it, with its place."""
    if isinstance(value, Model):
        yield place, value
    if dataclasses.is_dataclass(value):
        for held in dataclasses.fields(value):
            yield from models_in(getattr(value, held.name), (*place, held.name))
    elif isinstance(value, tuple):
        for number, held in enumerate(value):
            yield from models_in(held, (*place, number))


def import_findings(study: Study) -> Iterator[Finding]:
    """The models that would have code of their own run."""
    for place, model in models_in(study):
        if model.runs_code:
            what = f"'{model.name}' would run code that is not raykd's"
            mend = "if you trust it, allow it each time: --allow-import (allow_import=True)"
            yield Finding((*place, "name"), what, mend)


def derived_findings(study: Study) -> Iterator[Finding]:
    """The models of which nothing says what they are derived from."""
    for place, model in models_in(study):
        if not isinstance(model, Derived) or model.base is not None:
            continue
        mend = "name the teacher's `model`, or name a model under `base`"
        if place[0] == "teacher":
            why, mend = "it is the teacher itself", "name a model under `base`"
        elif study.teacher is None:
            why = "the study has no teacher"
        else:
            why = "the teacher is given by `weights` alone, which do not tell its architecture"
        what = f"nothing says what '{model.name}' is derived from: `base` is null, and {why}"
        yield Finding((*place, "base"), what, mend)


def check_models(study: Study, task: Task | None) -> Iterator[Problem]:
    """A `Check`: whether the weights that models start from can be had; fetches them."""
    for place, model in models_in(study):
        reason = _lacks(model, task) if task is not None else ""
        if reason:
            yield Problem(reason, path=dotted(place))


@lru_cache(maxsize=256)
def _lacks(model: Model, task: Task) -> str:
    try:
        model.prepare(task)
    except ValueError as error:
        return str(error)
    return ""
