"""Damaged files of a study's folder: one message with file and line, or rebuilt; no traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import optuna
import pytest

from helpers.cache_cases import built, cropped, described, files
from helpers.mutations import mutate_bytes, mutate_lines
from raykd.errors import StudyError
from raykd.report.summary import summarize
from raykd.storage import Storage
from raykd.study.checks.load import load_study
from raykd.tracking.events import (
    EVENTS,
    EpochFinished,
    Event,
    Note,
    RunStarted,
    StudyExtended,
    parse,
)
from raykd.tracking.journal import Listener, events
from raykd.training.state_file import parse_state
from raykd.training.teacher_cache import CacheStore
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.optuna_study import DrawsFile
from raykd.tuning.result import read_result
from raykd.tuning.search_run import SearchRun, search
from raykd.tuning.study_dir import open_folder

MUTATIONS = int(os.environ.get("RAYKD_MUTATIONS", "160")) // 8
"""Mutations of each kind of file; `tests/study/test_hostile_studies.py` mutates study files."""

STUDY = """\
name: damaged
data: {name: digits, limit: 100, val_limit: 40}
teacher: {model: {name: mlp, depth: 1, width: 8}, train: {epochs: 1, batch_size: 32}}
student: {model: {name: mlp, depth: 1, width: {choice: [4, 6, 8]}}}
knowledge: [{loss: {choice: [{name: kd, temperature: {uniform: [1, 4]}}, dist]}}]
train: {epochs: 2, batch_size: 32, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.1]}}}
search: {trials: 4, replicates: 1, finalists: 1, sampler: tpe}
"""


def stops_after(number: int) -> Listener:
    """A listener that interrupts the run after this number of epochs."""
    seen = 0

    def listener(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "epoch"
        if event.kind == "epoch" and seen == number:
            raise KeyboardInterrupt

    return listener


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was interrupted in its third trial."""
    root = tmp_path_factory.mktemp("interrupted")
    file = root / "study.yaml"
    file.write_text(f"{STUDY}cluster: {{storage: '{root}/studies'}}\n")
    uri = f"tracking.uri=sqlite:///{root}/mlflow.db"
    with pytest.raises(KeyboardInterrupt):
        search(file, overrides=[uri], listeners=[stops_after(6)], executor=LocalExecutor())
    [folder] = root.glob("studies/damaged-*")
    return folder


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of that folder, with its teachers."""
    copy = tmp_path / "studies"
    shutil.copytree(interrupted.parent, copy)
    return copy / interrupted.name


def resume(folder: Path) -> None:
    search("", resume=folder, executor=LocalExecutor())


def content_of(folder: Path) -> dict[str, bytes]:
    skipped = ("driver.json", "driver.lock")
    files = [f for f in folder.rglob("*") if f.is_file() and f.name not in skipped]
    return {str(file): file.read_bytes() for file in files}


def refused(folder: Path, act: Callable[[Path], object] = resume) -> str:
    """The message of a refusal that touches no file."""
    before = content_of(folder)
    with pytest.raises(StudyError) as error:
        act(folder)
    assert content_of(folder) == before
    (problem,) = error.value.problems
    assert problem.fix, "what can be done"
    return str(problem)


# folder.json


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "not JSON"),
        ('{"format": 1,\n "verb": }', 2, "not JSON"),
        ("\xff\x00garbage", 1, "not JSON"),
        ("[1]", 1, "not written by raykd"),
        ("{}", 1, "no `format`"),
        ('{"format": "one"}', 1, "no `format`"),
        ('{"format": 1,\n"storage": 5}', 2, "`storage` must be text, got 5"),
        ('{"format": 1,\n"storage": "s"}', 1, "`overrides` must be a list of texts, got null"),
        ('{"format": 1,\n"storage": "s",\n"overrides": "a=b"}', 3, "`overrides` must be a list"),
        ('{"format": 1,\n"storage": "s", "overrides": [],\n"verb": "rm"}', 3, "`verb` must be one"),
        ('{"format": 1, "storage": "s", "overrides": [{}]}', 1, "`overrides` must be a list"),
        ("[" * 100_000, 1, "not JSON"),
    ],
)
def test_damaged_description(folder: Path, text: str, line: int, said: str) -> None:
    file = folder / "folder.json"
    file.write_bytes(text.encode("latin-1"))
    for act in (resume, read_result, open_folder):
        message = refused(folder, act)
        assert message.startswith(f"{file}:{line}: ") and said in message


# The journal

FOREIGN = {
    "text": "hello",
    "number": "5",
    "list": "[1, 2]",
    "object": '{"a": 1}',
    "kind": '{"event": []}',
    "fields": '{"event": "epoch"}',
    "types": '{"event": "note", "id": 5, "tags": "x"}',
    "unknown run": '{"event": "epoch", "id": "trial-0099", "epoch": 1, "metrics": {}}',
    "unknown end": '{"event": "end", "id": "trial-0099", "status": "finished"}',
    "status": '{"event": "end", "id": "trial-0000", "status": "gone"}',
    "assignment": '{"event": "run", "id": "x", "role": "trial", "assignment": {"id": "x"}}',
    "study": '{"event": "study", "id": "x", "resolved": {"tracking": 1}}',
    "deep": "[" * 100_000 + "]" * 100_000,
    "bytes": "\xff\xfe\x00\x01}",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_line_in_journal(folder: Path, kind: str) -> None:
    file = folder / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines.insert(5, FOREIGN[kind].encode("latin-1") + b"\n")
    file.write_bytes(b"".join(lines))
    for act in (resume, read_result):
        message = refused(folder, act)
        assert message.startswith(f"{file}:6: ") and "remove the line" in message


def test_journal_without_run_line(folder: Path) -> None:
    file = folder / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["event"] != "run"]
    file.write_text("".join(kept))
    message = refused(folder)
    assert message.startswith(f"{file}:") and "no line says that teacher-0 started" in message


def test_cut_lines_and_events_of_newer_versions_are_skipped(folder: Path) -> None:
    """Lines cut by a kill, and events of another version, are not damage."""
    file = folder / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    known = len(events(file))
    lines.insert(4, b'{"at": 1, "event": "ep\n')
    lines.insert(4, b'{"at": 1, "event": "of the future", "id": []}\n')
    lines.insert(4, b"\n")
    file.write_bytes(b"".join(lines) + b'{"at": 17')
    assert len(events(file)) == known and read_result(folder).trials is not None
    resume(folder)
    assert len(read_result(folder).records.of("trial")) == 4


@pytest.mark.parametrize("kind", EVENTS)
def test_event_with_field_of_another_type_is_not_read(kind: str) -> None:
    for field in dataclasses.fields(EVENTS[kind]):
        parsed = parse({"event": kind, "at": 1, field.name: object()})
        assert parsed is None or "Any" in str(field.type)


# Optuna's file


def ids(folder: Path) -> list[str]:
    journal = events(folder / "journal.jsonl")
    return [e.id for e in journal if isinstance(e, RunStarted) and e.role == "trial"]


@pytest.mark.parametrize("kind", ["garbage", "binary", "cut", "empty", "missing", "semantic"])
def test_sampler_is_rebuilt_from_journal(folder: Path, kind: str) -> None:
    file = folder / "optuna.log"
    content = file.read_bytes()
    damaged = {
        "garbage": content[:200] + b"\nhello\n" + content[200:],
        "binary": b"\x00\xff\xfe" * 100 + b"\n",
        "cut": content[: len(content) // 3],
        "empty": b"",
        "semantic": b'{"op_code": 4, "worker_id": "x", "trial_id": 99}\n' + content,
    }
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(damaged[kind])
    resume(folder)
    assert ids(folder) == ["trial-0000", "trial-0001", "trial-0002", "trial-0003"]
    journal = events(folder / "journal.jsonl")
    epochs = [(e.id, e.epoch) for e in journal if isinstance(e, EpochFinished)]
    assert len(epochs) == len(set(epochs)), "no epoch is trained twice"
    notes = [e.tags for e in journal if isinstance(e, Note)]
    warnings = [tags["warning_sampler"] for tags in notes if "warning_sampler" in tags]
    was_replaced = kind in ("garbage", "binary", "semantic")
    assert len(warnings) == was_replaced
    assert (folder / "optuna.log.damaged").exists() is was_replaced
    if kind == "garbage":
        assert "is not JSON" in warnings[0] and "learns from the trials" in warnings[0]
    study = load_study(folder / "study.yaml")
    stored = optuna.storages.JournalStorage(DrawsFile(file))
    trials = optuna.load_study(study_name=study.settings.name, storage=stored).trials
    known = {trial.user_attrs.get("raykd.id"): trial for trial in trials}
    records = read_result(folder).records.of("trial")
    for record in records:
        trial = known[record.id]
        assert trial.values == [record.metrics["val_accuracy"]]
        shared = {key: record.job.params[key] for key in trial.params if key in record.job.params}
        assert shared and shared == {key: trial.params[key] for key in shared}


# The study


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "study.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_edited_study_is_refused_with_difference(folder: Path) -> None:
    edit(folder, "uniform: [1, 4]", "uniform: [1, 8]")
    message = refused(folder)
    assert "temperature.uniform[1]: 4 -> 8" in message
    edit(folder, "uniform: [1, 8]", "uniform: [1, 4]")
    edit(folder, "trials: 4", "trials: 3")
    assert "search.trials: 4 -> 3" in refused(folder)
    edit(folder, "trials: 3", "trials: 5")
    edit(folder, "epochs: 2,", "epochs: 3,")
    message = refused(folder)
    assert "train.epochs: 2 -> 3" in message and "search.trials: 4" not in message


def test_numbers_in_study_file_may_grow(folder: Path) -> None:
    edit(folder, "trials: 4, replicates: 1", "trials: 6, replicates: 2")
    resume(folder)
    result = read_result(folder)
    assert len(result.records.of("trial")) == 6 and len(result.records.of("replicate")) == 2
    journal = events(folder / "journal.jsonl")
    [extension] = [event for event in journal if isinstance(event, StudyExtended)]
    assert extension.grown == {"search.trials": "4 -> 6", "search.replicates": "1 -> 2"}
    edit(folder, "replicates: 2", "replicates: 1")
    assert "search.replicates: 2 -> 1" in refused(folder)


# Seeded mutations of every kind of file


@pytest.fixture(scope="module")
def mutable(interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("mutable") / "studies"
    shutil.copytree(interrupted.parent, copy)
    return copy / interrupted.name


def mutations(content: bytes, name: str) -> Iterator[bytes]:
    mutate = mutate_lines if name.endswith((".jsonl", ".log")) else mutate_bytes
    for number in range(MUTATIONS):
        yield mutate(content, random.Random(f"{name} {number}"))


T = TypeVar("T")


def in_time(act: Callable[[], T]) -> T:
    start = time.process_time()
    result = act()
    assert time.process_time() - start < 10
    return result


@pytest.mark.slow
def test_mutated_journals(mutable: Path) -> None:
    file = mutable / "journal.jsonl"
    whole = file.read_bytes()
    for content in mutations(whole, file.name):
        file.write_bytes(content)
        try:
            summary = in_time(lambda: summarize(read_result(mutable)))
        except StudyError:
            continue
        finally:
            assert file.read_bytes() == content
            file.write_bytes(whole)
        assert summary.plain()


@pytest.mark.slow
def test_mutated_descriptions(mutable: Path) -> None:
    file = mutable / "folder.json"
    whole = file.read_bytes()
    for content in mutations(whole, file.name):
        file.write_bytes(content)
        with contextlib.suppress(StudyError):
            in_time(lambda: open_folder(mutable))
        assert file.read_bytes() == content
    file.write_bytes(whole)


@pytest.mark.slow
def test_mutated_files_of_sampler(mutable: Path) -> None:
    file = mutable / "optuna.log"
    whole = file.read_bytes()
    study = load_study(mutable / "study.yaml")
    folder, _ = open_folder(mutable)
    settings, published = study.settings, []
    session: Any = SimpleNamespace(
        study=study,
        prepared=SimpleNamespace(search=settings.search),
        folder=folder,
        bus=SimpleNamespace(publish=published.append),
    )
    for content in mutations(whole, file.name):
        file.write_bytes(content)
        opened = in_time(lambda: SearchRun(study)._open_optuna(session, slots=1))
        assert isinstance(opened, optuna.Study)
        assert all(trial.number >= 0 for trial in opened.get_trials())
        (mutable / "optuna.log.damaged").unlink(missing_ok=True)
    file.write_bytes(whole)
    assert published


@pytest.mark.slow
def test_mutated_states(mutable: Path) -> None:
    [file] = mutable.glob("states/*.safetensors")
    whole = file.read_bytes()
    identity = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    training = identity["__metadata__"]["training"]
    assert parse_state(whole, training)["epoch"] == 1
    for content in mutations(whole, file.name):
        if content != whole:
            with pytest.raises(ValueError, match=r"is damaged|is empty"):
                in_time(lambda content=content: parse_state(content, training))


@pytest.mark.slow
def test_mutated_caches(tmp_path: Path) -> None:
    """A damaged file is found by its size or checksum; a damaged manifest is none."""
    study = cropped()
    spec = described(study, ("embedding",))
    built(tmp_path, study, spec)
    storage, key = Storage(str(tmp_path)), spec.key
    store = CacheStore(storage)
    entry = {name: storage.read(f"outputs/{key}/{name}") or b"" for name in files(tmp_path, key)}
    assert store.is_whole(key) and not store.verify(key)
    for name, whole in entry.items():
        for content in mutations(whole, name):
            storage.write(f"outputs/{key}/{name}", content)
            in_time(store.entries)
            is_whole = in_time(lambda: store.is_whole(key))
            if name.endswith(".safetensors") and content != whole:
                assert not is_whole or store.verify(key) == [name]
            storage.remove_folder(f"outputs/{key}")
            for each, original in entry.items():
                storage.write(f"outputs/{key}/{each}", original)
    assert store.is_whole(key) and not store.verify(key)
