"""Ray Tune adapters: a searcher, a callback and a scheduler that delegate to the planner."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
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
from raykd.runtime.early_stopping import Rule, TuneRule, make_stopping_rule
from raykd.runtime.jobs import Assignment
from raykd.runtime.signals import restore_signal_handlers
from raykd.runtime.slot import Slot, SlotSetup, resources_of
from raykd.study.config import Search, Study

DEATH = ("ActorDiedError", "The actor died unexpectedly", "worker process has died")
"""Of these Ray speaks where a slot's process is gone."""


class Planner(Protocol):
    """Plans what the slots train and records their results; what Tune's adapters need of it."""

    @property
    def has_work(self) -> bool:
        """Return whether `next` would give something else than an idle job."""
        ...

    def next(self) -> Assignment | None:
        """Return the next job; None when the study is complete."""
        ...

    def report(self, result: Mapping[str, Any]) -> None:
        """Record a slot's report after an epoch."""
        ...

    def end(self, record_id: str, status: str) -> None:
        """Record the end of a training."""
        ...

    def slot_failed(self, record_id: str, reason: str, *, error: str, died: bool) -> None:
        """Record that a slot died during a training."""
        ...

    def draw_ahead(self) -> None:
        """Prepare the next trial while the slots are busy."""
        ...


def run_planner(
    planner: Planner,
    plan: SlotPlan,
    study: Study,
    search: Search,
    data: Dataset,
    *,
    storage: str,
    folder: str,
    verbose: bool = False,
    outlived: bool = False,
) -> None:
    """Run every job of a planner in `plan.slots` warm slots.

    Args:
        planner: decides what is trained.
        plan: resources of the slots.
        study: with its domains open.
        search: how to search; decides which trials end early.
        data: of the study.
        storage: root of the study's files.
        folder: for Ray's own files of the run.
        verbose: let Tune's own output through.
        outlived: whether Ray continues after the run.
    """
    failures = study.cluster.max_failures
    setup = SlotSetup(
        storage=storage,
        workers=plan.workers,
        slots=plan.slots,
        cpus=plan.cpus,
        gpus=plan.gpus,
        max_failures=failures,
        folder=folder,
        outlived=outlived,
    )
    trainable = tune.with_parameters(Slot, shared=setup, data=[ray.put(data.arrays())])
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([_request(plan)])),
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(planner),
            scheduler=Stopping(planner, make_stopping_rule(search, study.train.epochs)),
            num_samples=-1,
            max_concurrent_trials=plan.slots,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=1 if verbose else 0,
            callbacks=[Reports(planner)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=failures),
        ),
    )
    with _quiet(verbose), contextlib.nullcontext() if outlived else inherit_environment():
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
    return _id(trial).replace("/", ".")


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

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Suggestions(DriverOnly, Searcher):
    """Searcher that gives Tune the planner's jobs."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._planner = planner

    def suggest(self, trial_id: str) -> Any:
        assignment = self._planner.next()
        if assignment is None:
            return Searcher.FINISHED
        return {"assignment": assignment.plain()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
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
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if _role(trial) != "wait":
            # Tune marks a result of a trial it is about to stop as done, too.
            finished = result["epoch"] >= trial.config["assignment"]["epochs"]
            self._planner.report({**result, "done": finished})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if _role(trial) != "wait":
            self._planner.end(_id(trial), "stopped")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._planner.draw_ahead()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        error = trial.get_error()
        text = str(error or _written_error(trial)).strip() or "its slot was lost"
        died = isinstance(error, RayActorError) or any(sign in text for sign in DEATH)
        reason = "Ray lost its slot" if died else text.splitlines()[-1]
        self._planner.slot_failed(_id(trial), reason, error=text, died=died)


class Stopping(DriverOnly, FIFOScheduler):
    """Scheduler that stops trials early and ends idle jobs when there is work.

    The study's rule applies to searched trials only: teachers, replicates and the null arm run to
    their end.
    """

    def __init__(self, planner: Planner, rule: Rule | None) -> None:
        super().__init__()
        self._planner = planner
        self._rule = rule

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if isinstance(self._rule, TuneRule) and _role(trial) == "trial":
            self._rule.added(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        role = _role(trial)
        if role == "wait":
            return self.STOP if self._planner.has_work else self.CONTINUE
        if role != "trial" or self._rule is None or result.get("done") or result.get("failed"):
            return self.CONTINUE
        return self.CONTINUE if self._rule.keeps(trial, result) else self.STOP


def _written_error(trial: Trial) -> str:
    """What Tune wrote of a trial's last failure, where it no longer holds the error itself."""
    try:
        return Path(trial.error_file or "").read_text()
    except OSError:
        return ""


def _role(trial: Trial) -> str:
    return trial.config["assignment"]["role"]


def _id(trial: Trial) -> str:
    return trial.config["assignment"]["id"]
