"""Export of the finalists: one network each, with raw example samples, for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raykd.compat.network_files import read_network
from raykd.data import Dataset
from raykd.metrics import facts_of, lead_metric
from raykd.models.exported_program import save_program
from raykd.models.preprocessing import RawInputModel
from raykd.storage import Storage
from raykd.study.config import plain, read_study
from raykd.study.short_names import network_name
from raykd.tracking.events import ModelSaved, WarningIssued
from raykd.training.stored_networks import preprocessing_of, raw_samples
from raykd.tuning.estimates import estimate_metric, proportion_interval
from raykd.tuning.number_format import interval, metric, words
from raykd.tuning.planner import Planner
from raykd.tuning.records import Record, values_of
from raykd.tuning.session import RunSession

EXAMPLE_SAMPLES = 8


def export_students(session: RunSession, planner: Planner) -> None:
    """Write a model event for each finalist: its replicate with the best validation metric.

    MLflow gets the network of each such event.  Test metrics do not decide.
    """
    folder, data = session.folder, session.data
    lead = lead_metric(plain(session.study.settings))
    storage = Storage(folder.storage)
    finalists = list(planner.finalists)
    smallest = min(finalists, key=lambda r: r.metrics["params"], default=None)
    for record in finalists:
        replicates = [
            r for r in planner.records.children(record.id, "replicate") if r.status == "finished"
        ]
        if not replicates:
            continue
        best = _best_replicate(replicates, lead)
        assert best.job.network_file is not None
        path = folder.path / "students" / Path(best.job.network_file).name
        if not path.exists():  # the storage is a URI
            content = storage.read(best.job.network_file)
            if content is None:
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        study = read_study(best.job.study)
        student_data = data.as_input(study.student.input)
        preprocessing, example = preprocessing_of(student_data), _example(student_data, folder.path)
        program, reason = _save_program(session, path, preprocessing.keys, example)
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
                name=network_name(study),
                about=_about(best, replicates, lead, len(data.test)),
                program=program,
                pickle_reason=reason,
            )
        )


def _save_program(
    session: RunSession, network_file: Path, keys: Sequence[str], example: Path
) -> tuple[str | None, str]:
    """Save a student as a program that loads without raykd, beside the file of its network.

    Done here and not by the thread that uploads: while `torch.export` traces a network, no other
    thread of the process may run one.

    Returns:
        File of the program below the study's folder or None, and the reason if it is None.
    """
    import numpy as np

    arrays = np.load(example)
    samples = np.stack([arrays[key] for key in keys], axis=1) if keys else arrays
    path = network_file.with_suffix(".pt2")
    try:
        allow_code = session.study.runs_code
        network = read_network(network_file, network_file.name, allow_code=allow_code)
        assert isinstance(network, RawInputModel)
        save_program(network, torch.from_numpy(samples), path)
    except ValueError as error:  # an ExportError, or a network that only its own code can read
        text = f"the model of {network_file.stem} in MLflow needs raykd to load: {error}"
        session.bus.publish(WarningIssued(text))
        return None, str(error)
    return str(path.relative_to(session.folder.path)), ""


def _best_replicate(replicates: Sequence[Record], lead: str) -> Record:
    """Return the replicate with the best validation metric, the first of equals."""
    best = max if facts_of(lead).direction == "max" else min
    return best(replicates, key=lambda r: r.metrics[f"val_{lead}"])


def _about(best: Record, replicates: Sequence[Record], lead: str, size: int) -> dict[str, Any]:
    """Return the test metric of the best replicate and over all seeds, as text and interval.

    The interval of an accuracy is that of a proportion; other metrics of one network have none.
    """
    name = f"test_{lead}"
    over = estimate_metric(values_of(replicates, name), facts_of(lead))
    if lead != "accuracy":
        text = f"{words(name)} {metric(name, best.metrics[name])} ({size} test samples)"
        text += f"; over seeds {interval(over)}" if over.count > 1 else ""
        return {"accuracy": text, "trial": best.job.parent or ""}
    low, high = proportion_interval(best.metrics[name], size)
    text = f"{best.metrics[name]:.2%} (95% CI {low:.2%} to {high:.2%}, {size} test samples)"
    if over.count > 1:
        text += f"; mean of {over.count} seeds {over.mean:.2%} ± {100 * over.half_width:.2f}"
    return {
        "accuracy": text,
        "test_accuracy_interval": [low, high],
        "trial": best.job.parent or "",
    }


def _example(data: Dataset, folder: Path) -> Path:
    """Save the first raw validation samples: `.npy` for one tensor, `.npz` for a mapping.

    The file is `example`, and `example-INPUT` of one input of the samples.
    """
    import numpy as np

    stem = "example" if data.input is None else f"example-{data.input}"

    inputs = raw_samples(data, torch.arange(min(EXAMPLE_SAMPLES, len(data.val))), "val")
    if isinstance(inputs, torch.Tensor):
        np.save(folder / f"{stem}.npy", inputs.numpy())
        return folder / f"{stem}.npy"
    arrays: dict[str, Any] = {key: value.numpy() for key, value in inputs.items()}
    np.savez(folder / f"{stem}.npz", **arrays)
    return folder / f"{stem}.npz"
