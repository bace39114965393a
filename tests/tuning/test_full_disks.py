"""Full disks: a bounded wait, whole lines only, states kept, a clear message, and a resume."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from raykd.storage import Storage
from raykd.tracking import journal as journal_module
from raykd.tracking.events import Note
from raykd.tracking.journal import Journal, events
from raykd.training.state_file import StateFiles, TrainingState

SIZE_LIMIT = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WAIT_S", 0.3)
    monkeypatch.setattr(journal_module, "PAUSE_S", 0.05)


@pytest.fixture
def full_disk() -> object:
    """A function that limits the size of files, as a full disk does, and lifts the limit."""

    def limit(size: int | None) -> None:
        soft = SIZE_LIMIT[0] if size is None else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, SIZE_LIMIT[1]))

    yield limit
    limit(None)


def test_journal_holds_whole_lines_only(tmp_path: Path, full_disk, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(Note("a"))
    whole = path.read_bytes()
    full_disk(len(whole) + 20)
    with pytest.raises(OSError, match=r"File too large|No space left") as error:
        journal.append(Note("b"))
    assert error.value.filename == str(path) and path.read_bytes() == whole
    said = capsys.readouterr().err
    assert "cannot be written" in said and "waiting up to" in said
    full_disk(None)
    journal.append(Note("c"))
    assert [event.id for event in events(path) if isinstance(event, Note)] == ["a", "c"]


def test_write_continues_after_space_is_freed(
    tmp_path: Path,
    full_disk,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    full_disk(10)
    monkeypatch.setattr(journal_module.time, "sleep", lambda _: full_disk(None))
    journal.append(Note("a"))
    assert len(events(tmp_path / "journal.jsonl")) == 1


def test_training_continues_without_space_for_its_state(tmp_path: Path, full_disk) -> None:  # type: ignore[no-untyped-def]
    files = StateFiles(Storage(str(tmp_path)), ("even", "odd"), "training")

    def state(epoch: int) -> TrainingState:
        empty = {"seed": 0, "history": [], "distiller": {}, "optimizer": {}}
        return {"epoch": epoch, "student": {"w": torch.ones(1000)}, **empty}  # type: ignore[typeddict-item]

    for epoch in (1, 2):
        files.save(state(epoch))
    full_disk(1000)
    files.save(state(3))
    (note,) = files.take_notes()
    assert "epoch 3 cannot be written" in note and "earlier epoch" in note
    full_disk(None)
    assert [each["epoch"] for each in files.load()] == [2, 1]
    assert sorted(os.listdir(tmp_path)) == ["even", "odd"], "no draft is left"


STUDY = """\
name: full
data: {name: digits, limit: 100, val_limit: 40}
student: {model: {name: mlp, depth: 1, width: {choice: [4, 6, 8]}}}
scheme: {name: alone}
train: {epochs: 2, batch_size: 32}
search: {trials: 3, replicates: 0, sampler: grid}
"""

SEARCH = """
import resource, sys
from raykd.errors import StudyError
from raykd.tracking import journal
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import search

journal.WAIT_S = 0.5

def fill(event):
    if event.kind == "epoch" and event.id == "trial-0001":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

try:
    search("study.yaml", listeners=[fill], executor=LocalExecutor())
except StudyError as error:
    print(error)
    sys.exit(2)
"""


def test_search_on_full_disk_ends_with_message_and_can_be_resumed(tmp_path: Path) -> None:
    from raykd.tuning.executors import LocalExecutor
    from raykd.tuning.result import read_result
    from raykd.tuning.search_run import search

    (tmp_path / "study.yaml").write_text(
        STUDY + f"cluster: {{storage: '{tmp_path}/studies'}}\n"
        f"tracking: {{uri: 'sqlite:///{tmp_path}/mlflow.db'}}\n"
    )
    command = [sys.executable, "-c", textwrap.dedent(SEARCH)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "cannot be written" in done.stdout and "--resume" in done.stdout
    assert "Traceback" not in done.stdout
    [folder] = tmp_path.glob("studies/full-*")
    search("", resume=folder, executor=LocalExecutor())
    records = read_result(folder).records.of("trial")
    assert [(r.status, len(r.epochs)) for r in records] == [("finished", 2)] * 3
