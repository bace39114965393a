"""A network's forward in ONNX Runtime; needs the optional packages of raykd[onnx]."""

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

from raykd.architecture.latency import Latency, Timing, timed
from raykd.architecture.layers import random_inputs
from raykd.architecture.model import Task

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

TOLERANCE = 1e-2
"""Of the largest output: how far ONNX Runtime's may be from PyTorch's."""


def onnx_latency(network: nn.Module, task: Task, batch: int, how: Latency) -> Timing:
    """The latency of a network's forward in ONNX Runtime, exported for this batch size.

    Inputs and outputs are and stay on the device.  That the outputs are PyTorch's is checked.

    Args:
        network: on the CPU, filled with weights; comes back in eval mode.
        task: what it takes.
        batch: samples at once.
        how: where and for how long.

    Raises:
        ValueError: it cannot be exported, ONNX Runtime cannot run it, or gives something else.
    """
    inputs = random_inputs(task, batch, torch.device("cpu"))
    named = {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    session = _session(exported(network, inputs), how)
    binding = _bound(session, arrays, how)
    session.run_with_iobinding(binding)
    with torch.inference_mode():
        _check_same(network.eval()(inputs).numpy(), binding.copy_outputs_to_cpu()[0])
    return timed(lambda: session.run_with_iobinding(binding), how)


def exported(network: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> bytes:
    """A network as an ONNX model for inputs of this shape; its inputs bear the mapping's names.

    Args:
        network: on the CPU; comes back in eval mode.
        inputs: (B, *input_shape), or a mapping of such.

    Raises:
        ValueError: it cannot be exported.
    """
    names = ["inputs"] if isinstance(inputs, Tensor) else list(inputs)
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())
    flat = network.eval() if isinstance(inputs, Tensor) else _Flat(network.eval(), names)
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                flat, tensors, input_names=names, dynamo=True, verbose=False
            )
            assert program is not None, "it is asked for as an object, not as a file"
            return program.model_proto.SerializeToString()
    except Exception as error:
        raise ValueError(
            f"it cannot be exported to ONNX: {_line(error.__cause__ or error)}"
        ) from error


def lacking_onnx(how: Latency) -> Iterator[tuple[str, str, str]]:
    """What ONNX Runtime lacks here: the field of the conditions, what is wrong, how to mend it."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        what = f"latency in ONNX Runtime needs {', '.join(missing)}, which {verb} not installed"
        yield "", what, "install raykd[onnx]"
        return
    provider = PROVIDERS[how.device.partition(":")[0]]
    if provider not in importlib.import_module("onnxruntime").get_available_providers():
        what = f"the ONNX Runtime installed here cannot use '{how.device}'"
        yield "device", what, "install onnxruntime-gpu in place of onnxruntime, or take cpu"


class _Flat(nn.Module):
    """A network of texts that takes the values of its mapping one by one."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        return self.network(dict(zip(self.names, tensors, strict=True)))


def _session(model: bytes, how: Latency) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = how.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    kind, _, number = how.device.partition(":")
    settings = {"device_id": number or "0"} if kind == "cuda" else {}
    try:
        return runtime.InferenceSession(model, options, providers=[(PROVIDERS[kind], settings)])
    except Exception as error:
        raise ValueError(f"ONNX Runtime cannot run it: {_line(error)}") from error


def _bound(session: Any, arrays: Mapping[str, Any], how: Latency) -> Any:
    kind, _, number = how.device.partition(":")
    place = kind, int(number or 0)
    value = importlib.import_module("onnxruntime").OrtValue
    binding = session.io_binding()
    for wanted in session.get_inputs():  # what the network does not use is not there
        held = value.ortvalue_from_numpy(np.ascontiguousarray(arrays[wanted.name]), *place)
        binding.bind_ortvalue_input(wanted.name, held)
    for given in session.get_outputs():
        binding.bind_output(given.name, *place)
    return binding


def _check_same(ours: Any, theirs: Any) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"in ONNX Runtime it gives {theirs.shape} instead of {ours.shape}")
    most = float(np.abs(ours).max())
    apart = float(np.abs(ours - theirs).max())
    if not apart <= TOLERANCE * most + 1e-6:
        raise ValueError(
            f"in ONNX Runtime it gives other outputs: {apart:.2g} apart, the largest is {most:.2g}"
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter tells how far it is, what it may do otherwise one day, and all of a graph."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
