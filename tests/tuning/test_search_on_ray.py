"""Whole searches on a local Ray: slots, killed workers, a killed driver.

Ray is started once; only the driver that gets killed has one of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.entities import Run
from sklearn.datasets import load_digits

from helpers import paired_model
from helpers.search_cases import epochs_of
from raykd.data import SOURCES
from raykd.runtime.cluster import ray_session
from raykd.study.checks.load import load_study
from raykd.tracking.events import EpochFinished, Event, RunEnded, RunPromoted
from raykd.tracking.journal import events
from raykd.tracking.mlflow_models import load_model_uri
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.search_run import search
from raykd.tuning.single_run import distill
from raykd.tuning.study_dir import open_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

STUDY = """\
name: tiny
seed: 3
data: {{name: digits, limit: 160, val_limit: 60}}
teacher: {{model: {{name: mlp, depth: 2, width: 32}}, train: {{epochs: 2, batch_size: 32}}}}
student: {{model: {{name: mlp, depth: 1, width: {{choice: [8, 16]}}}}}}
knowledge: [{{loss: {{name: kd, temperature: 4}}}}]
train:
  epochs: 3
  batch_size: 32
  optimizer: {{name: sgd, lr: {{choice: {rates}}}}}
search:
  objectives: {{val_accuracy: max, params: min}}
  sampler: grid
  trials: 6
  finalists: 1
  replicates: 1
cluster: {{slots: {slots}, storage: {folder}/studies, gpus_per_worker: 0, cpus_per_worker: 0.5}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""

CLOCKS = ("epoch_seconds", "images_per_second")
WILD = 1e12
"""A learning rate with which any training diverges."""


def write_study(folder: Path, *, slots: int = 1, rates: str = "[0.05, 0.1, 1e12]") -> Path:
    file = folder / "study.yaml"
    file.write_text(STUDY.format(folder=folder, slots=slots, rates=rates))
    return file


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    """Start Ray with processes that can import `paired_model`."""
    file, name = Path(paired_model.__file__), paired_model.__name__
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(file.parents[name.count(".")]), prepend=os.pathsep)
        with ray_session(verbose=False):
            yield


