"""Teachers that are a file of outputs: ensembles, trees, models behind an API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raykd.data import Batch, Dataset
from raykd.data.table import Dialect, Table, read_table, short_repr
from raykd.losses import ModelOutputs
from raykd.models import Signature
from raykd.schemes import TeacherSpec
from raykd.study.config import Study
from raykd.tasks.base import Kind

SUFFIX = ".outputs"
"""Suffix of outputs below the storage: safetensors with `samples` and `values`."""

SAMPLE = "sample"
"""Column of the sample numbers in a table of outputs."""

INDEX = re.compile(r"__index_level_\d+__")
"""Name of a column in which pandas stores the index of a table."""

SMALLEST = 1e-6
"""Probabilities are clamped to [SMALLEST, 1 - SMALLEST] before their logarithm is taken."""

_TOLERANCE = 1e-3
"""Allowed error of the sum of the probabilities of a sample."""


@dataclass(frozen=True)
class OutputsTable:
    """Outputs of a teacher by sample.

    Attributes:
        samples: (N,) int64 sample numbers, ascending.
        values: (N, C) float32.
        names: of the columns; () if they have none.
        notes: sentences on changes to the values.
    """

    samples: Tensor
    values: Tensor
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_outputs(path: str) -> OutputsTable:
    """Read the outputs of a teacher.

    A table (Parquet, CSV, TSV, JSON, Arrow) has a column `sample` with the sample numbers, and a
    column for each value or one column of lists.  A safetensors file has `samples` (N) and `values`
    (N, C).

    Raises:
        ValueError: the file is missing or damaged, a value is not a finite number, or a sample
            occurs twice.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    modified = file.stat()
    table = _read(file, (modified.st_mtime_ns, modified.st_size))
    order = table.samples.argsort(stable=True)
    samples = table.samples[order]
    twice = (samples[1:] == samples[:-1]).nonzero()
    if len(twice):
        raise ValueError(f"{file.name} has two rows for sample {int(samples[twice[0, 0]])}")
    if len(samples) and int(samples[0]) < 0:
        raise ValueError(f"{file.name} has the sample number {int(samples[0])}; they start at 0")
    return replace(table, samples=samples, values=table.values[order])


@lru_cache(maxsize=8)
def _read(file: Path, _: tuple[int, int]) -> OutputsTable:
    table = _read_safetensors(file) if file.suffix == ".safetensors" else _read_table(file)
    finite = table.values.isfinite().all(1)
    if not bool(finite.all()):
        sample = int(table.samples[(~finite).nonzero()[0, 0]])
        count = int((~finite).sum())
        raise ValueError(f"{file.name} has NaN or infinite values for {count} samples ({sample})")
    return table


def _read_safetensors(file: Path) -> OutputsTable:
    try:
        tensors = safetensors.torch.load(file.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{file.name} is no safetensors file ({error})") from None
    values = tensors.get("values")
    if values is None or values.dim() != 2 or not values.is_floating_point():
        listed = ", ".join(f"{name} {tuple(each.shape)}" for name, each in tensors.items())
        raise ValueError(
            f"{file.name} has the tensors {listed or 'none'}; `samples` (N) of integers and "
            "`values` (N, values) of floats are needed"
        )
    samples = tensors.get("samples")
    if samples is None or samples.shape != (len(values),) or samples.is_floating_point():
        present = "missing" if samples is None else f"{samples.dtype} {tuple(samples.shape)}"
        raise ValueError(
            f"{file.name}: `samples` is {present}; an integer for each of the {len(values)} rows "
            "of `values` is needed"
        )
    return OutputsTable(samples.long(), values.float())


def _read_table(file: Path) -> OutputsTable:
    try:
        (table,) = read_table(file, [SAMPLE], Dialect(), whole=True)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("text: ")) from None
    names = [name for name in table.columns if name != SAMPLE and not INDEX.fullmatch(name)]
    if not names:
        raise ValueError(f"{file.name} has no column of values")
    columns = [_values(table, name) for name in names]
    is_list = len(columns) == 1 and columns[0].ndim == 2
    if not is_list and any(column.ndim == 2 for column in columns):
        raise ValueError(
            f"{file.name} has {len(names)} columns besides `{SAMPLE}`, one of lists; needed are "
            "one column of lists or columns of numbers"
        )
    values = torch.from_numpy(columns[0] if is_list else np.stack(columns, 1)).float()
    numbers = [_integer(value) for value in table.columns[SAMPLE]]
    if None in numbers:
        row = numbers.index(None)
        raise ValueError(
            f"{file.name}: {table.place(row)} holds {short_repr(table.columns[SAMPLE][row])} in "
            f"column '{SAMPLE}'; an integer is needed"
        )
    samples = torch.tensor(numbers)
    return OutputsTable(samples, values, () if is_list else tuple(names))


def _values(table: Table, name: str) -> np.ndarray:
    """Return a column, (N,) or (N, D)."""
    values = [_numbers(value) for value in table.columns[name]]
    shapes = [np.shape(value) for value in values if value is not None]
    for row, value in enumerate(values):
        if value is None or np.shape(value) != shapes[0]:
            needed = "a number" if not shapes or not shapes[0] else f"{shapes[0][0]} numbers"
            raise ValueError(
                f"{table.file.name}: {table.place(row)} holds "
                f"{short_repr(table.columns[name][row])} in column '{name}'; {needed} is needed"
            )
    return np.array(values, dtype=np.float64)


