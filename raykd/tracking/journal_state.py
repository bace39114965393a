"""State of a study while its journal is read, and the events to upload."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from raykd.tracking.events import (
    ArmsPlanned,
    ArtifactSaved,
    DataLoaded,
    EpochFinished,
    Event,
    Metrics,
    ModelSaved,
    Note,
    RunEnded,
    RunPaused,
    RunPromoted,
    RunStarted,
    StudyEnded,
    StudyExtended,
    StudyStarted,
)


@dataclass
class RunState:
    """State of one run.

    Attributes:
        start: its last `RunStarted` event.
        epoch: its highest epoch, 0 before the first.
        metrics: metrics of that epoch.
        ended: true after its end.
        saved_at: time of its first `ModelSaved` event, 0 before.  A resumed search may write the
            event again; metrics with the same time are stored once.
        paused: true while it is paused.
    """

    start: RunStarted
    epoch: int = 0
    metrics: Metrics = field(default_factory=dict)
    ended: bool = False
    saved_at: int = 0
    paused: bool = False


@dataclass(frozen=True)
class Upload:
    """An event to upload.

    Attributes:
        event: the event.
        step: step of its metrics in MLflow.
        open_runs: runs that had neither ended nor paused before it; of `StudyEnded` alone.
    """

    event: Event
    step: int = 0
    open_runs: tuple[str, ...] = ()


class JournalState:
    """State of a study: its data and its runs up to the last event.

    Every event passes through `update` exactly once and in order, even if it is uploaded several
    times afterward.  All decisions that depend on earlier events are made there.

    Attributes:
        study: last start of the study.
        started_at: time of its first start, in milliseconds since 1970.
        dataset: its data.
        extensions: text of all its extensions, one a line; empty if it has none.
        arms: arms of a layer study; None for other studies.
        runs: state of each run, by ID.
    """

    def __init__(self) -> None:
        self.study: StudyStarted | None = None
        self.started_at = 0
        self.dataset: DataLoaded | None = None
        self.extensions = ""
        self.arms: ArmsPlanned | None = None
        self.runs: dict[str, RunState] = {}
        self._numbers: dict[str, int | float] = {}  # of the first trial that has the param
        self._different: set[str] = set()

    @property
    def different_numbers(self) -> list[str]:
        """Return the params of trials that are numbers and differ between trials."""
        return [key for key in self._numbers if key in self._different]

    def update(self, event: Event) -> Upload | None:
        """Update the state with an event and return what to upload, or None to skip the event.

        - A repeated epoch is skipped: a trial that lost its workers repeats epochs, and a metric
          has one value per step.  The first value stays.
        - Metrics that were already uploaded with the last epoch are removed from `RunEnded`.

        Raises:
            KeyError: the event belongs to a run that has not started.
        """
        self._update_study(event)
        match event:
            case RunStarted():
                self._start(event)
            case EpochFinished():
                return self._epoch(event)
            case RunEnded():
                return self._end(event)
            case StudyEnded():
                runs = self.runs.items()
                open_runs = tuple(id for id, run in runs if not run.ended and not run.paused)
                return Upload(event, open_runs=open_runs)
            case RunPaused() | RunPromoted():
                run = self._run(event.id, event)
                run.paused, run.ended = isinstance(event, RunPaused), False
            case Note(id=str(id)):
                self._run(id, event)
                return Upload(event, event.step or 0)
            case Note():
                return Upload(event, event.step or 0)
            case ModelSaved():
                run = self._run(event.id, event)
                run.saved_at = run.saved_at or event.at
            case ArtifactSaved(id=str(id)):
                self._run(id, event)
            case _:
                pass
        return Upload(event)

    def _update_study(self, event: Event) -> None:
        match event:
            case StudyStarted():
                self.started_at = self.started_at or event.at
                self.study = event
            case StudyExtended():
                self.extensions = f"{self.extensions}\n{event}".strip()
            case DataLoaded():
                self.dataset = event
            case ArmsPlanned():
                self.arms = event
            case _:
                pass

    def _run(self, id: str, event: Event) -> RunState:
        if id not in self.runs:
            raise KeyError(f"`{event.kind}` of run {id!r}, which has no `run` event")
        return self.runs[id]

    def _start(self, event: RunStarted) -> None:
        run = self.runs.setdefault(event.id, RunState(event))
        run.start, run.ended = event, False
        if event.role == "trial":
            for key, value in event.params.items():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if is_number and self._numbers.setdefault(key, value) != value:
                    self._different.add(key)

    def _epoch(self, event: EpochFinished) -> Upload | None:
        run = self._run(event.id, event)
        if event.epoch <= run.epoch:
            return None
        run.epoch, run.metrics = event.epoch, event.metrics
        return Upload(event, event.epoch)

    def _end(self, event: RunEnded) -> Upload:
        run = self._run(event.id, event)
        run.ended, run.paused = True, False
        metrics = {k: v for k, v in event.metrics.items() if run.metrics.get(k) != v}
        return Upload(replace(event, metrics=metrics), run.epoch)


def run_of(event: Event) -> str | None:
    """Return the ID of the run that an event belongs to; None: the study."""
    return None if isinstance(event, StudyStarted) else getattr(event, "id", None)
