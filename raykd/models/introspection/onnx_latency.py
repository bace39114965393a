"""Measure the latency of a forward in ONNX Runtime; needs the packages of raykd[onnx]."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykd.compat.packages import is_installed
from raykd.errors import first_line
from raykd.models.base import Signature
from raykd.models.introspection.latency import Latency, Timing, time_calls
from raykd.models.introspection.layers import random_inputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

TOLERANCE = 1e-2
"""Tolerance of ONNX Runtime against PyTorch, relative to the largest output."""


def onnx_latency(network: nn.Module, signature: Signature, batch: int, settings: Latency) -> Timing:
    """Measure a forward in ONNX Runtime, exported for this batch size.

    Inputs and outputs stay on the device.  The outputs are compared with those of PyTorch.

    Args:
        network: on the CPU, with initialized weights; returned in eval mode.
        signature: inputs of the network.
        batch: batch size.
        settings: device and measuring time.

    Raises:
        ValueError: the export fails, ONNX Runtime cannot run the model, or its outputs differ.
    """
    inputs = random_inputs(signature, batch, torch.device("cpu"))
    by_name = {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    arrays = {name: tensor.numpy() for name, tensor in by_name.items()}
    session = _session(export_onnx(network, inputs), settings)
    binding = _bind(session, arrays, settings)
    session.run_with_iobinding(binding)
    with torch.inference_mode():
        _check_outputs(network.eval()(inputs).numpy(), binding.copy_outputs_to_cpu()[0])
    return time_calls(lambda: session.run_with_iobinding(binding), settings)


def export_onnx(network: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> bytes:
    """Export a network to ONNX for inputs of this shape, with the names of the mapping.

    Args:
        network: on the CPU; returned in eval mode.
        inputs: (B, *input_shape), or a mapping of such tensors.

    Raises:
        ValueError: the network cannot be exported.
    """
    names = ["inputs"] if isinstance(inputs, Tensor) else list(inputs)
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())
    flat = network.eval() if isinstance(inputs, Tensor) else _Flat(network.eval(), names)
    try:
        with quiet_exporters(), torch.no_grad():
            program = torch.onnx.export(
                flat, tensors, input_names=names, dynamo=True, verbose=False
            )
            assert program is not None, "returned unless it is written to a file"
            return program.model_proto.SerializeToString()
    except Exception as error:
        raise ValueError(
            f"the network cannot be exported to ONNX: {first_line(error.__cause__ or error)}"
        ) from error


def unmet_onnx_conditions(settings: Latency) -> Iterator[tuple[str, str, str]]:
    """Yield what ONNX Runtime needs and this machine lacks: field, problem, fix."""
    missing = [name for name in PACKAGES if not is_installed(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        problem = f"latency in ONNX Runtime needs {names}, which {verb} not installed"
        yield "", problem, "install raykd[onnx]"
        return
    provider = PROVIDERS[settings.device.partition(":")[0]]
    if provider not in importlib.import_module("onnxruntime").get_available_providers():
        problem = f"the installed ONNX Runtime does not support '{settings.device}'"
        yield "device", problem, "install onnxruntime-gpu instead of onnxruntime, or use cpu"


class _Flat(nn.Module):
    """A text model that takes the values of its input mapping as separate arguments."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        return self.network(dict(zip(self.names, tensors, strict=True)))


def _session(model: bytes, settings: Latency) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    kind, _, number = settings.device.partition(":")
    provider_options = {"device_id": number or "0"} if kind == "cuda" else {}
    provider = (PROVIDERS[kind], provider_options)
    try:
        return runtime.InferenceSession(model, options, providers=[provider])
    except Exception as error:
        raise ValueError(f"ONNX Runtime cannot run the network: {first_line(error)}") from error


def _bind(session: Any, arrays: Mapping[str, np.ndarray], settings: Latency) -> Any:
    """Bind inputs and outputs of a session to memory on the device."""
    kind, _, number = settings.device.partition(":")
    device = kind, int(number or 0)
    value = importlib.import_module("onnxruntime").OrtValue
    binding = session.io_binding()
    for node in session.get_inputs():  # without inputs that the network does not use
        array = value.ortvalue_from_numpy(np.ascontiguousarray(arrays[node.name]), *device)
        binding.bind_ortvalue_input(node.name, array)
    for node in session.get_outputs():
        binding.bind_output(node.name, *device)
    return binding


def _check_outputs(expected: np.ndarray, actual: np.ndarray) -> None:
    if expected.shape != actual.shape:
        raise ValueError(f"ONNX Runtime outputs {actual.shape} instead of {expected.shape}")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - actual).max())
    if not difference <= TOLERANCE * largest + 1e-6:
        raise ValueError(
            f"ONNX Runtime and PyTorch differ by {difference:.2g} (largest output {largest:.2g})"
        )


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Hide progress, warnings and dumps of graphs of `torch.export` and the ONNX exporter."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
