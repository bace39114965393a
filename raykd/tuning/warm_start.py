"""Beginning a search with what other studies found (`--start-from RUN`).

RUN is a study's folder, one of its trials (`FOLDER:trial-0007`), or the id of a run in MLflow: a
study's, or one of its trials'.  The winners' values that the new space can draw are its first
points; what it cannot take is left to the sampler, and said.  A layer study (`raykd pairs`) gives
its best pairing: of its `pairing.json` the `term`, the `loss`, and of `best` the `pairs` (a list of
`{hint, guided}`) and the `weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Task
from raykd.study.open_study import OpenStudy
from raykd.study.space.domains import label_of, near
from raykd.study.space.pairing import LayerPair
from raykd.study.space.sampling import Seeded
from raykd.study.space.space import read_space
from raykd.study.space.transfer import Transfer, open_paths, params_for_pairs, transfer_values
from raykd.study.yaml_file import parse_document, parse_place
from raykd.tracking.mlflow_reader import stored_study
from raykd.tuning.records import Record
from raykd.tuning.result import read_result
from raykd.tuning.study_dir import StudyFolder, open_folder

MARK = "raykd.start"
"""Optuna's user attribute: of the study all that began it, of a trial the winner it repeats."""

ATTEMPTS = 20
"""Draws of what a winner leaves open before it is said that no trial can be made of it."""

PAIRING, STORED_PAIRING = "pairing.json", "pairs/pairing.json"
"""What a layer study found: in its folder, and among the artifacts of its run."""


@dataclass(frozen=True)
class Winner:
    """What a search may begin with.

    Attributes:
        name: how it is called in messages.
        study: its concrete study as plain data; of a layer study the term alone.
        drawn: the places that its own search drew.
        pairs: of a layer study, the best pairing.
    """

    name: str
    study: Mapping[str, Any]
    drawn: tuple[str, ...]
    pairs: tuple[LayerPair, ...] = ()


@dataclass(frozen=True)
class Start:
    """A point to begin with.

    Attributes:
        name: of the winner.
        params: those of the new space's parameters that it settles.
        left_out: what else it had, and why it is left to the sampler, a sentence each.
    """

    name: str
    params: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "params": dict(self.params), "left_out": [*self.left_out]}


def starts(study: OpenStudy, task: Task, runs: Sequence[str]) -> list[Start]:
    """The points with which these runs can begin a search.

    Args:
        study: to be searched.
        task: what its models take and give.
        runs: as the user names them.

    Raises:
        StudyError: a run is not there, or nothing of them fits the study.
    """
    uri = study.settings.tracking.uri
    found = [_start(study, task, winner) for run in runs for winner in winners(run, uri)]
    if any(start.params for start in found):
        return found
    said = [line for start in found for line in start.left_out]
    more = f" and {len(said) - 5} more" if len(said) > 5 else ""
    why = "; ".join(said[:5]) + more
    raise StudyError(
        Problem(
            f"nothing of {', '.join(runs)} fits this study" + (f": {why}" if why else ""),
            fix="leave open what shall be taken over, or begin without --start-from",
        )
    )


def absolute(run: str) -> str:
    """The same run, named so that it is found from every working folder."""
    folder, _, trial = _parted(run)
    if not (folder / "folder.json").exists():
        return run
    return f"{folder.absolute()}:{trial}" if trial else str(folder.absolute())


def enqueue_start_points(
    drawn: optuna.Study, found: Sequence[Start], write: Callable[..., None]
) -> None:
    """Have Optuna draw these points before any others; said in the journal."""
    for start in found:
        if start.params:
            drawn.enqueue_trial(dict(start.params), user_attrs={MARK: start.name})
    drawn.set_user_attr(MARK, [start.plain() for start in found])
    lines = [line for start in found for line in start.left_out]
    tags = {"start_from": ", ".join(start.name for start in found)}
    if lines:
        tags["start_left_out"] = "\n".join(lines)
    write("note", id=None, tags=tags, metrics={}, step=0)


def _start(study: OpenStudy, task: Task, winner: Winner) -> Start:
    space = study.bind(task).space
    found = transfer_values(space, winner.study)
    if winner.pairs and not any(".pairs" in place for place in found.used):
        params = params_for_pairs(space, winner.pairs)
        found = Transfer(params, {*found.used, *(winner.drawn if params else ())}, found.rejected)
    why = _infeasible(study, task, found.params)
    if why:
        return Start(winner.name, {}, (f"{winner.name} is left out: {why}",))
    return Start(winner.name, found.params, tuple(_left_out(winner, found)))


def _infeasible(study: OpenStudy, task: Task, params: Mapping[str, Any]) -> str:
    """Why no trial can be made of these values; empty where one can."""
    why = ""
    for seed in range(ATTEMPTS):
        drawer = Seeded(seed)
        drawer.params.update(params)
        try:
            study.bind(task).draw(drawer)
        except Infeasible as error:
            why = str(error)
        else:
            return ""
    return why


