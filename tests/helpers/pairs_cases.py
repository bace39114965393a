"""A small layer study, and a result without training."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.search_cases import FakeTune, Metrics, World, opened
from raykd.layer_study.design import LayerStudyDesign, design_layer_study
from raykd.layer_study.planner import LayerStudyPlanner
from raykd.layer_study.result import LayerStudyResult, read_layer_study
from raykd.models import Signature
from raykd.runtime.jobs import JournalJob, ProbeDesign, ProbeJob
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.tracking.events import Event, StudyEnded, StudyStarted
from raykd.tracking.journal import Journal, events
from raykd.tuning.study_dir import create_folder

PAIRS = """\
name: pairs
seed: 7
data: {name: digits, limit: 160, val_limit: 60}
teacher:
  model: {name: resnet, depth: 8, width: 8}
  train: {epochs: 1, batch_size: 64}
student:
  model: {name: resnet, depth: 8, width: 4}
knowledge:
  - {loss: {name: kd, temperature: 4}}
  - loss: {name: hint}
    pairs: {pairing: {hint: auto, guided: auto}}
    weight: 1
train: {epochs: 2, batch_size: 64, optimizer: {name: sgd, lr: 0.05}}
search: {replicates: 2, pairs: {seeds: 3, steps: 3, batches: 1}}
"""
"""Three stages a side: nine cells."""

TASK = Signature(input_shape=(1, 8, 8), classes=10)
PAIRING = "knowledge[1].pairs.pairing"


def study_of(*overrides: str, text: str = PAIRS) -> OpenStudy:
    return opened(*overrides, text=text)


def design_of(*overrides: str) -> LayerStudyDesign:
    return design_layer_study(study_of(*overrides), TASK)


class PairsWorld(World):
    """State that survives the driver of a layer study."""

    def arms(self, journal: Any = None, slots: int = 1) -> LayerStudyPlanner:
        return LayerStudyPlanner(self.context(journal, slots), design_layer_study(self.study, TASK))


GAINS = {"stage2-to-stage3": 0.06, "stage3-to-stage3": 0.03, "reverse": -0.05}
"""Gain of some arms over all others in `synthetic`."""


def synthetic(job: JournalJob, epoch: int) -> dict[str, Any]:
    """Compute synthetic metrics of a training, or predictors of a probe, from the job."""
    if isinstance(job, ProbeJob):
        return {"predictors": predicted(job.design, job.seed)}
    arm, text = job.tags.get("arm", ""), f"{job.tags.get('arm')}{job.seed}"
    noise = hashlib.sha256(text.encode()).digest()[0] / 25600
    value = 0.5 + 0.01 * job.seed + noise + GAINS.get(arm, 0.0) + 0.1 * epoch
    metrics = {"train_loss": 1 / (1 + epoch), "val_accuracy": value}
    if job.test and epoch >= job.epochs:
        metrics["test_accuracy"] = value - 0.05
    return metrics


def predicted(probe: ProbeDesign, seed: int) -> dict[str, Any]:
    """Return CKA that decreases with the distance of two layers, and zero gradients."""
    rows, columns = probe.teacher_layers, probe.student_layers
    table = [[1 / (1 + abs(r - c)) for c, _ in enumerate(columns)] for r, _ in enumerate(rows)]
    gradient = [[float("nan") for _ in probe.guided] for _ in probe.hints]
    gradient[0][0] = 0.25 + seed / 100
    return {
        "steps": probe.steps,
        "cka": {"start": table, "steps": table, "trained": table},
        "gradient": gradient,
    }


def conduct(world: PairsWorld, metrics: Metrics = synthetic, slots: int = 1) -> LayerStudyPlanner:
    """Run a layer study to its end in a fake Tune."""
    arms = world.arms(slots=slots)
    FakeTune(world, arms, metrics, slots).run()  # type: ignore[arg-type]
    return arms


def synthetic_result(root: Path, *overrides: str) -> LayerStudyResult:
    """Return the result of a layer study without training, in a separate folder."""
    study = study_of(*overrides)
    folder = create_folder("pairs", str(root), study.text, study.overrides, "pairs")
    journal = Journal(folder.journal)
    settings = replace(study.settings, tracking=replace(study.settings.tracking, uri="sqlite:///x"))
    journal.append(StudyStarted(id="a", name="pairs", experiment="pairs", resolved=plain(settings)))
    world = PairsWorld(study, root)
    publish = world.journal.publish

    def both(event: Event) -> None:
        journal.append(event)
        publish(event)

    world.journal.publish = both  # type: ignore[method-assign]
    conduct(world)
    journal.append(StudyEnded(status="finished"))
    journal.close()
    assert events(folder.journal)
    return read_layer_study(folder.path)
