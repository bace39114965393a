"""A slot: one Tune actor that owns one long-lived Ray Train worker group and reuses it.

A group of one trains in the slot's own process (Ray Train's local mode).  A group of processes
would cost a controller, a worker and three helpers more for each slot, every one of which imports
Ray anew: with two slots on two cores a search's first step came after 54 s instead of 18.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import tune

from raykd.runtime.channel import Mailbox, WorkersGone, WorkersLost
from raykd.runtime.jobs import Assignment
from raykd.storage import Storage

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

START_TIMEOUT_S = 300.0
"""How long a worker group may take to announce itself."""

GOODBYE_S = 8.0
"""How long a slot waits for its worker group to end; Tune waits longer before it kills the slot."""

GROUP_FAILURES = 3
"""How often Ray Train starts a group again by itself.  When it gives up, the slot asks for a new
group if the last one had worked; one that never announced itself will not come next time either."""


@dataclass(frozen=True)
class SlotSetup:
    """What every slot of a study shares.

    Attributes:
        storage: root of the study's files.
        workers: ranks per trial.
        slots: how many of them there are.
        cpus, gpus: of each rank.
        max_failures: how often a trial's lost workers are started again before it fails.
        folder: a local folder for Ray Train's own bookkeeping.
        collective_timeout: seconds after which ranks stop waiting for one another.
        outlived: whether Ray goes on after the search, so that others need the slots' places.
    """

    storage: str
    workers: int
    slots: int
    cpus: float
    gpus: float
    max_failures: int
    folder: str
    collective_timeout: int = 1800
    outlived: bool = False


class Slot(tune.Trainable):
    """Serves one trial after another; `step` is one epoch of the present one."""

    def setup(  # type: ignore[override]
        self, config: Mapping[str, Any], shared: SlotSetup, data: list[Any]
    ) -> None:
        import ray

        self._shared = shared
        self._files = Storage(shared.storage)
        self._ended: str | None = None
        self._unusable = False
        self._mailbox = Mailbox(ray.util.get_node_ip_address(), self._check_trainer)
        run = self._train_here if shared.workers == 1 else self._train_in_a_group
        self._trainer = threading.Thread(target=run, args=(data[0],), daemon=True)
        self._trainer.start()
        self._take(config)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._assignment.role == "wait":
            time.sleep(self._pause)
            return {"id": self._assignment.id, "epoch": 0, "done": False}
        losses = 0
        while True:
            try:
                return self._epoch()
            except WorkersGone as gone:
                written = self._written_failure()
                if written is not None:
                    return written
                if self._unusable or self._mailbox.announcements:
                    raise  # Tune gives the trial a new slot
                self._unusable = True
                return self._failure(str(gone)) | {"unusable": True}
            except WorkersLost as lost:
                losses += 1
                self._started = False
                written = self._written_failure()
                if written is not None:
                    return written
                if losses > self._shared.max_failures:
                    return self._failure(f"its workers were lost {losses} times: {lost}")

    def cleanup(self) -> None:
        self._mailbox.close()
        if self._shared.outlived:
            # A group that ends by itself frees its place at once; one whose slot is gone first
            # keeps it until Ray Train's cleaner comes by.
            self._trainer.join(GOODBYE_S)

    def _take(self, config: Mapping[str, Any]) -> None:
        self._assignment = Assignment.from_plain(config["assignment"])
        self._pause = float(config.get("pause", 0.2))
        self._started = False

    def _epoch(self) -> dict[str, Any]:
        self._mailbox.wait_for_workers(START_TIMEOUT_S)
        history: list[dict[str, float]] = []
        if not self._started:
            begun = self._mailbox.ask("start", self._assignment.plain())
            if begun.get("failed"):
                return self._failure(begun["reason"], begun["traceback"], begun["raised_at"])
            history = begun["history"]
            self._started = True
        answer = self._mailbox.ask("epoch")
        if answer.get("failed"):
            return self._failure(answer["reason"], answer["traceback"], answer["raised_at"])
        return {
            "id": self._assignment.id,
            "epoch": answer["epoch"],
            "done": answer["done"],
            "history": history,
            "slot": f"{socket.gethostname()}:{os.getpid()}",
            "clock": answer["clock"],
            **self._assignment.metrics,
            **answer["metrics"],
        }

    def _failure(self, reason: str, traceback: str = "", raised_at: str = "") -> dict[str, Any]:
        self._started = False
        return {
            "id": self._assignment.id,
            "epoch": 0,
            "done": True,
            "failed": reason,
            "traceback": traceback,
            "raised_at": raised_at,
        }

    def _written_failure(self) -> dict[str, Any] | None:
        """Why the trial cannot be trained, if its workers could still write that down."""
        written = self._files.read(self._assignment.failure_file)
        if written is None:
            return None
        reason, _, raised_at = written.decode().partition("\n")
        return self._failure(reason, raised_at=raised_at)

    def _check_trainer(self) -> None:
        if not self._trainer.is_alive():
            raise WorkersGone(self._ended or "Ray Train ended the worker group")

    def _train_here(self, data: Any) -> None:
        try:
            self._trainer_of(data, processes=0).fit()
        except Exception as error:  # noqa: BLE001 - whatever it was, the slot must say it
            able = "go on" if self._mailbox.announcements else "start"
            self._ended = f"its workers cannot {able}: {_last_line(error)}"

    def _train_in_a_group(self, data: Any) -> None:
        while True:
            announced = self._mailbox.announcements
            trainer = self._trainer_of(data, processes=self._shared.workers)
            try:
                trainer.fit()
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, the slot must say it
                if self._mailbox.announcements == announced:
                    self._ended = f"its workers cannot start: {_last_line(error)}"
                    return

    def _trainer_of(self, data: Any, processes: int) -> TorchTrainer:
        """Serves the slot's mailbox with so many processes; 0: in this one."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from raykd.runtime.worker import serve

        shared = self._shared
        return TorchTrainer(
            serve,
            train_loop_config={
                "address": self._mailbox.address,
                "storage": shared.storage,
                "data": data,
                "threads": shared.cpus,
                "slots": shared.slots,
                "gpus": shared.gpus,
            },
            torch_config=TorchConfig(timeout_s=shared.collective_timeout),
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=shared.gpus > 0,
                resources_per_worker=resources_of(shared.cpus, shared.gpus),
            ),
            run_config=RunConfig(
                name=f"slot-{os.getpid()}-{self._mailbox.announcements}",
                storage_path=shared.folder,
                failure_config=FailureConfig(max_failures=GROUP_FAILURES),
            ),
        )


def resources_of(cpus: float, gpus: float) -> dict[str, float]:
    """What Ray calls them."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
