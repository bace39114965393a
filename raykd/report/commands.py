"""Commands that open the results of a search or continue it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.compat.packages import is_installed, launcher
from raykd.metrics import task_name
from raykd.tracking.cursor import Cursor
from raykd.tracking.events import Event, ModelSaved, StudyStarted
from raykd.tracking.journal import events
from raykd.tracking.mlflow_client import find_run, has_run, run_page, view_page
from raykd.tracking.mlflow_models import MODEL_NAME, logged_name
from raykd.tracking.mlflow_views import ARMS, TRIALS, view_key
from raykd.tracking.store_check import check_store
from raykd.tracking.store_uri import absolute, database_file, is_server, masked
from raykd.tuning.records import last_status
from raykd.tuning.result import saved_models
from raykd.tuning.stored_study import FETCHED, is_fetched
from raykd.tuning.study_dir import open_folder
from raykd.tuning.study_lock import active_driver

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.tuning.result import RunResult, StudyResult


@dataclass(frozen=True)
class Command:
    """A shell command, or an address to open.

    Attributes:
        name: a machine-readable name: "resume", "report", "file", "files", "sync", "mlflow",
            "page", "table", "optuna", "load", "export", "extend" or "compare".
        purpose: its purpose.
        text: the exact text to enter in a shell or a browser.
    """

    name: str
    purpose: str
    text: str


def search_commands(result: StudyResult, history: Sequence[Event]) -> list[Command]:
    """Return the commands that apply to the result of a search.

    Args:
        result: the result of the search.
        history: events of its journal.
    """
    here, runs = short_path(result.folder), _runs(result)
    if is_fetched(result.folder):
        return [
            _fetched_report(result.folder),
            *_mlflow_commands(result, runs),
            *_load_command(result, history, runs),
        ]
    return [
        *_raykd_commands(result, history, here, sent=_is_sent(result, runs, history)),
        *_browser_commands(result, runs),
        *_load_command(result, history, runs),
        *_further_commands(result, history, here, "--trials +8"),
    ]


def _fetched_report(folder: Path) -> Command:
    fetched = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
    text = f"{launcher()}raykd report {fetched['run']} --uri {shlex.quote(fetched['uri'])}"
    return Command("report", "show this summary again", text)


def layer_study_commands(result: LayerStudyResult, history: Sequence[Event]) -> list[Command]:
    """Return the commands that apply to the result of a layer study.

    Args:
        result: the result of the study.
        history: events of its journal.
    """
    here, runs = short_path(result.folder), _runs(result)
    if is_fetched(result.folder):
        return [_fetched_report(result.folder), *_mlflow_commands(result, runs)]
    commands = [Command("report", "show this summary again", f"{launcher()}raykd report {here}")]
    if run_status(result, history) not in ("finished", "running"):
        commands.insert(0, Command("resume", "resume the study", resume_command(result.folder)))
    pictures = [file for file in PICTURES if (result.folder / file).is_file()]
    if pictures:
        files = ", ".join([*pictures, "pairing.json", "pairs.csv"])
        commands.append(Command("files", f"pictures and data ({files})", here))
    if not _is_sent(result, runs, history):
        commands.append(
            Command("sync", "upload the runs to MLflow", f"{launcher()}raykd sync {here}")
        )
    more_seeds = f"--set search.pairs.seeds={len(result.plan.seeds) + 2}"
    further = _further_commands(result, history, here, more_seeds)
    return [*commands, *_page_file(result), *_mlflow_commands(result, runs), *further]


PICTURES = ("heatmap.png", "cka.png", "predictors.png")


def resume_command(folder: Path) -> str:
    verb = open_folder(folder)[0].verb if (folder / "folder.json").is_file() else "search"
    return f"{launcher()}raykd {verb} --resume {short_path(folder)}"


def _raykd_commands(
    result: StudyResult, history: Sequence[Event], here: str, *, sent: bool
) -> Iterator[Command]:
    if can_resume(result, history) and _is_search(history):
        yield Command("resume", "resume the study", resume_command(result.folder))
    yield Command("report", "show this summary again", f"{launcher()}raykd report {here}")
    yield from _page_file(result)
    if not sent:
        yield Command("sync", "upload the runs to MLflow", f"{launcher()}raykd sync {here}")


def _page_file(result: RunResult) -> Iterator[Command]:
    """Yield the file of the page that was written at the end of the run."""
    file = result.folder / "report" / "report.html"
    if file.is_file():
        yield Command("file", "open its page with figures in a browser", short_path(file))


def _further_commands(
    result: RunResult, history: Sequence[Event], here: str, growth: str
) -> Iterator[Command]:
    """Yield the commands that use the results of a search or layer study.

    Args:
        result: result of the run.
        history: events of its journal.
        here: its folder, quoted for the shell.
        growth: options with which `raykd extend` continues it.
    """
    raykd = f"{launcher()}raykd"
    if saved_models(history) and not _of_detectors(history):
        yield Command("export", "export the best student", f"{raykd} export {here} --to onnx")
    verb = open_folder(result.folder)[0].verb
    if verb in ("search", "pairs") and run_status(result, history) == "finished":
        yield Command("extend", "train more of it", f"{raykd} extend {here} {growth}")
    if result.records.of("trial"):
        yield Command("compare", "compare it with another study", f"{raykd} compare {here} OTHER")


def _of_detectors(history: Sequence[Event]) -> bool:
    """Return whether the study trains detectors, which are not exported."""
    started = next((event for event in history if isinstance(event, StudyStarted)), None)
    return started is not None and task_name(started.resolved) == "detection"


def _browser_commands(result: StudyResult, runs: _Runs) -> Iterator[Command]:
    yield from _mlflow_commands(result, runs)
    if result.records.of("trial"):
        yield _dashboard_command(open_folder(result.folder)[0].optuna)


def _mlflow_commands(result: RunResult, runs: _Runs) -> Iterator[Command]:
    uri = masked(result.tracking_uri)
    if is_server(uri):
        yield Command("mlflow", "open all runs in MLflow", uri.rstrip("/"))
    else:
        fetched = is_fetched(result.folder)
        study = f"--uri {shlex.quote(uri)}" if fetched else short_path(result.folder)
        yield Command("mlflow", "start MLflow and open its pages", f"{launcher()}raykd ui {study}")
    if runs.page:
        yield Command("page", "open this study in MLflow", runs.page)
    if runs.table:
        yield Command("table", "open its table in MLflow, the best first", runs.table)


def _dashboard_command(storage: str) -> Command:
    purpose, program = "open the search in Optuna Dashboard", "optuna-dashboard"
    if not is_installed("optuna_dashboard"):
        if launcher():
            program = "--with optuna-dashboard optuna-dashboard"
        else:
            purpose += " (python -m pip install optuna-dashboard)"
    return Command("optuna", purpose, f"{launcher()}{program} {shlex.quote(storage)}")


def run_status(result: RunResult, history: Sequence[Event]) -> str:
    """Return the state of a study: "running", "finished", "failed" or "interrupted".

    A study is "running" while a process works on it, but "finished" while that process only sends
    the last events to MLflow.  A study whose process died without a final status is "interrupted".

    Args:
        result: the result of the study.
        history: events of its journal.
    """
    status = last_status(history)
    if status != "finished" and active_driver(result.folder) is not None:
        return "running"
    return status


def can_resume(result: StudyResult, history: Sequence[Event]) -> bool:
    """Return True if `--resume` has work left to do and no other process is doing it."""
    now = run_status(result, history)
    left = result.records.running("teacher", "trial", "replicate", "alone")
    return now != "running" and (now != "finished" or bool(left))


def _is_search(history: Sequence[Event]) -> bool:
    """Return True for a search; `distill` and `teacher` runs are restarted, not resumed."""
    argv = next((event.argv for event in history if isinstance(event, StudyStarted)), ())
    return argv[1:2] not in (["distill"], ["teacher"])


@dataclass(frozen=True)
class _Runs:
    """The study's runs in MLflow.

    Attributes:
        page: the address of the study's page; empty if the store does not have it.
        table: the address of the table of its trials or arms; empty if it is unknown.
        complete: True if the whole journal was delivered.
        models: MLflow ids of the runs that have a model, by their id in the journal.
    """

    page: str = ""
    complete: bool = False
    models: Mapping[str, str] = field(default_factory=dict)
    table: str = ""


def _runs(result: RunResult) -> _Runs:
    """Return the study's runs as recorded at delivery, without a connection to the store."""
    uri, journal = result.tracking_uri, result.folder / "journal.jsonl"
    sent = Cursor(journal, masked(absolute(uri))).load()
    if not sent.end:
        return _Runs()
    if not sent.run:  # delivered by an older raykd, which stored no ids
        return _query_runs(result)
    if not has_run(uri, sent.run):
        return _Runs()
    complete = sent.end == journal.stat().st_size
    page, table = run_page(uri, sent.experiment, sent.run), ""
    if result.records.of("trial"):
        is_layer_study = any("arm" in each.job.tags for each in result.records.of("trial"))
        name = ARMS if is_layer_study else TRIALS
        table = view_page(uri, sent.experiment, view_key(name, result.study_id))
    return _Runs(page, complete, sent.runs, table)


