"""Slot: a Tune actor that keeps one worker group of Ray Train and reuses it for every trial.

A group of one trains in the slot's own process (Ray Train's local mode).  A group of processes
would cost a controller, a worker and three helpers more for each slot, every one of which imports
Ray again: with two slots on two cores, a search's first step came after 54 s instead of 18.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray import tune

from raykd.runtime.channel import Channel, ContinueJob, StartJob, WorkersGone, WorkersLost
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.jobs import AnyJob, IdleJob, JobFailure, Report
from raykd.runtime.node_drain import NodeDrain
from raykd.runtime.progress import progress_of
from raykd.storage import Storage
from raykd.user_code import UserCode

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.train.torch import TorchTrainer

START_TIMEOUT_S = 300.0
"""Seconds in which a worker group must announce itself."""

GOODBYE_S = 8.0
"""Seconds that a slot waits for its worker group to end; Tune kills the slot later than that."""

NAMING_S = 30.0
"""Seconds beyond its limit for which a group that hangs is left alone.  If only some of its ranks
hang, the others have found out which by then (`worker.py`)."""

GROUP_FAILURES = 3
"""Restarts of a group by Ray Train itself.  After them the slot starts a new group, if the last one
had announced itself; one that never did will not the next time either."""


@dataclass(frozen=True)
class SlotSetup:
    """Settings that all slots of a study share.

    Attributes:
        storage: root of the study's files.
        plan: number and resources of the slots.
        max_failures: number of restarts of a trial's lost workers before it fails.
        folder: folder for Ray Train's own files.
        collective_timeout: seconds that ranks wait for one another, and that workers may take for
            a batch.
        outlived: whether Ray continues after the search, so that others need the slots' resources.
        allow_code: whether whole networks may run code of their files.
        code: files of code that the study names.
    """

    storage: str
    plan: SlotPlan
    max_failures: int
    folder: str
    collective_timeout: int = 1800
    outlived: bool = False
    allow_code: bool = False
    code: UserCode | None = None


class WorkerHung(Exception):
    """The workers have made no progress for too long."""


class Slot(tune.Trainable):
    """Actor that runs one job after another; `step` is one epoch of the present one."""

    def setup(  # type: ignore[override]
        self, config: Mapping[str, AnyJob], shared: SlotSetup, data: list[ObjectRef]
    ) -> None:
        import ray

        self._shared = shared
        self._files = Storage(shared.storage)  # `_storage` is Tune's
        self._ended: str | None = None
        self._unusable = False
        self._channel = Channel(ray.util.get_node_ip_address(), self._check_trainer)
        self._progress = (0, 0.0)
        self._drain = NodeDrain()
        run = self._train_here if shared.plan.workers == 1 else self._train_in_a_group
        self._trainer = threading.Thread(target=run, args=(data[0],), daemon=True)
        self._trainer.start()
        self.reset_config(config)

    def reset_config(self, new_config: Mapping[str, AnyJob]) -> bool:
        """Take the next job."""
        self._job = new_config["job"]
        self._started = False
        return True

    def step(self) -> dict[str, object]:
        """Run the job up to its next report, and return that as a result of Tune.

        Raises:
            NodeDrained: the job continues in a slot of another node.
        """
        if self._shared.outlived:
            self._drain.check()
        if isinstance(self._job, IdleJob):
            time.sleep(self._job.seconds)
            return {"epoch": 0, "done": False}
        outcome = self._next_outcome()
        if isinstance(outcome, JobFailure):
            self._started = False
            return {"outcome": outcome, "epoch": 0, "done": True}
        return {
            "outcome": outcome,
            "slot": f"{socket.gethostname()}:{os.getpid()}",
            "epoch": outcome.epoch,
            "done": outcome.done,
        }

    def cleanup(self) -> None:
        """End the worker group."""
        self._channel.close()
        if self._shared.outlived:
            # A group that ends by itself frees its resources at once.  One whose slot is gone first
            # keeps them until Ray Train's cleaner frees them.
            self._trainer.join(GOODBYE_S)

    def _next_outcome(self) -> Report | JobFailure:
        """Ask the workers for the next report, again after they were lost."""
        losses = 0
        while True:
            try:
                self._channel.wait_for_workers(START_TIMEOUT_S)
                self._progress = (-1, 0.0)
                outcome = self._channel.request(
                    ContinueJob() if self._started else StartJob(self._job)
                )
                self._started = True
                return outcome
            except WorkersGone as gone:
                saved = self._saved_failure()
                if saved is not None:
                    return saved
                if self._unusable or self._channel.announcements:
                    raise  # Tune gives the trial a new slot
                self._unusable = True
                return JobFailure(str(gone), slot_unusable=True)
            except WorkersLost as lost:
                losses += 1
                self._started = False
                saved = self._saved_failure()
                if saved is not None:
                    return saved
                if losses > self._shared.max_failures:
                    return JobFailure(f"its workers were lost {losses} times: {lost}")

    def _saved_failure(self) -> JobFailure | None:
        """Return the failure that the workers saved before they ended, if they could."""
        saved = self._files.read(self._job.failure_file)
        if saved is None:
            return None
        reason, _, raised_at = saved.decode().partition("\n")
        return JobFailure(reason, raised_at=raised_at)

    def _check_trainer(self) -> None:
        """Raise `WorkersGone` if Ray Train has ended, `WorkerHung` if the workers hang."""
        if not self._trainer.is_alive():
            raise WorkersGone(self._ended or "Ray Train ended the worker group")
        if not self._channel.announcements:
            return
        alone, limit = self._shared.plan.workers == 1, self._shared.collective_timeout
        progress = progress_of(self._trainer.ident or 0) if alone else self._channel.progress
        batches, now = progress.batches, time.monotonic()
        if batches != self._progress[0]:
            self._progress = (batches, now)
        elif now - self._progress[1] > limit + (0 if alone else NAMING_S):
            # Their threads cannot be ended; Tune gives the job another slot, and this process ends
            _end_process_later()
            workers = "its worker" if alone else "its workers"
            raise WorkerHung(f"{workers} hung: no batch in {limit} s{progress.place}")

    def _train_here(self, data: ObjectRef) -> None:
        """Run a group of one in this process."""
        try:
            self._trainer_of(data, processes=0).fit()
        except Exception as error:  # noqa: BLE001 - any error must reach the trial
            ability = "continue" if self._channel.announcements else "start"
            self._ended = f"its workers cannot {ability}: {_last_line(error)}"

    def _train_in_a_group(self, data: ObjectRef) -> None:
        """Run a group of processes, and start it again after it failed."""
        while True:
            announced = self._channel.announcements
            trainer = self._trainer_of(data, processes=self._shared.plan.workers)
            try:
                trainer.fit()
                return
            except Exception as error:  # noqa: BLE001 - any error must reach the trial
                if self._channel.announcements == announced:
                    self._ended = f"its workers cannot start: {_last_line(error)}"
                    return

    def _trainer_of(self, data: ObjectRef, processes: int) -> TorchTrainer:
        """Create a trainer whose processes serve the slot's channel; 0: in this process."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from raykd.compat.ray_process_group import FileTorchConfig
        from raykd.runtime.worker import WorkerSetup, serve

        shared, plan = self._shared, self._shared.plan
        on_this_machine = self._channel.address.host == "127.0.0.1"
        config = FileTorchConfig if on_this_machine else TorchConfig
        return TorchTrainer(
            serve,
            train_loop_config={
                "setup": WorkerSetup(
                    self._channel.address,
                    shared.storage,
                    data,
                    plan,
                    shared.allow_code,
                    shared.code,
                )
            },
            torch_config=config(timeout_s=shared.collective_timeout),
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=plan.gpus > 0,
                resources_per_worker=resources_of(plan.cpus, plan.gpus),
            ),
            run_config=RunConfig(
                name=f"slot-{os.getpid()}-{self._channel.announcements}",
                storage_path=shared.folder,
                failure_config=FailureConfig(max_failures=GROUP_FAILURES),
            ),
        )


def resources_of(cpus: float, gpus: float) -> dict[str, float]:
    """Return resources by Ray's names."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _end_process_later() -> None:
    timer = threading.Timer(GOODBYE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
