"""Results of an export, and their table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from raykd.terminal_tables import Column, Grid, unbroken


@dataclass(frozen=True)
class ExportedFile:
    """An exported network, compared with the original.

    Attributes:
        format: `onnx`, `pt2`, `safetensors` or `hf`.
        path: file, or folder of several files.
        bytes: size of the network's file.
        batch: batch size that the file is limited to; None: any.
        difference: largest absolute difference of a logit from the original.
        largest: largest absolute logit of the original.
        samples: number of samples that were compared.
        accuracy: test accuracy, 0 to 1; None if it was not measured.
        milliseconds: median latency for a single sample on one CPU thread; None if the format has
            no runtime.
    """

    format: str
    path: Path
    bytes: int
    batch: int | None
    difference: float
    largest: float
    samples: int
    accuracy: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class ExportResult:
    """An exported student.

    Attributes:
        folder: of all files.
        name: of the student.
        files: exported networks, in the order of the requested formats.
        accuracy: test accuracy of the original, measured on the same samples; None if it was not
            measured.
        milliseconds: latency of the original in PyTorch, like that of the files.
        test_samples: number of test samples.
        notes: sentences for the user, such as why the accuracy was not measured.
    """

    folder: Path
    name: str
    files: tuple[ExportedFile, ...]
    accuracy: float | None
    milliseconds: float
    test_samples: int
    notes: tuple[str, ...] = ()


def export_facts(result: ExportResult) -> dict[str, Any]:
    """Return the measurements of an export as plain data."""
    facts = dataclasses.asdict(result)
    facts["folder"] = str(result.folder)
    for entry, file in zip(facts["files"], result.files, strict=True):
        entry["path"] = str(file.path)
    return facts


def export_table(result: ExportResult) -> RenderableType:
    """Return the files of an export and their measurements, for a `rich` console."""
    headings = ("file", "size", "test accuracy", "latency", "largest difference")
    table = Grid([Column(headings[0]), *(Column(text, right=True) for text in headings[1:])])
    table.add("original", "", _percent(result.accuracy), _latency(result.milliseconds), "")
    for file in result.files:
        name = file.path.name + ("/" if file.path.is_dir() else "")
        name += f" (batch size {file.batch})" if file.batch else ""
        difference = f"{file.difference:.1g} of {file.largest:.3g}"
        table.add(
            name,
            f"{file.bytes / 1000:,.1f} kB",
            _percent(file.accuracy),
            _latency(file.milliseconds),
            difference,
        )
    lines = [Text(f"{result.name} -> {result.folder}", style="bold"), table]
    about = "latency: one sample, one CPU thread; difference: largest logit error on "
    lines.append(Text(f"{about}{result.files[0].samples} samples", style="dim"))
    lines.append(Text("also: README.md (model card), raykd.json, example.npz", style="dim"))
    return unbroken(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _latency(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.3g} ms"
