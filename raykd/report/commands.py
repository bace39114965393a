"""Commands that open the results of a search or continue it."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.tracking.cursor import Cursor
from raykd.tracking.events import Event, ModelSaved, StudyEnded, StudyStarted
from raykd.tracking.journal import events
from raykd.tracking.mlflow_client import (
    absolute,
    check_store,
    database_file,
    find_run,
    has_run,
    masked,
    run_page,
    ui_command,
)
from raykd.tracking.mlflow_models import MODEL_NAME, logged_name
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_lock import active_driver

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.tuning.result import StudyResult


@dataclass(frozen=True)
class Command:
    """A shell command, or an address to open.

    Attributes:
        name: a machine-readable name: "mlflow", "page", "optuna", "report", "resume", "sync" or
            "load".
        what: its purpose.
        text: the exact text to enter in a shell or a browser.
    """

    name: str
    what: str
    text: str


def commands(result: StudyResult, told: Sequence[Event]) -> list[Command]:
    """Return the commands that apply to the result of a search.

    Args:
        result: the result of the search.
        told: events of its journal.
    """
    here, runs = _short(result.folder), _runs(result)
    return [
        *_raykd(result, told, here, sent=_is_sent(result, runs, told)),
        *_browsers(result, runs),
        *_load(result, told, runs),
    ]


def launcher() -> str:
    """Return the prefix that runs a command the way this one was run: "uv run " or nothing."""
    return "uv run " if os.environ.get("UV_RUN_RECURSION_DEPTH") else ""


def pairs_commands(result: LayerStudyResult, told: Sequence[Event]) -> list[Command]:
    """Return the commands that apply to the result of a layer study.

    Args:
        result: the result of the study.
        told: events of its journal.
    """
    here, runs = _short(result.folder), _runs(result)
    found = [Command("report", "show this summary again", f"{launcher()}raykd report {here}")]
    if state(result, told) not in ("finished", "running"):
        found.insert(0, Command("resume", "resume the study", resume_command(result.folder)))
    pictures = [file for file in PICTURES if (result.folder / file).is_file()]
    if pictures:
        files = ", ".join([*pictures, "pairing.json", "pairs.csv"])
        found.append(Command("files", f"pictures and data ({files})", here))
    if not _is_sent(result, runs, told):
        found.append(Command("sync", "upload the runs to MLflow", f"{launcher()}raykd sync {here}"))
    return [*found, *_opened(result, runs)]


PICTURES = ("heatmap.png", "cka.png", "predictors.png")


def resume_command(folder: Path) -> str:
    verb = open_folder(folder)[0].verb if (folder / "folder.json").is_file() else "search"
    return f"{launcher()}raykd {verb} --resume {_short(folder)}"


def _raykd(
    result: StudyResult, told: Sequence[Event], here: str, *, sent: bool
) -> Iterator[Command]:
    if unfinished(result, told) and _is_search(told):
        yield Command("resume", "resume the study", resume_command(result.folder))
    yield Command("report", "show this summary again", f"{launcher()}raykd report {here}")
    if not sent:
        yield Command("sync", "upload the runs to MLflow", f"{launcher()}raykd sync {here}")


def _browsers(result: StudyResult, runs: _Runs) -> Iterator[Command]:
    yield from _opened(result, runs)
    if result.records.of("trial"):
        yield _dashboard(open_folder(result.folder)[0].optuna)


def _opened(result: StudyResult | LayerStudyResult, runs: _Runs) -> Iterator[Command]:
    opened = ui_command(result.tracking_uri)
    if not opened.startswith("http"):
        opened = launcher() + opened
    yield Command("mlflow", "open all runs in MLflow", opened)
    if runs.page:
        yield Command("page", "open this study in MLflow", runs.page)


def _dashboard(storage: str) -> Command:
    what, program = "open the search in Optuna Dashboard", "optuna-dashboard"
    if importlib.util.find_spec("optuna_dashboard") is None:
        if launcher():
            program = "--with optuna-dashboard optuna-dashboard"
        else:
            what += " (python -m pip install optuna-dashboard)"
    return Command("optuna", what, f"{launcher()}{program} {shlex.quote(storage)}")


def state(result: StudyResult | LayerStudyResult, told: Sequence[Event]) -> str:
    """Return the state of a study: "running", "finished", "failed" or "interrupted".

    A study is "running" while a process works on it.  A study whose process died without a final
    status is "interrupted".

    Args:
        result: the result of the study.
        told: events of its journal.
    """
    return "running" if active_driver(result.folder) is not None else ended(told)


def ended(told: Sequence[Event]) -> str:
    """Return the last `done` status of the study, or "interrupted" if there is none."""
    for event in reversed(told):
        if isinstance(event, StudyEnded):
            return event.status
        if isinstance(event, StudyStarted):
            break
    return "interrupted"


def unfinished(result: StudyResult, told: Sequence[Event]) -> bool:
    """Return True if `--resume` has work left to do and no other process is doing it."""
    now = state(result, told)
    left = result.records.running("teacher", "trial", "replicate", "alone")
    return now != "running" and (now != "finished" or bool(left))


def _is_search(told: Sequence[Event]) -> bool:
    """Return True for a search; `distill` and `teacher` runs are restarted, not resumed."""
    argv = next((event.argv for event in told if isinstance(event, StudyStarted)), ())
    return argv[1:2] not in (["distill"], ["teacher"])


@dataclass(frozen=True)
class _Runs:
    """The study's runs in MLflow.

    Attributes:
        page: the address of the study's page; empty if the store does not have it.
        complete: True if the whole journal was delivered.
        models: MLflow ids of the runs that have a model, by their id in the journal.
    """

    page: str = ""
    complete: bool = False
    models: Mapping[str, str] = field(default_factory=dict)


def _runs(result: StudyResult | LayerStudyResult) -> _Runs:
    """Return the study's runs as recorded at delivery, without a connection to the store."""
    uri, journal = result.tracking_uri, result.folder / "journal.jsonl"
    sent = Cursor(journal, masked(absolute(uri))).load()
    if not sent.end:
        return _Runs()
    if not sent.run:  # delivered by an older raykd, which stored no ids
        return _asked(result)
    if not has_run(uri, sent.run):
        return _Runs()
    complete = sent.end == journal.stat().st_size
    return _Runs(run_page(uri, sent.experiment, sent.run), complete, sent.runs)


