"""Export of a student: write, open again, compare, measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raykd.data import Dataset
from raykd.errors import Problem, StudyError, first_line
from raykd.export.card import model_card
from raykd.export.formats import (
    Format,
    Written,
    facts,
    formats,
    input_names,
)
from raykd.export.report import ExportedFile, ExportResult
from raykd.export.student import SavedStudent
from raykd.metrics import task_name
from raykd.models.exported_program import ExportError, FlatInputs, tolerance_of
from raykd.models.introspection.latency import Latency, time_calls
from raykd.models.preprocessing import RawInputModel
from raykd.tasks.base import is_exported
from raykd.training.stored_networks import raw_samples

COMPARED = 64
"""Number of samples whose logits are compared."""

BATCH = 64
"""Batch size of the measurement of the test accuracy."""


def export_student(
    student: SavedStudent,
    to: Sequence[str] = ("onnx",),
    folder: str | Path | None = None,
    *,
    measure_accuracy: bool = True,
    overwrite: bool = False,
) -> ExportResult:
    """Export a student to one or more formats, with a model card.

    Each file is opened again with its own runtime and compared with the original on real samples.

    Args:
        student: see `find_student`.
        to: `onnx`, `pt2`, `safetensors`, `hf`.
        folder: created; None: the name of the student, in the current folder.
        measure_accuracy: measure the accuracy of each file on the whole test split.
        overwrite: replace the folder if it exists.

    Raises:
        StudyError: a format is unknown or does not fit the network, a package is missing, the
            folder exists, or a file computes other logits than the original.
    """
    chosen = _formats(to)
    task = task_name(student.study)
    if not is_exported(task):
        raise StudyError(
            Problem(
                f"{student.name} is a network of task '{task}': its outputs need raykd to become "
                "results, so that it is not exported",
                fix="load its weights in Python (docs/tasks.md, Images with boxes)",
            )
        )
    path = _new_folder(Path(folder or student.name).expanduser(), overwrite)
    data, note = _data(student)
    inputs = _samples(student.network, data)
    if data is not None and (data.is_dense or data.test.targets.is_floating_point()):
        note = "the test accuracy was not measured: the targets are no classes of samples"
        measure_accuracy = False
    parts = None if data is None or not measure_accuracy else data
    original = FlatInputs(student.network)
    with torch.inference_mode():
        expected = original(*inputs)
    finished = False
    try:
        files = []
        for name, form in chosen.items():
            files.append(_export(name, form, student, inputs, expected, parts, path))
        result = ExportResult(
            folder=path,
            name=student.name,
            files=tuple(files),
            accuracy=None if parts is None else _accuracy(_predictor(original), parts),
            milliseconds=_latency(_predictor(original), inputs),
            test_samples=0 if data is None else len(data.test),
            notes=(note,) if note else (),
        )
        _write_side_files(student, result, inputs, expected, path)
        finished = True
    finally:
        if not finished:
            shutil.rmtree(path, ignore_errors=True)
    return result


def _formats(names: Sequence[str]) -> dict[str, Format]:
    available = formats()
    for name in names:
        if name not in available:
            raise StudyError(
                Problem(f"unknown format {name!r}; allowed are {', '.join(available)}", path="--to")
            )
        if message := available[name].missing():
            raise StudyError(Problem(f"{name} {message}", path="--to"))
    return {name: available[name] for name in dict.fromkeys(names)}


def _new_folder(path: Path, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise StudyError(
            Problem(f"{path} exists already", fix="name another folder with -o, or add --overwrite")
        )
    if path.exists() and not (path / "raykd.json").is_file():
        raise StudyError(Problem(f"{path} is not the folder of an export; it is not overwritten"))
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    except OSError as error:
        raise StudyError(Problem(f"cannot write to {path}: {error.strerror}")) from None
    return path


def _data(student: SavedStudent) -> tuple[Dataset | None, str]:
    """Return the data of the study, or None and the reason."""
    if not student.study:
        return None, "the test accuracy was not measured: the model has no record of its data"
    try:
        data = student.load_data()
    except ValueError as error:
        reason = first_line(error)
        return None, f"the test accuracy was not measured: the data are not available ({reason})"
    if data.class_names != student.network.class_names:
        return None, "the test accuracy was not measured: the data have other classes now"
    return data, ""


def _samples(network: RawInputModel, data: Dataset | None) -> tuple[Tensor, ...]:
    """Return raw samples, one tensor per input: of the validation split, or random ones."""
    if data is not None:
        rows = torch.arange(min(COMPARED, len(data.val)))
        samples = raw_samples(data, rows, "val")
        if isinstance(samples, Tensor):
            return (samples,)
        return tuple(samples[key] for key in network.preprocessing.keys)
    about = network.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (COMPARED, *(about.raw_shape or about.shape))
    if about.kind == "texts":
        ids = torch.randint(about.vocabulary, (COMPARED, *about.shape), generator=generator)
        return tuple(ids if key == "input_ids" else torch.ones_like(ids) for key in about.keys)
    values = torch.rand(shape, generator=generator)
    if about.kind == "pictures":
        values = (values * about.maximum).round()
    return (values.to(getattr(torch, about.dtype)),)


def _predictor(network: torch.nn.Module) -> Written:
    return Written(Path(), lambda tensors: network(*tensors))


def _export(
    name: str,
    form: Format,
    student: SavedStudent,
    inputs: tuple[Tensor, ...],
    expected: Tensor,
    data: Dataset | None,
    folder: Path,
) -> ExportedFile:
    try:
        # Two samples: a single one would fix the batch size of a traced network.
        written = form.write(student, tuple(tensor[:2] for tensor in inputs), folder)
    except ExportError as error:
        raise StudyError(Problem(str(error), path="--to")) from None
    difference = float((_predict(written, inputs) - expected).abs().max())
    largest = float(expected.abs().max())
    tolerance = tolerance_of(student.network)
    if not difference <= tolerance * largest + 1e-6:
        raise StudyError(
            Problem(
                f"{name}: the file computes other logits than the original (difference "
                f"{difference:.2g}, largest logit {largest:.2g})",
                fix="use another format",
            )
        )
    return ExportedFile(
        format=name,
        path=written.path,
        bytes=_size(written.path),
        batch=written.batch,
        difference=difference,
        largest=largest,
        samples=len(inputs[0]),
        accuracy=None if data is None else _accuracy(written, data),
        milliseconds=_latency(written, inputs) if form.has_runtime else None,
    )


def _predict(written: Written, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the logits of all samples, in batches of the size that the file allows."""
    size = written.batch or len(inputs[0])
    with torch.inference_mode():
        return torch.cat(
            [
                written.predict(tuple(tensor[start : start + size] for tensor in inputs))
                for start in range(0, len(inputs[0]), size)
            ]
        )


