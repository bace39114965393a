"""Tests of exported files: every model family computes the same logits in every format."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from helpers.model_cases import DENSE_NAMES, NAMES, small
from raykd.export.formats import formats, input_names
from raykd.export.student import SavedStudent
from raykd.models import AnyModel, Signature
from raykd.models.base import Text
from raykd.models.compression.int8 import Int8Layer
from raykd.models.exported_program import ExportError, FlatInputs
from raykd.models.preprocessing import Preprocessing, RawInputModel

IMAGES = Signature((3, 32, 32), 10)
TEXTS = Signature((12,), 3, text=Text(vocabulary=50, padding=0))
CLASSES = tuple(f"class {number}" for number in range(10))

LIBRARY_MODELS: dict[str, dict[str, Any]] = {
    "torchvision/mobilenet_v3_small": {},
    "torchvision/googlenet": {},
    "timm/resnet18": {},
    "timm/vit_tiny_patch16_224": {},
    "timm/mobilenetv3_small_050": {},
    "hf/vit": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "patch_size": 8,
        }
    },
    "hf/bert": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
    },
}
MODEL_NAMES = (*NAMES, *DENSE_NAMES, *LIBRARY_MODELS)


def student_of(name: str) -> tuple[SavedStudent, tuple[Tensor, ...]]:
    """Return an untrained student of a family with preprocessing, and raw samples."""
    torch.manual_seed(1)
    texts = name == "hf/bert"
    signature = TEXTS if texts else replace(IMAGES, dense=name in DENSE_NAMES)
    plain = {"name": name, **LIBRARY_MODELS.get(name, {})}
    model = TypeAdapter(AnyModel).validate_python(plain) if name in LIBRARY_MODELS else small(name)
    network = model.build(signature)
    if name == "quantized":
        network = network.train()
        network(torch.randn(32, *signature.input_shape))
    network = model.deployed(network.eval())
    _randomize(network)
    if texts:
        about = Preprocessing(
            kind="texts",
            shape=(12,),
            dtype="int64",
            keys=("input_ids", "attention_mask"),
            vocabulary=50,
        )
        ids = torch.randint(1, 50, (8, 12))
        mask = torch.ones_like(ids)
        mask[::2, 9:] = 0
        inputs: tuple[Tensor, ...] = (ids, mask)
    else:
        about = Preprocessing(
            kind="pictures",
            shape=(3, 32, 32),
            dtype="uint8",
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.25),
        )
        inputs = (torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8),)
    whole = RawInputModel(network.eval(), about, CLASSES[: signature.classes]).eval()
    study = {"student": {"model": plain}, "data": {"name": "made"}}
    return SavedStudent(whole, name, "trial-0000", "here", study, {}), inputs


def _randomize(network: nn.Module) -> None:
    """Change the statistics of batch norms, so that a lost buffer is noticed."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def cases() -> Iterator[Any]:
    """Yield families and formats; tracing is slow, so only two families are traced every time."""
    for name in MODEL_NAMES:
        for form in ("onnx", "pt2", "safetensors"):
            quick = form == "safetensors" or name in ("mlp", "vit")
            yield pytest.param(name, form, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "form"), cases())
def test_exported_file_computes_logits_of_original(name: str, form: str, tmp_path: Path) -> None:
    student, inputs = student_of(name)
    with torch.inference_mode():
        expected = FlatInputs(student.network)(*inputs)
    written = formats()[form].write(student, tuple(tensor[:2] for tensor in inputs), tmp_path)
    assert written.batch is None, "any batch size"
    int8 = any(isinstance(module, Int8Layer) for module in student.network.modules())
    tolerance = (0.1 if int8 else 1e-3) * float(expected.abs().max())
    for size in (8, 1, 3):
        actual = written.predict(tuple(tensor[:size] for tensor in inputs))
        assert actual.shape == (size, *expected.shape[1:])
        assert actual.shape[1] == len(student.network.class_names)
        torch.testing.assert_close(actual, expected[:size], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "name", ["hf/vit", "hf/bert", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050"]
)
def test_hub_folder_is_opened_by_its_library(name: str, tmp_path: Path) -> None:
    student, inputs = student_of(name)
    with torch.inference_mode():
        expected = FlatInputs(student.network)(*inputs)
        written = formats()["hf"].write(student, inputs, tmp_path)
        torch.testing.assert_close(written.predict(inputs), expected, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    names = config.get("label_names") or list(config["id2label"].values())
    assert names == list(student.network.class_names)


def test_hub_folder_refuses_other_families(tmp_path: Path) -> None:
    student, inputs = student_of("resnet")
    with pytest.raises(ExportError, match=r"only models of transformers .* use onnx, pt2"):
        formats()["hf"].write(student, inputs, tmp_path)


def test_onnx_metadata_hold_classes_and_preprocessing(tmp_path: Path) -> None:
    import onnx

    student, inputs = student_of("mlp")
    written = formats()["onnx"].write(student, inputs, tmp_path)
    model = onnx.load(written.path)
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["raykd.classes"] == list(student.network.class_names)
    assert metadata["raykd.input"]["mean"] == [0.5, 0.4, 0.3]
    assert [node.name for node in model.graph.input] == input_names(student.network) == ["images"]
    assert [node.name for node in model.graph.output] == ["logits"]


def test_onnx_of_int8_student_holds_int8_weights(tmp_path: Path) -> None:
    import onnx

    student, inputs = student_of("quantized")
    written = formats()["onnx"].write(student, inputs, tmp_path)
    model = onnx.load(written.path)
    operators = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    int8 = [w for w in weights.values() if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1]
    layers = [m for m in student.network.modules() if isinstance(m, Int8Layer)]
    assert sum(np.prod(w.dims) for w in int8) == sum(layer.weight.numel() for layer in layers)


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_file_holds_no_source_code_or_paths(form: str, tmp_path: Path) -> None:
    student, inputs = student_of("mlp")
    path = formats()[form].write(student, inputs, tmp_path).path
    contents = [path.read_bytes()]
    if form == "pt2":
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    for content in contents:
        assert b".py" not in content.replace(b".pyt", b"") and b"site-packages" not in content


def test_pt2_file_names_its_facts(tmp_path: Path) -> None:
    student, inputs = student_of("mlp")
    written = formats()["pt2"].write(student, inputs, tmp_path)
    files = {"raykd.json": ""}
    torch.export.load(written.path, extra_files=files)
    assert json.loads(files["raykd.json"])["raykd.classes"] == list(student.network.class_names)


def test_safetensors_file_holds_every_tensor_and_normalization(tmp_path: Path) -> None:
    from safetensors import safe_open

    student, inputs = student_of("resnet")
    written = formats()["safetensors"].write(student, inputs, tmp_path)
    with safe_open(written.path, "pt") as file:
        assert set(file.keys()) == set(student.network.network.state_dict())
        metadata = file.metadata()
    assert json.loads(metadata["raykd.normalization"])["mean"] == [0.5, 0.4, 0.3]
