"""Runs and experiments that are deleted and restored meanwhile: nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.mlflow_runs import Store
from helpers.mlflow_server import Server
from helpers.small_study import STUDY, network, start, trial
from raykd.tracking import Journal, upload_journal
from raykd.tracking.events import ModelSaved, StudyEnded
from raykd.tracking.mlflow_client import connect

EPOCHS = 6


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def store_uri(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield request.getfixturevalue("uri")
        return
    server = Server(folder)
    server.start()
    yield server.uri
    server.stop()


def check(uri: str, trials: int = 1) -> None:
    """Check that every run is active once, with every epoch once."""
    names = sorted(run[0] for run in Store(uri).everything().values())
    expected = [f"trial-{number:04d}" for number in range(trials)]
    assert names == ["digits", *expected]
    for name in expected:
        points = [point[:2] for point in Store(uri).history(name, "val_accuracy")]
        assert points == [(epoch, epoch / 4) for epoch in range(1, EPOCHS + 1)]


def test_restored_experiment_brings_back_no_other_runs(
    journal: Journal, store_uri: str, folder: Path
) -> None:
    """MLflow restores all runs of an experiment, also those that were deleted before it."""
    with Journal(folder / "earlier" / "journal.jsonl") as earlier:
        start(earlier)
        for number in range(3):
            trial(earlier, number, epochs=EPOCHS)
        upload_journal(earlier.path, store_uri)
    client = connect(store_uri)
    for run_id in Store(store_uri).everything():
        client.delete_run(run_id)
    start(journal)
    trial(journal, 0, epochs=EPOCHS)
    upload_journal(journal.path, store_uri)
    before = Store(store_uri).everything()
    client.delete_experiment(Store(store_uri).experiment.experiment_id)
    upload_journal(journal.path, store_uri, from_start=True)
    assert Store(store_uri).everything() == before
    client.delete_experiment(Store(store_uri).experiment.experiment_id)
    trial(journal, 1, epochs=EPOCHS)
    upload_journal(journal.path, store_uri)
    check(store_uri, trials=2)


@pytest.mark.parametrize("victim", ["trial-0000", None])
def test_restored_run_exists_once(victim: str | None, journal: Journal, uri: str) -> None:
    """The run that is left also has what was sent to the other one."""
    start(journal)
    trial(journal, 0, epochs=EPOCHS)
    upload_journal(journal.path, uri)
    client = connect(uri)
    deleted = Store(uri).run(victim).info.run_id
    client.delete_run(deleted)
    upload_journal(journal.path, uri, from_start=True)
    check(uri)
    client.restore_run(deleted)
    journal.append(StudyEnded())
    upload_journal(journal.path, uri)
    check(uri)
    assert Store(uri).run().info.status == "FINISHED"


def test_model_that_is_sent_again_has_its_metrics_once(journal: Journal, uri: str) -> None:
    """A resumed search writes the event again, at another time."""
    start(journal)
    id = trial(journal, 0, epochs=EPOCHS)
    path = journal.path.parent / "student.pt"
    torch.save(network(), path)
    saved = ModelSaved(id, str(path), input_shape=(1, 8, 8), metrics={"val_accuracy": 1.5})
    journal.append(saved)
    upload_journal(journal.path, uri)
    before = Store(uri).history(id, "val_accuracy")
    assert len(before) == EPOCHS + 1
    journal.append(saved)
    upload_journal(journal.path, uri)
    assert Store(uri).history(id, "val_accuracy") == before
    upload_journal(journal.path, uri, from_start=True)
    assert Store(uri).history(id, "val_accuracy") == before
    assert sorted(Store(uri).ids) == [STUDY, f"{STUDY}/{id}"]
