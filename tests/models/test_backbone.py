"""Networks split at a layer: both parts together equal the whole."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from helpers.model_cases import DIGITS, NAMES, hooks_on, small
from raykd.models import Layer, Resnet, Signature, discover, record_layers, resolve, stage_aliases
from raykd.models.introspection.backbone import Backbone, Head, has_negative_values


def cut_at(network: nn.Module, name: str, signature: Signature = DIGITS) -> Layer:
    return resolve(discover(network, signature), name)


def last_stage(network: nn.Module, signature: Signature = DIGITS) -> str:
    return [name for name in stage_aliases(discover(network, signature)) if name != "embedding"][-1]


def layer_and_logits(network: nn.Module, layer: Layer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's tensor and the logits."""
    with torch.no_grad(), record_layers(network, [layer]) as outputs:
        logits = network(inputs)
        return outputs[layer.name], logits


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(params=NAMES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return small(request.param).build(DIGITS).eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, *DIGITS.input_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["last stage", "embedding"])
def test_two_parts_equal_whole(network: nn.Module, inputs: Tensor, place: str) -> None:
    layer = cut_at(network, last_stage(network) if place == "last stage" else place)
    features, logits = layer_and_logits(network, layer, inputs)
    head = Head(network, layer, DIGITS)
    trunk = Backbone(copy.deepcopy(network), layer, DIGITS)
    torch.testing.assert_close(head(features), logits)
    torch.testing.assert_close(trunk(inputs), features, rtol=0, atol=0)
    assert size(trunk) + size(head) == size(network)
    assert hooks_on(network) == hooks_on(trunk) == 0


def test_parts_can_be_saved_and_copied(network: nn.Module, inputs: Tensor) -> None:
    layer = cut_at(network, last_stage(network))
    trunk = Backbone(copy.deepcopy(network), layer, DIGITS)
    parts = nn.Sequential(trunk, Head(network, layer, DIGITS))
    expected = parts.eval()(inputs)
    file = io.BytesIO()
    torch.save(parts, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    torch.testing.assert_close(read(inputs), expected, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(parts)(inputs), expected, rtol=0, atol=0)


def test_head_is_frozen_and_in_eval_mode() -> None:
    teacher = small("wide_resnet").build(DIGITS).train()
    layer = cut_at(teacher, "stage3")
    head = Head(teacher, layer, DIGITS).train()
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    before = copy.deepcopy(head.state_dict())
    features = torch.randn(2, *layer.shape, requires_grad=True)
    head(features).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in head.parameters())
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    with torch.no_grad():
        next(teacher.parameters()).zero_()
        teacher.get_submodule("classifier").weight.zero_()  # type: ignore[union-attr, operator]
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_trunk_is_trainable_and_lists_removed_modules() -> None:
    student = Resnet(depth=8, width=4).build(DIGITS)
    trunk = Backbone(student, cut_at(student, "stage2"), DIGITS).train()
    trunk(torch.randn(2, *DIGITS.input_shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())
    left = {layer.name for layer in trunk.layers}
    assert {"stem", "stage1", "stage2", "stage2.0.conv1"} <= left
    assert not {"stage3", "pool", "classifier", "embedding"} & left


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stage3.0.conv2", "depend on more than layer 'stage3.0.conv2'"),
        ("classifier", "no parameters come after layer 'classifier'"),
    ],
    ids=["beside a shortcut", "the logits themselves"],
)
def test_invalid_split_points_raise(name: str, reason: str) -> None:
    network = Resnet(depth=8, width=4).build(DIGITS)
    with pytest.raises(ValueError, match=reason):
        Head(network, cut_at(network, name), DIGITS)


class Counting(nn.Module):
    """Network with control flow that depends on values after its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Flatten()
        self.last = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.first(inputs)
        return self.last(features if features.sum() > 0 else -features)


def test_untraceable_forward_raises() -> None:
    network = Counting()
    with pytest.raises(ValueError, match=r"split after layer 'first'.*torch\.fx"):
        Head(network, cut_at(network, "first"), DIGITS)


def test_unknown_network_can_be_split() -> None:
    signature = Signature((3, 64, 64), 1000)
    network = tv.get_model("resnet18").eval()
    layer = resolve(discover(network, signature), "layer4")
    inputs = torch.randn(2, *signature.input_shape, generator=torch.Generator().manual_seed(0))
    features, logits = layer_and_logits(network, layer, inputs)
    torch.testing.assert_close(Head(network, layer, signature)(features), logits)
    assert size(Head(network, layer, signature)) == 512 * 1000 + 1000


@pytest.mark.parametrize(("name", "signed"), [("resnet", False), ("wide_resnet", True)])
def test_detects_layers_with_negative_values(name: str, signed: bool) -> None:
    network = small(name).build(DIGITS).train()
    before = copy.deepcopy(network.state_dict())
    assert has_negative_values(network, cut_at(network, "stage3"), DIGITS) is signed
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