def _is_sent(result: RunResult, runs: _Runs, history: Sequence[Event]) -> bool:
    """Return True if nothing is left to send.

    A running or resumed study sends the rest itself.
    """
    if run_status(result, history) == "running":
        return True
    return bool(runs.page) and (runs.complete or last_status(history) not in ("finished", "failed"))


def _query_runs(result: RunResult) -> _Runs:
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


def _load_command(result: StudyResult, history: Sequence[Event], runs: _Runs) -> Iterator[Command]:
    """Yield the command that loads the best chosen student, from MLflow or else from its file."""
    models = [*saved_models(history).values()]
    if not models:
        return
    model = next((m for m in models if "champion" in m.aliases), models[0])
    purpose = f"load the student of {model.id}"
    uri = _model_uri(model, runs)
    if uri is None:
        file = str(result.folder / (model.program or model.path))
        text = f"import torch; student = torch.load({file!r}, weights_only=False)"
        if model.program is not None:
            text = f"import torch; student = torch.export.load({file!r}).module()"
        yield Command("load", purpose, f"{launcher()}python -c {shlex.quote(text)}")
        return
    place = f"MLFLOW_TRACKING_URI={shlex.quote(masked(absolute(result.tracking_uri)))}"
    text = f'import mlflow; student = mlflow.pytorch.load_model("{uri}")'
    yield Command("load", purpose, f"{place} {launcher()}python -c {shlex.quote(text)}")


def _model_uri(model: ModelSaved, runs: _Runs) -> str | None:
    run_id = runs.models.get(model.id)
    if run_id is None:
        return None
    if model.register and "champion" in model.aliases:
        return f"models:/{model.register}@champion"
    return f"runs:/{run_id}/{logged_name(model.name or MODEL_NAME)}"


def short_path(path: Path) -> str:
    """Quote a path for the shell, relative to the working directory if it is inside it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
