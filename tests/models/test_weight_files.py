"""Checkpoint files: every common form is read, others raise with the reason."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from raykd.input_forms import TextForm
from raykd.models import Resnet, Signature, Text
from raykd.models.weights.files import read_weight_file, weight_class_names
from raykd.models.weights.matching import match_weights

TASK = Signature((1, 8, 8), 3)
MODEL = Resnet(depth=8, width=4)
Tensors = dict[str, Tensor]


def trained(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return MODEL.build(TASK)


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def notes_of(content: Any, path: Path, signature: Signature = TASK) -> str:
    """Save, read and load; check that the network has equal weights. Return the notes."""
    torch.save(content, path)
    network, expected = trained(2), trained().state_dict()
    fitted = match_weights(network, read_weight_file(path), signature)
    network.load_state_dict(fitted.tensors, strict=False)
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[name]), name
    return "\n".join(fitted.notes)


def error_of(content: Any, path: Path, signature: Signature = TASK) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=path.name) as caught:
        match_weights(trained(), read_weight_file(path), signature)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"net": state, "acc": 93.2},
        lambda state: {"model_state_dict": state, "loss": torch.tensor(0.1)},
        lambda state: {"params": state},
        lambda state: {"checkpoint": {"model": {"state_dict": state}}},
        lambda state: {"weird_key": state, "epoch": 1},
        lambda state: {"state_dict_ema": state},
        lambda state: {"model_ema": prefixed("module.", state)},
    ],
    ids=["plain", "state_dict", "model", "net", "msd", "params", "nested", "any", "ema", "ema2"],
)
def test_wrappers(tmp_path: Path, wrap: Callable[[Tensors], Any]) -> None:
    state = trained().state_dict()
    notes = notes_of(wrap(state), tmp_path / "c.pth")
    assert ("used the weights under" in notes) == (wrap(state) is not state)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "_orig_mod.", "backbone.", "net.", "encoder.", "module.model."),
        *("_orig_mod.module.", "module._orig_mod.", "model.net._orig_mod.", "my_wrapper.inner."),
    ],
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    notes = notes_of(prefixed(prefix, trained().state_dict()), tmp_path / "c.pth")
    assert "removed" in notes


def test_compiled_submodule(tmp_path: Path) -> None:
    state = {
        n.replace("stage1.", "stage1._orig_mod."): t for n, t in trained().state_dict().items()
    }
    assert "removed '_orig_mod' from names" in notes_of(state, tmp_path / "c.pth")


def test_extra_tensors_are_named(tmp_path: Path) -> None:
    lightning = {
        "state_dict": {**prefixed("model.", trained().state_dict()), "loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.4",
    }
    assert "left out: loss.weight" in notes_of(lightning, tmp_path / "c.ckpt")


def test_network_is_preferred_to_its_moving_average(tmp_path: Path) -> None:
    ema = trained(5).state_dict()
    state = {**prefixed("model.", trained().state_dict()), **prefixed("ema_model.module.", ema)}
    notes_of(state, tmp_path / "c.pth")
    both = {"state_dict": trained().state_dict(), "state_dict_ema": ema}
    assert "not those under 'state_dict_ema'" in notes_of(both, tmp_path / "d.pth")


def test_extra_numpy_values(tmp_path: Path) -> None:
    names = np.array(["wolf", "ant", "fox"])
    beside = {
        "classes": names,
        "hits": np.eye(3),
        "curves": defaultdict(list),
        "acc": np.float64(1),
    }
    assert "used the weights" in notes_of(
        {"model": trained().state_dict(), **beside}, tmp_path / "a"
    )
    assert weight_class_names(tmp_path / "a") == ("wolf", "ant", "fox")


def test_files_of_other_formats_raise(tmp_path: Path) -> None:
    weights = {name: tensor.numpy() for name, tensor in trained().state_dict().items()}
    assert "written by pickle.dump" in error_of(pickle.dumps(weights), tmp_path / "a.pkl")
    np.savez_compressed(tmp_path / "c.npz", **weights)
    assert "NumPy arrays (npz)" in error_of((tmp_path / "c.npz").read_bytes(), tmp_path / "c.npz")
    np.savez(tmp_path / "b.npz", **weights)
    assert "NumPy arrays (npz)" in error_of((tmp_path / "b.npz").read_bytes(), tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.eye(3))
    assert "NumPy array" in error_of((tmp_path / "c.npy").read_bytes(), tmp_path / "c.npy")


def test_legacy_torch_format(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "a", _use_new_zipfile_serialization=False)
    assert len(read_weight_file(tmp_path / "a").tensors) == len(trained().state_dict())
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-9])
    assert "truncated" in error_of((tmp_path / "b").read_bytes(), tmp_path / "b")


def test_ambiguous_prefixes_raise(tmp_path: Path) -> None:
    state = {**prefixed("q.", trained().state_dict()), **prefixed("k.", trained(3).state_dict())}
    assert "'q.', 'k.'" in error_of(state, tmp_path / "c.pth")


def test_prefix_that_model_contains(tmp_path: Path) -> None:
    whole = nn.Sequential()
    whole.add_module("model", trained(3))
    torch.save(trained().state_dict(), tmp_path / "c.pth")
    fitted = match_weights(whole, read_weight_file(tmp_path / "c.pth"), TASK)
    assert fitted.tensors.keys() == whole.state_dict().keys()
    assert "added the prefix 'model.'" in fitted.notes[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_with_note(tmp_path: Path, dtype: torch.dtype) -> None:
    low = {
        n: t.to(dtype) if t.is_floating_point() else t for n, t in trained().state_dict().items()
    }
    torch.save(low, tmp_path / "c.pth")
    network = trained(2)
    fitted = match_weights(network, read_weight_file(tmp_path / "c.pth"), TASK)
    network.load_state_dict(fitted.tensors, strict=False)
    name = str(dtype).removeprefix("torch.")
    assert any(f"tensors from {name} to float32" in note for note in fitted.notes)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, low[key].to(tensor.dtype)), key


def test_missing_counters_are_accepted(tmp_path: Path) -> None:
    state = {n: t for n, t in trained().state_dict().items() if "num_batches" not in n}
    assert notes_of(state, tmp_path / "c.pth") == ""


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_format_is_detected_by_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(save(trained().state_dict()))
    assert read_weight_file(path).is_plain
    torch.save(trained().state_dict(), path)
    assert read_weight_file(path).tensors.keys() == trained().state_dict().keys()


def test_shards_and_folders(tmp_path: Path) -> None:
    state = list(trained().state_dict().items())
    parts = {"model-1.safetensors": dict(state[:5]), "model-2.safetensors": dict(state[5:])}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    for source in (path, tmp_path):
        file = read_weight_file(source)
        assert file.tensors.keys() == dict(state).keys() and "read 2 shards" in file.notes[0]
        assert match_weights(trained(), file, TASK).tensors.keys() == dict(state).keys()
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-2\.safetensors is missing in its folder"):
        read_weight_file(path)


class Whole(nn.Linear):
    """Network that can only be unpickled by running code."""


class TestRefused:
    def test_whole_networks(self, tmp_path: Path) -> None:
        message = error_of(Whole(3, 3), tmp_path / "c.pt")
        assert "Whole" in message and "runs no code" in message and "model.state_dict()" in message

    def test_code(self, tmp_path: Path) -> None:
        class Bad:
            def __reduce__(self) -> Any:
                return print, ("ran",)

        assert "runs no code" in error_of({"state_dict": Bad()}, tmp_path / "c.pt")

    def test_files_without_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
        assert "git lfs pull" in error_of(pointer, path)
        assert "is empty" in error_of(b"", path)
        assert "web page" in error_of(b"\n<!DOCTYPE html><html>", path)
        assert "neither a safetensors file" in error_of(b"x" * 999, path)
        assert "holds no weights by name" in error_of({"epoch": 3}, path)
        assert "a list" in error_of([torch.ones(3)], path)

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
    def test_truncated_files(self, tmp_path: Path, share: float) -> None:
        torch.save(trained().state_dict(), tmp_path / "whole.pth")
        whole = (tmp_path / "whole.pth").read_bytes()
        for content in (whole, save(trained().state_dict())):
            cut = content[: int(len(content) * share)]
            assert "truncated or damaged" in error_of(cut, tmp_path / "c.bin")

    def test_other_classes(self, tmp_path: Path) -> None:
        message = error_of(MODEL.build(Signature((1, 8, 8), 5)).state_dict(), tmp_path / "c.pth")
        assert "is a classifier of 5 classes" in message and "the data have 3" in message

    def test_other_networks(self, tmp_path: Path) -> None:
        message = error_of(Resnet(depth=14, width=4).build(TASK).state_dict(), tmp_path / "c.pth")
        assert "unexpected: stage1.1" in message and " more" in message and "missing" not in message
        wide = error_of(Resnet(depth=8, width=8).build(TASK).state_dict(), tmp_path / "c.pth")
        assert "8x1x3x3 in the file, 4x1x3x3 in the model" in wide

    def test_values(self, tmp_path: Path) -> None:
        state = trained().state_dict()
        name = next(iter(state))
        state[name].view(-1)[0] = float("nan")
        assert f"NaN or infinite values in 1 of {len(state)}" in error_of(state, tmp_path / "c.pth")
        state[name].view(-1)[0] = float("inf")
        assert name in error_of(state, tmp_path / "c.pth")

    def test_quantized_weights(self, tmp_path: Path) -> None:
        state = trained().state_dict()
        name = next(iter(state))
        state[name] = torch.ones_like(state[name], dtype=torch.int8)
        assert "quantized weights" in error_of(state, tmp_path / "c.pth")
        packed = {"fc.scale": torch.ones(1), "fc._packed_params.dtype": torch.ones(1)}
        assert "quantized weights" in error_of(packed, tmp_path / "c.pth")


class Words(nn.Module):
    """Text model with as many positions as tokens."""

    def __init__(self, tokens: int, classes: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens, 4), nn.Embedding(26, 4)
        self.head = nn.Linear(4, classes)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.head(self.words(inputs["input_ids"]).mean(1))


class TestVocabulary:
    TASK = Signature((6,), 3, Text(26))

    def test_padded_vocabulary_is_truncated(self, tmp_path: Path) -> None:
        source, network = Words(64, 3), Words(26, 3)
        torch.save(source.state_dict(), tmp_path / "c.pth")
        fitted = match_weights(network, read_weight_file(tmp_path / "c.pth"), self.TASK)
        network.load_state_dict(fitted.tensors)
        tokens = {"input_ids": torch.randint(26, (5, 6))}
        assert torch.equal(network(tokens), source(tokens))
        assert "first 26 of the 64 rows of words.weight" in fitted.notes[0]
        assert not fitted.warnings

    def test_much_larger_vocabulary_warns(self, tmp_path: Path) -> None:
        torch.save(Words(30_522, 3).state_dict(), tmp_path / "c.pth")
        fitted = match_weights(Words(26, 3), read_weight_file(tmp_path / "c.pth"), self.TASK)
        assert "has 30522 tokens and the data's tokenizer 26" in fitted.warnings[0]

    def test_smaller_vocabulary_raises(self, tmp_path: Path) -> None:
        torch.save(Words(20, 3).state_dict(), tmp_path / "c.pth")
        with pytest.raises(ValueError, match=r"has 20 tokens .* tokenizer has 26"):
            match_weights(Words(26, 3), read_weight_file(tmp_path / "c.pth"), self.TASK)

    @pytest.mark.parametrize("tokens", [20, 30_522])
    def test_messages_name_the_tokenizer_of_an_input(self, tokens: int, tmp_path: Path) -> None:
        torch.save(Words(tokens, 3).state_dict(), tmp_path / "c.pth")
        file, network = read_weight_file(tmp_path / "c.pth"), Words(26, 3)
        task = Signature((), 3, forms=(TextForm("german", 6, Text(26)),)).as_input("german")
        if tokens < 26:
            with pytest.raises(ValueError, match="trained with \\(`tokenizer` of its input\\)"):
                match_weights(network, file, task)
        else:
            [warning] = match_weights(network, file, task).warnings
            assert "check that `tokenizer` of its input is the one" in warning


class TestClassNames:
    NAMES = ("sea", "kitchen", "garden")

    @pytest.mark.parametrize(
        "beside",
        [
            {"classes": [*NAMES]},
            {"class_names": NAMES},
            {"class_to_idx": {"garden": 2, "sea": 0, "kitchen": 1}},
            {"idx_to_class": {0: "sea", 1: "kitchen", 2: "garden"}},
            {"id2label": {"0": "sea", "1": "kitchen", "2": "garden"}},
            {"meta": {"CLASSES": NAMES}},
            {"hyper_parameters": {"label_names": [*NAMES]}},
        ],
    )
    def test_names_next_to_state_dict(self, tmp_path: Path, beside: dict[str, Any]) -> None:
        torch.save({"state_dict": trained().state_dict(), **beside}, tmp_path / "c.pth")
        assert weight_class_names(tmp_path / "c.pth") == self.NAMES

    def test_names_in_header_and_in_config(self, tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        save_file(trained().state_dict(), path)
        assert weight_class_names(path) == ()
        config = {"id2label": {str(n): name for n, name in enumerate(self.NAMES)}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert weight_class_names(path) == self.NAMES
        save_file(trained().state_dict(), path, {"raykd.classes": json.dumps(["a", "b", "c"])})
        assert weight_class_names(path) == ("a", "b", "c")

    def test_number_of_classes_is_not_name(self, tmp_path: Path) -> None:
        torch.save({"model": trained().state_dict(), "classes": 3}, tmp_path / "c.pth")
        torch.save({"model": trained().state_dict(), "labels": [0, 1, 1]}, tmp_path / "d.pth")
        assert (
            weight_class_names(tmp_path / "c.pth") == weight_class_names(tmp_path / "d.pth") == ()
        )


def test_files_that_unpack_to_any_size(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5_000_000)}, tmp_path / "big.pt")
    file = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "big.pt") as big,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in big.namelist():
            bomb.writestr(part, big.read(part))
    assert file.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.pt has compressed or overlapping parts"):
        read_weight_file(file)
