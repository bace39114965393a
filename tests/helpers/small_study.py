"""A small study, written to a journal."""

from __future__ import annotations

import torch
from torch import nn

from raykd.tracking import Journal
from raykd.tracking.events import DataLoaded, EpochFinished, RunEnded, RunStarted, StudyStarted

STUDY = "digits-20260101-120000"
FINGERPRINT = "ab" * 32


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def start(journal: Journal) -> None:
    journal.append(
        StudyStarted(
            STUDY,
            name="digits",
            experiment="distillation",
            text="name: digits\nseed: 3\n",
            resolved={"name": "digits", "seed": 3, "train": {"epochs": 2}},
            file="digits.yaml",
            argv=["raykd", "search", "digits.yaml"],
            git={"commit": "c0ffee", "branch": "main", "dirty": False},
            versions={"torch": "2.15.0", "ray": "2.60.0"},
            seed=3,
        )
    )
    journal.append(
        DataLoaded(
            name="digits",
            origin="scikit-learn",
            fingerprint=FINGERPRINT,
            sizes={"train": 1168, "val": 270, "test": 359},
            classes=10,
            input_shape=(1, 8, 8),
        )
    )


def trial(journal: Journal, number: int, *, epochs: int = 2) -> str:
    id = f"trial-{number:04d}"
    params = {"knowledge[0].loss.temperature": 4.0, "student.model.depth": 8 + number}
    journal.append(RunStarted(id, role="trial", params=params, tags={"losses": "kd"}, seed=3))
    for epoch in range(1, epochs + 1):
        journal.append(
            EpochFinished(id, epoch, {"val_accuracy": epoch / 4, "train_loss": 1 / epoch})
        )
    journal.append(RunEnded(id, "finished", metrics={"val_accuracy": epochs / 4, "params": 1000.0}))
    return id