def _is_sent(result: StudyResult | LayerStudyResult, runs: _Runs, told: Sequence[Event]) -> bool:
    """Return True if nothing is left to send.

    A running or resumed study sends the rest itself.
    """
    if state(result, told) == "running":
        return True
    return bool(runs.page) and (runs.complete or ended(told) not in ("finished", "failed"))


def _asked(result: StudyResult | LayerStudyResult) -> _Runs:
    """Query MLflow for the study's runs."""
    uri = result.tracking_uri
    file = database_file(uri)
    if file is not None and not file.exists():
        return _Runs()  # a query would create the store
    if not check_store(uri, timeout=2).ok:
        return _Runs()
    saved = events(result.folder / "journal.jsonl")
    with_model = {event.id for event in saved if isinstance(event, ModelSaved)}
    try:
        study = find_run(uri, result.study_id)
        models = {id: find_run(uri, f"{result.study_id}/{id}") for id in with_model}
    except ValueError:
        return _Runs()
    if study is None:
        return _Runs()
    return _Runs(study.page, True, {id: run.run_id for id, run in models.items() if run})


def _load(result: StudyResult, told: Sequence[Event], runs: _Runs) -> Iterator[Command]:
    """Yield the command that loads the best chosen student, from MLflow or else from its file."""
    models = [event for event in told if isinstance(event, ModelSaved)]
    if not models:
        return
    model = next((m for m in models if "champion" in m.aliases), models[0])
    what = f"load the student of {model.id}"
    uri = _model_uri(model, runs)
    if uri is None:
        file = result.folder / model.path
        text = f"import torch; student = torch.load({str(file)!r}, weights_only=False)"
        yield Command("load", what, f"{launcher()}python -c {shlex.quote(text)}")
        return
    place = f"MLFLOW_TRACKING_URI={shlex.quote(masked(absolute(result.tracking_uri)))}"
    text = f'import mlflow; student = mlflow.pytorch.load_model("{uri}")'
    yield Command("load", what, f"{place} {launcher()}python -c {shlex.quote(text)}")


def _model_uri(model: ModelSaved, runs: _Runs) -> str | None:
    run_id = runs.models.get(model.id)
    if run_id is None:
        return None
    if model.register and "champion" in model.aliases:
        return f"models:/{model.register}@champion"
    return f"runs:/{run_id}/{logged_name(model.name or MODEL_NAME)}"


def _short(path: Path) -> str:
    """Quote a path for the shell, relative to the working directory if it is inside it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
