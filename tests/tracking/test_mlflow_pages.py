"""Saved views and notes of an experiment, in a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.mlflow_runs import Store
from helpers.small_study import STUDY, start, trial
from raykd.tracking import Journal, upload_journal
from raykd.tracking.events import (
    ArmsPlanned,
    RunStarted,
    StudyEnded,
    StudyStarted,
    SummaryWritten,
)
from raykd.tracking.mlflow_notes import MAX_NOTE, NOTE, Section, with_section
from raykd.tracking.mlflow_views import TAG, view_key


def view(uri: str, key: str) -> dict[str, Any]:
    """The state of a view as MLflow's pages read it, with or without a name around it."""
    value = json.loads(Store(uri).experiment.tags[TAG + key])
    return json.loads(value["state"]) if "state" in value else value


def test_views_of_search(journal: Journal, uri: str) -> None:
    study = StudyStarted(
        STUDY,
        name="digits",
        experiment="distillation",
        resolved={
            "search": {
                "objectives": {"val_accuracy": "max", "macs": "min"},
                "constraints": {"memory": {"max": 1e6}},
                "measure": ["latency"],
            }
        },
    )
    journal.append(study)
    upload_journal(journal.path, uri)
    assert view(uri, "raykd-trials")["orderByKey"] == "metrics.`val_accuracy`"
    trial(journal, 0)
    drawn = {"knowledge[0].loss.temperature": 2, "train.lr": 0.1, "scheme": "dml"}
    journal.append(RunStarted("trial-0001", "trial", params=drawn))
    journal.append(RunStarted("trial-0002", "trial", params={**drawn, "train.lr": 0.2}))
    upload_journal(journal.path, uri)

    trials = view(uri, "raykd-trials")
    assert trials["searchFilter"] == "tags.`raykd.role` = 'trial'"
    assert trials["orderByAsc"] is False
    assert trials["selectedColumns"] == [
        "metrics.`val_accuracy`",
        "metrics.`macs`",
        "metrics.`memory`",
        "metrics.`latency`",
        "metrics.`params`",
        "tags.`student`",
        "tags.`losses`",
        "tags.`pairs`",
        "params.`knowledge.0.loss.temperature`",
        "params.`train.lr`",
        "tags.`raykd.status`",
    ]
    assert set(trials["columnWidths"]) == set(trials["columnOrder"])
    finalists = view(uri, "raykd-finalists")
    assert finalists["orderByKey"] == "metrics.`test_accuracy_mean`"
    assert finalists["selectedColumns"][:4] == [
        f"metrics.`test_accuracy_{end}`" for end in ("mean", "low", "high", "n")
    ]
    for table in ("trials", "finalists"):
        of_study = view(uri, view_key(table, STUDY))
        whole = view(uri, view_key(table))
        condition = f"{whole['searchFilter']} and tags.`raykd.study` = '{STUDY}'"
        assert of_study == {**whole, "searchFilter": condition}
    names = [
        json.loads(value)["name"]
        for key, value in Store(uri).experiment.tags.items()
        if key.startswith(TAG) and "name" in json.loads(value)
    ]
    assert sorted(names) == ["Finalists over seeds", "Studies", "Trials, best first"]


def test_least_objective_is_first_if_it_is_minimized(journal: Journal, uri: str) -> None:
    resolved = {"search": {"objectives": {"params": "min"}}}
    journal.append(StudyStarted(STUDY, experiment="distillation", resolved=resolved))
    upload_journal(journal.path, uri)
    trials = view(uri, "raykd-trials")
    assert (trials["orderByKey"], trials["orderByAsc"]) == ("metrics.`params`", True)


