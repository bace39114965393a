"""Warm start of a search with trials of other studies (`--start-from RUN`).

RUN is a study's folder, one of its trials (`FOLDER:trial-0007`), or the id of a run in MLflow: a
study's or a trial's.  The first points of the new search take every value of these trials that its
space can draw; the sampler draws the rest, and the values left out are reported.  A layer study
(`raykd pairs`) gives its best pairing: from its `pairing.json` the `term` and the `loss`, and from
`best` the `pairs` (a list of `{hint, guided}`) and the `weight`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from raykd.arguments import near
from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Signature
from raykd.study.open_study import OpenStudy
from raykd.study.space.domains import label_of
from raykd.study.space.pairing import LayerPair
from raykd.study.space.reuse import Transfer, open_paths, params_for_pairs, transfer_values
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import read_space
from raykd.study.yaml_file import parse_document, parse_place
from raykd.tracking.events import Note, StartPoint
from raykd.tracking.journal import Listener
from raykd.tracking.mlflow_reader import stored_study
from raykd.tuning.records import Record
from raykd.tuning.result import read_result
from raykd.tuning.run_reference import is_run_id, split_reference
from raykd.tuning.study_dir import StudyFolder, open_folder
from raykd.tuning.study_lookup import near_folders

MARK = "raykd.start"
"""Optuna's user attribute: for a study all start points, for a trial the name of its source."""

ATTEMPTS = 20
"""Draws of the values that a source trial leaves open, before it is declared infeasible."""

PAIRING, STORED_PAIRING = "pairing.json", "pairs/pairing.json"
"""Results of a layer study: in its folder, and among the artifacts of its MLflow run."""


@dataclass(frozen=True)
class SourceTrial:
    """Trial of another study, or best pairing of a layer study, to start a search from.

    Attributes:
        name: for messages.
        study: concrete study as plain data; for a layer study the term alone.
        drawn: places that its own search drew.
        pairs: best pairing of a layer study; empty for a trial.
    """

    name: str
    study: Mapping[str, Any]
    drawn: tuple[str, ...]
    pairs: tuple[LayerPair, ...] = ()


def start_points(study: OpenStudy, signature: Signature, runs: Sequence[str]) -> list[StartPoint]:
    """Return the start points that these runs give a search.

    Args:
        study: to be searched.
        signature: inputs and classes of its models.
        runs: folders, `FOLDER:TRIAL`, or ids of MLflow runs.

    Raises:
        StudyError: a run does not exist, or no value of them fits the study.
    """
    uri = study.settings.tracking.uri
    points = [
        _start_point(study, signature, source) for run in runs for source in source_trials(run, uri)
    ]
    if any(point.params for point in points):
        return points
    reasons = [line for point in points for line in point.left_out]
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    listed = ": " + "; ".join(reasons[:5]) + more if reasons else ""
    raise StudyError(
        Problem(
            f"no value of {', '.join(runs)} fits this study{listed}",
            fix="leave open the values to take over, or start without --start-from",
        )
    )


def absolute_reference(run: str) -> str:
    """Return the reference to a run with an absolute path."""
    folder, trial = split_reference(run)
    if not (folder / "folder.json").exists():
        return run
    return f"{folder.absolute()}:{trial}" if trial else str(folder.absolute())


def enqueue_start_points(
    drawn: optuna.Study, points: Sequence[StartPoint], publish: Listener
) -> None:
    """Enqueue points as Optuna's first trials, and publish their names."""
    for point in points:
        if point.params:
            drawn.enqueue_trial(dict(point.params), user_attrs={MARK: point.name})
    drawn.set_user_attr(MARK, [asdict(point) for point in points])
    lines = [line for point in points for line in point.left_out]
    tags = {"start_from": ", ".join(point.name for point in points)}
    if lines:
        tags["start_left_out"] = "\n".join(lines)
    publish(Note(None, tags))


def _start_point(study: OpenStudy, signature: Signature, source: SourceTrial) -> StartPoint:
    space = study.bind(signature).space
    values = transfer_values(space, source.study)
    if source.pairs and not any(".pairs" in place for place in values.used):
        params = params_for_pairs(space, source.pairs)
        values = Transfer(
            params, {*values.used, *(source.drawn if params else ())}, values.rejected
        )
    reason = _infeasible(study, signature, values.params)
    if reason:
        return StartPoint(source.name, {}, (f"{source.name} is left out: {reason}",))
    return StartPoint(source.name, values.params, tuple(_left_out(source, values)))


def _infeasible(study: OpenStudy, signature: Signature, params: Mapping[str, Any]) -> str:
    """Return the reason why no trial with these values is feasible; "" if one is."""
    reason = ""
    for seed in range(ATTEMPTS):
        drawer = Seeded(seed)
        drawer.params.update(params)
        try:
            study.bind(signature).draw(drawer)
        except Infeasible as error:
            reason = str(error)
        else:
            return ""
    return reason


