"""The exact commands with which a user opens a search's results and goes on from there."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.search.folder import open_folder
from raykd.search.pairs.result import PairsResult
from raykd.search.result import StudyResult
from raykd.tracking.store import (
    FoundRun,
    absolute,
    check_store,
    database_file,
    find_run,
    masked,
    ui_command,
)

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """Something to type, or an address to open.

    Attributes:
        name: a word for machines: "mlflow", "page", "optuna", "report", "resume", "sync", "load".
        what: what it does.
        text: to be typed into a shell (or a browser) as it stands.
    """

    name: str
    what: str
    text: str


def commands(result: StudyResult, told: Sequence[Event]) -> list[Command]:
    """What can be done with a result.

    Args:
        result: of the search.
        told: its journal.
    """
    here, run = _short(result.folder), _find(result)
    return [
        *_raykd(result, told, here, sent=run is not None),
        *_browsers(result, run),
        *_load(result, told, run),
    ]


def launcher() -> str:
    """What stands before a command so that it runs as this one does: "uv run " or nothing."""
    return "uv run " if os.environ.get("UV_RUN_RECURSION_DEPTH") else ""


def pairs_commands(result: PairsResult, told: Sequence[Event]) -> list[Command]:
    """What can be done with the result of a layer study.

    Args:
        result: of the study.
        told: its journal.
    """
    here, run = _short(result.folder), _find(result)
    found = [Command("report", "see this summary again", f"{launcher()}raykd report {here}")]
    if ended(told) != "finished":
        found.insert(0, Command("resume", "go on", resume_command(result.folder)))
    pictures = [file for file in PICTURES if (result.folder / file).is_file()]
    if pictures:
        files = ", ".join([*pictures, "pairing.json", "pairs.csv"])
        found.append(Command("files", f"pictures and data ({files})", here))
    if run is None:
        found.append(Command("sync", "send the runs to MLflow", f"{launcher()}raykd sync {here}"))
    return [*found, *_opened(result, run)]


PICTURES = ("heatmap.png", "cka.png", "predictors.png")


def resume_command(folder: Path) -> str:
    verb = open_folder(folder)[0].verb if (folder / "folder.json").is_file() else "search"
    return f"{launcher()}raykd {verb} --resume {_short(folder)}"


def _raykd(
    result: StudyResult, told: Sequence[Event], here: str, *, sent: bool
) -> Iterator[Command]:
    if unfinished(result, told) and _is_search(told):
        yield Command("resume", "go on", resume_command(result.folder))
    yield Command("report", "see this summary again", f"{launcher()}raykd report {here}")
    if not sent:
        yield Command("sync", "send the runs to MLflow", f"{launcher()}raykd sync {here}")


def _browsers(result: StudyResult, run: FoundRun | None) -> Iterator[Command]:
    yield from _opened(result, run)
    if result.records.of("trial"):
        yield _dashboard(open_folder(result.folder)[0].optuna)


def _opened(result: StudyResult | PairsResult, run: FoundRun | None) -> Iterator[Command]:
    opened = ui_command(result.tracking_uri)
    if not opened.startswith("http"):
        opened = launcher() + opened
    yield Command("mlflow", "open all runs in MLflow", opened)
    if run is not None:
        yield Command("page", "this study's page there", run.page)


def _dashboard(storage: str) -> Command:
    what, program = "open the search in Optuna's dashboard", "optuna-dashboard"
    if importlib.util.find_spec("optuna_dashboard") is None:
        if launcher():
            program = "--with optuna-dashboard optuna-dashboard"
        else:
            what += " (python -m pip install optuna-dashboard)"
    return Command("optuna", what, f"{launcher()}{program} {shlex.quote(storage)}")


def ended(told: Sequence[Event]) -> str:
    """How the search ended: its last `done` status, "interrupted" where there is none."""
    for event in reversed(told):
        if event["event"] == "done":
            return event["status"]
        if event["event"] == "study":
            break
    return "interrupted"


def unfinished(result: StudyResult, told: Sequence[Event]) -> bool:
    """Whether `--resume` would find something to do."""
    running = result.records.running("teacher", "trial", "replicate", "alone")
    return ended(told) != "finished" or bool(running)


def _is_search(told: Sequence[Event]) -> bool:
    """Whether it was a search: `distill` and `teacher` are begun anew rather than gone on with."""
    argv = next((event["argv"] for event in told if event["event"] == "study"), [])
    return argv[1:2] not in (["distill"], ["teacher"])


def _find(result: StudyResult | PairsResult, run_id: str = "") -> FoundRun | None:
    """The run of the study, or of one of its trainings, where the store answers at once and has
    it."""
    file = database_file(result.tracking_uri)
    if file is not None and not file.exists():
        return None  # looking into it would create it
    if not check_store(result.tracking_uri, timeout=2).ok:
        return None
    try:
        return find_run(result.tracking_uri, f"{result.study_id}/{run_id}".rstrip("/"))
    except ValueError:
        return None


def _load(result: StudyResult, told: Sequence[Event], run: FoundRun | None) -> Iterator[Command]:
    """How the best chosen student is loaded: from MLflow where it is there, else its file."""
    models = [event for event in told if event["event"] == "model"]
    if not models:
        return
    model = next((m for m in models if "champion" in m["aliases"]), models[0])
    what = f"load the student of {model['id']}"
    uri = _model_uri(result, model, run)
    if uri is None:
        file = result.folder / model["path"]
        text = f"import torch; student = torch.load({str(file)!r}, weights_only=False)"
        yield Command("load", what, f"{launcher()}python -c {shlex.quote(text)}")
        return
    place = f"MLFLOW_TRACKING_URI={shlex.quote(masked(absolute(result.tracking_uri)))}"
    text = f'import mlflow; student = mlflow.pytorch.load_model("{uri}")'
    yield Command("load", what, f"{place} {launcher()}python -c {shlex.quote(text)}")


def _model_uri(result: StudyResult, model: Event, run: FoundRun | None) -> str | None:
    if run is None:
        return None
    if model.get("register") and "champion" in model["aliases"]:
        return f"models:/{model['register']}@champion"
    trained = _find(result, model["id"])
    return None if trained is None else f"runs:/{trained.run_id}/model"


def _short(path: Path) -> str:
    """`path` as it is typed from here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
