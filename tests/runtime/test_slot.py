"""Slots whose training function, in the slot's own process, ends too early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raykd.runtime.channel import Channel, ChannelClient, StartJob, WorkersGone
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.jobs import JobFailure, Report, TrainJob
from raykd.runtime.slot import Slot, SlotSetup
from raykd.storage import Storage

FIRST, NEXT = (
    TrainJob(f"trial-{number:04}", "trial", {}, seed=0, epochs=2, folder="study")
    for number in range(2)
)
BROKEN = "CUDA error: device-side assert triggered"


def slot_of(
    folder: Path, train: Callable[[Channel], None], monkeypatch: pytest.MonkeyPatch
) -> Slot:
    """A slot with one worker whose training function is `train`."""

    def trainer_of(self: Slot, data: object, processes: int) -> SimpleNamespace:
        assert processes == 0
        return SimpleNamespace(fit=lambda: train(self._channel))

    monkeypatch.setattr(Slot, "_trainer_of", trainer_of)
    slot = Slot.__new__(Slot)
    plan = SlotPlan(slots=1, workers=1, cpus=1, gpus=0)
    setup = SlotSetup(str(folder), plan, max_failures=2, folder=str(folder))
    slot.setup({"job": FIRST}, setup, [None])  # type: ignore[list-item]
    return slot


def test_a_gpu_that_broke_fails_its_trial_and_ends_the_slot(
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
    assert first["epoch"] == 1 and first["val_accuracy"] == 0.5 and not first["done"]
    assert slot.step() == {"outcome": JobFailure(BROKEN), "epoch": 0, "done": True}
    slot.reset_config({"job": NEXT})
    with pytest.raises(WorkersGone, match="cannot go on: CUDA error"):
        slot.step()


def test_what_cannot_start_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(channel: Channel) -> None:
        raise ImportError("libcudart.so: cannot open shared object file")

    result = slot_of(tmp_path, train, monkeypatch).step()
    reason = "its workers cannot start: libcudart.so: cannot open shared object file"
    assert result["outcome"] == JobFailure(reason, slot_unusable=True) and result["done"]


class Empty(tune.Trainable):
    """A Tune actor without attributes of its own."""

    def setup(self, config: Mapping[str, Any]) -> None:  # type: ignore[override]
        pass


def test_a_slot_replaces_no_attribute_of_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = slot_of(tmp_path, lambda channel: None, monkeypatch)
    assert vars(slot).keys().isdisjoint(vars(Empty()))
