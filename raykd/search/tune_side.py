"""The doors between Tune and the explorer: suggestions in, reports out, early ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raykd.search.conductor import Conductor
from raykd.search.schedulers import Rule, TuneRule

DEATH = ("ActorDiedError", "The actor died unexpectedly", "worker process has died")
"""Of these Ray speaks where a slot's process is gone."""


class DriverOnly:
    """What lives in the driver's process alone.

    Tune pickles its searcher, scheduler and callbacks into files of its own, from which raykd
    never reads: an interrupted search goes on from the study's folder.
    """

    _explorer: Conductor

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Suggestions(DriverOnly, Searcher):
    """Gives Tune what the explorer wants trained."""

    def __init__(self, explorer: Conductor) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._explorer = explorer

    def suggest(self, trial_id: str) -> Any:
        assignment = self._explorer.next()
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
    """Tells the explorer what Tune hears from the slots."""

    def __init__(self, explorer: Conductor) -> None:
        self._explorer = explorer

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if _role(trial) != "wait":
            # Tune marks a result of a trial it is about to stop as done, too.
            finished = result["epoch"] >= trial.config["assignment"]["epochs"]
            self._explorer.report({**result, "done": finished})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if _role(trial) != "wait":
            self._explorer.end(_id(trial), "stopped")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._explorer.draw_ahead()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        error = trial.get_error()
        text = str(error or _written_error(trial)).strip() or "its slot was lost"
        died = isinstance(error, RayActorError) or any(sign in text for sign in DEATH)
        reason = "Ray lost its slot" if died else text.splitlines()[-1]
        self._explorer.slot_failed(_id(trial), reason, error=text, died=died)


class Stopping(DriverOnly, FIFOScheduler):
    """What Tune asks after each result.

    The study's rule is asked about searched trials alone: the teacher, the replicates and the
    null arm run to their end.  A slot that waits is given up as soon as there is work.
    """

    def __init__(self, explorer: Conductor, rule: Rule | None) -> None:
        super().__init__()
        self._explorer = explorer
        self._rule = rule

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if isinstance(self._rule, TuneRule) and _role(trial) == "trial":
            self._rule.added(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        role = _role(trial)
        if role == "wait":
            return self.STOP if self._explorer.has_work else self.CONTINUE
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
