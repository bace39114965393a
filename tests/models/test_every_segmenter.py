"""Conformance tests of every family that gives a response for each position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers.model_cases import DENSE_NAMES, default, hooks_on, small, variants
from raykd.models import (
    FAMILIES,
    MODELS,
    LayerHooks,
    Model,
    Signature,
    Unet,
    discover,
    profile_model,
    profile_network,
    stage_aliases,
)
from raykd.models.adapters.find_logits import find_logits, select_logits
from raykd.models.adapters.torchvision import Torchvision
from raykd.report.layers import ModelInputs, list_layers

SMALL = Signature((1, 8, 8), 5, dense=True)
ODD = Signature((3, 21, 14), 4, dense=True)

every_family = pytest.mark.parametrize("name", DENSE_NAMES)
every_size = pytest.mark.parametrize("signature", [SMALL, ODD], ids=["8x8", "21x14"])


def built(model: Model, signature: Signature = SMALL) -> nn.Module:
    torch.manual_seed(0)
    return model.build(signature)


def samples(signature: Signature, batch: int = 3) -> Tensor:
    return torch.rand(batch, *signature.input_shape, generator=torch.Generator().manual_seed(1))


def test_families_declare_what_they_give() -> None:
    assert "unet" in DENSE_NAMES
    assert all(cls.gives for cls in MODELS)
    assert {cls.name for cls in FAMILIES if "position" in cls.gives} == set(DENSE_NAMES)


@every_family
@every_size
def test_one_logit_per_class_and_position(name: str, signature: Signature) -> None:
    for model in variants(name):
        logits = built(model, signature)(samples(signature))
        assert logits.shape == (3, *signature.response_shape)
        assert logits.isfinite().all()


@every_family
def test_training_step_updates_every_parameter(name: str) -> None:
    for model in (*variants(name), default(name)):
        network = built(model)
        targets = torch.randint(5, (3, 8, 8))
        F.cross_entropy(network(samples(SMALL)), targets).backward()
        for place, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), place
            assert parameter.grad.any(), place


@every_family
def test_learns_halves(name: str) -> None:
    """The class of a position is the side of the image where it is dark."""
    generator = torch.Generator().manual_seed(0)
    network = built(MODELS[name](depth=1, width=8))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)

    def batch() -> tuple[Tensor, Tensor]:
        level = torch.randint(2, (16, 1, 1, 2), generator=generator)
        targets = level.repeat_interleave(4, 3).expand(-1, 1, 8, 8)
        return targets + 0.3 * torch.randn(targets.shape, generator=generator), targets[:, 0]

    for _ in range(60):
        inputs, targets = batch()
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    inputs, targets = batch()
    assert (network.eval()(inputs).argmax(1) == targets).float().mean() > 0.95


@every_family
@every_size
def test_profile_equals_real_network(name: str, signature: Signature) -> None:
    for model in variants(name):
        network, profile = built(model, signature).eval(), profile_model(model, signature)
        assert profile == profile_network(network, signature)
        assert profile.params == sum(parameter.numel() for parameter in network.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(samples(signature, 1))
        assert profile.macs == counter.get_total_flops() // 2


@every_family
def test_layer_shapes_equal_real_forward(name: str) -> None:
    network = built(small(name), ODD)
    layers = discover(network, ODD)
    assert {layer.module for layer in layers} == {n for n, _ in network.named_modules() if n}
    logits, outputs = LayerHooks(network, layers).run(samples(ODD))
    assert logits.shape == (3, *ODD.response_shape)
    for layer in layers:
        assert tuple(outputs[layer.name].shape) == (3, *layer.shape), layer.name
    assert hooks_on(network) == 0


@every_family
def test_stages_follow_depth_alone(name: str) -> None:
    shallow, deep, wide = (stage_aliases(discover(built(m), SMALL)) for m in variants(name))
    assert list(shallow) == list(wide) and len(deep) > len(shallow)
    depths = [layer.depth for layer in deep.values()]
    assert depths == sorted(set(depths))


@every_family
def test_channels_last_gives_equal_outputs(name: str) -> None:
    network, inputs = built(small(name), ODD).eval(), samples(ODD)
    expected = network(inputs)
    network.to(memory_format=torch.channels_last)
    actual = network(inputs.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_family
def test_state_file_round_trip(name: str, tmp_path: Path) -> None:
    trained, file = built(small(name)), tmp_path / "weights.pt"
    trained(samples(SMALL))
    torch.save(trained.state_dict(), file)
    torch.manual_seed(5)
    loaded = small(name).build(SMALL)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(trained.eval()(samples(SMALL)), loaded.eval()(samples(SMALL)))


def test_unet_is_that_of_the_paper() -> None:
    """Channels and sizes of Ronneberger 2015, figure 1, at a tenth of its size."""
    shapes = profile_model(Unet(depth=4, width=64), Signature((1, 64, 64), 2, dense=True)).layers
    expected = [(64, 64), (128, 32), (256, 16), (512, 8), (1024, 4)]
    expected += [(512, 8), (256, 16), (128, 32), (64, 64)]
    for number, (channels, side) in enumerate(expected, start=1):
        assert shapes[f"stage{number}"] == (channels, side, side)
    assert shapes["stage6.conv1.conv"] == (512, 8, 8)


def test_too_small_images_raise() -> None:
    with pytest.raises(ValueError, match=r"depth 4 halves images of 8x8 .* `depth` to at most 3"):
        profile_model(Unet(depth=4), SMALL)
    with pytest.raises(ValueError, match="unet takes images"):
        profile_model(Unet(), Signature((12,), 3))


RGB = Signature((3, 32, 32), 4, dense=True)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_networks_of_torchvision(name: str) -> None:
    model = Torchvision(name=f"torchvision/{name}")
    network = built(model, RGB)
    logits = network(samples(RGB))
    assert logits.shape == (3, *RGB.response_shape)
    F.cross_entropy(logits, torch.randint(4, (3, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert stage_aliases(discover(network, RGB))
    gray = Signature((1, 32, 32), 4, dense=True)
    assert built(model, gray).eval()(samples(gray)).shape == (3, *gray.response_shape)
    assert model.pretraining_images().size is None  # type: ignore[union-attr]


def test_weights_of_torchvision_with_auxiliary_classifier(tmp_path: Path) -> None:
    """Published weights have one, and other classes."""
    from torchvision.models import get_model

    theirs = get_model(
        "fcn_resnet50", weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    model = Torchvision(name="torchvision/fcn_resnet50", weights=str(file))
    state = built(model, RGB).state_dict()
    assert torch.equal(state["backbone.conv1.weight"], theirs.state_dict()["backbone.conv1.weight"])
    assert len(state["classifier.4.weight"]) == 4


def test_classifiers_and_segmenters_of_torchvision_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"resnet18 gives a response for each sample.*fcn_"):
        profile_model(Torchvision(name="torchvision/resnet18"), RGB)
    classes = Signature((3, 32, 32), 4)
    with pytest.raises(ValueError, match="fcn_resnet50 gives a response for each position"):
        profile_model(Torchvision(name="torchvision/fcn_resnet50"), classes)
    with pytest.raises(ValueError, match="has no model 'fcn_resnet5'; did you mean"):
        profile_model(Torchvision(name="torchvision/fcn_resnet5"), RGB)


def test_outputs_of_mappings_are_selected() -> None:
    maps, vector = torch.zeros(2, 4, 3, 3), torch.zeros(2, 4)
    assert find_logits({"aux": vector, "out": maps}, 4, dense=True) is maps
    assert find_logits((vector, maps), 4, dense=True) is maps
    assert find_logits((vector, maps), 4) is vector
    assert find_logits({"aux": vector}, 4, dense=True) is None
    network = select_logits(nn.LSTM(4, 6), RGB)
    with pytest.raises(ValueError, match=r"logits of shape \(samples, 4, height, width\)"):
        network(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", ["unet", "torchvision/fcn_resnet50"])
def test_layers_are_listed_without_data(name: str) -> None:
    listed = list_layers(name, (), ModelInputs(shape="3,32,32"))
    assert listed.signature.response_shape == (10, 32, 32)
    assert "stage1" in listed.models[0].profile.aliases
