"""Networks of other libraries: the contract of every model, options, weights, own code."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from helpers.model_cases import hooks_on
from raykd.models import (
    MODELS,
    AnyModel,
    LayerHooks,
    Model,
    Signature,
    Text,
    discover,
    profile_model,
    resolve,
)
from raykd.models.adapters import hub
from raykd.models.introspection.layers import random_inputs
from raykd.models.introspection.stages import BLOCK_STAGES

DIGITS = Signature((1, 8, 8), 10)
COLOUR = Signature((3, 32, 32), 7)
WORDS = Signature((12,), 3, Text(vocabulary=50, padding=1))
CPU = torch.device("cpu")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"intermediate_size": 32}

CASES: dict[str, tuple[dict[str, Any], Signature]] = {
    "torchvision cnn": ({"name": "torchvision/shufflenet_v2_x0_5", "stem": "small"}, DIGITS),
    "torchvision resnet": (
        {"name": "torchvision/resnet18", "args": {"width_per_group": 64}},
        COLOUR,
    ),
    "timm resnet": (
        {"name": "timm/resnet18", "stem": "small", "args": {"channels": [8, 8, 16, 16]}},
        DIGITS,
    ),
    "timm mobilenet": ({"name": "timm/mobilenetv3_small_050"}, COLOUR),
    "timm vit": (
        {
            "name": "timm/vit_tiny_patch16_224",
            "args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 3},
        },
        DIGITS,
    ),
    "hf vit": ({"name": "hf/vit", "config": {**SMALL, **WIDE, "patch_size": 2}}, DIGITS),
    "hf resnet": (
        {"name": "hf/resnet", "config": {"depths": [1, 1], "hidden_sizes": [8, 16]}},
        COLOUR,
    ),
    "hf bert": ({"name": "hf/bert", "config": {**SMALL, **WIDE}}, WORDS),
    "hf distilbert": ({"name": "hf/distilbert", "config": {**SMALL, "hidden_dim": 32}}, WORDS),
    "hf roberta": ({"name": "hf/roberta", "config": {**SMALL, **WIDE}}, WORDS),
}

every_case = pytest.mark.parametrize("case", list(CASES))


def _model(fields: dict[str, Any]) -> Model:
    return TypeAdapter(AnyModel).validate_python(fields)


def _case(case: str) -> tuple[Model, Signature]:
    fields, signature = CASES[case]
    return _model(fields), signature


def _built(case: str) -> tuple[nn.Module, Signature]:
    model, signature = _case(case)
    torch.manual_seed(0)
    return model.build(signature), signature


def _inputs(signature: Signature, count: int = 3) -> Any:
    torch.manual_seed(1)
    return random_inputs(signature, count, CPU)


@every_case
def test_one_logit_per_class(case: str) -> None:
    network, signature = _built(case)
    logits = network(_inputs(signature))
    assert logits.shape == (3, signature.classes)
    assert logits.isfinite().all()


@every_case
def test_profile_equals_real_network(case: str) -> None:
    (model, _), (network, signature) = _case(case), _built(case)
    profile = profile_model(model, signature)
    assert profile.params == sum(parameter.numel() for parameter in network.parameters())
    assert profile.ordered_layers == discover(network, signature)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(_inputs(signature, 1))
    assert profile.macs == counter.get_total_flops() // 2


@every_case
def test_layers_have_library_names_and_real_shapes(case: str) -> None:
    network, signature = _built(case)
    layers = discover(network.eval(), signature)
    assert {layer.module for layer in layers} <= {name for name, _ in network.named_modules()}
    outputs = LayerHooks(network, layers).run(_inputs(signature)).layers
    for layer in layers:
        assert tuple(outputs[layer.name].shape) == (3, *layer.shape), layer.name
    depths = [layer.depth for layer in layers if layer.side == "output"]
    assert all(before <= after for before, after in pairwise(depths))


STAGES = {
    "torchvision cnn": ["conv1", "stage2", "stage3", "conv5"],
    "torchvision resnet": ["layer1", "layer2", "layer3", "layer4"],
    "timm resnet": ["layer1", "layer2", "layer3", "layer4"],
    "timm vit": ["blocks.0", "blocks.1"],
    "hf vit": ["vit.layers.0", "vit.layers.1"],
    "hf bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "hf distilbert": ["distilbert.transformer.layer.0", "distilbert.transformer.layer.1"],
    "hf roberta": ["roberta.encoder.layer.0", "roberta.encoder.layer.1"],
}


@every_case
def test_stages(case: str) -> None:
    aliases = dict(profile_model(*_case(case)).aliases)
    assert aliases.pop("embedding")
    assert list(aliases) == [f"stage{number}" for number in range(1, len(aliases) + 1)]
    assert len(aliases) >= 2
    assert case not in STAGES or list(aliases.values()) == STAGES[case]


@pytest.mark.parametrize("layers", [1, 2, 4, 9])
def test_transformer_aliases_are_independent_of_depth(layers: int) -> None:
    config = {**SMALL, **WIDE, "num_hidden_layers": layers}
    *stages, embedding = profile_model(_model({"name": "hf/bert", "config": config}), WORDS).aliases
    assert embedding == "embedding"
    assert len(stages) == min(layers, BLOCK_STAGES)


@pytest.mark.parametrize(("depth", "ends"), [(1, ["blocks"]), (3, ["blocks.0", "blocks.1"])])
def test_stages_are_whole_blocks(depth: int, ends: list[str]) -> None:
    args = {"patch_size": 4, "depth": depth, "embed_dim": 24, "num_heads": 3}
    aliases = profile_model(
        _model({"name": "timm/vit_tiny_patch16_224", "args": args}), DIGITS
    ).aliases
    assert list(aliases.values())[: len(ends)] == ends
    assert len(aliases) == depth + 1


@every_case
def test_embedding_is_input_of_classifier(case: str) -> None:
    network, signature = _built(case)
    embedding = resolve(discover(network.eval(), signature), "embedding")
    logits, outputs = LayerHooks(network, [embedding]).run(_inputs(signature))
    classifier = network.get_submodule(embedding.module)
    assert torch.equal(classifier(outputs["embedding"]), logits)
    assert len(embedding.shape) == 1


@every_case
def test_hooks_are_removed_after_exception(case: str) -> None:
    network, signature = _built(case)
    taps = LayerHooks(network, discover(network, signature))
    inputs = _inputs(signature)
    broken = inputs[:, :, :1] if isinstance(inputs, Tensor) else {"input_ids": inputs["input_ids"]}
    with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
        taps.run(broken[:, :0] if isinstance(broken, Tensor) else {})
    assert hooks_on(network) == 0


@every_case
def test_every_used_parameter_gets_gradient(case: str) -> None:
    network, signature = _built(case)
    targets = torch.arange(8) % signature.classes
    F.cross_entropy(network(_inputs(signature, 8)), targets).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not idle


@every_case
def test_equal_seeds_give_equal_weights(case: str) -> None:
    (first, _), (second, _) = _built(case), _built(case)
    for name, mine in first.state_dict().items():
        assert torch.equal(mine, second.state_dict()[name]), name


@every_case
def test_network_and_weights_file_round_trip(case: str) -> None:
    network, signature = _built(case)
    network.eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    assert type(whole).__name__ == type(network).__name__
    filled = _case(case)[0].blueprint(signature).eval()
    filled.load_state_dict(network.state_dict())
    inputs = _inputs(signature)
    assert torch.equal(whole(inputs), network(inputs))
    assert torch.equal(filled(inputs), network(inputs))


@every_case
def test_model_is_hashable_and_comparable(case: str) -> None:
    model, copy_ = _case(case)[0], _case(case)[0]
    assert model == copy_ and hash(model) == hash(copy_)
    adapter = TypeAdapter(AnyModel)
    assert adapter.validate_python(adapter.dump_python(model)) == model
    assert adapter.validate_json(adapter.dump_json(model), strict=True) == model
    assert MODELS.find(model.name) is MODELS[model.name] is type(model)
    with pytest.raises(ValidationError, match="pretraned"):
        adapter.validate_python({"name": model.name, "pretraned": True})


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@every_case
def test_distributed_data_parallel(case: str) -> None:
    network, signature = _built(case)
    taps = LayerHooks(
        DistributedDataParallel(network), [resolve(discover(network, signature), "stage1")]
    )
    logits, outputs = taps.run(_inputs(signature))
    logits.sum().backward()
    assert outputs["stage1"].shape[0] == 3
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("case", ["torchvision cnn", "timm resnet", "timm vit", "hf vit"])
def test_learns_digits(case: str) -> None:
    flat, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(flat[:192] / 16 - 0.5, dtype=torch.float32).view(-1, 1, 8, 8)
    targets = torch.tensor(labels[:192])
    network, _ = _built(case)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(network(pictures), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.85 * losses[0]


class TestPictures:
    @pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
    def test_small_stem_keeps_resolution(self, name: str) -> None:
        original = profile_model(_model({"name": name}), COLOUR)
        small = profile_model(_model({"name": name, "stem": "small"}), COLOUR)
        assert original.layers["stage1"] == (64, 8, 8)
        assert small.layers["stage1"] == (64, 32, 32)
        assert small.layers["conv1"] == (64, 32, 32)

    def test_transformer_without_small_stem_raises(self) -> None:
        vit = _model({"name": "timm/vit_tiny_patch16_224", "stem": "small"})
        with pytest.raises(ValueError, match=r"patches of 16x16.*`args`"):
            vit.build(COLOUR)

    @pytest.mark.parametrize(
        "name", ["torchvision/vit_b_16", "timm/vit_tiny_patch16_224", "hf/vit"]
    )
    def test_patch_size_that_does_not_divide_image(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"16"):
            profile_model(_model({"name": name}), Signature((1, 28, 28), 10))

    @pytest.mark.parametrize("name", ["torchvision/inception_v3", "torchvision/googlenet"])
    def test_auxiliary_classifiers_are_removed(self, name: str) -> None:
        network = _model({"name": name}).blueprint(Signature((1, 96, 96), 4))
        assert network.train()(torch.rand(2, 1, 96, 96)).shape == (2, 4)

    def test_too_small_images_raise(self) -> None:
        with pytest.raises(ValueError, match=r"torchvision/alexnet cannot take samples of .*8, 8"):
            profile_model(_model({"name": "torchvision/alexnet"}), DIGITS)

    def test_other_inputs_raise(self) -> None:
        for name in ("torchvision/resnet18", "timm/resnet18", "hf/vit"):
            with pytest.raises(ValueError, match=rf"{name} takes images"):
                profile_model(_model({"name": name}), Signature((12,), 3))


class TestTexts:
    def test_sizes_follow_from_data(self) -> None:
        network: Any = _built("hf bert")[0]
        assert network.config.vocab_size == 50
        assert network.config.pad_token_id == 1
        assert network.config.num_labels == 3

    def test_padding_does_not_change_output(self) -> None:
        network, signature = _built("hf bert")
        network.eval()
        inputs = _inputs(signature)
        inputs["attention_mask"][:, 8:] = 0
        before = network(inputs)
        inputs["input_ids"][:, 8:] = 7
        assert torch.allclose(network(inputs), before, atol=1e-6)

    def test_too_long_texts_raise(self) -> None:
        model = _model({"name": "hf/bert", "config": {**SMALL, "max_position_embeddings": 8}})
        with pytest.raises(ValueError, match=r"at most 8 tokens, the data have 12"):
            profile_model(model, WORDS)

    def test_vision_models_reject_texts(self) -> None:
        for name in ("resnet", "mlp", "timm/resnet18"):
            with pytest.raises(ValueError, match=rf"{name} takes no texts"):
                profile_model(_model({"name": name}), WORDS)
        with pytest.raises(ValueError, match="no classifier of texts with architecture 'vit'"):
            profile_model(_model({"name": "hf/vit"}), WORDS)
        with pytest.raises(ValueError, match="no classifier of images with architecture 'bert'"):
            profile_model(_model({"name": "hf/bert"}), DIGITS)


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("torchvision/resent18", "torchvision/resnet18"),
            ("timm/resnt18", "timm/resnet18"),
            ("timm/resnet18.a9_in1k", "timm/resnet18.a1_in1k"),
            ("hf/brt", "hf/bert"),
        ],
    )
    def test_unknown_names_raise(self, name: str, near: str, no_hub: None) -> None:
        with pytest.raises(ValueError, match=rf"did you mean .*{near}"):
            _model({"name": name}).build(DIGITS)

    @pytest.mark.parametrize(
        ("name", "args", "message"),
        [
            ("timm/resnet18", {"chanels": [8] * 4}, "did you mean 'channels'"),
            ("timm/resnet18", {"num_classes": 3}, "`num_classes` of timm/resnet18 is set"),
            ("timm/resnet18", {"channels": 3}, "cannot be built with args {'channels': 3}"),
            ("torchvision/vit_b_16", {"num_layers": 3}, "`num_layers` of torchvision/vit_b_16 is"),
        ],
    )
    def test_invalid_arguments_raise(self, name: str, args: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            _model({"name": name, "args": args}).build(Signature((1, 32, 32), 10))

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"hidden_sise": 8}, "did you mean 'hidden_size'"),
            ({"vocab_size": 8}, "`vocab_size` is set from the data"),
            ({"hidden_size": "8"}, "cannot be built with config {'hidden_size': '8'}"),
            ({"hidden_size": 9, "num_attention_heads": 2}, "cannot be built with config"),
        ],
    )
    def test_invalid_config_raises(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            _model({"name": "hf/bert", "config": config}).build(WORDS)

    @pytest.mark.parametrize(
        ("name", "library", "extra"),
        [("timm/resnet18", "timm", "timm"), ("hf/bert", "transformers", "hf")],
    )
    def test_missing_library_raises(
        self, name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ValueError, match=rf"{library}, which is not .* raykd\[{extra}\]"):
            _model({"name": name}).build(DIGITS)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make network access fail."""
    monkeypatch.setattr(hub, "_answers", lambda address: False)

    def refused(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)


