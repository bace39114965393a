"""Ray Tune adapters: a searcher, a callback and a scheduler that delegate to the planner."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune import Callback, ProgressReporter, Stopper
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from raykd.compat.ray_patches import (
    RAYLET,
    count_every_loss_as_dead_actor,
    forget_figures,
    inherit_environment,
    local_processes,
    log_folder,
    release_idle_actors,
)
from raykd.data import Dataset
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.early_stopping import TuneRule
from raykd.runtime.jobs import OUT_OF_MEMORY, AnyJob, IdleJob, JobFailure, RecordedJob, Report
from raykd.runtime.node_drain import NodeDrained
from raykd.runtime.ray_watch import ControlService, RayProcesses, StoppedWorkers, run_watched
from raykd.runtime.shared_cluster import ClusterShare
from raykd.runtime.signals import restore_signal_handlers
from raykd.runtime.slot import Slot, SlotSetup, WorkerHung, resources_of
from raykd.study.schedulers import StoppingRule
from raykd.tracking.events import Metrics

DEATH = ("ActorDiedError", "The actor died unexpectedly", "worker process has died")
"""Texts of Ray's errors when a slot's process is gone."""


DRAINED = f"{NodeDrained.__module__}.{NodeDrained.__name__}: "
"""Text of Ray's error if a slot has noticed that its node is drained."""


HUNG = f"{WorkerHung.__module__}.{WorkerHung.__name__}: "
"""Begin of the last line of Ray's error if a slot has noticed that its worker hangs."""


LOW_MEMORY = ("running low on memory", "OutOfMemoryError", "due to memory pressure")
"""Texts of Ray's errors when its memory monitor has ended a process."""


SHARE_S = 5.0
"""Seconds between two questions how many slots the study may use."""


class Planner(Protocol):
    """Plans what the slots train and records their results; what Tune's adapters need of it."""

    @property
    def has_work(self) -> bool:
        """Return whether `next` would give something else than an idle job."""
        ...

    def next(self) -> AnyJob | None:
        """Return the next job; None when the study is complete."""
        ...

    def report(self, job_id: str, report: Report, slot: str) -> None:
        """Record the progress of a job in a slot."""
        ...

    def job_failed(self, job_id: str, failure: JobFailure) -> None:
        """Record the failure of a job."""
        ...

    def keeps(self, job_id: str, metrics: Metrics) -> bool:
        """Return whether a trial trains another epoch; if not, it leaves its slot."""
        ...

    def leave(self, job_id: str) -> None:
        """Record that a job left its slot; ignores ended jobs and those without a record."""
        ...

    def slot_failed(self, job_id: str, reason: str, *, error: str, died: bool, began: bool) -> None:
        """Queue the job of a lost slot again, or end it after too many losses."""
        ...

    def move(self, job_id: str, reason: str) -> None:
        """Queue the job of a slot that has to end again."""
        ...

    def draw_ahead(self) -> None:
        """Prepare the next trial while the slots are busy."""
        ...


