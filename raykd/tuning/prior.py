"""Prior of a search: points near the better trials of the studies that it starts from.

`--start-from FOLDER` tries that study's finalists first.  Half of the random trials with which the
sampler would begin are then drawn near the better half of the study's other trials: each takes
every value of such a trial with the probability `KEEP_PROBABILITY`, and the sampler draws the rest.
Only ranks within the earlier study count, so that its data and the range of its metrics may differ.
The other random trials, and all that the sampler learns, are of the present study: if an earlier
study misleads, it costs a few trials.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raykd import pareto
from raykd.models import Signature
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.study.space.reuse import transfer_values
from raykd.study.yaml_file import parse_document
from raykd.tracking.events import Metrics, StartPoint
from raykd.tracking.mlflow_reader import stored_study
from raykd.tuning.result import read_result
from raykd.tuning.run_reference import split_reference
from raykd.tuning.study_dir import open_folder

KEEP_PROBABILITY = 0.75
"""Probability with which a point keeps a value of its earlier trial."""

IN_PART = " (in part)"
"""End of the name of a start point that takes a part of a trial's values."""


@dataclass(frozen=True)
class EarlierTrial:
    """Trial of an earlier study that ran whole.

    Attributes:
        name: for messages.
        study: concrete study as plain data.
        metrics: at its end.
    """

    name: str
    study: Mapping[str, Any]
    metrics: Metrics


def prior_points(
    study: OpenStudy, signature: Signature, runs: Sequence[str], count: int
) -> list[StartPoint]:
    """Draw start points near the better trials of earlier studies.

    Args:
        study: to be searched.
        signature: inputs and classes of its models.
        runs: folders, `FOLDER:TRIAL`, or ids of MLflow runs; only whole studies have a prior.
        count: number of points.

    Returns:
        At most `count` points; none if no study has enough trials that fit.
    """
    space = study.bind(signature).space
    draws = random.Random(study.settings.seed)
    better = [trial for run in runs for trial in _better_half(run, study.settings.tracking.uri)]
    candidates = [(trial.name, transfer_values(space, trial.study).params) for trial in better]
    candidates = [(name, params) for name, params in candidates if params]
    points: list[StartPoint] = []
    for _ in range(count if candidates else 0):
        name, params = draws.choice(candidates)
        part = {key: value for key, value in params.items() if draws.random() < KEEP_PROBABILITY}
        if part:
            points.append(StartPoint(name + IN_PART, part, ()))
    return points


def _better_half(run: str, uri: str) -> list[EarlierTrial]:
    """Return the better half of a study's trials, by non-dominated fronts."""
    folder, trial = split_reference(run)
    if trial:
        return []
    objectives, trials = _of_folder(run) if folder.is_dir() else _of_store(run, uri)
    whole = [each for each in trials if all(name in each.metrics for name in objectives)]
    losses = pareto.losses([each.metrics for each in whole], objectives)
    whole = [each for each, row in zip(whole, losses, strict=True) if np.isfinite(row).all()]
    losses = losses[np.isfinite(losses).all(axis=1)]
    if len(whole) < 2:
        return []
    order = np.argsort(pareto.ranks(losses), kind="stable")
    return [whole[index] for index in order[: (len(whole) + 1) // 2]]


def _of_folder(run: str) -> tuple[Mapping[str, str], list[EarlierTrial]]:
    folder, _ = open_folder(run)
    if folder.verb != "search":
        return {}, []
    result = read_result(folder.path)
    trials = [
        EarlierTrial(f"{folder.name}:{record.id}", record.job.study, record.metrics)
        for record in result.records.of("trial")
        if record.status == "finished"
    ]
    return result.objectives, trials


def _of_store(run: str, uri: str) -> tuple[Mapping[str, str], list[EarlierTrial]]:
    stored = stored_study(uri, run, with_trials=True)
    if stored is None or not stored.text:
        return {}, []
    search = parse_document(stored.text).data.get("search")
    written = search.get("objectives") if isinstance(search, Mapping) else None
    objectives = written if isinstance(written, Mapping) else Search().objectives
    trials = [
        EarlierTrial(f"{stored.name}:{name}", values, metrics)
        for name, (values, metrics) in stored.trials.items()
    ]
    return {str(name): str(direction) for name, direction in objectives.items()}, trials
