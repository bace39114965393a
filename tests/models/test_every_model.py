"""Conformance tests of every model family."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers.model_cases import (
    CIFAR,
    DIGITS,
    FASHION,
    NAMES,
    default,
    hooks_on,
    learner,
    members,
    small,
    variants,
)
from raykd.models import (
    MODELS,
    AnyModel,
    CompressedModel,
    LayerHooks,
    Model,
    Signature,
    discover,
    profile_model,
    profile_network,
    resolve,
    stage_aliases,
)
from raykd.models.zoo.vit import Attention

every_model = pytest.mark.parametrize("name", NAMES)
usual_task = pytest.mark.parametrize("signature", [DIGITS, FASHION, CIFAR], ids=["8", "28", "32"])


def _built(model: Model, signature: Signature = DIGITS) -> nn.Module:
    torch.manual_seed(0)
    return model.build(signature)


def _samples(signature: Signature, batch: int = 3) -> Tensor:
    return torch.rand(batch, *signature.input_shape, generator=torch.Generator().manual_seed(1))


@every_model
@usual_task
def test_one_logit_per_class(name: str, signature: Signature) -> None:
    for model in members(name):
        logits = _built(model, signature)(_samples(signature))
        assert logits.shape == (3, signature.classes)
        assert logits.isfinite().all()


@every_model
def test_default_member_accepts_smallest_images(name: str) -> None:
    network = _built(default(name)).eval()
    assert network(_samples(DIGITS, 1)).shape == (1, DIGITS.classes)


@every_model
def test_training_step_updates_every_parameter(name: str) -> None:
    for model in members(name):
        network = _built(model, FASHION)
        F.cross_entropy(network(_samples(FASHION, 8)), torch.arange(8)).backward()
        torch.optim.AdamW(network.parameters(), lr=0.01).step()
        for place, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), place
            assert parameter.isfinite().all(), place


@every_model
def test_learns_digits(name: str) -> None:
    flat, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(flat / 16 - 0.5, dtype=torch.float32).view(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    network = _built(learner(name))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(60):
        rows = torch.randint(1400, (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(pictures[rows]), targets[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        guesses = network.eval()(pictures[1400:]).argmax(dim=1)
    assert (guesses == targets[1400:]).float().mean() > 0.5  # 0.1 by chance


@every_model
def test_channels_last_gives_equal_outputs(name: str) -> None:
    network, samples = _built(small(name), CIFAR).eval(), _samples(CIFAR)
    expected = network(samples)
    network.to(memory_format=torch.channels_last)
    actual = network(samples.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_model
def test_equal_seeds_give_equal_weights(name: str) -> None:
    first, second = _built(small(name)), _built(small(name))
    for mine, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@every_model
def test_state_file_round_trip(name: str, tmp_path: Path) -> None:
    model, file = small(name), tmp_path / "weights.pt"
    trained = _built(model)
    trained(_samples(DIGITS))
    torch.save(trained.state_dict(), file)
    torch.manual_seed(5)
    loaded = model.build(DIGITS)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(trained.eval()(_samples(DIGITS)), loaded.eval()(_samples(DIGITS)))


@every_model
@usual_task
def test_profile_equals_real_network(name: str, signature: Signature) -> None:
    for model in members(name):
        network, profile = _built(model, signature), profile_model(model, signature)
        assert profile.params == sum(parameter.numel() for parameter in network.parameters())
        assert profile.macs == _macs_by_hand(network, signature)
        assert profile == profile_network(network, signature)
        assert profile.ordered_layers == discover(network, signature)


@every_model
def test_macs_equal_pytorchs(name: str) -> None:
    for model in members(name):
        network = _built(model, FASHION).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(_samples(FASHION, 1))
        assert profile_model(model, FASHION).macs == counter.get_total_flops() // 2


@every_model
def test_layer_shapes_equal_real_forward(name: str) -> None:
    for model in members(name):
        network = _built(model, FASHION)
        layers = discover(network, FASHION)
        assert {layer.module for layer in layers} == {n for n, _ in network.named_modules() if n}
        outputs = LayerHooks(network, layers).run(_samples(FASHION)).layers
        for layer in layers:
            assert tuple(outputs[layer.name].shape) == (3, *layer.shape), layer.name


@every_model
def test_depth_and_cost_increase_along_layers(name: str) -> None:
    layers = [layer for layer in discover(_built(small(name)), DIGITS) if layer.side == "output"]
    assert layers[0].depth > 0 and layers[-1].depth == 1
    for before, after in pairwise(layers):
        assert before.depth <= after.depth
        assert before.macs <= after.macs


@every_model
def test_aliases_are_independent_of_depth_and_width(name: str) -> None:
    alias_lists = [stage_aliases(discover(_built(model), DIGITS)) for model in variants(name)]
    for aliases in alias_lists:
        assert list(aliases) == list(alias_lists[0])
        *stages, embedding = aliases.values()
        assert stages and embedding.name == "embedding" and embedding.side == "input"
        depths = [layer.depth for layer in (*stages, embedding)]
        assert depths == sorted(depths)
        assert len(set(depths[:-1])) == len(stages)


@every_model
def test_embedding_is_input_of_classifier(name: str) -> None:
    network = _built(small(name)).eval()
    embedding = resolve(discover(network, DIGITS), "embedding")
    logits, outputs = LayerHooks(network, [embedding]).run(_samples(DIGITS))
    classifier = network.get_submodule(embedding.module)
    assert torch.equal(classifier(outputs["embedding"]), logits)


@every_model
def test_profiling_changes_nothing(name: str) -> None:
    network = _built(small(name)).train()
    network.get_submodule("classifier").eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    discover(network, DIGITS)
    profile_network(network, DIGITS)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert hooks_on(network) == 0


@every_model
def test_hooks_are_removed_after_exception(name: str) -> None:
    network = _built(small(name))
    taps = LayerHooks(network, discover(network, DIGITS))
    with pytest.raises(RuntimeError):
        taps.run(torch.rand(2, 7, 5, 5))
    assert hooks_on(network) == 0


@every_model
def test_model_is_hashable_and_comparable(name: str) -> None:
    model = small(name)
    assert model == small(name) and hash(model) == hash(small(name))
    adapter = TypeAdapter(AnyModel)
    assert adapter.validate_python(adapter.dump_python(model)) == model
    first = (MODELS[name].__doc__ or "").partition("\n")[0]
    assert first.endswith(".") and len(first) < 100
    schema = TypeAdapter(MODELS[name]).json_schema()
    if "$ref" in schema:  # it may hold itself
        schema = schema["$defs"][MODELS[name].__name__]
    fields = schema["properties"]
    assert all("description" in field for key, field in fields.items() if key != "name")


@every_model
def test_unknown_fields_raise(name: str) -> None:
    with pytest.raises(ValueError, match="dephts"):
        TypeAdapter(AnyModel).validate_python({"name": name, "dephts": 8})


@every_model
def test_other_inputs_raise(name: str) -> None:
    vector = Signature((12,), 3)
    if name == "mlp":
        assert _built(small(name), vector)(_samples(vector)).shape == (3, 3)
        return
    family = "resnet" if issubclass(MODELS[name], CompressedModel) else name
    with pytest.raises(ValueError, match=rf"{family} takes images .*\(12,\).*mlp"):
        profile_model(small(name), vector)


def _macs_by_hand(network: nn.Module, signature: Signature) -> int:
    """Count independently of raykd: a real forward, one formula per kind of layer."""
    total = 0

    def convolution(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        height, width = module.kernel_size
        total += output[0].numel() * height * width * module.in_channels // module.groups

    def linear(module: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.in_features

    def attention(module: Attention, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        _, tokens, width = output.shape
        total += 2 * tokens * tokens * width

    kinds = {nn.Conv2d: convolution, nn.Linear: linear, Attention: attention}
    for module in network.modules():
        for kind, hook in kinds.items():
            if isinstance(module, kind):
                module.register_forward_hook(hook)
    with torch.no_grad():
        network.eval()(_samples(signature, 1))
    for module in network.modules():
        module._forward_hooks.clear()
    return total
