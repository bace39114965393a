"""Networks of other libraries: what holds for every model holds for them."""

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
    Task,
    Text,
    discover,
    profile_model,
    resolve,
)
from raykd.models.adapters import hub
from raykd.models.introspection.layers import random_inputs
from raykd.models.introspection.stages import BLOCK_STAGES

DIGITS = Task((1, 8, 8), 10)
COLOUR = Task((3, 32, 32), 7)
WORDS = Task((12,), 3, Text(vocabulary=50, padding=1))
CPU = torch.device("cpu")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"intermediate_size": 32}

CASES: dict[str, tuple[dict[str, Any], Task]] = {
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


def _case(case: str) -> tuple[Model, Task]:
    fields, task = CASES[case]
    return _model(fields), task


def _built(case: str) -> tuple[nn.Module, Task]:
    model, task = _case(case)
    torch.manual_seed(0)
    return model.build(task), task


def _inputs(task: Task, count: int = 3) -> Any:
    torch.manual_seed(1)
    return random_inputs(task, count, CPU)


@every_case
def test_gives_one_logit_a_class(case: str) -> None:
    network, task = _built(case)
    logits = network(_inputs(task))
    assert logits.shape == (3, task.classes)
    assert logits.isfinite().all()


@every_case
def test_anatomy_equals_the_real_network(case: str) -> None:
    (model, _), (network, task) = _case(case), _built(case)
    told = profile_model(model, task)
    assert told.params == sum(parameter.numel() for parameter in network.parameters())
    assert told.ordered_layers == discover(network, task)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(_inputs(task, 1))
    assert told.macs == counter.get_total_flops() // 2


@every_case
def test_layers_bear_the_librarys_names_and_real_shapes(case: str) -> None:
    network, task = _built(case)
    layers = discover(network.eval(), task)
    assert {layer.module for layer in layers} <= {name for name, _ in network.named_modules()}
    seen = LayerHooks(network, layers).run(_inputs(task)).layers
    for layer in layers:
        assert tuple(seen[layer.name].shape) == (3, *layer.shape), layer.name
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
def test_a_transformers_aliases_outlive_its_depth(layers: int) -> None:
    config = {**SMALL, **WIDE, "num_hidden_layers": layers}
    *stages, embedding = profile_model(_model({"name": "hf/bert", "config": config}), WORDS).aliases
    assert embedding == "embedding"
    assert len(stages) == min(layers, BLOCK_STAGES)


@pytest.mark.parametrize(("depth", "ends"), [(1, ["blocks"]), (3, ["blocks.0", "blocks.1"])])
def test_stages_are_blocks_and_not_the_two_halves_of_one(depth: int, ends: list[str]) -> None:
    args = {"patch_size": 4, "depth": depth, "embed_dim": 24, "num_heads": 3}
    aliases = profile_model(
        _model({"name": "timm/vit_tiny_patch16_224", "args": args}), DIGITS
    ).aliases
    assert list(aliases.values())[: len(ends)] == ends
    assert len(aliases) == depth + 1


@every_case
def test_embedding_is_what_the_classifier_takes(case: str) -> None:
    network, task = _built(case)
    embedding = resolve(discover(network.eval(), task), "embedding")
    logits, seen = LayerHooks(network, [embedding]).run(_inputs(task))
    classifier = network.get_submodule(embedding.module)
    assert torch.equal(classifier(seen["embedding"]), logits)
    assert len(embedding.shape) == 1


@every_case
def test_taps_leave_no_hook_behind_an_exception(case: str) -> None:
    network, task = _built(case)
    taps = LayerHooks(network, discover(network, task))
    inputs = _inputs(task)
    broken = inputs[:, :, :1] if isinstance(inputs, Tensor) else {"input_ids": inputs["input_ids"]}
    with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
        taps.run(broken[:, :0] if isinstance(broken, Tensor) else {})
    assert hooks_on(network) == 0


@every_case
def test_every_parameter_that_runs_gets_a_gradient(case: str) -> None:
    network, task = _built(case)
    targets = torch.arange(8) % task.classes
    F.cross_entropy(network(_inputs(task, 8)), targets).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not idle


@every_case
def test_same_seed_same_weights(case: str) -> None:
    (one, _), (other, _) = _built(case), _built(case)
    for name, mine in one.state_dict().items():
        assert torch.equal(mine, other.state_dict()[name]), name


@every_case
def test_whole_networks_and_their_weights_survive_a_file(case: str) -> None:
    network, task = _built(case)
    network.eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    assert type(whole).__name__ == type(network).__name__
    filled = _case(case)[0].blueprint(task).eval()
    filled.load_state_dict(network.state_dict())
    inputs = _inputs(task)
    assert torch.equal(whole(inputs), network(inputs))
    assert torch.equal(filled(inputs), network(inputs))


@every_case
def test_is_a_value(case: str) -> None:
    model, again = _case(case)[0], _case(case)[0]
    assert model == again and hash(model) == hash(again)
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
def test_wrapped_for_distributed_training(case: str) -> None:
    network, task = _built(case)
    taps = LayerHooks(
        DistributedDataParallel(network), [resolve(discover(network, task), "stage1")]
    )
    logits, seen = taps.run(_inputs(task))
    logits.sum().backward()
    assert seen["stage1"].shape[0] == 3
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("case", ["torchvision cnn", "timm resnet", "timm vit", "hf vit"])
def test_learns_real_digits(case: str) -> None:
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
    def test_a_small_stem_keeps_the_size(self, name: str) -> None:
        own = profile_model(_model({"name": name}), COLOUR)
        small = profile_model(_model({"name": name, "stem": "small"}), COLOUR)
        assert own.layers["stage1"] == (64, 8, 8)
        assert small.layers["stage1"] == (64, 32, 32)
        assert small.layers["conv1"] == (64, 32, 32)

    def test_a_transformer_has_no_small_stem(self) -> None:
        vit = _model({"name": "timm/vit_tiny_patch16_224", "stem": "small"})
        with pytest.raises(ValueError, match=r"patches of 16x16.*`args`"):
            vit.build(COLOUR)

    @pytest.mark.parametrize(
        "name", ["torchvision/vit_b_16", "timm/vit_tiny_patch16_224", "hf/vit"]
    )
    def test_patches_that_leave_a_rest(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"16"):
            profile_model(_model({"name": name}), Task((1, 28, 28), 10))

    @pytest.mark.parametrize("name", ["torchvision/inception_v3", "torchvision/googlenet"])
    def test_no_further_classifiers(self, name: str) -> None:
        network = _model({"name": name}).blueprint(Task((1, 96, 96), 4))
        assert network.train()(torch.rand(2, 1, 96, 96)).shape == (2, 4)

    def test_too_small_pictures(self) -> None:
        with pytest.raises(ValueError, match=r"torchvision/alexnet cannot take samples of .*8, 8"):
            profile_model(_model({"name": "torchvision/alexnet"}), DIGITS)

    def test_no_pictures(self) -> None:
        for name in ("torchvision/resnet18", "timm/resnet18", "hf/vit"):
            with pytest.raises(ValueError, match=rf"{name} takes images"):
                profile_model(_model({"name": name}), Task((12,), 3))


class TestTexts:
    def test_follow_from_the_data(self) -> None:
        network: Any = _built("hf bert")[0]
        assert network.config.vocab_size == 50
        assert network.config.pad_token_id == 1
        assert network.config.num_labels == 3

    def test_padding_plays_no_part(self) -> None:
        network, task = _built("hf bert")
        network.eval()
        inputs = _inputs(task)
        inputs["attention_mask"][:, 8:] = 0
        before = network(inputs)
        inputs["input_ids"][:, 8:] = 7
        assert torch.allclose(network(inputs), before, atol=1e-6)

    def test_too_long(self) -> None:
        model = _model({"name": "hf/bert", "config": {**SMALL, "max_position_embeddings": 8}})
        with pytest.raises(ValueError, match=r"at most 8 tokens, the data have 12"):
            profile_model(model, WORDS)

    def test_models_of_pictures_take_none(self) -> None:
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
    def test_unknown_names(self, name: str, near: str, no_hub: None) -> None:
        with pytest.raises(ValueError, match=rf"did you mean .*{near}"):
            _model({"name": name}).build(DIGITS)

    @pytest.mark.parametrize(
        ("name", "args", "told"),
        [
            ("timm/resnet18", {"chanels": [8] * 4}, "did you mean 'channels'"),
            ("timm/resnet18", {"num_classes": 3}, "`num_classes` of timm/resnet18 is set"),
            ("timm/resnet18", {"channels": 3}, "cannot be built with args {'channels': 3}"),
            ("torchvision/vit_b_16", {"num_layers": 3}, "`num_layers` of torchvision/vit_b_16 is"),
        ],
    )
    def test_args(self, name: str, args: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=re.escape(told)):
            _model({"name": name, "args": args}).build(Task((1, 32, 32), 10))

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            ({"hidden_sise": 8}, "did you mean 'hidden_size'"),
            ({"vocab_size": 8}, "`vocab_size` is set from the data"),
            ({"hidden_size": "8"}, "cannot be built with config {'hidden_size': '8'}"),
            ({"hidden_size": 9, "num_attention_heads": 2}, "cannot be built with config"),
        ],
    )
    def test_config(self, config: dict[str, Any], told: str) -> None:
        with pytest.raises(ValueError, match=re.escape(told)):
            _model({"name": "hf/bert", "config": config}).build(WORDS)

    @pytest.mark.parametrize(
        ("name", "library", "extra"),
        [("timm/resnet18", "timm", "timm"), ("hf/bert", "transformers", "hf")],
    )
    def test_a_library_that_is_not_there(
        self, name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ValueError, match=rf"{library}, which is not .* raykd\[{extra}\]"):
            _model({"name": name}).build(DIGITS)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers outside this machine."""
    monkeypatch.setattr(hub, "_answers", lambda address: False)

    def refused(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)


class TestWeights:
    @pytest.mark.usefixtures("no_hub")
    @pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18.a1_in1k"])
    def test_that_cannot_be_had(self, name: str) -> None:
        model = _model({"name": name, "pretrained": True})
        profile_model(model, COLOUR)  # to be measured it needs none
        with pytest.raises(
            ValueError, match=rf"weights of {name} are not available .*weights: FILE"
        ):
            model.prepare(COLOUR)

    def test_an_architecture_has_none(self) -> None:
        with pytest.raises(ValueError, match="hf/bert is an architecture without"):
            _model({"name": "hf/bert", "pretrained": True}).prepare(WORDS)

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_of_a_file_for_other_classes_and_channels(self, tmp_path: Path, suffix: str) -> None:
        fields: dict[str, Any] = {"name": "torchvision/shufflenet_v2_x0_5"}
        trained = _model(fields).build(COLOUR)
        file = tmp_path / f"weights.{suffix}"
        if suffix == "pth":
            torch.save({"state_dict": trained.state_dict()}, file)
        else:
            save_file(trained.state_dict(), file)
        model = _model({**fields, "weights": str(file)})
        given, filled = trained.state_dict(), model.build(Task((1, 32, 32), 4)).state_dict()
        for name, tensor in filled.items():
            if name == "conv1.0.weight":
                assert torch.allclose(tensor, given[name].sum(1, keepdim=True), atol=1e-6)
            elif name.startswith("fc."):
                assert tensor.shape[0] == 4
            else:
                assert torch.equal(tensor, given[name]), name

    def test_of_another_model(self, tmp_path: Path) -> None:
        file = str(tmp_path / "other.pth")
        torch.save(nn.Linear(3, 4).state_dict(), file)
        with pytest.raises(
            ValueError, match=r"not hold the weights of this model: .* missing: .* more"
        ):
            _model({"name": "timm/resnet18", "weights": file}).build(COLOUR)

    def test_no_file(self) -> None:
        with pytest.raises(ValueError, match="/nowhere does not exist"):
            _model({"name": "timm/resnet18", "weights": "/nowhere"}).build(COLOUR)

    def test_of_a_folder(self, tmp_path: Path) -> None:
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

    def test_of_a_folder_for_other_classes(self, tmp_path: Path) -> None:
        network: Any = _built("hf bert")[0]
        network.save_pretrained(tmp_path)
        model = _model({"name": f"hf/{tmp_path}", "pretrained": True})
        loaded = model.build(Task((12,), 9, WORDS.text))
        assert loaded(_inputs(WORDS)).shape == (3, 9)
        more = Task((12,), 3, Text(vocabulary=51))
        with pytest.raises(ValueError, match="have 50 tokens, and the data's tokenizer has 51"):
            model.build(more)

    def test_a_folder_that_holds_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no config\.json"):
            _model({"name": f"hf/{tmp_path}"}).build(WORDS)


class TestCodeOfOnesOwn:
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "networks_of_mine.py").write_text(
            "from torch import nn\n"
            "def build(task, width=4):\n"
            "    flat = task.input_shape[-1] ** 2\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(flat, width),\n"
            "                         nn.ReLU(), nn.Linear(width, task.classes))\n"
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
        ("name", "told"),
        [
            ("networks_of_mine:bild", "has no function 'bild'"),
            ("networks_of_theirs:build", "No module named 'networks_of_theirs'"),
            ("networks_of_mine:wrong", r"returns \(2, 3\) for 2 samples; it must return \(2, 10\)"),
        ],
    )
    def test_mistakes(self, name: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            _model({"name": name}).build(DIGITS)

    def test_a_stored_network(self, tmp_path: Path) -> None:
        trained = _model({"name": "networks_of_mine:build"}).build(DIGITS)
        torch.save(trained, tmp_path / "network.pt")
        fields: dict[str, Any] = {"name": "models:/m@a", "file": str(tmp_path / "network.pt")}
        kept = _model(fields).build(DIGITS)
        fresh = _model({**fields, "pretrained": False}).build(DIGITS)
        assert torch.equal(kept.get_parameter("1.weight"), trained.get_parameter("1.weight"))
        assert not torch.equal(fresh.get_parameter("1.weight"), trained.get_parameter("1.weight"))
        with pytest.raises(ValueError, match="has not been downloaded"):
            _model({"name": "models:/m@a"}).build(DIGITS)
        with pytest.raises(ValueError, match="cannot take samples of shape"):
            _model(fields).build(COLOUR)


def test_libraries_are_imported_where_they_are_used() -> None:
    program = (
        "import sys, raykd.models as a\n"
        "from raykd.study.checks.load import load_study\n"
        "a.profile_model(a.Resnet(depth=8), a.Task((1, 8, 8), 10))\n"
        "assert not {'timm', 'torchvision', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_that_decide_what_is_built(tmp_path: Path) -> None:
    network: Any = _built("hf bert")[0]
    network.save_pretrained(tmp_path)
    held = _model({"name": f"hf/{tmp_path}", "pretrained": True}).files()
    assert {file.name for file in held} == {"config.json", "model.safetensors"}
    assert _model({"name": "timm/resnet18", "weights": "w.pth"}).files() == (Path("w.pth"),)
    assert _model({"name": "json:loads"}).files()[0].name == "__init__.py"
    assert _model({"name": "timm/resnet18"}).files() == ()


@pytest.mark.parametrize("name", ["hf/deit", "hf/levit"])
def test_vision_models_that_look_at_their_architectures_are_built(name: str) -> None:
    network = MODELS[name](name=name).blueprint(Task((3, 224, 224), 4))
    assert any(isinstance(module, nn.Linear) for module in network.modules())
