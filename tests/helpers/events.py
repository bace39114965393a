"""Synthetic events of a search for tests of displays and summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from raykd.models import Signature, profile_model
from raykd.report.run_state import RunState
from raykd.runtime.jobs import TrainJob
from raykd.schemes import Alone
from raykd.study.config import Study, plain
from raykd.study.open_study import OpenStudy
from raykd.study.short_names import training_names
from raykd.tracking.events import (
    DataLoaded,
    EndStatus,
    EpochFinished,
    Event,
    Note,
    PhaseStarted,
    RunEnded,
    RunStarted,
    SlotPlan,
    StudyEnded,
    StudyStarted,
    TrackingEnded,
)
from raykd.training.teachers import teacher_study
from raykd.tuning.budget import slots_planned
from raykd.tuning.study_dir import StudyFolder, create_folder

TASK = Signature(input_shape=(1, 8, 8), classes=10)
SLOTS = SlotPlan(slots=2, workers=1, cpus=1.0, gpus=0.0)

VALUES = (0.9815, 0.9722, 0.9444, 0.9676)
"""Validation accuracy of the first trials; the first two make the front."""

STUDY = """\
name: made-up
data: {name: digits}
teacher:
  model: {name: resnet, depth: 14, width: 32}
  train: {epochs: 3}
student:
  model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [4, 16], step: 4}}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
    weight: {uniform: [0.1, 2.0]}
  - loss: {choice: [null, {name: hint}, {name: at}]}
    pairs: {pairing: {hint: auto, guided: auto, max: 2, order: monotone}}
    weight: {loguniform: [0.1, 100]}
train: {epochs: 4}
search:
  objectives: {val_accuracy: max, params: min}
  trials: 8
  replicates: 3
  finalists: 2
  scheduler: {name: asha}
