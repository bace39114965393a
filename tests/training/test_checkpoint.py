from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from raykd.architecture import Resnet, Task
from raykd.training import checkpoint
from raykd.training.checkpoint import (
    dump_weights,
    load_state,
    load_weights,
    parse_weights,
    read_metadata,
    read_shapes,
    save_state,
    save_weights,
)

TASK = Task(input_shape=(1, 8, 8), classes=10)


def network(width: int = 4, depth: int = 8) -> nn.Module:
    return Resnet(depth=depth, width=width).build(TASK)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_come_back_with_what_was_written_beside_them(tmp_path: Path) -> None:
    model, other = network().to(memory_format=torch.channels_last), network()  # type: ignore[call-overload]
    path = tmp_path / "below" / "model.safetensors"
    save_weights(model, path, {"accuracy": "0.5"})
    assert not same(model, other)
    load_weights(other, path)
    assert same(model, other)
    assert read_metadata(path) == {"accuracy": "0.5"}
    assert read_shapes(path) == {k: tuple(v.shape) for k, v in model.state_dict().items()}


def test_weights_come_back_from_bytes() -> None:
    model, other = network(), network()
    parse_weights(other, dump_weights(model, {"a": "b"}))
    assert same(model, other)


def test_tied_weights_are_written() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parse_weights(other, dump_weights(model))
    assert same(model, other)


def refused(model: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=path.name) as caught:
        load_weights(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed although the file was refused"
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = refused(network(), tmp_path / "none.safetensors")
    assert "none.safetensors is not there" in message
    assert "is a folder" in refused(network(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"x" * 1000], ids=["empty", "pickle", "x"])
def test_something_else_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(content)
    assert "is no readable safetensors file" in refused(network(), path)
    with pytest.raises(ValueError, match="the teacher is no readable safetensors file"):
        parse_weights(network(), content, "the teacher")


def test_a_cut_file_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(dump_weights(network())[:-100])
    assert "is no readable safetensors file" in refused(network(), path)


def test_other_shapes_are_counted_and_the_first_named(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_weights(network(width=8), path)
    message = refused(network(width=4), path)
    tensors = network(width=4).state_dict()
    count = sum(v.shape != network(width=8).state_dict()[k].shape for k, v in tensors.items())
    assert f"{count} of another shape" in message and f"and {count - 4} more" in message
    assert re.search(r"\(8x1x3x3 in the file, 4x1x3x3 in the model\)", message)
    assert " missing:" not in message and " unexpected:" not in message


def test_missing_and_unexpected_tensors_are_told_apart(tmp_path: Path) -> None:
    deep, shallow = tmp_path / "deep.safetensors", tmp_path / "shallow.safetensors"
    save_weights(network(depth=14), deep)
    save_weights(network(depth=8), shallow)
    more, less = refused(network(depth=8), deep), refused(network(depth=14), shallow)
    assert "36 unexpected: stage1.1" in more and " missing:" not in more
    assert "30 missing: stage1.1" in less and " unexpected:" not in less  # 6 are batch counters


def test_batch_counters_may_be_left_out(tmp_path: Path) -> None:
    model, other = network(), network()
    path = tmp_path / "old.safetensors"
    kept = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    safetensors.torch.save_file(kept, path)
    load_weights(other, path)
    assert same(model, other)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    save_state({"epoch": 1}, path)

    def torn(state: object, draft: Path) -> None:
        Path(draft).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        save_state({"epoch": 2}, path)
    assert load_state(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_unreadable_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(ValueError, match="is not there"):
        load_state(path)
    save_state({"tensor": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a training's state"):
            load_state(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_state(path)


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"hook": network()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_state(path)