def run_planner(
    planner: Planner,
    setup: SlotSetup,
    data: Dataset,
    rule: StoppingRule | None = None,
    share: ClusterShare | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Run every job of a planner in warm slots.

    Args:
        planner: decides what is trained.
        setup: of the slots.
        data: of the study.
        rule: decides which trials end early; None: none does.
        share: in a cluster whose nodes and other studies change; None: nothing changes.
        verbose: let Tune's own output through.

    Raises:
        RayLost: Ray is gone.
    """
    plan = setup.plan
    limiter = ConcurrencyLimiter(Suggestions(planner), max_concurrent=plan.slots)
    stopping, interrupt = Stopping(planner, rule, limiter), Interrupt()
    callbacks: list[Callback] = [Reports(planner, stopping), EndedTrials()]
    if share is not None:
        callbacks.append(ClusterSize(limiter, share.slots))
    trainable = tune.with_parameters(Slot, shared=setup, data=[ray.put(data.arrays())])
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([_request(plan)])),
        tune_config=tune.TuneConfig(
            search_alg=limiter,
            scheduler=stopping,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=setup.folder,
            verbose=1 if verbose else 0,
            progress_reporter=None if verbose else NoProgress(),
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=interrupt,
            failure_config=tune.FailureConfig(max_failures=0),  # the planner queues them again
        ),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet(verbose))
        stack.enter_context(count_every_loss_as_dead_actor())
        if not setup.outlived:
            stack.enter_context(inherit_environment())
        watch = _watch_of_ray(setup.collective_timeout)
        run_watched(lambda: _fit(tuner), interrupt.stop, watch)


def _watch_of_ray(limit: float) -> RayProcesses | ControlService:
    """Return the watch of this machine's Ray, or of the cluster that was joined.

    Args:
        limit: seconds for which a worker may be stopped.
    """
    processes = local_processes()
    if not processes:
        return ControlService(ray.get_runtime_context().gcs_address)
    stopped = StoppedWorkers(processes[RAYLET].pid, limit)
    return RayProcesses(processes, log_folder(), stopped)


def _fit(tuner: tune.Tuner) -> None:
    try:
        tuner.fit()
    finally:
        restore_signal_handlers()  # Tune leaves one for SIGUSR1


def _request(plan: SlotPlan) -> dict[str, float]:
    """Return the resources of a slot's actor."""
    if plan.workers == 1:
        return resources_of(plan.cpus, plan.gpus)
    return {"CPU": 0.0, "memory": 1 << 20}  # the workers hold the rest; Tune demands some request


def _trial_name(trial: Trial) -> str:
    return _job(trial).id.replace("/", ".")


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            for name in ("ray", "ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


class NoProgress(ProgressReporter):
    """Shows nothing, where Tune's reporter for notebooks would clear the output of the cell."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        raise NotImplementedError


class DriverOnly:
    """Mixin for objects that live only in the driver's process.

    Tune pickles its searcher, scheduler and callbacks into files of its own.  raykd never reads
    them: an interrupted search resumes from the study's folder.
    """

    _planner: Planner

    def __getstate__(self) -> dict[str, object]:
        return {}


class Suggestions(DriverOnly, Searcher):
    """Searcher that gives Tune the planner's jobs."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._planner = planner

    def suggest(self, trial_id: str) -> Any:
        job = self._planner.next()
        return Searcher.FINISHED if job is None else {"job": job}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "w") as file:
            file.write("{}")

    def restore(self, checkpoint_path: str) -> None:
        pass


class Reports(DriverOnly, Callback):
    """Callback that passes the slots' reports to the planner.

    Args:
        planner: takes them.
        stopping: knows the trials that had not begun, and those that move to other slots.
    """

    def __init__(self, planner: Planner, stopping: Stopping) -> None:
        self._planner = planner
        self._stopping = stopping

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        outcome = result.get("outcome")  # none of an idle job
        if isinstance(outcome, JobFailure):
            self._planner.job_failed(_job(trial).id, outcome)
        elif isinstance(outcome, Report):
            self._planner.report(_job(trial).id, outcome, str(result["slot"]))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        if trial.trial_id in self._stopping.moved:
            self._planner.move(_job(trial).id, "its slot is given to another study")
        else:
            self._planner.leave(_job(trial).id)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._planner.draw_ahead()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        error = trial.get_error()
        text = str(error or _written_error(trial)).strip() or "its slot was lost"
        if DRAINED in text:
            self._planner.move(_job(trial).id, "its node is drained")
            return
        died = isinstance(error, RayActorError) or any(words in text for words in DEATH)
        reason = "Ray lost its slot" if died else text.splitlines()[-1].rpartition(HUNG)[2]
        began = trial.trial_id not in self._stopping.not_begun
        if any(words in text for words in LOW_MEMORY):
            died, reason = False, f"{OUT_OF_MEMORY}: its node ran low on it, and Ray ended its slot"
            began = True  # counted, as a node without memory ends every slot that starts
        self._planner.slot_failed(_job(trial).id, reason, error=text, died=died, began=began)


class EndedTrials(DriverOnly, Callback):
    """Callback that drops the figures that Tune keeps of finished trials.

    Nothing reads them, and they are half of the memory that a trial takes in the driver (45 of
    about 100 kB).
    """

    def __init__(self) -> None:
        self._ended: list[Trial] = []

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._ended.append(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        for trial in self._ended:
            if trial.is_finished():
                forget_figures(trial)
        self._ended = [trial for trial in self._ended if not trial.is_finished()]


class ClusterSize(DriverOnly, Callback):
    """Callback that lets the number of parallel jobs follow the share in the cluster.

    Args:
        limiter: limits the number of jobs.
        count_slots: returns how many slots the study may use now.
    """

    def __init__(self, limiter: ConcurrencyLimiter, count_slots: Callable[[], int]) -> None:
        self._limiter = limiter
        self._count_slots = count_slots
        self._next = time.monotonic() + SHARE_S

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SHARE_S
        slots = self._count_slots()
        if slots != self._limiter.max_concurrent:
            self._limiter.set_max_concurrency(slots)


class Stopping(DriverOnly, FIFOScheduler):
    """Scheduler that stops trials early and ends idle jobs when there is work.

    The study's rule applies to searched trials only: teachers, replicates and the null arm run to
    their end.  A job that continues in another slot is another trial of Tune; for the rule it stays
    the first one.

    Attributes:
        not_begun: ids of the failed trials whose slot had died before they began.
        moved: ids of the trials that end here and continue in other slots.
    """

    def __init__(
        self,
        planner: Planner,
        rule: StoppingRule | None,
        limiter: ConcurrencyLimiter | None = None,
    ) -> None:
        super().__init__()
        self.not_begun: set[str] = set()
        self.moved: set[str] = set()
        self._planner = planner
        self._rule = rule
        self._limiter = limiter
        self._first_trials: dict[str, Trial] = {}

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        if _is_searched(trial) and self._first(trial) is trial and isinstance(self._rule, TuneRule):
            self._rule.added(trial)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        if trial.status == Trial.PENDING:  # it was to be given to a slot that is dead
            self.not_begun.add(trial.trial_id)

    def on_trial_result(
        self, tune_controller: TuneController | None, trial: Trial, result: dict[str, Any]
    ) -> str:
        is_surplus = self._has_surplus(tune_controller)
        if isinstance(_job(trial), IdleJob):
            ends = self._planner.has_work or self._has_starving_job(tune_controller)
            return self.STOP if ends or is_surplus else self.CONTINUE
        if result.get("done"):
            return self.CONTINUE
        if _is_searched(trial) and not self._keeps(trial, result):
            return self.STOP
        if is_surplus:
            self.moved.add(trial.trial_id)
            return self.STOP
        return self.CONTINUE

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        if self._limiter is not None:
            release_idle_actors(tune_controller, self._limiter.max_concurrent)
        return super().choose_trial_to_run(tune_controller)

    def _keeps(self, trial: Trial, result: dict[str, Any]) -> bool:
        """Return whether a searched trial trains another epoch."""
        job, report = _job(trial), result.get("outcome")
        assert isinstance(job, RecordedJob) and isinstance(report, Report)
        metrics = {**job.metrics, **report.metrics, "epoch": report.epoch}
        if self._rule is None:
            return self._planner.keeps(job.id, metrics)
        return self._rule.keeps(self._first(trial), metrics)

    def _has_surplus(self, controller: TuneController | None) -> bool:
        """Return whether more jobs run than this study may run now, as another study has begun."""
        if self._limiter is None or controller is None:
            return False
        live = controller.get_live_trials()
        running = sum(trial.status == Trial.RUNNING for trial in live)
        return running > self._limiter.max_concurrent

    def _has_starving_job(self, controller: TuneController | None) -> bool:
        """Return whether a job waits for a slot while there are more jobs than slots.

        This happens after a node was lost: its jobs wait for resources that do not come back.
        """
        if self._limiter is None or controller is None:
            return False
        live = controller.get_live_trials()
        pending = [trial for trial in live if trial.status == Trial.PENDING]
        working = any(not isinstance(_job(trial), IdleJob) for trial in pending)
        return working and len(live) > self._limiter.max_concurrent

    def _first(self, trial: Trial) -> Trial:
        """Return the first trial of Tune that ran the same job."""
        return self._first_trials.setdefault(_job(trial).id, trial)


class Interrupt(Stopper):
    """Stopper that ends all trials of Tune when it is asked to."""

    def __init__(self) -> None:
        self._stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """End all trials after the present step of Tune."""
        self._stopped = True


def _written_error(trial: Trial) -> str:
    """Return the text of a trial's last error from Tune's file, if Tune dropped the error."""
    try:
        return Path(trial.error_file or "").read_text()
    except OSError:
        return ""


def _job(trial: Trial) -> AnyJob:
    return trial.config["job"]


def _is_searched(trial: Trial) -> bool:
    """Return whether the trial is one of the study's, so that it may be stopped early."""
    job = _job(trial)
    return isinstance(job, RecordedJob) and job.role == "trial"
