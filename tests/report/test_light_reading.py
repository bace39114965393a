"""Reading results imports nothing that trains, tracks or searches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.events import Teller
from raykd.layer_study.plan import Arm
from raykd.layer_study.result import read_layer_study
from raykd.runtime.jobs import TrainJob
from raykd.study.space.pairing import LayerPair
from raykd.tracking.events import (
    ArmsPlanned,
    EpochFinished,
    PredictorsComputed,
    RunEnded,
    RunStarted,
    StudyEnded,
    StudyStarted,
)
from raykd.tracking.journal import Journal
from raykd.tuning.study_dir import create_folder

HEAVY = {
    "mlflow",
    "matplotlib",
    "optuna",
    "pandas",
    "pyarrow",
    "ray",
    "scipy.stats",
    "sklearn",
    "torch",
    "torchvision",
    "yaml",
}
"""Packages that take most of a second, or hundreds of megabytes, to import; YAML reads
study files, which results do not need."""


def searched(teller: Teller) -> Path:
    with Journal(teller.folder.journal) as journal:
        for event in teller.whole():
            if event.journaled:
                journal.append(event)
    return teller.folder.path


def paired(root: Path) -> Path:
    """The folder of a layer study of one hint layer and three guided ones, three seeds each."""
    layers = [{"name": f"stage{i}", "shape": [8, 8], "depth": i / 3} for i in (1, 2, 3)]
    arms = [Arm("none", "none")]
    arms += [Arm(f"a{i}", "pair", ((LayerPair("stage1", f"stage{i}"),),)) for i in (1, 2, 3)]
    folder = create_folder("paired", str(root), "", (), "pairs")
    search = {"objectives": {"val_accuracy": "max"}, "finalists": 1}
    resolved = {"tracking": {"uri": f"sqlite:///{root}/mlflow.db"}, "search": search}
    study = {"student": {"model": {"name": "mlp"}}, "scheme": {"name": "offline"}}
    cka = {"start": [[0.1, 0.5, 0.3]], "steps": [[0.2, 0.4, 0.3]]}
    with Journal(folder.journal) as journal:
        journal.append(StudyStarted("id", name="paired", experiment="paired", resolved=resolved))
        journal.append(
            ArmsPlanned(
                arms=[arm.plain() for arm in arms],
                layers={
                    "hints": layers[:1],
                    "guided": layers,
                    "shown_hint": layers[:1],
                    "shown_guided": layers,
                },
                term=0,
                loss={"name": "hint"},
                weight=1.0,
                seeds=[0, 1, 2],
            )
        )
        for number, arm in enumerate(arms):
            for seed in range(3):
                names = {"student": "mlp", "learns_from": "hint", "pairs": ""}
                tags = {"arm": arm.id}
                name = f"{arm.id}/seed-{seed}"
                work = TrainJob(name, "trial", study, seed, 1, names=names, tags=tags)
                journal.append(RunStarted(id=work.id, role="trial", assignment=work.plain()))
                reached = {"val_accuracy": 0.5 + 0.1 * number + 0.01 * (seed * number % 3)}
                journal.append(EpochFinished(work.id, 1, reached))
                journal.append(RunEnded(work.id, "finished", metrics=reached))
        for seed in range(3):
            journal.append(
                PredictorsComputed(None, seed=seed, steps=5, cka=cka, gradient=[[0.1, 0.2, 0.3]])
            )
        journal.append(StudyEnded())
    return folder.path


def imported_by(*words: str) -> set[str]:
    """The modules in memory after a command of the command line."""
    code = (
        "import sys, json, contextlib\n"
        "from raykd.cli.commands import app\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    app({list(words)!r})\n"
        "print()\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_search_is_reported_without_heavy_imports(teller: Teller, more: tuple[str, ...]) -> None:
    modules = imported_by("report", str(searched(teller)), *more)
    assert "raykd.report.summary" in modules
    assert HEAVY & modules == set()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_layer_study_is_reported_without_heavy_imports(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    folder = paired(tmp_path)
    assert read_layer_study(folder).rank_correlations["hint_depth"].cells == 3
    modules = imported_by("report", str(folder), *more)
    assert "raykd.report.summary.layer_study" in modules
    assert HEAVY & modules == set()
