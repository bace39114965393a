"""From a journal to a sqlite store, in the foreground."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from torch import nn

from helpers.mlflow_runs import Store
from helpers.small_study import FINGERPRINT, STUDY, network, start, trial
from raykd.models.preprocessing import Preprocessing, RawInputModel
from raykd.tracking import Journal, Tracker, find_run, load_model_uri, upload_journal
from raykd.tracking.cursor import Cursor, Sent
from raykd.tracking.events import (
    ArtifactSaved,
    EpochFinished,
    ModelSaved,
    Note,
    RunEnded,
    RunPaused,
    RunPromoted,
    RunStarted,
    StudyEnded,
    StudyStarted,
)
from raykd.tracking.mlflow_client import connect, has_run, run_page
from raykd.tracking.mlflow_models import _read
from raykd.tracking.mlflow_values import clean_key, cut, run_params, split_finite


def test_study_becomes_nested_runs(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(RunStarted("teacher-0", role="teacher", params={"model.depth": 14}))
    journal.append(RunEnded("teacher-0", "finished", metrics={"test_accuracy": 0.98}))
    id = trial(journal, 7)
    journal.append(RunStarted(f"{id}/seed-1", role="replicate", parent=id, seed=1))
    journal.append(EpochFinished(f"{id}/seed-1", 1, {"val_accuracy": 0.9}))
    journal.append(RunEnded(f"{id}/seed-1", "finished", metrics={"test_accuracy": 0.91}))
    journal.append(RunStarted("trial-0008", role="trial"))
    journal.append(RunEnded("trial-0008", "stopped", reason="asha: rung 2"))
    journal.append(RunStarted("trial-0009", role="trial"))
    journal.append(RunEnded("trial-0009", "failed", reason="loss is nan in epoch 1"))
    journal.append(Note(tags={"best": id}, metrics={"gain": 0.02}, step=3))
    journal.append(StudyEnded())
    status = upload_journal(journal.path, uri)
    assert (status.pending, status.refused, status.error) == (0, 0, "")

    store = Store(uri)
    parent = store.run().info.run_id
    assert store.run().info.run_name == "digits"
    assert store.run().info.status == "FINISHED"
    run = store.run(id)
    assert run.info.run_name == id
    assert run.data.params == {
        "knowledge.0.loss.temperature": "4.0",
        "student.model.depth": "15",
        "seed": "3",
    }
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert (tags["raykd.role"], tags["raykd.study"], tags["losses"]) == ("trial", STUDY, "kd")
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert tags["raykd.status"] == "finished"
    assert [point[:2] for point in store.history(id, "val_accuracy")] == [(1, 0.25), (2, 0.5)]
    assert [point[:2] for point in store.history(id, "params")] == [(2, 1000.0)]
    replicate = store.run(f"{id}/seed-1")
    assert replicate.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert replicate.data.params["seed"] == "1"
    stopped, failed = store.run("trial-0008"), store.run("trial-0009")
    assert stopped.info.status == "FINISHED"
    assert stopped.data.tags["raykd.status"] == "stopped"
    assert stopped.data.tags["raykd.reason"] == "asha: rung 2"
    assert failed.info.status == "FAILED"
    assert failed.data.tags["raykd.reason"] == "loss is nan in epoch 1"
    assert store.run().data.tags["best"] == id
    assert store.run().data.metrics == {"gain": 0.02}
    stopped_runs = store.client.search_runs(
        [store.experiment.experiment_id], "tags.`raykd.status` = 'stopped'"
    )
    assert [each.info.run_name for each in stopped_runs] == ["trial-0008"]


def test_paused_trial_is_neither_failed_nor_killed(journal: Journal, uri: str) -> None:
    start(journal)
    statuses = []
    events = [
        RunStarted("trial-0001", role="trial"),
        RunPaused("trial-0001", 2),
        StudyEnded("interrupted"),
        RunPromoted("trial-0001", 2),
        RunEnded("trial-0001", "finished"),
    ]
    for event in events:
        journal.append(event)
        upload_journal(journal.path, uri)
        run = Store(uri).run("trial-0001")
        statuses.append((run.info.status, run.data.tags["raykd.status"]))
    paused, running = ("SCHEDULED", "paused"), ("RUNNING", "running")
    assert statuses == [running, paused, paused, running, ("FINISHED", "finished")]


def test_every_run_has_data_and_study_its_files(journal: Journal, uri: str, folder: Path) -> None:
    start(journal)
    id = trial(journal, 0)
    report = journal.path.parent / "front.csv"
    report.write_text("params,accuracy\n")
    journal.append(ArtifactSaved(None, str(report), folder="report"))
    journal.append(ArtifactSaved(id, str(journal.path.parent), folder="all"))
    upload_journal(journal.path, uri)
    store = Store(uri)
    for run in (store.run(), store.run(id)):
        (data,) = store.data(run)
        assert (data.name, data.digest) == ("digits", FINGERPRINT[:8])
        assert json.loads(data.profile or "")["train"] == 1168
    parent = store.run()
    assert parent.data.tags["raykd.data_fingerprint"] == FINGERPRINT
    assert parent.data.tags["raykd.version.ray"] == "2.60.0"
    run_id = parent.info.run_id
    study_file = store.client.download_artifacts(run_id, "study/study.yaml")
    assert Path(study_file).read_text() == "name: digits\nseed: 3\n"
    resolved = store.client.download_artifacts(run_id, "study/resolved.yaml")
    assert yaml.safe_load(Path(resolved).read_text())["train"] == {"epochs": 2}
    around = store.client.download_artifacts(run_id, "study/environment.json")
    assert json.loads(Path(around).read_text())["versions"]["torch"] == "2.15.0"
    assert [file.path for file in store.client.list_artifacts(run_id, "report")] == [
        "report/front.csv"
    ]
    assert "all/front.csv" in [
        file.path for file in store.client.list_artifacts(store.run(id).info.run_id, "all")
    ]
    assert Path(parent.info.artifact_uri or "").is_relative_to(folder / "mlartifacts")


def test_replaying_everything_changes_nothing(journal: Journal, uri: str) -> None:
    start(journal)
    id = trial(journal, 0)
    path = journal.path.parent / "student.pt"
    torch.save(network(), path)
    journal.append(
        ModelSaved(id, str(path), input_shape=(1, 8, 8), register="digits", aliases=["champion"])
    )
    journal.append(Note(metrics={"gain": 0.5}))
    journal.append(StudyEnded())
    upload_journal(journal.path, uri)
    before = Store(uri).everything()
    for _ in range(2):
        assert upload_journal(journal.path, uri, from_start=True).refused == 0
    assert Store(uri).everything() == before
    assert len(before) == 2
    versions = Store(uri).client.search_model_versions("name = 'digits'")
    assert [int(version.version) for version in versions] == [1]


def test_lost_cursor_and_lost_store_are_restored(journal: Journal, uri: str) -> None:
    start(journal)
    trial(journal, 0)
    upload_journal(journal.path, uri)
    before = Store(uri).everything()
    journal.path.with_name(journal.path.name + ".sent").unlink()
    upload_journal(journal.path, uri)
    assert Store(uri).everything() == before
    other = uri.replace("mlflow.db", "other.db")
    assert upload_journal(journal.path, other).delivered == 6  # each store has a cursor of its own
    client = connect(uri)
    for run_id in before:
        client.delete_run(run_id)  # the user cleared the store; the cursor says all is there
    trial(journal, 1)
    upload_journal(journal.path, uri)
    assert sorted(run[0] for run in Store(uri).everything().values()) == [
        "digits",
        "trial-0000",
        "trial-0001",
    ]


def test_run_created_twice_is_left_once(journal: Journal, uri: str) -> None:
    start(journal)
    trial(journal, 0)
    upload_journal(journal.path, uri)
    store = Store(uri)
    before = store.everything()
    tags = store.run("trial-0000").data.tags  # an answer was lost, the run was created again
    store.client.create_run(store.experiment.experiment_id, tags=tags)
    upload_journal(journal.path, uri, from_start=True)
    assert Store(uri).everything() == before


def test_second_sync_has_nothing_to_do(journal: Journal, uri: str) -> None:
    start(journal)
    upload_journal(journal.path, uri)
    assert upload_journal(journal.path, uri).delivered == 0
    trial(journal, 0)
    assert upload_journal(journal.path, uri).delivered == 4


def test_models_of_study(journal: Journal, uri: str) -> None:
    start(journal)
    id = trial(journal, 0)
    student = network()
    for _ in range(3):
        student(torch.randn(16, 1, 8, 8))  # running statistics differ from a new network's
    path, example = journal.path.parent / "student.pt", journal.path.parent / "example.npy"
    torch.save(student, path)
    np.save(example, np.zeros((2, 1, 8, 8), np.float32))
    journal.append(
        ModelSaved(
            id,
            str(path),
            input_shape=(1, 8, 8),
            example=str(example),
            register="digits-student",
            aliases=["champion", "smallest"],
            metrics={"test_accuracy": 0.97},
        )
    )
    assert upload_journal(journal.path, uri).refused == 0
    inputs = torch.randn(5, 1, 8, 8)
    expected = student.eval()(inputs)
    run_id = Store(uri).run(id).info.run_id
    for address in (
        "models:/digits-student@champion",
        "models:/digits-student@smallest",
        "models:/digits-student/1",
        f"runs:/{run_id}/model",
        Store(uri).run(id).data.tags["raykd.model"],
    ):
        model = load_model_uri(address, tracking_uri=uri)
        assert not model.training
        assert torch.equal(model(inputs), expected), address
    store = Store(uri)
    (model_id,) = store.models(store.run(id))
    logged = store.client.get_logged_model(model_id)
    assert logged.params["student.model.depth"] == "8"
    assert {metric.key: metric.value for metric in logged.metrics or ()} == {"test_accuracy": 0.97}


def test_public_way_to_load_model(
    journal: Journal, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.models import get_model_info
    from mlflow.pytorch import load_model

    start(journal)
    id = trial(journal, 0)
    student = network()
    torch.save(student, journal.path.parent / "student.pt")
    journal.append(
        ModelSaved(
            id, str(journal.path.parent / "student.pt"), input_shape=(1, 8, 8), register="digits"
        )
    )
    upload_journal(journal.path, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = load_model("models:/digits/1")
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(inputs), student.eval()(inputs))
    signature = get_model_info("models:/digits/1").signature
    assert signature is not None and signature.outputs is not None
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert signature.outputs.inputs[0].shape == (-1, 10)


def test_alias_never_moves_back(journal: Journal, uri: str, folder: Path) -> None:
    def study(journal: Journal, id: str) -> None:
        journal.append(StudyStarted(id, name="digits", experiment="distillation"))
        journal.append(RunStarted("trial-0000", role="trial"))
        torch.save(network(), journal.path.parent / "student.pt")
        path = journal.path.parent / "student.pt"
        journal.append(
            ModelSaved(
                "trial-0000", str(path), input_shape=(1, 8, 8), register="d", aliases=["champion"]
            )
        )

    study(journal, "first")
    upload_journal(journal.path, uri)
    with Journal(folder / "later" / "journal.jsonl") as later:
        study(later, "second")
        upload_journal(later.path, uri)
    client = connect(uri)
    assert int(client.get_model_version_by_alias("d", "champion").version) == 2
    upload_journal(journal.path, uri, from_start=True)
    assert int(client.get_model_version_by_alias("d", "champion").version) == 2


def test_model_left_half_uploaded_is_finished(
    journal: Journal, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    start(journal)
    id = trial(journal, 0)
    torch.save(network(), journal.path.parent / "student.pt")
    journal.append(ModelSaved(id, str(journal.path.parent / "student.pt"), input_shape=(1, 8, 8)))
    with monkeypatch.context() as broken:

        def refuse(*_: object) -> None:
            raise MlflowException("gone")

        broken.setattr(MlflowClient, "log_model_artifacts", refuse)
        with pytest.raises(ValueError, match="gone"):
            upload_journal(journal.path, uri, patience=0)
    upload_journal(journal.path, uri)
    store = Store(uri)
    models = store.client.search_logged_models([store.experiment.experiment_id])
    assert [str(model.status) for model in models] == ["READY"]
    load_model_uri(f"models:/{models[0].model_id}", tracking_uri=uri)


def test_non_finite_metrics_become_tag(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial"))
    journal.append(
        EpochFinished(
            "trial-0000", 1, {"train_loss": float("inf"), "val_loss": float("nan"), "lr": 1}
        )
    )
    journal.append(RunEnded("trial-0000", "failed", reason="diverged"))
    upload_journal(journal.path, uri)
    run = Store(uri).run("trial-0000")
    assert run.data.metrics == {"lr": 1.0}
    assert run.data.tags["raykd.not_finite"] == "train_loss = inf, val_loss = nan at step 1"


def test_long_params_are_cut_and_listed(journal: Journal, uri: str) -> None:
    start(journal)
    many = {f"param[{i}]": i for i in range(250)}
    long = {"pairs": "x" * 7000}
    journal.append(
        RunStarted("trial-0000", role="trial", params={**many, **long}, tags={"t": "y" * 9000})
    )
    assert upload_journal(journal.path, uri).refused == 0
    run = Store(uri).run("trial-0000")
    assert len(run.data.params) == 251 and run.data.params["param.249"] == "249"
    assert run.data.params["pairs"].endswith("[cut]") and len(run.data.params["pairs"]) == 6000
    assert run.data.tags["raykd.cut_params"] == "pairs"
    assert len(run.data.tags["t"]) == 8000
    whole = Store(uri).client.download_artifacts(run.info.run_id, "params.json")
    assert json.loads(Path(whole).read_text()) == long


def test_changed_params_do_not_break_resumed_study(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(RunStarted("trial-0000", role="trial", params={"a": 1, "b": 2}))
    upload_journal(journal.path, uri)
    journal.append(RunStarted("trial-0000", role="trial", params={"a": 1, "b": 3, "c": 4}))
    assert upload_journal(journal.path, uri).refused == 0
    run = Store(uri).run("trial-0000")
    assert run.data.params == {"a": "1", "b": "2", "c": "4"}
    assert json.loads(run.data.tags["raykd.changed_params"]) == {"b": "3"}


def test_interrupted_study_continues(journal: Journal, uri: str) -> None:
    start(journal)
    trial(journal, 0)
    journal.append(RunStarted("trial-0001", role="trial"))
    journal.append(EpochFinished("trial-0001", 1, {"val_accuracy": 0.5}))
    journal.append(StudyEnded("interrupted"))
    upload_journal(journal.path, uri)
    store = Store(uri)
    assert store.run().info.status == "KILLED"
    assert store.run("trial-0001").info.status == "KILLED"
    assert store.run("trial-0001").data.tags["raykd.status"] == "interrupted"
    assert store.run("trial-0000").info.status == "FINISHED"
    start(journal)
    journal.append(RunStarted("trial-0001", role="trial"))
    upload_journal(journal.path, uri)
    store = Store(uri)
    assert store.run().info.status == store.run("trial-0001").info.status == "RUNNING"
    journal.append(
        EpochFinished("trial-0001", 1, {"val_accuracy": 0.51})
    )  # uploaded before: the first value stays
    journal.append(EpochFinished("trial-0001", 2, {"val_accuracy": 0.6}))
    journal.append(RunEnded("trial-0001", "finished"))
    journal.append(StudyEnded())
    upload_journal(journal.path, uri)
    store = Store(uri)
    assert store.run().info.status == store.run("trial-0001").info.status == "FINISHED"
    assert [p[:2] for p in store.history("trial-0001", "val_accuracy")] == [(1, 0.5), (2, 0.6)]


def test_rejected_event_does_not_block_later_events(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(ArtifactSaved(None, str(journal.path.parent / "lost.csv")))
    journal.append(EpochFinished("never-started", 1, {"loss": 1.0}))
    with open(journal.path, "a") as file:
        file.write('{"at": 1, "event": "from a later version", "anything": 1}\n')
    id = trial(journal, 0)
    (journal.path.parent / "no.pt").write_bytes(b"no model")
    journal.append(ModelSaved(id, str(journal.path.parent / "no.pt"), input_shape=(1, 8, 8)))
    journal.append(StudyEnded())
    status = upload_journal(journal.path, uri)
    assert (status.pending, status.refused) == (0, 3)
    store = Store(uri)
    assert store.run().info.status == "FINISHED"
    assert store.run(id).data.metrics["val_accuracy"] == 0.5
    assert "lost.csv: no such file" in store.run().data.tags["raykd.tracking_problem"]
    assert "model" in store.run(id).data.tags["raykd.tracking_problem"]


def test_deleted_experiment_is_restored(journal: Journal, uri: str) -> None:
    start(journal)
    upload_journal(journal.path, uri)
    client = connect(uri)
    client.delete_experiment(Store(uri).experiment.experiment_id)
    trial(journal, 0)
    upload_journal(journal.path, uri)
    assert Store(uri).experiment.lifecycle_stage == "active"
    assert Store(uri).run("trial-0000").info.status == "FINISHED"


def test_cursor_keeps_ids_under_which_store_has_study(journal: Journal, uri: str) -> None:
    start(journal)
    id = trial(journal, 0)
    path = journal.path.parent / "student.pt"
    torch.save(network(), path)
    journal.append(ModelSaved(id, str(path), input_shape=(1, 8, 8)))
    upload_journal(journal.path, uri)
    trial(journal, 1)
    upload_journal(journal.path, uri)  # another connection, which delivers no model
    sent = Cursor(journal.path, uri).load()
    study = find_run(uri, STUDY)
    assert study is not None and sent.run == study.run_id
    assert run_page(uri, sent.experiment, sent.run) == study.page
    assert sent.runs[id] == Store(uri).run(id).info.run_id
    assert sent.end == journal.path.stat().st_size
    assert has_run(uri, sent.run)
    connect(uri).delete_run(sent.run)
    assert not has_run(uri, sent.run)


def test_cursor_of_older_version_has_no_ids(journal: Journal, uri: str) -> None:
    start(journal)
    cursor_file = journal.path.with_name(journal.path.name + ".sent")
    cursor_file.write_text(json.dumps({uri: 100, "sqlite:///other.db": 20}))
    cursor = Cursor(journal.path, uri)
    assert cursor.load() == Sent(100) and not cursor.load().run
    cursor.save(Sent(200, "1", {"": "a"}))
    assert cursor.load() == Sent(200, "1", {"": "a"})
    assert json.loads(cursor_file.read_text())["sqlite:///other.db"] == 20


def test_find_run_names_store(journal: Journal, uri: str) -> None:
    start(journal)
    upload_journal(journal.path, uri)
    run = find_run(uri, STUDY)
    assert run is not None and run.status == "RUNNING"
    assert run.run_id == Store(uri).run().info.run_id
    address = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    assert run.page.endswith(address)
    assert find_run(uri, "another") is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("teacher.pt", "is no MLflow model URI"),
        ("models:/absent@champion", "no such model"),
        ("models:/absent/1", "no such model"),
        ("models:/absent/Production", "neither a version nor"),
        ("models:/m-0123456789abcdef0123456789abcdef", "no such model"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "no such model"),
    ],
)
def test_errors_of_model_uris(uri: str, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model_uri(address, tracking_uri=uri)


def test_sync_requires_journal_with_study(folder: Path, uri: str) -> None:
    with pytest.raises(ValueError, match="no such journal"):
        upload_journal(folder / "none.jsonl", uri)
    with Journal(folder / "journal.jsonl") as journal:
        journal.append(StudyEnded())
    with pytest.raises(ValueError, match="no study in it"):
        upload_journal(folder / "journal.jsonl", uri)


def test_names_and_values_mlflow_takes() -> None:
    assert clean_key("knowledge[0].loss.temperature") == "knowledge.0.loss.temperature"
    assert clean_key("a//../b") == "a/b"
    assert clean_key("loss (kd)") == "loss _kd_"
    assert len(clean_key("k" * 300)) == 250
    assert cut("abc", 3) == "abc" and len(cut("a" * 99, 50)) == 50
    params = {"a[0]": True, "a.0": None, "b": [1, 2], "c": "x", "d": 1e-3}
    assert run_params(RunStarted("t", "trial", params=params, seed=5)) == {
        "a.0": "true",
        "a.0_2": "null",
        "b": "[1, 2]",
        "c": "x",
        "d": "0.001",
        "seed": "5",
    }
    good, bad = split_finite({"a": float("inf"), "b": 2.0})
    assert good == {"b": 2.0} and bad == {"a": float("inf")}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        MlflowException("API request failed with error code 413 != 200"),
        MlflowException("bad name", error_code=INVALID_PARAMETER_VALUE),
    ],
)
def test_refused_model_is_not_delivered_until_later_sync(
    error: Exception, journal: Journal, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(journal)
    id = trial(journal, 0)
    torch.save(network(), journal.path.parent / "student.pt")
    journal.append(
        ModelSaved(id, str(journal.path.parent / "student.pt"), input_shape=(1, 8, 8), name="a.b/c")
    )
    journal.append(StudyEnded())

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_model_artifacts", refuse)
        broken.setattr(sys.modules["raykd.tracking.sync"], "MAX_PAUSE", 0.01)
        tracker = Tracker(journal.path, uri, start_after=0, poll=0.01)
        assert not tracker.close(timeout=60)
        assert tracker.status.refused == 1 and f"model of {id}" in str(tracker.status)
        second = upload_journal(journal.path, uri)
        assert second.refused == 1 and second.pending == 0
    store = Store(uri)
    assert store.run().info.status == "FINISHED"  # the others were not held up
    assert "raykd.model" not in store.run(id).data.tags
    status = upload_journal(journal.path, uri)
    assert (status.pending, status.refused) == (0, 0) and status.delivered >= 1
    tags = Store(uri).run(id).data.tags
    assert tags["raykd.model"].startswith("models:/m-")
    assert (
        Store(uri).client.get_logged_model(tags["raykd.model"].rpartition("/")[2]).name == "a-b-c"
    )
    assert upload_journal(journal.path, uri).delivered == 0


LOAD_WITHOUT_RAYKD = """\
import sys
sys.modules["raykd"] = None
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits/1")
print("SUM", float(model.predict(np.ones((3, 1, 8, 8), "float32")).sum()))
"""


@pytest.mark.slow
def test_model_with_program_loads_without_raykd_and_whole_with_it(
    journal: Journal, uri: str
) -> None:
    start(journal)
    id = trial(journal, 0)
    student, folder = network().eval(), journal.path.parent
    torch.save(student, folder / "student.pt")
    batch = torch.export.Dim("batch", min=1)
    samples = torch.ones(2, 1, 8, 8)
    program = torch.export.export(student, (samples,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "student.pt2")
    journal.append(
        ModelSaved(
            id, "student.pt", input_shape=(1, 8, 8), register="digits", program="student.pt2"
        )
    )
    assert upload_journal(journal.path, uri).refused == 0
    whole = load_model_uri("models:/digits/1", tracking_uri=uri)
    assert isinstance(whole, nn.Sequential) and not whole.training
    assert torch.equal(whole(samples), student(samples))
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_RAYKD, uri],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=folder,
        check=False,
    )
    expected = student(torch.ones(3, 1, 8, 8)).sum().item()
    assert float(done.stdout.partition("SUM")[2] or "nan") == pytest.approx(expected), done.stderr


def test_model_without_program_names_its_requirements(journal: Journal, uri: str) -> None:
    start(journal)
    id = trial(journal, 0)
    raw = RawInputModel(network(), Preprocessing("tensors", (1, 8, 8)), "0123456789").eval()
    torch.save(raw, journal.path.parent / "student.pt")
    journal.append(ModelSaved(id, "student.pt", pickle_reason="it counts its samples"))
    assert upload_journal(journal.path, uri).refused == 0
    store = Store(uri)
    (model,) = store.client.search_logged_models([store.experiment.experiment_id])
    assert model.tags["raykd.format"] == "pickle; needs raykd to load (it counts its samples)"
    loaded = load_model_uri(f"models:/{model.model_id}", tracking_uri=uri)
    assert isinstance(loaded, RawInputModel)


def test_missing_program_is_refused(journal: Journal, uri: str) -> None:
    start(journal)
    id = trial(journal, 0)
    torch.save(network(), journal.path.parent / "student.pt")
    journal.append(ModelSaved(id, "student.pt", input_shape=(1, 8, 8), program="lost.pt2"))
    status = upload_journal(journal.path, uri)
    assert status.refused == 1 and "lost.pt2: no such program" in status.error


def test_foreign_program_is_no_teacher(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.pytorch import save_model

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    save_model(
        network(),
        str(folder / "model"),
        input_example=np.ones((2, 64), "float32"),
        pip_requirements=["torch"],
        serialization_format="pt2",
    )
    with pytest.raises(ValueError, match=r"holds a program of torch.export.*serialization_format"):
        _read(str(folder / "model"), "models:/teacher/1")