@pytest.fixture(scope="module")
def one_slot(tmp_path_factory: pytest.TempPathFactory, on_ray: None) -> StudyResult:
    """Search of all six points, two of which diverge, in one slot.

    With two slots the teacher uses more threads and rounds differently.
    """
    return search(write_study(tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def two_slots(tmp_path_factory: pytest.TempPathFactory, on_ray: None) -> StudyResult:
    folder = tmp_path_factory.mktemp("two")
    return search(write_study(folder, slots=2, rates="[0.05, 0.1, 0.2]"))


def everything(result: StudyResult) -> list[Record]:
    return result.records.of("teacher", "trial", "replicate", "alone")


def events_of(result: StudyResult) -> list[Event]:
    return events(open_folder(result.folder)[0].journal)


def figures(result: StudyResult, *, by: Callable[[Record], str]) -> dict[str, Any]:
    """Results of each training, without times."""
    return {by(r): (r.status, list(map(untimed, r.epochs))) for r in everything(result)}


def untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in CLOCKS}


def by_point(record: Record) -> str:
    """Identify a training by its point, not by its number."""
    role, params = record.role, record.job.params
    point = (params.get("student.model.width"), params.get("train.optimizer.lr"))
    return f"{role} {point} seed {record.job.seed}"


def assert_every_epoch_once(result: StudyResult) -> None:
    epochs = epochs_of(events_of(result))
    for record in everything(result):
        whole = list(range(1, record.job.epochs + 1))
        assert epochs[record.id] == (whole if record.status == "finished" else []), record.id
    ended = Counter(event.id for event in events_of(result) if isinstance(event, RunEnded))
    assert set(ended.values()) == {1}


# A search over two slots


def test_workers_use_environment_of_driver(on_ray: None) -> None:
    """Also under `uv run`, although these tests import Ray first."""
    import ray

    @ray.remote(num_cpus=0.1)
    def interpreter() -> str:
        return sys.executable

    assert ray.get(interpreter.remote(), timeout=120) == sys.executable


def test_every_point_is_trained(two_slots: StudyResult) -> None:
    assert len(two_slots.trials) == 6
    assert set(two_slots.trials["status"]) == {"finished"}
    assert {r.role for r in everything(two_slots)} == {"teacher", "trial", "replicate", "alone"}
    assert len({by_point(r) for r in two_slots.records.of("trial")}) == 6
    assert_every_epoch_once(two_slots)
    assert two_slots.best is not None and two_slots.best in two_slots.pareto
    [chosen] = two_slots.finalists
    assert chosen.gain is not None and chosen.gain.count == 1


def test_two_slots_train_concurrently(on_ray: None, tmp_path: Path) -> None:
    """Each of two trials waits until the other trains in another process."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    args = json.dumps({"folder": str(meeting), "driver": os.getpid()})
    student = f'{{name: "{paired_model.__name__}:build", args: {args}}}'
    file = write_study(tmp_path, slots=2, rates="[0.05, 0.1]")
    overrides = [f"student.model={student}", "search.trials=2", "search.replicates=0"]
    result = search(file, overrides=overrides, allow_import=True)
    trained = [
        e for e in events_of(result) if isinstance(e, EpochFinished) and e.id.startswith("trial")
    ]
    assert len({event.slot for event in trained}) == 2
    assert len(list(meeting.iterdir())) == 2


def test_no_training_state_remains(two_slots: StudyResult) -> None:
    assert list(two_slots.folder.rglob("states/*")) == []


def runs_of(result: StudyResult) -> list[Run]:
    client = mlflow.MlflowClient(result.tracking_uri)
    experiment = client.get_experiment_by_name(result.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_folder_contains_no_files_of_ray(two_slots: StudyResult) -> None:
    assert not (two_slots.folder / "ray").exists()


def test_mlflow_has_one_parent_and_child_per_trial(two_slots: StudyResult) -> None:
    runs = {run.data.tags["raykd.id"]: run for run in runs_of(two_slots)}
    parents = [run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags]
    assert [p.data.tags["raykd.id"] for p in parents] == [two_slots.study_id]
    assert parents[0].info.status == "FINISHED"
    assert len(runs) == 1 + len(everything(two_slots))
    for record in everything(two_slots):
        run = runs[f"{two_slots.study_id}/{record.id}"]
        above = f"/{record.job.parent}" if record.job.parent else ""
        parent = runs[two_slots.study_id + above]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["raykd.role"] == record.role
        assert run.info.status == "FINISHED"


def test_mlflow_has_every_epoch_and_parameter(two_slots: StudyResult) -> None:
    client = mlflow.MlflowClient(two_slots.tracking_uri)
    runs = {run.data.tags["raykd.id"]: run for run in runs_of(two_slots)}
    for record in two_slots.records.of("trial"):
        run = runs[f"{two_slots.study_id}/{record.id}"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        values = {metric.step: metric.value for metric in history}
        assert values == {n: e["val_accuracy"] for n, e in enumerate(record.epochs, 1)}
        width = record.job.params["student.model.width"]
        assert run.data.params["student.model.width"] == str(width)
        assert run.data.metrics["params"] == record.metrics["params"]


def test_model_in_mlflow_has_reported_accuracy(two_slots: StudyResult) -> None:
    tagged = [run for run in runs_of(two_slots) if "raykd.model" in run.data.tags]
    assert [run.data.tags["raykd.role"] for run in tagged] == ["replicate"]
    address = tagged[0].data.tags["raykd.model"]
    model = load_model_uri(address, tracking_uri=two_slots.tracking_uri)
    [replicate] = two_slots.records.of("replicate")
    assert accuracy(model) == pytest.approx(replicate.metrics["test_accuracy"], abs=1e-12)


def accuracy(model: Any) -> float:
    """Accuracy on the whole test split of scikit-learn's digits."""
    test = SOURCES["digits"](limit=160, val_limit=60).load().test
    digits: Any = load_digits()
    logits = model.eval()(torch.from_numpy(digits.images)[test.index])
    return float((logits.argmax(1) == test.targets).double().mean())


# One slot: failures, and the same again


def test_diverging_trials_fail_with_their_reason(one_slot: StudyResult) -> None:
    trials = one_slot.records.of("trial")
    wild = [r for r in trials if r.job.params["train.optimizer.lr"] == WILD]
    assert len(wild) == 2 and len(trials) == 6
    for record in trials:
        assert record.status == ("failed" if record in wild else "finished")
        assert ("diverged in epoch 1" in record.reason) is (record in wild)
    assert_every_epoch_once(one_slot)
    assert not any(record in one_slot.pareto for record in wild)


def test_failed_trial_does_not_end_its_slot(one_slot: StudyResult) -> None:
    """One process trains all trials, before, between and after the failed ones."""
    assert (
        len({event.slot for event in events_of(one_slot) if isinstance(event, EpochFinished)}) == 1
    )


def test_equal_seeds_in_one_slot_give_equal_results(
    one_slot: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for storage behind a URI."""
    monkeypatch.chdir(tmp_path)
    storage = f"cluster.storage=file://{tmp_path}/elsewhere"
    second = search(write_study(tmp_path), overrides=[storage])
    assert figures(second, by=lambda r: r.id) == figures(one_slot, by=lambda r: r.id)
    assert second.metrics() == one_slot.metrics()
    assert second.folder.parent == tmp_path / "studies"
    [replicate] = second.records.of("replicate")
    assert (tmp_path / "elsewhere" / str(replicate.job.network_file)).is_file()


# Processes that are killed


# Trials 1 and 2 of `one_slot`, in which processes are killed, do not diverge

IS_SLOT = re.compile(r"ray::(Slot|ResourceTrainable)\b")
"""Names of a slot's process, between and during calls of Tune."""


def descendants(pid: int) -> dict[int, str]:
    """Descendants of `pid` and their names."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            number = int(folder.name)
            parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[number] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    pids: set[int] = {pid}
    while more := {p for p, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return {number: names.get(number, "") for number in pids - {pid}}


def train_workers() -> list[int]:
    """Training processes of this process's Ray in order of their start: those of
    groups, or else the slots themselves."""
    below = descendants(os.getpid())
    groups = [pid for pid, name in below.items() if "TrainWorker" in name]
    return sorted(groups or [pid for pid, name in below.items() if IS_SLOT.match(name)])


def test_killed_worker_loses_no_epoch(one_slot: StudyResult, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(event: Event) -> None:
        if not (isinstance(event, EpochFinished) and (event.id, event.epoch) == ("trial-0001", 2)):
            return
        killed.extend(train_workers())
        for worker in killed:
            os.kill(worker, signal.SIGKILL)

    result = search(write_study(tmp_path), listeners=[kill])
    assert len(killed) == 1
    assert_every_epoch_once(result)
    assert figures(result, by=by_point) == figures(one_slot, by=by_point)


DRIVER = """\
import os, signal, sys
from raykd.tuning.search_run import search
from raykd.tracking.events import EpochFinished

def die(event):
    if isinstance(event, EpochFinished) and [event.id, str(event.epoch)] == sys.argv[2:]:
        os.killpg(0, signal.SIGKILL)

search(sys.argv[1], listeners=[die])
"""


def run_until_killed(study: Path, log: Path, trial: str, epoch: int) -> None:
    """Run a search in a separate process group and kill the group after an epoch of a trial."""
    with log.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(study), trial, str(epoch)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    below: dict[int, str] = {}
    while driver.poll() is None:
        below |= descendants(driver.pid)
        time.sleep(0.2)
    _end(below)
    assert driver.returncode == -signal.SIGKILL, log.read_text()[-2000:]


def _end(processes: Mapping[int, str], patience: float = 30) -> None:
    """Ray's processes end with their driver; kill the remaining ones after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until and any(_lives(*item) for item in processes.items()):
        time.sleep(0.2)
    for pid, name in processes.items():
        if _lives(pid, name):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int, name: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return False
    return bool(name) and command == name


def test_killed_driver_can_be_resumed(on_ray: None, tmp_path: Path) -> None:
    """Killed after the last trial began, while others pause, it decides as if nothing happened."""
    halving = "scheduler: {name: asha, reduction: 2}"
    studies: dict[str, Path] = {}
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        studies[name] = write_study(tmp_path / name)
        text = studies[name].read_text().replace("trials: 6", f"trials: 6\n  {halving}")
        studies[name].write_text(text.replace("epochs: 3", "epochs: 4"))
    undisturbed = search(studies["undisturbed"])
    run_until_killed(studies["killed"], tmp_path / "driver.log", "trial-0005", 1)
    [folder] = (tmp_path / "killed" / "studies").glob("tiny-*")
    before = events(folder / "journal.jsonl")
    interrupted = read_result(folder)
    assert [r.id for r in everything(interrupted) if r.status == "running"] == ["trial-0005"]
    assert [r.id for r in interrupted.records.of("trial") if r.status == "paused"]
    result = search("not read", resume=folder)
    assert result.folder == folder and result.study_id == interrupted.study_id
    assert events_of(result)[: len(before)] == before
    assert figures(result, by=lambda r: r.id) == figures(undisturbed, by=lambda r: r.id)
    assert [r.id for r in result.pareto] == [r.id for r in undisturbed.pareto]
    for training, epochs in epochs_of(events_of(result)).items():
        assert epochs == list(range(1, len(epochs) + 1)), training
    ended = Counter(event.id for event in events_of(result) if isinstance(event, RunEnded))
    assert set(ended.values()) == {1}
    continued = {event.id for event in events_of(result) if isinstance(event, RunPromoted)}
    assert continued, "a paused trial continued"
    runs = Counter(run.data.tags["raykd.id"] for run in runs_of(result))
    assert set(runs.values()) == {1} and len(runs) == 1 + len(everything(result))


# Several workers a trial


def test_two_workers_train_one_trial(on_ray: None, tmp_path: Path) -> None:
    """One of them is killed during training."""
    study = load_study(
        write_study(tmp_path),
        ["student.model.width=16", "train.optimizer.lr=0.05", "cluster.workers_per_trial=2"],
    )
    killed: list[int] = []

    def kill_one(event: Event) -> None:
        if isinstance(event, EpochFinished) and (event.id, event.epoch) == ("trial-0000", 2):
            killed.extend(train_workers()[-1:])
            os.kill(killed[0], signal.SIGKILL)

    result = distill(study, listeners=[kill_one])
    assert len(killed) == 1
    assert {r.status for r in everything(result)} == {"finished"}
    assert_every_epoch_once(result)
    [trial] = result.records.of("trial")
    for metrics in trial.epochs:  # every validation sample was counted once, by one of the two
        assert metrics["val_accuracy"] * 60 == pytest.approx(round(metrics["val_accuracy"] * 60))
    [replicate] = result.records.of("replicate")
    [run] = [run for run in runs_of(result) if "raykd.model" in run.data.tags]
    model = load_model_uri(run.data.tags["raykd.model"], tracking_uri=result.tracking_uri)
    assert accuracy(model) == pytest.approx(replicate.metrics["test_accuracy"], abs=1e-12)