def test_views_of_layer_study(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(ArmsPlanned([], {}, 0, {"name": "hint"}, 1.0, [7, 8, 9]))
    upload_journal(journal.path, uri)
    arms = view(uri, view_key("arms", STUDY))
    assert "params.seed = '7'" in arms["searchFilter"]  # one row for each arm
    assert arms["selectedColumns"][:4] == [
        "tags.`arm`",
        "tags.`hint`",
        "tags.`guided`",
        "metrics.`gain_mean`",
    ]


def test_filters_of_views_are_valid(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(ArmsPlanned([], {}, 0, {"name": "hint"}, 1.0, [3, 4]))
    trial(journal, 0)
    upload_journal(journal.path, uri)
    store = Store(uri)
    for key in store.experiment.tags:
        if key.startswith(TAG):
            state = view(uri, key.removeprefix(TAG))
            order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
            ids = [store.experiment.experiment_id]
            runs = store.client.search_runs(ids, state["searchFilter"], order_by=[order])
            assert len(runs) == (0 if "finalists" in key else 1), key


def test_note_of_experiment_has_section_for_each_study(
    journal: Journal, uri: str, folder: Path
) -> None:
    start(journal)
    journal.append(SummaryWritten("Running.", "16 trials"))
    upload_journal(journal.path, uri)
    store = Store(uri)
    note = store.experiment.tags[NOTE]
    store.client.set_experiment_tag(store.experiment.experiment_id, NOTE, "For the paper.\n" + note)
    journal.append(SummaryWritten("**d8 w12** has 97.41%.", "Gain: +0.6"))
    journal.append(StudyEnded())
    upload_journal(journal.path, uri)
    with Journal(folder / "later" / "journal.jsonl") as later:
        later.append(StudyStarted("second", name="digits", experiment="distillation"))
        later.append(SummaryWritten("**d14 w4** has 95%.", "Gain: 0"))
        upload_journal(later.path, uri)

    note = Store(uri).experiment.tags[NOTE]
    first, second = note.index("d8 w12"), note.index("d14 w4")
    assert note.startswith("For the paper.") and second < first  # the newest study first
    assert "Running." not in note
    assert f"viewStateShareKey={view_key('trials', STUDY)}&" in note
    description = Store(uri).run().data.tags[NOTE]
    assert description in note and description.endswith("Gain: +0.6")
    before = Store(uri).experiment.tags
    assert upload_journal(journal.path, uri, from_start=True).refused == 0
    assert Store(uri).experiment.tags[NOTE] == before[NOTE]
    unchanged = {key for key, value in Store(uri).experiment.tags.items() if before[key] == value}
    assert {TAG + view_key("trials", STUDY), TAG + view_key("trials", "second")} <= unchanged


def test_studies_with_result_come_first_in_note() -> None:
    note = with_section("Mine.", Section("done", 1, "**d8 w12** has 97%."))
    for number in (2, 3):
        note = with_section(note, Section(f"begun-{number}", number, "not finished yet", False))
    place = [note.index(part) for part in ("Mine.", "d8 w12", "begun-3", "begun-2")]
    assert place == sorted(place)
    note = with_section(note, Section("begun-2", 2, "Interrupted; best so far: **d4 w4**."))
    place = [note.index(part) for part in ("d4 w4", "d8 w12", "begun-3")]
    assert place == sorted(place) and note.count("begun-2") == 1


def test_long_note_keeps_newest_sections() -> None:
    note = "Mine."
    section = Section("", 0, "x" * 3000)
    for number in range(8):
        note = with_section(note, replace(section, study_id=f"s{number}", at=number))
    assert len(note) <= MAX_NOTE and note.startswith("Mine.\n\n<!-- raykd s7 7 -->")
    assert note.count("<!-- /raykd -->") == 5


def test_names_of_runs(journal: Journal, uri: str) -> None:
    start(journal)
    journal.append(RunStarted("trial-0007", "trial", name="resnet d8 w12 kd+hint #7"))
    journal.append(RunStarted("trial-0008", "trial"))
    upload_journal(journal.path, uri)
    assert Store(uri).run("trial-0007").info.run_name == "resnet d8 w12 kd+hint #7"
    assert Store(uri).run("trial-0008").info.run_name == "trial-0008"
    assert Store(uri).run("trial-0007").data.tags["raykd.id"] == f"{STUDY}/trial-0007"
