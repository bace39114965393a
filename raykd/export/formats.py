"""Formats of exported networks: each writes a network and opens it again."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raykd.compat.packages import is_installed
from raykd.errors import first_line
from raykd.export.student import SavedStudent
from raykd.models.compression.int8 import quantize_dequantize
from raykd.models.exported_program import ExportError, FlatInputs, traced
from raykd.models.introspection.onnx_latency import quiet_exporters
from raykd.models.normalization import Normalization, to_metadata
from raykd.models.preprocessing import RawInputModel
from raykd.training.checkpoint import dump_weights, parse_weights

Predict = Callable[[tuple[Tensor, ...]], Tensor]
"""Raw samples, one tensor per input of the network -> logits."""

FACTS = "raykd.json"
"""Name of the facts (inputs, classes, metrics) inside a pt2 file and in ONNX metadata."""


@dataclass(frozen=True)
class Written:
    """A written network.

    Attributes:
        path: file or folder.
        predict: runs the network from the file.
        batch: batch size the file is limited to; None: any.
    """

    path: Path
    predict: Predict
    batch: int | None = None


class Format(ABC):
    """Base of the formats."""

    packages: tuple[str, ...] = ()
    """Modules that must be installed."""
    extra = ""
    """Extra of raykd that installs them."""
    has_runtime = False
    """True if the format has a runtime of its own, whose latency is measured."""

    def missing(self) -> str:
        """Return a message if a package is missing, else an empty string."""
        names = [name for name in self.packages if not is_installed(name)]
        return f"needs {', '.join(names)}; install raykd[{self.extra}]" if names else ""

    @abstractmethod
    def write(self, student: SavedStudent, inputs: tuple[Tensor, ...], folder: Path) -> Written:
        """Write a student below `folder` and open it again.

        Args:
            student: with its network in eval mode, on the CPU.
            inputs: raw samples, at least two, one tensor per input.

        Raises:
            ExportError: the network has no such form.
        """


class Onnx(Format):
    """ONNX, for ONNX Runtime, TensorRT, OpenVINO, browsers: `model.onnx`.

    Inputs are raw samples; preprocessing is part of the graph.  Int8 layers are written in QDQ
    form.  The metadata hold the classes and the description of the inputs.
    """

    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    has_runtime = True

    def write(self, student: SavedStudent, inputs: tuple[Tensor, ...], folder: Path) -> Written:
        import onnxruntime

        network = student.network
        program, batch = traced(FlatInputs(quantize_dequantize(network)), inputs)
        path = folder / "model.onnx"
        with quiet_exporters():
            try:
                exported = torch.onnx.export(
                    program,
                    input_names=input_names(network),
                    output_names=["logits"],
                    dynamo=True,
                    verbose=False,
                )
            except Exception as error:
                raise ExportError(f"onnx: {first_line(error.__cause__ or error)}") from error
            assert exported is not None, "returned unless it is written to a file"
            model = exported.model_proto
        for node in model.graph.node:  # lines of source code, with their paths
            del node.metadata_props[:]
            node.doc_string = ""
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            del value.metadata_props[:]
        del model.graph.metadata_props[:]
        for key, value in facts(network).items():
            model.metadata_props.add(key=key, value=json.dumps(value))
        path.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        all_names = input_names(network)

        def predict(tensors: tuple[Tensor, ...]) -> Tensor:
            arrays = dict(zip(all_names, (t.numpy() for t in tensors), strict=True))
            # The graph lacks inputs that the network does not use.
            [logits, *_] = session.run(None, {name: arrays[name] for name in names})
            return torch.from_numpy(np.asarray(logits))

        return Written(path, predict, batch)


class Pt2(Format):
    """PyTorch's `torch.export`: `model.pt2`, opened by `torch.export.load` without raykd."""

    has_runtime = True

    def write(self, student: SavedStudent, inputs: tuple[Tensor, ...], folder: Path) -> Written:
        network = student.network
        program, batch = traced(FlatInputs(network), inputs)
        path = folder / "model.pt2"
        with quiet_exporters():
            torch.export.save(program, path, extra_files={FACTS: json.dumps(facts(network))})
            opened = torch.export.load(path).module()
        return Written(path, lambda tensors: opened(*tensors), batch)


class Safetensors(Format):
    """The weights as `model.safetensors`, with the preprocessing as metadata.

    The network itself must be built by the library it comes from.
    """

    def write(self, student: SavedStudent, inputs: tuple[Tensor, ...], folder: Path) -> Written:
        network = student.network
        path = folder / "model.safetensors"
        metadata = {key: json.dumps(value) for key, value in facts(network).items()}
        if network.preprocessing.mean:
            mean, std = network.preprocessing.mean, network.preprocessing.std
            metadata |= to_metadata(Normalization(mean=mean, std=std))
        path.write_bytes(dump_weights(network.network, {"format": "pt", **metadata}))
        opened = deepcopy(network)
        with torch.no_grad():
            for tensor in opened.network.state_dict().values():
                tensor.zero_()
        parse_weights(opened.network, path.read_bytes(), str(path))
        flat = FlatInputs(opened)
        return Written(path, lambda tensors: flat(*tensors))


def input_names(network: RawInputModel) -> list[str]:
    """Return the names of the inputs: `images`, the tensors of a text, or `inputs`."""
    kind = network.preprocessing.kind
    return list(network.preprocessing.keys) or ["images" if kind == "pictures" else "inputs"]


def facts(network: RawInputModel) -> dict[str, Any]:
    """Return the inputs, output, classes and metrics of a network as plain data."""
    return {f"raykd.{key}": value for key, value in network.facts().items()}


def formats() -> Mapping[str, Format]:
    """Return all formats by name."""
    from raykd.export.hub_formats import HubFolder

    return {
        "onnx": Onnx(),
        "pt2": Pt2(),
        "safetensors": Safetensors(),
        "hf": HubFolder(),
    }
