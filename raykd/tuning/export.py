"""Export of the chosen students: one network each, with raw example samples, for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raykd.data import Dataset
from raykd.storage import Storage
from raykd.study.config import read_study
from raykd.tracking.events import ModelSaved
from raykd.training.stored_networks import preprocessing_of, raw_samples
from raykd.tuning.network_name import network_name
from raykd.tuning.planner import Planner
from raykd.tuning.records import Record, values_of
from raykd.tuning.session import RunSession
from raykd.tuning.statistics import estimate, proportion_interval

EXAMPLE_SAMPLES = 8


def export_students(session: RunSession, planner: Planner) -> None:
    """Write a model event for each finalist: its replicate with the best validation accuracy.

    MLflow gets the network of each such event.  Test metrics do not decide.
    """
    folder, data = session.folder, session.data
    storage = Storage(folder.storage)
    finalists = list(planner.finalists)
    smallest = min(finalists, key=lambda r: r.metrics["params"], default=None)
    preprocessing, example = preprocessing_of(data), _example(data, folder.path)
    for record in finalists:
        replicates = [
            r for r in planner.records.children(record.id, "replicate") if r.status == "finished"
        ]
        if not replicates:
            continue
        best = max(replicates, key=lambda r: r.metrics["val_accuracy"])
        assert best.job.network_file is not None
        path = folder.path / "students" / Path(best.job.network_file).name
        if not path.exists():  # the storage is a URI
            content = storage.read(best.job.network_file)
            if content is None:
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        aliases = ["champion"] if record is finalists[0] else []
        aliases += ["smallest"] if record is smallest else []
        session.bus.publish(
            ModelSaved(
                id=best.id,
                path=f"students/{path.name}",
                input_shape=list(preprocessing.shape),
                input_dtype=preprocessing.dtype,
                example=example.name,
                register=session.study.settings.tracking.register,
                aliases=aliases,
                metrics={k: v for k, v in best.metrics.items() if k.startswith(("val_", "test_"))},
                name=network_name(read_study(best.job.study)),
                about=_about(best, replicates, data),
            )
        )


def _about(best: Record, replicates: Sequence[Record], data: Dataset) -> dict[str, Any]:
    """Return the test accuracy of the best replicate and over all seeds, as text and interval."""
    name, size = "test_accuracy", len(data.test)
    low, high = proportion_interval(best.metrics[name], size)
    text = f"{best.metrics[name]:.2%} (95% CI {low:.2%} to {high:.2%}, {size} test samples)"
    over = estimate(values_of(replicates, name))
    if over.count > 1:
        text += f"; mean of {over.count} seeds {over.mean:.2%} ± {100 * over.half_width:.2f}"
    return {
        "accuracy": text,
        "test_accuracy_interval": [low, high],
        "trial": best.job.parent or "",
    }


def _example(data: Dataset, folder: Path) -> Path:
    """Save the first raw validation samples: `.npy` for one tensor, `.npz` for a mapping."""
    import numpy as np

    inputs = raw_samples(data, torch.arange(min(EXAMPLE_SAMPLES, len(data.val))), "val")
    if isinstance(inputs, torch.Tensor):
        np.save(folder / "example.npy", inputs.numpy())
        return folder / "example.npy"
    arrays: dict[str, Any] = {key: value.numpy() for key, value in inputs.items()}
    np.savez(folder / "example.npz", **arrays)
    return folder / "example.npz"
