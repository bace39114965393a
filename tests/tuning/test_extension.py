"""Extended studies: more trials, replicates or a larger space; the old trials stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from helpers.finished_search import copy_study, finished_search
from raykd.errors import StudyError
from raykd.export import find_student
from raykd.report.status import read_status
from raykd.report.summary import summarize
from raykd.tracking.events import Event, RunStarted, StudyExtended
from raykd.tracking.journal import Listener, events
from raykd.tracking.mlflow_client import connect
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.extension import plan_extension
from raykd.tuning.latest_run import latest_run
from raykd.tuning.optuna_study import DrawsFile
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.search_run import search
from raykd.tuning.study_dir import create_folder, open_folder

STUDY = """\
name: growing
data: {name: digits, limit: 100, val_limit: 40}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, depth: 1, width: {choice: [4, 6]}}}
knowledge: [{loss: {choice: [{name: kd, temperature: {uniform: [1, 4]}}, dist]}}]
train: {epochs: 1, batch_size: 32, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.1]}}}
search: {trials: 6, replicates: 1, finalists: 1, sampler: tpe}
"""
LARGER = [
    "student.model.width.choice=[4, 6, 8]",
    "knowledge[0].loss.choice=[{name: kd, temperature: {uniform: [1, 8]}}, rkd, dist]",
    "train.optimizer.lr.loguniform=[0.001, 0.1]",
]
TRAININGS = ("trial", "replicate", "alone")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_search(tmp_path_factory.mktemp("finished"), STUDY)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished search, with its teachers."""
    return copy_study(finished, tmp_path)


def extend(
    folder: Path, *overrides: str, listeners: Sequence[Listener] = (), **counts: Any
) -> StudyResult:
    _, extension = plan_extension(folder, overrides=overrides, **counts)
    return search(
        "", resume=folder, extension=extension, listeners=listeners, executor=LocalExecutor()
    )


def trainings(folder: Path) -> dict[str, Any]:
    records = read_result(folder).records.of(*TRAININGS)
    return {r.id: (r.status, r.epochs, r.metrics, r.job.plain()) for r in records}


def draws(folder: Path) -> list[optuna.trial.FrozenTrial]:
    stored = optuna.storages.JournalStorage(DrawsFile(folder / "optuna.log"))
    return optuna.load_study(study_name="growing", storage=stored).trials


def extensions(folder: Path) -> list[StudyExtended]:
    return [e for e in events(folder / "journal.jsonl") if isinstance(e, StudyExtended)]


def refusal(folder: Path, *overrides: str, **counts: Any) -> str:
    before = [(folder / name).read_bytes() for name in ("journal.jsonl", "folder.json")]
    with pytest.raises(StudyError) as error:
        extend(folder, *overrides, **counts)
    assert [(folder / name).read_bytes() for name in ("journal.jsonl", "folder.json")] == before
    return str(error.value)


def test_more_trials(folder: Path) -> None:
    before, drawn = trainings(folder), draws(folder)
    result = extend(folder, trials="+4")
    after = trainings(folder)
    assert [r.id for r in result.records.of("trial")] == [f"trial-{n:04d}" for n in range(10)]
    assert {id: after[id] for id in before} == before
    assert draws(folder)[:6] == drawn, "the sampler knows the first trials"
    assert result.best is not None and result.finalists[0].distilled is not None
    [extension] = extensions(folder)
    assert extension.grown == {"search.trials": "6 -> 10"} and extension.draws
    assert read_status(folder).planned_trials == 10
    texts = [*read_status(folder).extensions, *summarize(result).plain()["extended"]]
    assert texts == ["search.trials: 6 -> 10"] * 2
    chosen = {finalist.trial.id for finalist in result.finalists}
    assert result.records.chosen == chosen
    assert find_student(folder).id.partition("/")[0] in chosen


def test_more_replicates_train_only_those(folder: Path) -> None:
    before = trainings(folder)
    result = extend(folder, replicates=3)
    after = trainings(folder)
    assert {id: after[id] for id in before} == before
    [finalist] = [f.trial.id for f in result.finalists]
    assert {*after} - {*before} == {
        f"{finalist}/{role}-{seed}" for role in ("seed", "alone") for seed in (2, 3)
    }
    assert not extensions(folder)[0].draws


def test_larger_space(folder: Path) -> None:
    before, drawn = trainings(folder), draws(folder)
    result = extend(folder, *LARGER, trials=9)
    after = trainings(folder)
    assert len(result.records.of("trial")) == 9
    assert {id: after[id] for id in before} == before
    for old, new in zip(drawn, draws(folder), strict=False):
        assert (old.number, old.state, old.values) == (new.number, new.state, new.values)
        assert (old.params, old.user_attrs) == (new.params, new.user_attrs)
        assert old.intermediate_values == new.intermediate_values
    spaces = [trial.distributions["student.model.width"] for trial in draws(folder)]
    assert {str(space) for space in spaces} == {"CategoricalDistribution(choices=(4, 6, 8))"}
    assert extensions(folder)[0].space and len(open_folder(folder)[0].extended) == 4
    # once more, on top of the first
    assert len(extend(folder, "student.model.width.choice=[2, 4, 6, 8]", trials="+1").trials) == 10


