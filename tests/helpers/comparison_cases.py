"""Small journals and MLflow runs for tests of comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helpers.events import STUDY, Teller
from raykd.runtime.jobs import read_job
from raykd.study.checks.load import load_study
from raykd.study.config import Study
from raykd.tracking.events import DataLoaded, Event, RunStarted, StudyEnded, StudyStarted
from raykd.tracking.journal import Journal
from raykd.tracking.mlflow_client import connect
from raykd.tuning.records import run_name


@dataclass(frozen=True)
class Case:
    """A study to write.

    Attributes:
        name: its name.
        accuracies: test accuracy of the finalist by seed, from seed 1.
        alone: test accuracy of the baseline by seed.
        data: name of the data source.
        fingerprint: fingerprint of the data.
        changes: texts of the study file to replace.
    """

    name: str
    accuracies: Sequence[float] = (0.974, 0.978, 0.976, 0.977)
    alone: Sequence[float] = (0.951, 0.953, 0.958, 0.955)
    data: str = "digits"
    fingerprint: str = "f" * 64
    changes: Sequence[tuple[str, str]] = ()


class ComparedStudy(Teller):
    """Events of a search of eight trials whose first one is the finalist.

    Args:
        case: the study.
        root: folder of its storage.
    """

    def __init__(self, case: Case, root: Path) -> None:
        text = STUDY.replace("made-up", case.name)
        for before, after in case.changes:
            assert before in text
            text = text.replace(before, after)
        file = root / f"{case.name}.yaml"
        file.write_text(text)
        super().__init__(load_study(file), root)
        self.case = case

    def run(self, run_id: str, role: Any, study: Study, **fields: Any) -> Iterator[Event]:
        params = dict(self.study.flat(study)) | {"seed": fields.get("seed", study.seed)}
        for event in super().run(run_id, role, study, params=params, **fields):
            assert isinstance(event, RunStarted)
            costs = {key: str(int(value)) for key, value in event.assignment["metrics"].items()}
            yield replace(event, tags=costs, name=run_name(read_job(event.assignment)))

    def finished(self) -> Iterator[Event]:
        case = self.case
        for event in self.opening():
            match event:
                case StudyStarted():
                    yield replace(event, id=f"study-{case.name}")
                case DataLoaded():
                    yield replace(event, name=case.data, fingerprint=case.fingerprint)
                case _:
                    yield event
        yield from self.teacher()
        for number in range(8):
            yield from self.trial(number, 0.965 - 0.005 * number)
        yield from self.replicates(0, list(case.accuracies), list(case.alone))
        yield StudyEnded()


def write_study(case: Case, root: Path) -> Path:
    """Write the journal of a study, and return its folder."""
    study = ComparedStudy(case, root)
    with Journal(study.folder.journal) as journal:
        for event in study.finished():
            if event.journaled:
                journal.append(event)
    return study.folder.path


def log_runs(uri: str, experiment: str, parent: bool = False) -> list[str]:
    """Log runs as another program does: two depths under three seeds each, one failed run.

    Returns:
        IDs of the runs; the parent first, if there is one.
    """
    client = connect(uri)
    place = client.create_experiment(experiment)
    ids = []
    tags = {}
    if parent:
        sweep = client.create_run(place, run_name="sweep").info.run_id
        client.set_terminated(sweep)
        ids.append(sweep)
        tags = {"mlflow.parentRunId": sweep}
    for depth, base in ((2, 0.80), (4, 0.86)):
        for seed in range(3):
            run_id = client.create_run(place, tags=tags).info.run_id
            for key, value in {"depth": depth, "model/random_seed": seed, "lr": 0.1}.items():
                client.log_param(run_id, key, value)
            client.log_metric(run_id, "f1_score", base + 0.01 * seed + 0.001 * depth * seed)
            client.log_metric(run_id, "loss", 1 - base)
            client.set_terminated(run_id)
            ids.append(run_id)
    failed = client.create_run(place, tags=tags).info.run_id
    client.log_metric(failed, "f1_score", 0.99)
    client.set_terminated(failed, "FAILED")
    return [*ids, failed]