def _accuracy(written: Written, data: Dataset) -> float:
    """Return the accuracy on the whole test split, 0 to 1."""
    correct = 0
    for start in range(0, len(data.test), BATCH):
        rows = torch.arange(start, min(start + BATCH, len(data.test)))
        samples = raw_samples(data, rows, "test")
        tensors = (samples,) if isinstance(samples, Tensor) else tuple(samples.values())
        predicted = _predict(written, tensors).argmax(1)
        correct += int((predicted == data.test.targets[rows].cpu()).sum())
    return correct / len(data.test)


def _latency(written: Written, inputs: tuple[Tensor, ...]) -> float:
    """Return the median latency for a single sample on one CPU thread, in milliseconds."""
    single = tuple(tensor[:1].clone() for tensor in inputs)
    with torch.inference_mode():
        return time_calls(lambda: written.predict(single), Latency()).median


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _write_side_files(
    student: SavedStudent,
    result: ExportResult,
    inputs: tuple[Tensor, ...],
    expected: Tensor,
    path: Path,
) -> None:
    """Write the model card, the facts as JSON, and an example with its logits."""
    network = student.network
    names = input_names(network)
    arrays: dict[str, Any] = {
        name: tensor[:8].numpy() for name, tensor in zip(names, inputs, strict=True)
    }
    np.savez(path / "example.npz", **arrays, logits=expected[:8].numpy())
    content = {
        "name": student.name,
        "training": student.id,
        "origin": student.origin,
        **{key.removeprefix("raykd."): value for key, value in facts(network).items()},
        "study": student.study,
    }
    (path / "raykd.json").write_text(json.dumps(content, indent=1, default=str))
    (path / "README.md").write_text(model_card(student, result))
