"""What a slot makes of a training function in its own process that ends before its time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from raykd.runtime.channel import Mailbox, WorkerEnd, WorkersGone
from raykd.runtime.jobs import Assignment
from raykd.runtime.slot import Slot, SlotSetup
from raykd.storage import Storage

FIRST, NEXT = (
    Assignment(f"trial-{number:04}", "trial", {}, seed=0, epochs=2, folder="study")
    for number in range(2)
)
BROKEN = "CUDA error: device-side assert triggered"


def slot_of(
    folder: Path, train: Callable[[Mailbox], None], monkeypatch: pytest.MonkeyPatch
) -> Slot:
    """A slot with one worker whose training function is `train`."""

    def trainer_of(self: Slot, data: object, processes: int) -> SimpleNamespace:
        assert processes == 0
        return SimpleNamespace(fit=lambda: train(self._mailbox))

    monkeypatch.setattr(Slot, "_trainer_of", trainer_of)
    slot = Slot.__new__(Slot)
    setup = SlotSetup(
        str(folder), workers=1, slots=1, cpus=1, gpus=0, max_failures=2, folder=str(folder)
    )
    slot.setup({"assignment": FIRST.plain()}, setup, [None])
    return slot


def test_a_gpu_that_broke_fails_its_trial_and_ends_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(mailbox: Mailbox) -> None:
        end = WorkerEnd(mailbox.address)
        start = end.next(10)
        assert start is not None and start.verb == "start"
        end.answer(start, {"epoch": 0, "history": []})
        assert end.next(10) is not None
        Storage(str(tmp_path)).write(FIRST.failure_file, BROKEN.encode())
        raise RuntimeError(BROKEN)

    slot = slot_of(tmp_path, train, monkeypatch)
    answer = slot.step()
    assert answer["failed"] == BROKEN and answer["done"]
    slot.reset_config({"assignment": NEXT.plain()})
    with pytest.raises(WorkersGone, match="cannot go on: CUDA error"):
        slot.step()


def test_what_cannot_start_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(mailbox: Mailbox) -> None:
        raise ImportError("libcudart.so: cannot open shared object file")

    answer = slot_of(tmp_path, train, monkeypatch).step()
    assert (
        answer["failed"] == "its workers cannot start: libcudart.so: cannot open shared object file"
    )
    assert answer["unusable"] and answer["done"]
