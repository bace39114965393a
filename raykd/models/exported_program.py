"""Networks as programs of `torch.export`, which load without raykd."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from raykd.errors import first_line
from raykd.models.compression.int8 import Int8Layer
from raykd.models.introspection.onnx_latency import quiet_exporters
from raykd.models.preprocessing import RawInputModel

Program: TypeAlias = torch.export.ExportedProgram

TOLERANCE = 1e-3
"""Largest allowed difference of a logit, relative to the largest logit."""

INT8_TOLERANCE = 0.1
"""The same for int8 networks: a value between two integers may be rounded to the other one."""


class ExportError(ValueError):
    """A network cannot be exported to a format, or the file differs from the original."""


class FlatInputs(nn.Module):
    """A network that takes each input as an argument: texts have several.

    Args:
        network: takes a tensor, or a mapping of tensors.
        stacked: take the tensors of a text as one, (batch, keys, tokens).
    """

    def __init__(self, network: RawInputModel, *, stacked: bool = False) -> None:
        super().__init__()
        self.network = network
        self.keys = () if stacked else network.preprocessing.keys

    def forward(self, *tensors: Tensor) -> Tensor:
        if not self.keys:
            return self.network(tensors[0])
        return self.network(dict(zip(self.keys, tensors, strict=True)))


def traced(flat: FlatInputs, inputs: tuple[Tensor, ...]) -> tuple[Program, int | None]:
    """Trace a network with `torch.export`.

    Args:
        flat: the network.
        inputs: raw samples, at least two.

    Returns:
        The program, and the batch size it is limited to: None, or 1 if the network computes with
        the batch size in Python.

    Raises:
        ExportError: the network cannot be traced.
    """
    flat.eval()
    batch = torch.export.Dim("batch", min=1)
    with quiet_exporters(), torch.no_grad():
        with contextlib.suppress(Exception):
            shapes = {"tensors": tuple({0: batch} for _ in inputs)}
            return _without_source(torch.export.export(flat, inputs, dynamic_shapes=shapes)), None
        try:
            single = tuple(tensor[:1].clone() for tensor in inputs)
            return _without_source(torch.export.export(flat, single)), 1
        except Exception as error:
            raise ExportError(f"torch.export cannot trace it: {first_line(error)}") from error


def tolerance_of(network: nn.Module) -> float:
    """Return the largest allowed difference of a logit, relative to the largest logit."""
    int8 = any(isinstance(module, Int8Layer) for module in network.modules())
    return INT8_TOLERANCE if int8 else TOLERANCE


def save_program(network: RawInputModel, samples: Tensor, path: Path) -> None:
    """Save a network as a program of one input and any batch size, and check the file.

    Args:
        network: on the CPU.
        samples: (batch, ...) raw samples; the tensors of a text are stacked.
        path: file to write, for `torch.export.load`.

    Raises:
        ExportError: the network cannot be traced, not for every batch size, or the program
            computes other logits.  No file is left.
    """
    flat = FlatInputs(network, stacked=True)
    # Two samples: a single one would fix the batch size.
    program, batch = traced(flat, (torch.cat([samples, samples])[:2],))
    if batch is not None:
        raise ExportError("it computes with the batch size, which torch.export would fix")
    with quiet_exporters():
        torch.export.save(program, path)
        opened = torch.export.load(path).module()
    with torch.inference_mode():
        expected, logits = flat(samples), opened(samples)
    difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    if not difference <= tolerance_of(network) * largest:
        path.unlink()
        raise ExportError(f"its program computes other logits: they differ by {difference:.2g}")


def _without_source(program: Program) -> Program:
    """Remove, in place, the source code and paths that a trace records for each operator."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program