def _numbers(value: object) -> float | list[float] | None:
    try:
        if isinstance(value, (list, tuple, np.ndarray)):
            return [float(each) for each in value]
        return float(value)  # type: ignore[arg-type]  # other types raise
    except (TypeError, ValueError):
        return None


def _integer(value: object) -> int | None:
    number = _numbers(value)
    return int(number) if isinstance(number, float) and number.is_integer() else None


def fit_outputs(
    table: OutputsTable, kind: Kind, outputs: int, names: Sequence[str] = ()
) -> OutputsTable:
    """Return outputs in the order of the classes, probabilities as logits.

    Args:
        table: as read.
        kind: of the responses of the task.
        outputs: number of values of a response.
        names: of the classes, labels or values of the data.

    Raises:
        ValueError: the number of values is wrong.
    """
    if table.values.shape[1] != outputs:
        raise ValueError(
            f"it has {table.values.shape[1]} values a sample; the task needs {outputs}"
        )
    values, notes = table.values, []
    if table.names != tuple(names) and sorted(table.names) == sorted(names):
        values = values[:, [table.names.index(name) for name in names]]
        notes.append("the columns of the outputs were put in the order of the data")
    low, high = (float(each) for each in values.aminmax()) if len(values) else (0.0, 0.0)
    if kind != "real" and low >= 0 and high <= 1:
        sums = values.sum(1)
        if kind == "sigmoid":
            values = values.clamp(SMALLEST, 1 - SMALLEST).logit()
            notes.append("the outputs are probabilities; their logits are used")
        elif float((sums - 1).abs().max()) <= _TOLERANCE:
            values = values.clamp_min(SMALLEST).log()
            notes.append("the outputs are probabilities; their logarithms are used as logits")
    return replace(table, values=values, names=tuple(names), notes=tuple(notes))


def fitted_outputs(spec: TeacherSpec, study: Study, signature: Signature | None) -> OutputsTable:
    """Read the outputs of a teacher for the task of a study.

    Args:
        spec: with `outputs`.
        study: concrete.
        signature: inputs and classes; None: the number of values is not checked.

    Raises:
        ValueError: the file cannot be used; see `read_outputs` and `fit_outputs`.
    """
    assert spec.outputs is not None, "a teacher with a file of outputs"
    table = read_outputs(spec.outputs)
    if signature is None:
        return table
    kind = study.learning_task.kind
    return fit_outputs(table, kind, signature.classes, signature.class_names)


def check_samples(table: OutputsTable, data: Dataset) -> None:
    """Check that there are outputs for every sample of every split.

    Raises:
        ValueError: samples are missing; names the first.
    """
    has_outputs = torch.zeros(data.data_size, dtype=torch.bool)
    has_outputs[table.samples[table.samples < data.data_size]] = True
    for part in ("train", "val", "test"):
        index = data.split(part).index.cpu()
        missing = index[~has_outputs[index]]
        if len(missing):
            raise ValueError(
                f"it has no outputs for {len(missing):,} of the {len(index):,} {part} samples; the "
                f"first is sample {int(missing.min())}; samples are numbered from 0 in the order "
                f"of the data source, over all its files"
            )


def dump_outputs(table: OutputsTable) -> bytes:
    """Return outputs as a safetensors file."""
    return safetensors.torch.save(
        {"samples": table.samples.contiguous(), "values": table.values.contiguous()}
    )


class StoredOutputs(nn.Module):
    """Network that looks its outputs up by sample number.

    Args:
        samples: (N,) int64 sample numbers.
        values: (N, C) outputs.
        size: of the data: the largest sample number plus 1.
    """

    values: Tensor
    rows: Tensor

    def __init__(self, samples: Tensor, values: Tensor, size: int) -> None:
        super().__init__()
        rows = torch.full((size,), -1)
        inside = samples < size
        rows[samples[inside]] = torch.arange(len(samples))[inside]
        self.register_buffer("values", values)
        self.register_buffer("rows", rows)

    def forward(self, index: Tensor) -> Tensor:
        """Return outputs.

        Args:
            index: (B,) int64, numbers of samples.

        Returns:
            (B, C).
        """
        return self.values.index_select(0, self.rows.index_select(0, index))


def load_outputs(content: bytes, data: Dataset) -> StoredOutputs:
    """Load outputs from the bytes of their file, real values in the units of the responses.

    Args:
        content: of `dump_outputs`.
        data: source of the samples.
    """
    tensors = safetensors.torch.load(content)
    values = tensors["values"]
    if data.target_scale:
        mean, scale = values.new_tensor(data.target_mean), values.new_tensor(data.target_scale)
        values = (values - mean) / scale
    return StoredOutputs(tensors["samples"], values, data.data_size)


def respond(network: nn.Module, batch: Batch) -> Tensor:
    """Return the response of a network, or the stored outputs, for a batch."""
    if isinstance(network, StoredOutputs):
        return network(batch.index.to(network.rows.device))
    return network(batch.inputs)


class StoredTeacher:
    """Teacher whose outputs are a file; a `TeacherSource` without layers.

    Args:
        outputs: on the device of the batches.
    """

    other_input = None

    def __init__(self, outputs: StoredOutputs) -> None:
        self.outputs = outputs

    def __call__(self, batch: Batch) -> ModelOutputs:
        return ModelOutputs(respond(self.outputs, batch), {})
