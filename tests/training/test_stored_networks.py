"""Stored networks: their checksums find every damage, and reading them runs no code."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raykd.storage import Storage
from raykd.training.stored_networks import find_damage, remove_network, save_network

TENSORS = {"w": torch.arange(6.0), "n": torch.tensor(3)}


def contents() -> dict[str, bytes]:
    pickled = io.BytesIO()
    torch.save(TENSORS, pickled)
    whole = pickled.getvalue()
    return {"teachers/a.safetensors": safetensors.torch.save(TENSORS), "teachers/a.pt": whole}


@pytest.fixture(params=contents())
def file(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_every_damage_is_detected(file: str, storage: Storage) -> None:
    content = contents()[file]
    save_network(storage, file, content)
    assert find_damage(storage, file) == ""
    generator = random.Random(0)
    for _ in range(200):
        at = generator.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << generator.randrange(8)
        storage.write(file, bytes(flipped))
        assert "SHA-256" in find_damage(storage, file)
        storage.write(file, content[:at])
        assert "SHA-256" in find_damage(storage, file)
    storage.write(file, content)
    assert find_damage(storage, file) == ""
    storage.write(f"{file}.sha256", b"\xff\xfe nonsense")
    assert find_damage(storage, file)


def test_network_without_checksum_gets_one_if_it_is_readable(file: str, storage: Storage) -> None:
    content = contents()[file]
    for damaged in (b"", b"x", content[:-1], content[: len(content) // 2], b"\x80\x04."):
        storage.write(file, damaged)
        assert find_damage(storage, file) == "it is cut short or overwritten"
    storage.write(file, content)
    assert find_damage(storage, file) == "" and storage.exists(f"{file}.sha256")


def test_first_writer_of_network_wins_with_its_checksum(file: str, storage: Storage) -> None:
    content = contents()[file]
    save_network(storage, file, content)
    save_network(storage, file, content + b"other")
    assert storage.read(file) == content and find_damage(storage, file) == ""
    remove_network(storage, file)
    assert not storage.files("teachers") and find_damage(storage, file) == "it is missing"
    save_network(storage, file, content)
    assert find_damage(storage, file) == ""
