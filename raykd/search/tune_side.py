"""The two doors between Tune and the explorer: suggestions in, reports out."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from raykd.search.explorer import Explorer


class Suggestions(Searcher):
    """Gives Tune what the explorer wants trained.

    What an interrupted search needs is in the study's folder, not in Tune's own files.
    """

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self._explorer = explorer

    def suggest(self, trial_id: str) -> dict[str, Any] | None | str:
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


class Reports(Callback):
    """Tells the explorer what Tune hears from the slots."""

    def __init__(self, explorer: Explorer) -> None:
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

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = str(trial.get_error() or "its slot was lost").strip().splitlines()[-1]
        self._explorer.slot_failed(_id(trial), reason)


def _role(trial: Trial) -> str:
    return trial.config["assignment"]["role"]


def _id(trial: Trial) -> str:
    return trial.config["assignment"]["id"]
