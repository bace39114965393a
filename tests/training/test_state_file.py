"""State files: everything comes back bit for bit, and no damage is read as a state."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from helpers.training_cases import alone, assert_same, digits, untimed, weights
from raykd.storage import Storage
from raykd.training.state_file import (
    DTYPES,
    StateFiles,
    TrainingState,
    dump_state,
    parse_state,
)
from raykd.training.trainer import Training


def state_of(epoch: int = 1, **fields: Any) -> TrainingState:
    empty = {"seed": 0, "history": [], "student": {}, "distiller": {}, "optimizer": {}}
    return cast("TrainingState", {"epoch": epoch, **empty, **fields})


def content_of(state: TrainingState, training: str = "ours") -> bytes:
    return b"".join(dump_state(state, training))


def identical(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs)]
        return same and torch.equal(*raw)
    if isinstance(ours, dict):
        pairs = zip(ours.items(), theirs.items(), strict=True)
        return all(a == b and identical(x, y) for (a, x), (b, y) in pairs)
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and all(map(identical, ours, theirs))
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


def test_every_kind_of_value_is_restored() -> None:
    numbers = torch.arange(12).reshape(3, 4)
    fields = {
        "history": [{"val_loss": 0.1 + 0.2, "term": math.nan, "lr": math.inf}],
        "optimizer": {0: {"step": torch.tensor(3.0), "none": None}, 12: (1, [True, "text"])},
        "empty": {"mapping": {}, "list": [], "tensor": torch.zeros(0, 3)},
        "transposed": numbers.t(),
        "a": {"b": numbers[0]},
        "a.b": numbers[1],
        "dtypes": {str(dtype): numbers.to(dtype) for dtype in DTYPES},
    }
    state = state_of(7, **fields)
    assert identical(parse_state(content_of(state), "ours"), state)


def test_state_file_is_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content_of(state_of(student={"weight": torch.ones(3)})))
    assert_same(safetensors.torch.load_file(path), {"student.weight": torch.ones(3)})
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["crc32"])


@pytest.mark.parametrize("value", [object(), {1.5: 2}, torch.zeros(2, dtype=torch.complex128)])
def test_value_that_cannot_be_saved_is_named(tmp_path: Path, value: Any) -> None:
    files = StateFiles(Storage(str(tmp_path)), ("even", "odd"), "ours")
    files.save(state_of(student={"w": torch.ones(2)}))
    files.save(state_of(3, optimizer={0: value}))
    (note,) = files.take_notes()
    assert "cannot be saved" in note and "starts over" in note
    assert [state["epoch"] for state in files.load()] == [1] and not files.take_notes()


def test_no_damage_is_read_as_state() -> None:
    """Every cut, and a flipped bit in any byte, is found."""
    content = content_of(state_of(student={"w": torch.randn(5), "n": torch.tensor(4)}))
    assert parse_state(content, "ours")["epoch"] == 1
    damaged = [content[:end] for end in range(len(content))]
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    damaged += [content + b"\0", content + content, b"\xff" * 100, content[8:]]
    generator = random.Random(0)
    damaged += [generator.randbytes(size) for size in (1, 7, 8, 9, 100, 10_000)]
    for broken in damaged:
        with pytest.raises(ValueError, match=r"is damaged|is empty"):
            parse_state(broken, "ours")
    with pytest.raises(ValueError, match="belongs to another training"):
        parse_state(content, "theirs")


def test_forged_state_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    """Well-formed safetensors with odd descriptions, and pickles."""
    depth = 100_000
    odd = ("{}", "[]", "null", '{"tensor": "none"}', "[" * depth + "]" * depth, '{"a": 1, "b": 2}')
    tensors = {"w": torch.ones(2)}
    for text in odd:
        for metadata in ({"raykd.state": "1", "training": "ours", "state": text}, {"state": text}):
            with pytest.raises(ValueError, match="is damaged"):
                parse_state(safetensors.torch.save(tensors, metadata), "ours")
    target = tmp_path / "ran"
    pickled = f"cposix\nsystem\n(S'touch {target}'\ntR.".encode()
    with pytest.raises(ValueError, match="is damaged"):
        parse_state(pickled, "ours")
    assert not target.exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_memory_layouts_of_resumed_optimizer_are_those_of_parameters(optimizer: str) -> None:
    """Contiguous momentum beside channels-last weights would take other kernels."""
    study = alone(epochs=2)
    if optimizer == "adamw":
        from raykd.train_config import AdamW

        study = alone(epochs=2, optimizer=AdamW())
    whole, resumed = (Training(study, digits(), seed=1) for _ in "ab")
    whole.run_epoch()
    resumed.load_state(parse_state(content_of(whole.state()), "ours"))
    for parameter, state in resumed.optimizer.state.items():
        tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
        assert all(t.stride() == parameter.stride() for t in tensors if t.dim())
    assert untimed(resumed.run_epoch()) == untimed(whole.run_epoch())
    assert_same(weights(resumed.distiller), weights(whole.distiller))


def test_last_two_states_are_kept_and_last_comes_first(tmp_path: Path) -> None:
    files = StateFiles(Storage(str(tmp_path)), ("even", "odd"), "ours")
    assert not [*files.load()]
    for epoch in (1, 2, 3):
        files.save(state_of(epoch, student={"w": torch.full((3,), float(epoch))}))
        states = [*files.load()]
        assert [state["epoch"] for state in states] == [*range(epoch, max(0, epoch - 2), -1)]
        assert states[0]["student"]["w"][0] == epoch
    assert sorted(os.listdir(tmp_path)) == ["even", "odd"]