def _left_out(winner: Winner, found: Transfer) -> Iterator[str]:
    for path in winner.drawn:
        there, value = _value(winner.study, path)
        reason = found.reason(path)
        if there and reason:
            yield f"{winner.name}: {path} = {_shown(value)} is left out: {reason}"


def _value(study: Any, path: str) -> tuple[bool, Any]:
    """Whether something stands at a path of plain data, and what."""
    for step in parse_place(path):
        held: Mapping[Any, Any] = study if isinstance(study, Mapping) else {}
        if isinstance(study, list):
            held = dict(enumerate(study))
        if step not in held:
            return False, None
        study = held[step]
    return True, study


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return ", ".join(f"{one.get('hint')}>{one.get('guided')}" for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(label_of(value))


# Where the winners are


def winners(run: str, uri: str) -> list[Winner]:
    """What a run found: a trial, or a study's chosen students, or its front.

    Args:
        run: a study's folder, `FOLDER:TRIAL`, or the id of a run in MLflow.
        uri: of the tracking store in which such an id is looked for.

    Raises:
        StudyError: there is no such run, or it found nothing.
    """
    folder, there, trial = _parted(run)
    if there:
        return _of_folder(*open_folder(folder), trial=trial)
    if re.fullmatch(r"[0-9a-f]{32}", run):
        return _of_store(run, uri)
    raise StudyError(
        Problem(
            f"--start-from {run}: there is no such folder, and it is no id of a run in MLflow",
            fix="name a study's folder, one of its trials as FOLDER:trial-0007, or a run's id",
        )
    )


def _parted(run: str) -> tuple[Path, bool, str]:
    """The folder a run names, whether it is there, and the trial."""
    whole = Path(run).expanduser()
    if whole.is_dir():
        return whole, True, ""
    folder, _, trial = run.rpartition(":")
    if folder and Path(folder).expanduser().is_dir():
        return Path(folder).expanduser(), True, trial
    return whole, False, ""


def _of_folder(folder: StudyFolder, overrides: Sequence[str], trial: str) -> list[Winner]:
    if folder.verb == "pairs" and not trial:
        file = folder.path / PAIRING
        return [_of_pairing(folder.name, file.read_text() if file.exists() else "")]
    drawn = _drawn(folder.given.read_text(), overrides)
    result = read_result(folder.path)
    if trial:
        found = [_trial(result.records.of("trial", "replicate", "probe"), trial, folder.name)]
    else:
        found = [finalist.trial for finalist in result.finalists]
    if not found:
        raise _nothing(folder.name)
    name = folder.name
    return [Winner(f"{name}:{one.id}", one.job.study, drawn) for one in found]


def _trial(records: Sequence[Record], trial: str, folder: str) -> Record:
    for record in records:
        if record.id == trial:
            return record
    known = [record.id for record in records]
    there = ", ".join(known[:20]) or "no trial"
    message = f"--start-from: {folder} has no {trial!r}; it has {there}"
    raise StudyError(Problem(message, fix=near(trial, known)))


def _of_store(run: str, uri: str) -> list[Winner]:
    try:
        found = stored_study(uri, run, (STORED_PAIRING,))
    except ValueError as error:
        raise StudyError(Problem(f"--start-from {run}: {error}")) from None
    if found is None:
        message = f"--start-from {run}: {uri} has no such run of raykd's"
        raise StudyError(Problem(message, path="tracking.uri", fix="name the store that has it"))
    if not found.trainings and STORED_PAIRING in found.texts:
        return [_of_pairing(found.name, found.texts[STORED_PAIRING])]
    if not found.trainings:
        raise _nothing(run)
    drawn = _drawn(found.given, ())
    return [Winner(f"{found.name}:{id}", held, drawn) for id, held in found.trainings.items()]


def _nothing(name: str) -> StudyError:
    message = f"--start-from: no trial of {name} ran to its end"
    return StudyError(Problem(message, fix="name one of its trials: FOLDER:trial-0007"))


def _of_pairing(name: str, text: str) -> Winner:
    """What a layer study found best.

    Raises:
        StudyError: it found nothing, or is not over.
    """
    try:
        told = json.loads(text)
        best, number = told["best"], int(told["term"])
        pairs = tuple(LayerPair(pair["hint"], pair["guided"]) for pair in best["pairs"])
        term = {"loss": best["loss"], "pairs": best["pairs"], "weight": best.get("weight")}
    except (ValueError, KeyError, TypeError):
        message = f"--start-from: the layer study {name} has found no best pairing"
        fix = "let it end (`raykd pairs --resume FOLDER`), or begin without it"
        raise StudyError(Problem(message, fix=fix)) from None
    drawn = (f"knowledge[{number}].pairs",)
    return Winner(name, {"knowledge": [*[None] * number, term]}, drawn, pairs)


def _drawn(given: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The places that a study file leaves open; none where it cannot be read any more."""
    try:
        space, _, _ = read_space(parse_document(given).with_overrides(overrides))
    except StudyError:
        return ()
    return open_paths(space)
