"""Latency in ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raykd.models import AnyModel, Model, Resnet, Signature, Text, Vit
from raykd.models.introspection import onnx_latency as onnx_runtime
from raykd.models.introspection.latency import Latency
from raykd.models.introspection.layers import random_inputs
from raykd.models.introspection.onnx_latency import export_onnx, onnx_latency, unmet_onnx_conditions

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TASK = Signature((3, 16, 16), 10)
TEXTS = Signature((12,), 3, Text(40))
QUICK = Latency(seconds=0.05)

HF = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("model", "signature"),
    [
        (Resnet(depth=8, width=4), TASK),
        (Vit(depth=1, width=16, heads=2), TASK),
        ({"name": "hf/bert", "config": HF}, TEXTS),
    ],
    ids=["resnet", "vit", "texts"],
)
def test_outputs_equal_pytorchs(model: Any, signature: Signature) -> None:
    if isinstance(model, dict):
        pytest.importorskip("transformers")
        model = read_model(model)
    torch.manual_seed(3)
    network = model.build(signature).eval()
    inputs = random_inputs(signature, 2, torch.device("cpu"))
    session = runtime.InferenceSession(export_onnx(network, inputs))
    named = {"inputs": inputs} if isinstance(inputs, Tensor) else inputs
    fed = {node.name: named[node.name].numpy() for node in session.get_inputs()}
    with torch.inference_mode():
        np.testing.assert_allclose(
            session.run(None, fed)[0], network(inputs).numpy(), rtol=1e-3, atol=1e-4
        )


def read_model(written: dict[str, Any]) -> Model:
    from pydantic import TypeAdapter

    return TypeAdapter(AnyModel).validate_python(written)


def test_larger_network_takes_longer() -> None:
    small = onnx_latency(Resnet(depth=8, width=4).build(TASK), TASK, 1, QUICK)
    large = onnx_latency(Resnet(depth=8, width=24).build(TASK), TASK, 8, QUICK)
    assert 0 < 3 * small.median < large.median
    assert small.runs > 5


class Doubtful(nn.Module):
    """Network with value-dependent control flow, which cannot be exported."""

    def forward(self, inputs: Tensor) -> Tensor:
        if bool((inputs.sum() > 3).item()):
            return inputs.flatten(1)
        return -inputs.flatten(1)


def test_network_that_cannot_be_exported_raises(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"the network cannot be exported to ONNX: \w") as caught:
        onnx_latency(Doubtful(), TASK, 1, QUICK)
    assert "\n" not in str(caught.value)
    assert not capfd.readouterr().err


def test_unequal_outputs_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    another = export_onnx(nn.Flatten(), torch.rand(2, 3, 4, 4))
    monkeypatch.setattr(onnx_runtime, "export_onnx", lambda network, inputs: another)
    negative = nn.Sequential(nn.Flatten(), nn.Linear(48, 48))
    with pytest.raises(ValueError, match="ONNX Runtime and PyTorch differ by "):
        onnx_latency(negative, Signature((3, 4, 4), 48), 2, QUICK)
    with pytest.raises(ValueError, match=r"outputs \(2, 48\) instead of \(2, 5\)"):
        onnx_latency(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), Signature((3, 4, 4), 5), 2, QUICK
        )


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(unmet_onnx_conditions(Latency()))
    [(field, message, fix)] = unmet_onnx_conditions(Latency(device="cuda"))
    assert (field, fix[:23]) == ("device", "install onnxruntime-gpu")
    assert "'cuda'" in message
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    [(field, message, fix)] = unmet_onnx_conditions(Latency())
    assert field == "" and "onnx, onnxscript, onnxruntime, which are not installed" in message
    assert fix == "install raykd[onnx]"
