"""Tests of `raykd register`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from helpers.mlflow_runs import Store
from helpers.small_study import STUDY, network, start
from raykd.cli.commands import app
from raykd.models.preprocessing import Preprocessing, RawInputModel
from raykd.tracking import Journal, load_model_uri, upload_journal
from raykd.tracking.events import ModelSaved, Note, RunEnded, RunStarted, StudyEnded

TAGS = {"student": "resnet(depth=8)", "teacher": "resnet(depth=20)", "losses": "kd"}
SEEDS = {"test_accuracy_mean": 0.9, "test_accuracy_low": 0.88, "test_accuracy_high": 0.92}
GAINS = {"gain_mean": 0.02, "gain_low": 0.01, "gain_high": 0.03, "gain_n": 3}


@pytest.fixture
def store(journal: Journal, uri: str) -> Store:
    """A study with two finalists; the best one is trial-0001."""
    start(journal)
    raw = RawInputModel(network(), Preprocessing("tensors", (1, 8, 8)), "0123456789").eval()
    torch.save(raw, journal.path.parent / "student.pt")
    for number in range(2):
        id, replicate = f"trial-{number:04d}", f"trial-{number:04d}/seed-1"
        journal.append(RunStarted(id, role="trial", tags=TAGS))
        journal.append(RunEnded(id, "finished", metrics={"val_accuracy": 0.8 + number / 10}))
        journal.append(RunStarted(replicate, role="replicate", parent=id, tags=TAGS))
        journal.append(RunEnded(replicate, "finished", metrics={"params": 1000 + number}))
        journal.append(Note(id, metrics={**SEEDS, "test_accuracy_n": 3, **GAINS}))
        about = {"accuracy": "91.00%"}
        journal.append(ModelSaved(replicate, "student.pt", about=about, name=f"student-{number}"))
    journal.append(Note(tags={"best": "trial-0001"}))
    journal.append(StudyEnded())
    assert upload_journal(journal.path, uri).refused == 0
    return Store(uri)


def register(uri: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["register", *arguments, "--uri", uri])


def test_best_student_becomes_version_with_its_figures(store: Store, uri: str) -> None:
    run = store.run().info.run_id
    done = register(uri, run, "--name", "digits", "--alias", "champion")
    assert done.exit_code == 0
    assert "digits version 1 (registered): models:/digits@champion" in done.output
    version = store.client.get_model_version_by_alias("digits", "champion")
    assert version.run_id == store.run("trial-0001/seed-1").info.run_id
    assert version.tags["accuracy"] == "91.00%" and version.tags["params"] == "1001"
    accuracy = "90.00% (95% CI 88.00 to 92.00, 3 seeds)"
    gain = "+2.00 points (95% CI +1.00 to +3.00, 3 seeds)"
    assert version.tags["accuracy_over_seeds"] == accuracy
    assert version.tags["gain_over_alone"] == gain
    assert version.tags["raykd.id"] == f"{STUDY}/trial-0001/seed-1"
    for text in ("resnet(depth=8) from resnet(depth=20)", accuracy, gain, "learns from: kd"):
        assert text in str(version.description)
    loaded = load_model_uri("models:/digits@champion", tracking_uri=uri)
    assert isinstance(loaded, RawInputModel)


def test_registering_again_only_moves_aliases(store: Store, uri: str) -> None:
    first = store.run("trial-0000").info.run_id
    register(uri, first, "--name", "digits", "--alias", "champion")
    register(uri, store.run("trial-0001").info.run_id, "--name", "digits", "--alias", "champion")
    repeated = register(uri, first, "--name", "digits", "--alias", "champion", "--alias", "old")
    assert "digits version 1 (registered before)" in repeated.output
    versions = store.client.search_model_versions("name = 'digits'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    for alias in ("champion", "old"):
        assert int(store.client.get_model_version_by_alias("digits", alias).version) == 1
    facts = json.loads(register(uri, first, "--name", "digits", "--json").stdout)
    assert (facts["version"], facts["new"]) == ("1", False)


@pytest.mark.parametrize(
    ("source", "name", "alias", "message"),
    [
        ("0" * 32, "digits", "champion", "has no run 0000"),
        ("nowhere", "digits", "champion", "raykd sync FOLDER"),
        ("STUDY", "a/b", "champion", "'a/b' is no name of a model"),
        ("STUDY", " ", "champion", "is no name of a model"),
        ("STUDY", "digits", "v3", "'v3' is no alias"),
        ("STUDY", "digits", "latest", "not `latest`"),
        ("STUDY", "digits", "a b", "'a b' is no alias"),
    ],
)
def test_one_message_for_invalid_input(
    source: str, name: str, alias: str, message: str, store: Store, uri: str
) -> None:
    run = store.run().info.run_id if source == "STUDY" else source
    refused = register(uri, run, "--name", name, "--alias", alias)
    assert refused.exit_code == 2 and message in refused.output
    assert not store.client.search_model_versions("")


def test_missing_store_is_not_created(folder: Path) -> None:
    refused = register(f"sqlite:///{folder}/none.db", "0" * 32, "--name", "digits")
    assert refused.exit_code == 2 and "there is no" in refused.output
    assert not (folder / "none.db").exists()