def _left_out(source: SourceTrial, values: Transfer) -> Iterator[str]:
    for path in source.drawn:
        exists, value = _value(source.study, path)
        reason = values.reason(path)
        if exists and reason:
            yield f"{source.name}: {path} = {_text(value)} is left out: {reason}"


def _value(study: Any, path: str) -> tuple[bool, Any]:
    """Return True and the value at a path of plain data, or False and None."""
    for step in parse_place(path):
        items: Mapping[Any, Any] = study if isinstance(study, Mapping) else {}
        if isinstance(study, list):
            items = dict(enumerate(study))
        if step not in items:
            return False, None
        study = items[step]
    return True, study


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(pair, Mapping) for pair in value):
        return ", ".join(f"{pair.get('hint')}>{pair.get('guided')}" for pair in value)
    return f"{value:.4g}" if isinstance(value, float) else str(label_of(value))


# Reading source trials from folders and from MLflow


def source_trials(run: str, uri: str) -> list[SourceTrial]:
    """Return the trial that a run names, or the finalists of a study.

    Args:
        run: a study's folder, `FOLDER:TRIAL`, or the id of a run in MLflow.
        uri: of the tracking store that has runs with such ids.

    Raises:
        StudyError: the run does not exist, or has no finished trial.
    """
    folder, trial = split_reference(run)
    if folder.is_dir():
        return _of_folder(*open_folder(folder), trial=trial)
    if is_run_id(run):
        return _of_store(run, uri)
    text = f"--start-from {run}: this is neither a folder nor the id of an MLflow run"
    raise StudyError(Problem(text, fix=near_folders(run)))


def _of_folder(folder: StudyFolder, overrides: Sequence[str], trial: str) -> list[SourceTrial]:
    if folder.verb == "pairs" and not trial:
        file = folder.path / PAIRING
        return [_of_pairing(folder.name, file.read_text() if file.exists() else "")]
    drawn = _drawn(folder.study_file.read_text(), overrides)
    result = read_result(folder.path)
    if trial:
        trials = [_trial(result.records.of("trial", "replicate", "probe"), trial, folder.name)]
    else:
        trials = [finalist.trial for finalist in result.finalists]
    if not trials:
        raise _no_trial(folder.name)
    name = folder.name
    return [SourceTrial(f"{name}:{each.id}", each.job.study, drawn) for each in trials]


def _trial(records: Sequence[Record], trial: str, folder: str) -> Record:
    for record in records:
        if record.id == trial:
            return record
    ids = [record.id for record in records]
    listed = ", ".join(ids[:20]) or "no trial"
    text = f"--start-from: {folder} has no {trial!r}; it has {listed}"
    raise StudyError(Problem(text, fix=near(trial, ids)))


def _of_store(run: str, uri: str) -> list[SourceTrial]:
    try:
        stored = stored_study(uri, run, (STORED_PAIRING,))
    except ValueError as error:
        raise StudyError(Problem(f"--start-from {run}: {error}")) from None
    if stored is None:
        text = f"--start-from {run}: {uri} has no such run of raykd"
        raise StudyError(Problem(text, path="tracking.uri", fix="name the store that has it"))
    if not stored.trainings and STORED_PAIRING in stored.texts:
        return [_of_pairing(stored.name, stored.texts[STORED_PAIRING])]
    if not stored.trainings:
        raise _no_trial(run)
    drawn = _drawn(stored.text, ())
    trainings = stored.trainings.items()
    return [SourceTrial(f"{stored.name}:{id}", study, drawn) for id, study in trainings]


def _no_trial(name: str) -> StudyError:
    text = f"--start-from: no trial of {name} has finished"
    return StudyError(Problem(text, fix="name one of its trials: FOLDER:trial-0007"))


def _of_pairing(name: str, text: str) -> SourceTrial:
    """Return the best pairing of a layer study.

    Raises:
        StudyError: it has none, or has not finished.
    """
    try:
        content = json.loads(text)
        best, number = content["best"], int(content["term"])
        pairs = tuple(LayerPair(pair["hint"], pair["guided"]) for pair in best["pairs"])
        term = {"loss": best["loss"], "pairs": best["pairs"], "weight": best.get("weight")}
    except (ValueError, KeyError, TypeError):
        message = f"--start-from: layer study {name} has no best pairing"
        fix = "finish it (`raykd pairs --resume FOLDER`), or start without it"
        raise StudyError(Problem(message, fix=fix)) from None
    drawn = (f"knowledge[{number}].pairs",)
    return SourceTrial(name, {"knowledge": [*[None] * number, term]}, drawn, pairs)


def _drawn(text: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the places that a study file leaves open; none if it can no longer be read."""
    try:
        space, _, _ = read_space(parse_document(text).with_overrides(overrides))
    except StudyError:
        return ()
    return open_paths(space)
