"""Whole networks in files of torch.save: read without running code that the files name."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.model_cases import DIGITS, NAMES, members
from raykd.compat.network_files import read_network
from raykd.models.preprocessing import Preprocessing, RawInputModel
from raykd.training.checkpoint import dump_network

PREPROCESSING = Preprocessing("pictures", (1, 8, 8), "uint8", mean=(0.5,), std=(0.2,))
CLASSES = [str(number) for number in range(10)]


def deployed(network: nn.Module, model: Any) -> nn.Module:
    """The network as it is deployed; quantized models need the ranges of their inputs."""
    network.train()(torch.rand(4, *DIGITS.input_shape))
    return model.deployed(network.eval())


@pytest.mark.parametrize("family", NAMES)
def test_students_are_read(family: str) -> None:
    for model in members(family):
        network = deployed(model.build(DIGITS), model)
        student = RawInputModel(network, PREPROCESSING, CLASSES, {"test_accuracy": 0.9}).eval()
        read = read_network(dump_network(student), "student.pt")
        inputs = torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8)
        assert isinstance(read, RawInputModel) and repr(read) == repr(student)
        assert torch.equal(read(inputs), student(inputs))
        assert (read.preprocessing, read.class_names) == (PREPROCESSING, tuple(CLASSES))


class OwnLayer(nn.Module):
    """A layer of a user."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def test_layers_of_users_need_permission(tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save(nn.Sequential(OwnLayer()), file)
    with pytest.raises(ValueError, match=r"own\.pt holds .*OwnLayer.*--allow-import"):
        read_network(file, str(file))
    assert isinstance(read_network(file, str(file), allow_code=True), nn.Sequential)


# Hostile files

MARKER = "written"


def call(module: str, name: str, *arguments: str, operation: bytes = b"") -> bytes:
    """A pickle that calls a function with texts."""
    texts = b"".join(b"X" + len(a).to_bytes(4, "little") + a.encode() for a in arguments)
    start = f"\x80\x02c{module}\n{name}\n".encode()
    return start + (operation or b"(" + texts + b"tR") + b"."


def reduced(value: object) -> bytes:
    return pickle.dumps(value, 2)


class Opens:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (MARKER, "w")


STATEMENT = f"open({MARKER!r}, 'w')"
LINEAR = b"ctorch.nn.modules.linear\nLinear\n"
HOSTILE: dict[str, bytes] = {
    "open": reduced(Opens()),
    "eval": call("builtins", "eval", STATEMENT),
    "exec": call("__builtin__", "exec", STATEMENT),
    "system": call("os", "system", f"touch {MARKER}"),
    "posix": call("posix", "system", f"touch {MARKER}"),
    "a name with dots": call("torch.nn", "modules.module.torch.os.system", f"touch {MARKER}"),
    "a module of a package": call("torch", "os", f"touch {MARKER}"),
    "getattr": call("builtins", "getattr", "a", "b"),
    "torch.load": call("torch", "load", "x.pt"),
    "a graph of torch.fx": call("torch.fx.graph_module", "reduce_graph_module", STATEMENT),
    "a scripted module": call("torch.jit", "_script", STATEMENT),
    "a function of raykd": call("raykd.storage", "Storage", "folder"),
    "a constructor": call("torch.nn.modules.linear", "Identity"),
    "an import": call("planted", "anything"),
    "an import inside a package": call("raykd.planted", "anything"),
    "the operation INST": b"\x80\x02(X\x01\0\0\0aios\nsystem\n.",
    "the operation OBJ": b"\x80\x02(cos\nsystem\nX\x01\0\0\0ao.",
    "the operation OBJ of a class": b"\x80\x02(" + LINEAR + b"K\x01K\x01o.",
    "the operation STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93X\x01\0\0\0a\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a changed class": b"\x80\x02" + LINEAR + b"}X\x07\0\0\0forwardK\x01sb.",
    "a tensor built by a class": call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        operation=b"(" + LINEAR + LINEAR + b"K\x01K\x01\x86NtR",
    ),
    "another object": reduced({"a": 1}),
}


def saved(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with another pickle in it."""
    good, buffer = io.BytesIO(), io.BytesIO()
    torch.save(nn.Linear(1, 1), good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for part in old.infolist():
            is_pickle = part.filename.endswith("data.pkl")
            new.writestr(part.filename, content if is_pickle else old.read(part))
    return buffer.getvalue()


@pytest.mark.parametrize("case", HOSTILE)
def test_no_code_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted.py").write_text(STATEMENT)
    with pytest.raises(ValueError, match=r"student\.pt (holds|calls|changes|has) "):
        read_network(saved(HOSTILE[case]), "student.pt")
    assert not Path(MARKER).exists() and "planted" not in sys.modules
    assert nn.Linear.__dict__["forward"] != 1


def test_object_inside_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(nn.Flatten())
    network.extra = Opens()  # type: ignore[assignment]
    content = dump_network(network)
    with pytest.raises(ValueError, match=r"holds .*open, which is no layer of"):
        read_network(content, "a.pt")
    assert not Path(MARKER).exists()


def test_only_whole_archives_of_torch_are_read(tmp_path: Path) -> None:
    packed = saved(reduced([b"\0" * 10_000_000]), zipfile.ZIP_DEFLATED)
    assert len(packed) < 100_000
    for content, reason in (
        (packed, "compressed"),
        (b"", "not a whole file"),
        (b"PK\3\4garbage", "not a whole file"),
        (reduced(Opens()), "not a whole file"),
        (saved(b"\x80\x02")[:-40], "not a whole file"),
    ):
        file = tmp_path / "network.pt"
        file.write_bytes(content)
        for source in (content, file):
            with pytest.raises(ValueError, match=reason):
                read_network(source, "network.pt")


def test_damaged_pickle() -> None:
    good = io.BytesIO()
    torch.save(nn.Linear(1, 1), good)
    with zipfile.ZipFile(good) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        content = archive.read(name)
    for end in range(0, len(content), 7):
        with pytest.raises(ValueError, match=r"a\.pt "):
            read_network(saved(content[:end]), "a.pt")
