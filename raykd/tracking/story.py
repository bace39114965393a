"""What a journal's readers must remember of the events they have passed.  Pure: no MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass
class RunStory:
    """One run so far.

    Attributes:
        told: its last `run` event.
        epoch: the highest epoch told, 0 before the first.
        metrics: the last epoch's metrics.
        ended: whether its end was told.
    """

    told: Event
    epoch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    ended: bool = False


class Story:
    """The study, its data and its runs, as told so far.

    Every event passes through `take` exactly once, in order, however often it is delivered
    afterwards: what depends on earlier events is settled there.
    """

    def __init__(self) -> None:
        self.study: Event | None = None
        self.dataset: Event | None = None
        self.runs: dict[str, RunStory] = {}

    def take(self, event: Event) -> Event | None:
        """Remember `event`; returns it as it is to be delivered, or None for nothing to say.

        - An epoch already told is dropped: a trial that lost its workers repeats epochs, and a
          metric has one value a step.  The first telling stands.
        - `end` gets the last `epoch`, and leaves out metrics that epoch has told.
        - `done` gets the runs left `open`.

        Raises:
            KeyError: the event lacks a field, or speaks of a run nobody started.
        """
        kind = event["event"]
        if kind == "study":
            self.study = event
        elif kind == "dataset":
            self.dataset = event
        elif kind == "run":
            self._start(event)
        elif kind == "epoch":
            return self._epoch(event)
        elif kind == "end":
            return self._end(event)
        elif kind == "done":
            return {**event, "open": [id for id, run in self.runs.items() if not run.ended]}
        elif event.get("id") is not None:
            self._run(event)
        return event

    def _run(self, event: Event) -> RunStory:
        if event["id"] not in self.runs:
            raise KeyError(f"run {event['id']!r}, of which no `run` event was told")
        return self.runs[event["id"]]

    def _start(self, event: Event) -> None:
        before = self.runs.get(event["id"])
        if before is None:
            self.runs[event["id"]] = RunStory(event)
        else:
            before.told, before.ended = event, False

    def _epoch(self, event: Event) -> Event | None:
        run = self._run(event)
        if event["epoch"] <= run.epoch:
            return None
        run.epoch = event["epoch"]
        run.metrics = event["metrics"]
        return event

    def _end(self, event: Event) -> Event:
        run = self._run(event)
        run.ended = True
        news = {k: v for k, v in event.get("metrics", {}).items() if run.metrics.get(k) != v}
        return {**event, "epoch": run.epoch, "metrics": news}
