"""Studies read from MLflow, as on a machine without their folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raykd.cli.commands import app
from raykd.report.dashboards import pages_of_folder
from raykd.report.status import read_status
from raykd.report.stored_status import open_store, read_stored_status
from raykd.tracking import Journal, find_run, upload_journal
from raykd.tracking.events import EpochFinished, RunEnded, RunStarted, StudyEnded, StudyStarted
from raykd.tracking.mlflow_client import UI_ADDRESS
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

STUDY = """\
name: elsewhere
data: {name: digits, limit: 200, val_limit: 60}
student: {model: {name: mlp, depth: 1, width: {int: [4, 16]}}}
scheme: alone
train: {epochs: 2, batch_size: 32}
search: {objectives: {val_accuracy: max, params: min}, trials: 4, replicates: 2, finalists: 1}
cluster: {storage: 'FOLDER/studies'}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    root = tmp_path_factory.mktemp("elsewhere")
    file = root / "study.yaml"
    file.write_text(STUDY.replace("FOLDER", str(root)))
    return SearchRun(load_or_use(file)).run(LocalExecutor())


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without studies, in which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run_id(result: StudyResult, training: str = "") -> str:
    stored = find_run(result.tracking_uri, "/".join(filter(None, [result.study_id, training])))
    assert stored is not None
    return stored.run_id


def test_status_is_that_of_folder(result: StudyResult, away: Path) -> None:
    here, store = read_status(result.folder), open_store(result.tracking_uri)
    assert result.best is not None
    for reference in (
        run_id(result),
        run_id(result, result.best.id),
        f"studies/{result.folder.name}",
    ):
        status = read_stored_status(store, reference)
        assert status.folder is None and status.run_id == run_id(result)
        same = replace(
            status,
            folder=here.folder,
            run_id="",
            page="",
            best=here.best,
            quiet_seconds=0.0,
            extensions=here.extensions,
        )
        assert same == replace(here, quiet_seconds=0.0, started=status.started)
        assert status.best.partition(": ")[2] == here.best.partition(": ")[2]
    printed = run("status", result.folder.name, "--tracking-uri", result.tracking_uri)
    assert printed.exit_code == 0 and "4 of 4 planned" in printed.output
    assert "read from MLflow" in printed.output
    assert list(away.iterdir()) == []


def test_report_is_that_of_folder(
    result: StudyResult, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = json.loads(run("report", str(result.folder), "--json").stdout)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", result.tracking_uri)
    printed = run("report", run_id(result), "--json")
    there = json.loads(printed.stdout)
    commands = there["commands"]
    assert set(commands) == {"report", "mlflow", "page", "table", "load"}
    assert f"raykd report {run_id(result)} --uri" in commands["report"]
    for facts in (here, there):
        del facts["at"], facts["commands"], facts["folder"]
    assert there == here
    page = run("report", result.folder.name, "-o", str(away / "page"))
    assert page.exit_code == 0
    text = (away / "page" / "report.html").read_text()
    assert "raykd report" in text and "/raykd-" not in text.replace("/raykd-trials", "")
    assert [path.name for path in away.iterdir()] == ["page"]


def test_pages_of_folder(result: StudyResult) -> None:
    (result.folder / "report").mkdir(exist_ok=True)
    (result.folder / "report" / "report.html").write_text("<p>report</p>")
    pages = pages_of_folder(result.folder)
    assert pages.uri == result.tracking_uri and Path(pages.optuna).is_file()
    links = {link.name: link.address for link in pages.links}
    assert set(links) == {"study in MLflow", "table in MLflow", "report"}
    assert links["study in MLflow"].startswith(f"{UI_ADDRESS}/#/experiments/")
    assert run_id(result) in links["study in MLflow"]
    assert links["report"] == f"file://{result.folder.resolve()}/report/report.html"


def test_studies_in_mlflow_are_listed(result: StudyResult, away: Path) -> None:
    printed = run("ls", "--tracking-uri", result.tracking_uri, "--json")
    (state,) = json.loads(printed.stdout)
    assert (state["name"], state["status"], state["trials"]) == (
        "elsewhere",
        "finished",
        {"finished": 4},
    )
    assert result.best is not None and state["best"].startswith(result.best.id)
    assert run_id(result) in run("ls", "--uri", result.tracking_uri).output.replace("\n", "")


def test_running_study(result: StudyResult, away: Path) -> None:
    resolved = {"search": {"trials": 9, "objectives": {"val_accuracy": "max"}}}
    file = "/far/away/studies/night-20260101-120000/study.yaml"
    argv = ["raykd", "search", "night.yaml"]
    with Journal(away / "far" / "journal.jsonl") as journal:
        journal.append(
            StudyStarted(
                "night", name="night", text="name: night", file=file, argv=argv, resolved=resolved
            )
        )
        tags = {"student": "mlp(width=8)", "losses": "kd", "pairs": "none"}
        for number in range(3):
            params = {"train.epochs": 5}
            id = f"trial-{number:04d}"
            journal.append(RunStarted(id, role="trial", params=params, tags=tags))
            metrics = {"val_accuracy": 0.5 + number / 10, "train_loss": 1.0}
            journal.append(EpochFinished(id, 1, metrics))
            journal.append(EpochFinished(id, 2, metrics))
        journal.append(RunEnded("trial-0000", "finished", metrics={"val_accuracy": 0.5}))
        journal.append(RunEnded("trial-0001", "failed", reason="loss is nan"))
        upload_journal(journal.path, result.tracking_uri)
        status = read_stored_status(open_store(result.tracking_uri), "night-20260101-120000")
        assert (status.status, status.planned_trials) == ("running", 9)
        assert status.trials == {"finished": 1, "failed": 1, "running": 1}
        (running,) = status.running
        assert (running.id, running.epochs, running.metric, running.value) == (
            "trial-0002",
            (2, 5),
            "val_accuracy",
            0.7,
        )
        assert (running.student, running.learns_from) == ("mlp(width=8)", "kd")
        of_name = read_stored_status(open_store(result.tracking_uri), status.name)
        assert of_name.run_id == status.run_id
        assert list(status.failures) == ["loss is nan"] and status.best.startswith("trial-0000")
        printed = run("status", status.run_id, "--uri", result.tracking_uri).output
        assert "2/5" in printed and "70.00%" in printed
        refused = run("report", status.run_id, "--uri", result.tracking_uri)
        assert refused.exit_code == 2 and f"raykd status {status.run_id}" in refused.output
        journal.append(StudyEnded("interrupted"))
        upload_journal(journal.path, result.tracking_uri)
    refused = run("report", status.run_id, "--uri", result.tracking_uri)
    assert refused.exit_code == 2 and "has no study/folder.json of study night" in refused.output
    assert "raykd sync night-20260101-120000 --from-start" in refused.output


@pytest.mark.parametrize("verb", ["status", "report"])
@pytest.mark.parametrize("name", ["unknown", "0" * 32])
def test_one_message_for_unknown_study(
    verb: str, name: str, result: StudyResult, away: Path
) -> None:
    refused = run(verb, name, "--uri", result.tracking_uri)
    assert refused.exit_code == 2 and f"has no study or run '{name}' of raykd" in refused.output
    lost = run(verb, name)
    assert lost.exit_code == 2 and "is not a study's folder on this machine" in lost.output
    assert "mlflow.db" in lost.output and list(away.iterdir()) == []
    silent = run(verb, name, "--uri", "http://127.0.0.1:9")
    assert silent.exit_code == 2 and "no answer" in silent.output
