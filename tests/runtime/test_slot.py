"""Slots whose training function ends too early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raykd.data.loader import BatchCount
from raykd.runtime import slot as slot_module
from raykd.runtime.channel import Channel, ChannelClient, StartJob, WorkersGone
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.jobs import JobFailure, Report, TrainJob
from raykd.runtime.slot import Slot, SlotSetup, WorkerHung
from raykd.storage import Storage

FIRST, NEXT = (
    TrainJob(f"trial-{number:04}", "trial", {}, seed=0, epochs=2, folder="study")
    for number in range(2)
)
BROKEN = "CUDA error: device-side assert triggered"


def slot_of(
    folder: Path,
    train: Callable[[Channel], None],
    monkeypatch: pytest.MonkeyPatch,
    workers: int = 1,
) -> Slot:
    """Build a slot whose training function is `train`."""

    def trainer_of(self: Slot, data: object, processes: int) -> SimpleNamespace:
        assert processes == (0 if workers == 1 else workers)
        return SimpleNamespace(fit=lambda: train(self._channel))

    monkeypatch.setattr(Slot, "_trainer_of", trainer_of)
    slot = Slot.__new__(Slot)
    plan = SlotPlan(slots=1, workers=workers, cpus=1, gpus=0)
    setup = SlotSetup(str(folder), plan, 2, str(folder), collective_timeout=1)
    slot.setup({"job": FIRST}, setup, [None])  # type: ignore[list-item]
    return slot


def test_broken_gpu_fails_trial_and_ends_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(channel: Channel) -> None:
        client = ChannelClient(channel.address)
        request = client.receive(10)
        assert request is not None and request.action == StartJob(FIRST)
        client.respond(request, Report(1, {"val_accuracy": 0.5}, done=False))
        assert client.receive(10) is not None
        Storage(str(tmp_path)).write(FIRST.failure_file, BROKEN.encode())
        raise RuntimeError(BROKEN)

    slot = slot_of(tmp_path, train, monkeypatch)
    first = slot.step()
    assert first["epoch"] == 1 and not first["done"]
    assert first["outcome"] == Report(1, {"val_accuracy": 0.5}, done=False)
    assert slot.step() == {"outcome": JobFailure(BROKEN), "epoch": 0, "done": True}
    slot.reset_config({"job": NEXT})
    with pytest.raises(WorkersGone, match="cannot continue: CUDA error"):
        slot.step()


def test_start_failure_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(channel: Channel) -> None:
        raise ImportError("libcudart.so: cannot open shared object file")

    result = slot_of(tmp_path, train, monkeypatch).step()
    reason = "its workers cannot start: libcudart.so: cannot open shared object file"
    assert result["outcome"] == JobFailure(reason, slot_unusable=True) and result["done"]


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_that_hangs_is_named_and_its_process_ends(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are its sign of life: it may take any time for an epoch."""
    monkeypatch.setattr(slot_module, "NAMING_S", 0.0)
    hung, over, ended = threading.Event(), threading.Event(), list[bool]()

    def train(channel: Channel) -> None:
        client = ChannelClient(channel.address)
        if workers > 1:
            client.report_progress(0.05)
        request = client.receive(10)
        assert request is not None
        for _ in range(30):  # thrice the limit
            BatchCount.total += 1
            over.wait(0.1)
        client.respond(request, Report(1, {"val_accuracy": 0.5}, done=False))
        client.receive(60)
        hung.set()
        over.wait(60)

    monkeypatch.setattr(slot_module, "_end_process_later", lambda: ended.append(True))
    slot = slot_of(tmp_path, train, monkeypatch, workers)
    assert slot.step()["epoch"] == 1
    text = r"its workers? hung: no batch in 1 s \(in wait, .*py:\d+\)"
    with pytest.raises(WorkerHung, match=text):
        slot.step()
    assert hung.is_set() and ended == [True]
    over.set()


class Empty(tune.Trainable):
    """Tune actor without attributes of its own."""

    def setup(self, config: Mapping[str, Any]) -> None:  # type: ignore[override]
        pass


def test_slot_overrides_no_attribute_of_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = slot_of(tmp_path, lambda channel: None, monkeypatch)
    assert vars(slot).keys().isdisjoint(vars(Empty()))