class TestWeights:
    @pytest.mark.usefixtures("no_hub")
    @pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18.a1_in1k"])
    def test_unavailable_weights_raise(self, name: str) -> None:
        model = _model({"name": name, "pretrained": True})
        profile_model(model, COLOUR)  # to be measured it needs none
        with pytest.raises(
            ValueError, match=rf"weights of {name} are not available .*weights: FILE"
        ):
            model.prepare(COLOUR)

    def test_architecture_without_weights(self) -> None:
        with pytest.raises(ValueError, match="hf/bert is an architecture without"):
            _model({"name": "hf/bert", "pretrained": True}).prepare(WORDS)

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_weights_file_for_other_classes_and_channels(self, tmp_path: Path, suffix: str) -> None:
        fields: dict[str, Any] = {"name": "torchvision/shufflenet_v2_x0_5"}
        trained = _model(fields).build(COLOUR)
        file = tmp_path / f"weights.{suffix}"
        if suffix == "pth":
            torch.save({"state_dict": trained.state_dict()}, file)
        else:
            save_file(trained.state_dict(), file)
        model = _model({**fields, "weights": str(file)})
        source, filled = trained.state_dict(), model.build(Signature((1, 32, 32), 4)).state_dict()
        for name, tensor in filled.items():
            if name == "conv1.0.weight":
                assert torch.allclose(tensor, source[name].sum(1, keepdim=True), atol=1e-6)
            elif name.startswith("fc."):
                assert tensor.shape[0] == 4
            else:
                assert torch.equal(tensor, source[name]), name

    def test_weights_of_another_model_raise(self, tmp_path: Path) -> None:
        file = str(tmp_path / "other.pth")
        torch.save(nn.Linear(3, 4).state_dict(), file)
        with pytest.raises(
            ValueError, match=r"not hold the weights of this model: .* missing: .* more"
        ):
            _model({"name": "timm/resnet18", "weights": file}).build(COLOUR)

    def test_missing_weights_file_raises(self) -> None:
        with pytest.raises(ValueError, match="/nowhere does not exist"):
            _model({"name": "timm/resnet18", "weights": "/nowhere"}).build(COLOUR)

    def test_weights_of_folder(self, tmp_path: Path) -> None:
        network: Any = _built("hf bert")[0]
        network.save_pretrained(tmp_path)
        name = f"hf/{tmp_path}"
        fresh = _model({"name": name}).build(WORDS)
        assert profile_model(_model({"name": name}), WORDS) == profile_model(*_case("hf bert"))
        loaded = _model({"name": name, "pretrained": True}).build(WORDS)
        for key, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
        embeddings = "bert.embeddings.word_embeddings.weight"
        assert not torch.equal(fresh.state_dict()[embeddings], loaded.state_dict()[embeddings])

    def test_weights_of_folder_for_other_classes(self, tmp_path: Path) -> None:
        network: Any = _built("hf bert")[0]
        network.save_pretrained(tmp_path)
        model = _model({"name": f"hf/{tmp_path}", "pretrained": True})
        loaded = model.build(Signature((12,), 9, WORDS.text))
        assert loaded(_inputs(WORDS)).shape == (3, 9)
        more = Signature((12,), 3, Text(vocabulary=51))
        with pytest.raises(ValueError, match="have 50 tokens, and the data's tokenizer has 51"):
            model.build(more)

    def test_folder_without_model_raises(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no config\.json"):
            _model({"name": f"hf/{tmp_path}"}).build(WORDS)


class TestUserCode:
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "networks_of_mine.py").write_text(
            "from torch import nn\n"
            "def build(signature, width=4):\n"
            "    flat = signature.input_shape[-1] ** 2\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(flat, width),\n"
            "                         nn.ReLU(), nn.Linear(width, signature.classes))\n"
            "def wrong(task):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "networks_of_mine", raising=False)

    def test_is_built(self) -> None:
        model = _model({"name": "networks_of_mine:build", "args": {"width": 6}})
        assert profile_model(model, DIGITS).layers["embedding"] == (6,)
        assert str(Path.cwd()) not in sys.path

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("networks_of_mine:bild", "has no function 'bild'"),
            ("networks_of_theirs:build", "No module named 'networks_of_theirs'"),
            ("networks_of_mine:wrong", r"returns \(2, 3\) for 2 samples; it must return \(2, 10\)"),
        ],
    )
    def test_errors(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            _model({"name": name}).build(DIGITS)

    def test_stored_network_round_trip(self, tmp_path: Path) -> None:
        trained = _model({"name": "networks_of_mine:build"}).build(DIGITS)
        torch.save(trained, tmp_path / "network.pt")
        fields: dict[str, Any] = {"name": "models:/m@a", "file": str(tmp_path / "network.pt")}
        network = _model(fields).build(DIGITS)
        fresh = _model({**fields, "pretrained": False}).build(DIGITS)
        assert torch.equal(network.get_parameter("1.weight"), trained.get_parameter("1.weight"))
        assert not torch.equal(fresh.get_parameter("1.weight"), trained.get_parameter("1.weight"))
        with pytest.raises(ValueError, match="has not been downloaded"):
            _model({"name": "models:/m@a"}).build(DIGITS)
        with pytest.raises(ValueError, match="cannot take samples of shape"):
            _model(fields).build(COLOUR)


def test_libraries_are_imported_lazily() -> None:
    program = (
        "import sys, raykd.models as a\n"
        "from raykd.study.checks.load import load_study\n"
        "a.profile_model(a.Resnet(depth=8), a.Signature((1, 8, 8), 10))\n"
        "assert not {'timm', 'torchvision', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_that_define_model(tmp_path: Path) -> None:
    network: Any = _built("hf bert")[0]
    network.save_pretrained(tmp_path)
    files = _model({"name": f"hf/{tmp_path}", "pretrained": True}).files()
    assert {file.name for file in files} == {"config.json", "model.safetensors"}
    assert _model({"name": "timm/resnet18", "weights": "w.pth"}).files() == (Path("w.pth"),)
    assert _model({"name": "json:loads"}).files()[0].name == "__init__.py"
    assert _model({"name": "timm/resnet18"}).files() == ()


@pytest.mark.parametrize("name", ["hf/deit", "hf/levit"])
def test_vision_models_that_read_their_architectures_can_be_built(name: str) -> None:
    network = MODELS[name](name=name).blueprint(Signature((3, 224, 224), 4))
    assert any(isinstance(module, nn.Linear) for module in network.modules())