NO_GROWTH = {
    "removed choice": (["student.model.width.choice=[4, 8]"], "student.model.width without 6"),
    "narrow range": (
        ["train.optimizer.lr.loguniform=[0.02, 0.1]"],
        "train.optimizer.lr: 0.01 to 0.1, log -> 0.02 to 0.1, log",
    ),
    "other value": (["train.epochs=2"], "train.epochs: 1 -> 2"),
    "other learning rate": (["train.optimizer.lr=0.3"], "train.optimizer.lr: 0.01 to 0.1, log"),
    "fewer trials": (["search.trials=4"], "search.trials: 6 -> 4"),
    "other sampler": (["search.sampler=random"], "search.sampler: tpe -> random"),
    "other seed": (["seed=3"], "seed: nothing -> 3"),
    "other data": (["data.limit=120"], "data.limit: 100 -> 120"),
    "growth and a change": (["search.trials=9", "train.epochs=2"], "train.epochs: 1 -> 2"),
    "nothing": ([], "adds nothing"),
    "the same": (["search.trials=6"], "adds nothing"),
}


@pytest.mark.parametrize("case", NO_GROWTH)
def test_change_without_growth_is_refused(folder: Path, case: str) -> None:
    overrides, difference = NO_GROWTH[case]
    message = refusal(folder, *overrides)
    assert difference in message and "->" in message


def test_number_that_cannot_be_read(folder: Path) -> None:
    assert "write +4 to add four" in refusal(folder, trials="four")
    assert "write +4 to add four" in refusal(folder, replicates=-1)


def interrupt_at(is_reached: Callable[[Event], bool]) -> Listener:
    def listener(event: Event) -> None:
        if is_reached(event):
            raise KeyboardInterrupt

    return listener


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "before the first trial": lambda event: event.kind == "plan",
    "in a trial": lambda event: event.kind == "epoch" and event.id == "trial-0007",  # type: ignore[attr-defined]
    "after the last trial": lambda event: event.kind == "run" and event.role == "replicate",  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_extension_is_resumed(folder: Path, moment: str) -> None:
    before = trainings(folder)
    try:
        stop = [interrupt_at(MOMENTS[moment])]
        extend(folder, *LARGER, listeners=stop, trials="+3", replicates=2)
    except KeyboardInterrupt:
        pass
    result = search("", resume=folder, executor=LocalExecutor())
    after = trainings(folder)
    assert {id: after[id] for id in before} == before
    assert len(result.records.of("trial")) == 9 and len(extensions(folder)) == 1
    assert not result.records.running(*TRAININGS)
    [finalist] = result.finalists
    assert finalist.distilled is not None and finalist.distilled.count == 2
    drawn = [trial.user_attrs.get("raykd.id") for trial in draws(folder)]
    assert {*drawn} - {None} == {record.id for record in result.records.of("trial")}


def test_interrupted_search_is_extended(folder: Path) -> None:
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if '"trial-0003"' in line)
    (folder / "journal.jsonl").write_text("".join(lines[: end + 1]))
    (folder / "optuna.log").unlink()
    result = extend(folder, trials="+2", replicates="+1")
    assert len(result.records.of("trial")) == 8 and len(result.records.of("replicate")) == 2


def test_mlflow_gets_new_runs_once(tmp_path: Path) -> None:
    settings = STUDY.replace("trials: 6", "trials: 2").replace("finalists: 1", "finalists: 2")
    folder = finished_search(tmp_path, settings)
    result = extend(folder, trials="+2")
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    ids = [run.data.tags["raykd.id"] for run in runs]
    assert len(ids) == len({*ids})
    roles = [run.data.tags["raykd.role"] for run in runs]
    assert roles.count("study") == 1 and roles.count("trial") == 4
    [study] = [run for run in runs if run.data.tags["raykd.role"] == "study"]
    assert study.data.tags["extended"] == "search.trials: 2 -> 4"
    assert study.data.metrics["trials"] == 4 and study.info.status == "FINISHED"
    chosen = {
        run.data.tags["raykd.id"].partition("/")[2]
        for run in runs
        if run.data.tags.get("chosen") == "true"
    }
    assert chosen == {finalist.trial.id for finalist in result.finalists}


def test_resume_latest_finds_extended_run(finished: Path, folder: Path) -> None:
    extend(folder, trials="+1")
    overrides = json.loads((folder / "folder.json").read_text())["overrides"]
    file = finished.parents[1] / "study.yaml"
    file.write_text(file.read_text())
    overrides_here = [*overrides, f"cluster.storage={folder.parent}"]
    content = json.loads((folder / "folder.json").read_text())
    (folder / "folder.json").write_text(json.dumps({**content, "overrides": overrides_here}))
    assert latest_run(str(file), overrides_here, "search") == folder


def test_single_trainings_cannot_be_extended(tmp_path: Path) -> None:
    folder = create_folder("one", str(tmp_path), STUDY, (), "distill")
    with pytest.raises(StudyError, match="which cannot be extended"):
        plan_extension(folder.path, trials="+1")


def test_layer_study_has_no_trials(tmp_path: Path) -> None:
    folder = create_folder("pairs", str(tmp_path), STUDY, (), "pairs")
    with pytest.raises(StudyError, match=r"--set search\.pairs\.seeds"):
        plan_extension(folder.path, trials="+1")


def test_no_trial_state_is_lost(folder: Path) -> None:
    extend(folder, *LARGER, trials=7)
    assert all(trial.state == TrialState.COMPLETE for trial in draws(folder))
    started = [e.id for e in events(folder / "journal.jsonl") if isinstance(e, RunStarted)]
    assert len(started) == len({*started})
