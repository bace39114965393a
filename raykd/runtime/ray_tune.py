"""Ray Tune adapters: a searcher, a callback and a scheduler that delegate to the planner."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raykd.compat.ray_patches import inherit_environment
from raykd.data import Dataset
from raykd.runtime.cluster import SlotPlan
from raykd.runtime.early_stopping import TuneRule
from raykd.runtime.jobs import AnyJob, IdleJob, JobFailure, RecordedJob, Report
from raykd.runtime.signals import restore_signal_handlers
from raykd.runtime.slot import Slot, SlotSetup, resources_of
from raykd.study.schedulers import StoppingRule
from raykd.tracking.events import EndStatus

DEATH = ("ActorDiedError", "The actor died unexpectedly", "worker process has died")
"""Texts of Ray's errors when a slot's process is gone."""


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

    def end(self, record_id: str, status: EndStatus) -> None:
        """Record the end of a training; ignores jobs without a record."""
        ...

    def slot_failed(self, record_id: str, reason: str, *, error: str, died: bool) -> None:
        """Record that a slot died during a job."""
        ...

    def draw_ahead(self) -> None:
        """Prepare the next trial while the slots are busy."""
        ...


def run_planner(
    planner: Planner,
    setup: SlotSetup,
    data: Dataset,
    rule: StoppingRule | None = None,
    *,
    verbose: bool = False,
) -> None:
    """Run every job of a planner in warm slots.

    Args:
        planner: decides what is trained.
        setup: of the slots.
        data: of the study.
        rule: decides which trials end early; None: none does.
        verbose: let Tune's own output through.
    """
    plan = setup.plan
    trainable = tune.with_parameters(Slot, shared=setup, data=[ray.put(data.arrays())])
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([_request(plan)])),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(planner),
            scheduler=Stopping(planner, rule),
            num_samples=-1,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=setup.folder,
            verbose=1 if verbose else 0,
            callbacks=[Reports(planner)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=setup.max_failures),
        ),
    )
    with _quiet(verbose), contextlib.nullcontext() if setup.outlived else inherit_environment():
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
    """Callback that passes the slots' reports to the planner."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

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
        self._planner.end(_job(trial).id, "stopped")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._planner.draw_ahead()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        error = trial.get_error()
        text = str(error or _written_error(trial)).strip() or "its slot was lost"
        died = isinstance(error, RayActorError) or any(words in text for words in DEATH)
        reason = "Ray lost its slot" if died else text.splitlines()[-1]
        self._planner.slot_failed(_job(trial).id, reason, error=text, died=died)


class Stopping(DriverOnly, FIFOScheduler):
    """Scheduler that stops trials early and ends idle jobs when there is work.

    The study's rule applies to searched trials only: teachers, replicates and the null arm run to
    their end.
    """

    def __init__(self, planner: Planner, rule: StoppingRule | None) -> None:
        super().__init__()
        self._planner = planner
        self._rule = rule

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        if isinstance(self._rule, TuneRule) and _is_searched(trial):
            self._rule.added(trial)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        if isinstance(_job(trial), IdleJob):
            return self.STOP if self._planner.has_work else self.CONTINUE
        if self._rule is None or not _is_searched(trial) or result.get("done"):
            return self.CONTINUE
        return self.CONTINUE if self._rule.keeps(trial, result) else self.STOP


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
