from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from raykd.compat.network_files import read_network
from raykd.models import Resnet, Signature
from raykd.training.checkpoint import (
    dump_network,
    dump_weights,
    parse_weights,
    read_metadata,
)

TASK = Signature(input_shape=(1, 8, 8), classes=10)


def network(width: int = 4, depth: int = 8) -> nn.Module:
    return Resnet(depth=depth, width=width).build(TASK)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_and_metadata_round_trip(tmp_path: Path) -> None:
    model, other = network().to(memory_format=torch.channels_last), network()  # type: ignore[call-overload]
    path = tmp_path / "model.safetensors"
    path.write_bytes(dump_weights(model, {"accuracy": "0.5"}))
    assert not same(model, other)
    parse_weights(other, path.read_bytes())
    assert same(model, other)
    assert read_metadata(path) == {"accuracy": "0.5"}


def test_weights_round_trip_as_bytes() -> None:
    model, other = network(), network()
    parse_weights(other, dump_weights(model, {"a": "b"}))
    assert same(model, other)


def test_tied_weights_are_written() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parse_weights(other, dump_weights(model))
    assert same(model, other)


def assert_raises(model: nn.Module, content: bytes) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="the teacher") as caught:
        parse_weights(model, content, "the teacher")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed by refused weights"
    return str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors is not there"):
        read_metadata(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is a folder"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"x" * 1000], ids=["empty", "pickle", "x"])
def test_other_content_is_not_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(content)
    assert "the teacher is no readable safetensors file" in assert_raises(network(), content)
    with pytest.raises(ValueError, match=r"teacher\.pt is no readable safetensors file"):
        read_metadata(path)


def test_truncated_safetensors_file_raises() -> None:
    assert "is no readable safetensors file" in assert_raises(
        network(), dump_weights(network())[:-100]
    )


def test_mismatched_shapes_are_counted_and_first_named() -> None:
    message = assert_raises(network(width=4), dump_weights(network(width=8)))
    tensors = network(width=4).state_dict()
    count = sum(v.shape != network(width=8).state_dict()[k].shape for k, v in tensors.items())
    assert f"{count} of another shape" in message and f"and {count - 4} more" in message
    assert re.search(r"\(8x1x3x3 in the file, 4x1x3x3 in the model\)", message)
    assert " missing:" not in message and " unexpected:" not in message


def test_missing_and_unexpected_tensors_are_distinguished() -> None:
    deep, shallow = network(depth=14), network(depth=8)
    more = assert_raises(network(depth=8), dump_weights(deep))
    less = assert_raises(network(depth=14), dump_weights(shallow))
    assert "36 unexpected: stage1.1" in more and " missing:" not in more
    assert "30 missing: stage1.1" in less and " unexpected:" not in less  # 6 are batch counters


def test_batch_counters_are_optional() -> None:
    model, other = network(), network()
    tensors = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    parse_weights(other, safetensors.torch.save(tensors))
    assert same(model, other)


def test_network_round_trip() -> None:
    model = network()
    assert same(read_network(dump_network(model), "a.pt"), model)