"""


class Teller:
    """Source of the events of a synthetic search."""

    def __init__(self, study: OpenStudy, root: Path) -> None:
        self.study = study
        self.settings = study.settings
        self.folder: StudyFolder = create_folder(
            study.settings.name, str(root / "studies"), study.text, ()
        )

    def opening(self) -> Iterator[Event]:
        settings = self.settings
        yield StudyStarted(
            "abc123",
            name=settings.name,
            experiment=settings.name,
            text=self.study.text,
            resolved=plain(settings),
            file=str(self.folder.study_file),
            seed=settings.seed,
        )
        yield DataLoaded(
            name="digits",
            origin="scikit-learn",
            fingerprint="f",
            sizes={"train": 1222, "val": 216, "test": 359},
            classes=10,
            input_shape=[1, 8, 8],
            class_names=[str(digit) for digit in range(10)],
            notes=["3 hidden entries were skipped"],
            warnings=["2 pictures are in train and in test"],
        )

    def preparation(self) -> Iterator[Event]:
        yield PhaseStarted("ray")
        yield slots_planned(self.study, self.folder, SLOTS, None)

    def teacher(
        self, val: float = 0.9861, test: float = 0.975, keep: str | None = None
    ) -> Iterator[Event]:
        study = teacher_study(self.settings)
        yield from self.run("teacher-0", "teacher", study, test=True, keep=keep)
        for epoch in range(1, study.train.epochs + 1):
            yield self.epoch("teacher-0", epoch, val - 0.05 / epoch)
        yield self.end("teacher-0", val_accuracy=val, test_accuracy=test)

    def point(self, number: int) -> Study:
        return self.study.bind(TASK).sample(number).resolved

    def run(self, run_id: str, role: Any, study: Study, **fields: Any) -> Iterator[Event]:
        cost = profile_model(study.student.model, TASK)
        written = plain(study)
        job = TrainJob(
            id=run_id,
            role=role,
            study=written,
            names=training_names(written),
            seed=fields.pop("seed", study.seed),
            epochs=study.train.epochs,
            folder=self.folder.name,
            metrics={"params": float(cost.params), "macs": float(cost.macs)},
            **fields,
        ).plain()
        names = ("id", "role", "parent", "params", "tags", "seed")
        yield RunStarted(**{name: job[name] for name in names}, assignment=job)

    def epoch(self, run_id: str, epoch: int, val: float) -> Event:
        metrics = {
            "train_loss": 1.0 / epoch,
            "train_accuracy": val,
            "val_loss": 1.0 - val,
            "val_accuracy": val,
            "lr": 0.05,
            "epoch_seconds": 0.4,
        }
        return EpochFinished(run_id, epoch, metrics)

    def end(
        self, run_id: str, status: EndStatus = "finished", reason: str = "", **metrics: float
    ) -> Event:
        return RunEnded(run_id, status, reason, metrics)

    def trial(
        self,
        number: int,
        val: float,
        *,
        epochs: int = 4,
        status: EndStatus | Literal["running"] = "finished",
    ) -> Iterator[Event]:
        """Return a trial that ends after `epochs`; status "running": it does not end."""
        run_id = f"trial-{number:04d}"
        study = self.point(number)
        yield from self.run(run_id, "trial", study)
        for epoch in range(1, epochs + 1):
            yield self.epoch(run_id, epoch, val - 0.1 / epoch + 0.025)
        cost = profile_model(study.student.model, TASK)
        if status == "failed":
            yield self.end(run_id, "failed", "diverged in epoch 2: term 'kd' not finite in step 3")
        elif status != "running":
            params, macs = float(cost.params), float(cost.macs)
            yield self.end(run_id, status, val_accuracy=val, params=params, macs=macs)

    def replicates(
        self, number: int, distilled: list[float], alone: list[float]
    ) -> Iterator[Event]:
        parent = f"trial-{number:04d}"
        study = self.point(number)
        yield Note(parent, {"chosen": "true"}, step=None)
        for seed, test in enumerate(distilled, 1):
            run_id = f"{parent}/seed-{seed}"
            yield from self.run(run_id, "replicate", study, parent=parent, seed=seed)
            yield self.epoch(run_id, 1, test)
            yield self.end(run_id, val_accuracy=test, test_accuracy=test)
        null = replace(study, scheme=Alone(), knowledge=())
        for seed, test in enumerate(alone, 1):
            run_id = f"{parent}/alone-{seed}"
            yield from self.run(run_id, "alone", null, parent=parent, seed=seed)
            yield self.epoch(run_id, 1, test)
            yield self.end(run_id, val_accuracy=test, test_accuracy=test)

    def halfway(self) -> Iterator[Event]:
        """Return a search with a teacher, some finished trials, and two running."""
        yield from self.opening()
        yield from self.preparation()
        yield from self.teacher()
        yield from self.trial(0, VALUES[0])
        yield from self.trial(1, VALUES[1])
        yield from self.trial(2, 0.61, epochs=2, status="stopped")
        yield from self.trial(3, 0.9, epochs=1, status="failed")
        yield from self.trial(4, 0.93, epochs=3, status="running")
        yield from self.trial(5, 0.88, epochs=1, status="running")

    def whole(self) -> Iterator[Event]:
        """Return a complete search."""
        yield from self.opening()
        yield from self.preparation()
        yield from self.teacher()
        for number, val in enumerate(VALUES):
            yield from self.trial(number, val)
        yield from self.trial(4, 0.61, epochs=2, status="stopped")
        yield from self.trial(5, 0.9, epochs=1, status="failed")
        chosen = self.chosen()
        yield from self.replicates(chosen[0], [0.974, 0.978, 0.976], [0.951, 0.953, 0.958])
        yield from self.replicates(chosen[1], [0.964, 0.970, 0.969], [0.962, 0.973, 0.967])
        yield StudyEnded()
        yield PhaseStarted("tracking")
        yield TrackingEnded(True, "all events are in MLflow")

    def chosen(self) -> list[int]:
        """Return the two finalists of `whole`."""
        from raykd.tuning.records import Records

        recorded = [event for n, val in enumerate(VALUES) for event in self.trial(n, val)]
        picked = Records.from_events(recorded).choose(self.settings.search.objectives, 2)
        return [int(record.id.removeprefix("trial-")) for record in picked]


class Clock:
    """Clock that is advanced by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watched(events: Iterable[Event], each: float = 1.0) -> tuple[RunState, Clock]:
    """Return a state that received the events, `each` seconds apart."""
    clock = Clock()
    state = RunState(clock)
    for event in events:
        clock.now += each
        state.apply(event)
    return state, clock
