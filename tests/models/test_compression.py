"""Compressed networks: sizes, inherited weights, outputs."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.model_cases import CIFAR, DIGITS
from raykd.models import (
    CompressedModel,
    Convnext,
    Mlp,
    MobilenetV2,
    Model,
    Resnet,
    ShufflenetV1,
    Signature,
    Text,
    Vgg,
    Vit,
    profile_model,
)
from raykd.models.adapters.torchvision import Torchvision
from raykd.models.compression import (
    COMPRESSED_MODELS,
    ChannelPruning,
    Copy,
    LayerPruning,
    LowRank,
    Quantized,
    Separable,
)
from raykd.models.compression.layer_pruning import find_runs
from raykd.models.compression.low_rank import factorize
from raykd.models.compression.separable import group, separate
from raykd.registry import option

RESNET = Resnet(depth=20, width=8)


def _trained(model: Model, signature: Signature = DIGITS) -> nn.Module:
    """Build a network with trained-like weights and batch-norm statistics."""
    torch.manual_seed(3)
    network = model.build(signature).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        network(_samples(signature, 16))
    return network.eval()


def _samples(signature: Signature = DIGITS, batch: int = 4) -> Tensor:
    return torch.rand(batch, *signature.input_shape, generator=torch.Generator().manual_seed(1))


def _derived(
    model: CompressedModel, trained: nn.Module, signature: Signature = DIGITS
) -> nn.Module:
    return model.build_from(trained, signature).eval()


@pytest.mark.parametrize("cls", COMPRESSED_MODELS, ids=lambda cls: cls.name)
def test_inherited_student_has_profiled_size_and_teacher_is_unchanged(cls: Any) -> None:
    model, trained = cls(base=RESNET, inherit_weights=True), _trained(RESNET)
    before = copy.deepcopy(trained.state_dict())
    frozen = trained.requires_grad_(False)
    student = model.build_from(frozen, DIGITS)
    profile = profile_model(model, DIGITS)
    assert sum(parameter.numel() for parameter in student.parameters()) == profile.params
    assert student.training and all(weight.requires_grad for weight in student.parameters())
    assert not any(weight.requires_grad for weight in trained.parameters()) and not trained.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    shapes = {name: tensor.shape for name, tensor in model.build(DIGITS).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in student.state_dict().items()}


@pytest.mark.parametrize(
    "model",
    [
        Copy(base=RESNET, inherit_weights=True),
        LayerPruning(base=RESNET, keep=1),
        ChannelPruning(base=RESNET, keep=1),
        LowRank(base=RESNET, rank=1),
    ],
    ids=lambda model: model.name,
)
def test_no_compression_equals_teacher(model: CompressedModel) -> None:
    trained = _trained(RESNET)
    assert torch.equal(_derived(model, trained)(_samples()), trained(_samples()))


def test_explicit_base_and_chained_compression() -> None:
    model = Quantized(base=LayerPruning(base=LowRank(base=RESNET), keep=0.3))
    assert model.origin == RESNET
    fresh = LayerPruning(base=RESNET, inherit_weights=False)
    assert fresh.origin is None and Quantized(base=fresh).origin == fresh
    assert _derived(Quantized(base=fresh), fresh.build(DIGITS))(_samples()).shape == (4, 10)
    student = _derived(model, _trained(RESNET))
    assert profile_model(model, DIGITS).params == profile_model(model.base_model, DIGITS).params
    assert student(_samples()).shape == (4, 10)


# Fewer layers


def _blocks(network: nn.Module, stage: str) -> list[nn.Module]:
    return list(network.get_submodule(stage).children())


@pytest.mark.parametrize(
    ("rule", "fraction"), [("evenly", [0, 2, 4]), ("first", [0, 1, 2]), ("last", [0, 3, 4])]
)
def test_selected_blocks(rule: Any, fraction: list[int]) -> None:
    source = Resnet(depth=32, width=4, stem=6)  # stages of 5, the first block changes the shape
    trained = _trained(source)
    student = _derived(LayerPruning(base=source, keep=0.6, rule=rule), trained)
    for stage in ("stage1", "stage2", "stage3"):
        student_blocks, teacher_blocks = _blocks(student, stage), _blocks(trained, stage)
        expected = [0, 1, 4] if rule == "evenly" else fraction  # evenly among the four behind it
        assert [_same_weights(block, teacher_blocks) for block in student_blocks] == expected


def _same_weights(block: nn.Module, candidates: list[nn.Module]) -> int:
    state = block.state_dict()
    for number, candidate in enumerate(candidates):
        candidate_state = candidate.state_dict()
        if candidate_state.keys() == state.keys() and all(
            torch.equal(candidate_state[k], state[k]) for k in candidate_state
        ):
            return number
    raise AssertionError("a block that is none of the teacher's")


def test_largest_blocks_are_kept_and_shapes_are_known_in_advance() -> None:
    source = Resnet(depth=32, width=4, stem=6)
    trained = _trained(source)
    with torch.no_grad():
        for number, scale in ((1, 0.1), (2, 3.0), (3, 0.2), (4, 2.0)):
            for parameter in _blocks(trained, "stage2")[number].parameters():
                parameter.mul_(scale)
    student = _derived(LayerPruning(base=source, keep=0.6, rule="magnitude"), trained)
    student_blocks, teacher_blocks = _blocks(student, "stage2"), _blocks(trained, "stage2")
    assert [_same_weights(block, teacher_blocks) for block in student_blocks] == [0, 2, 4]


def test_minimal_fraction_keeps_one_block_per_run() -> None:
    for source in (Vit(depth=8, width=16, heads=2), Mlp(depth=5, width=6), RESNET):
        student = LayerPruning(base=source, keep=0.01).build(DIGITS)
        assert find_runs(student, DIGITS) == []
        names = profile_model(source, DIGITS).aliases
        if source.name != "mlp":  # whose stages are its blocks
            assert list(
                profile_model(LayerPruning(base=source, keep=0.01), DIGITS).aliases
            ) == list(names)


def test_plain_sequences_drop_convolutions_with_their_norms() -> None:
    source = Vgg(depth=16, width=2)
    student = LayerPruning(base=source, keep=0.5).build(DIGITS)
    convolutions = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 8  # of 2, 2, 3, 3, 3: 1, 1, 2, 2, 2


def test_stages_are_not_blocks() -> None:
    """Torchvision numbers ConvNeXt's stages; no whole stage may be removed."""
    source = Torchvision(name="torchvision/convnext_tiny")
    pruned, whole = profile_model(LayerPruning(base=source), CIFAR), profile_model(source, CIFAR)
    assert list(pruned.aliases) == list(whole.aliases)
    assert 0.5 < pruned.params / whole.params < 0.8


# Fewer channels


def test_channels_with_largest_norm_are_kept() -> None:
    source = Vgg(depth=8, width=8)
    trained = _trained(source)
    student = _derived(ChannelPruning(base=source, keep=0.5), trained)
    first = trained.get_submodule("stage1.conv1").weight
    assert isinstance(first, Tensor)
    expected = first.flatten(1).abs().sum(1).argsort(descending=True)[:4].sort().values
    assert torch.equal(student.get_parameter("stage1.conv1.weight"), first[expected])
    after = trained.get_parameter("stage2.conv1.weight")
    rows = after.flatten(1).abs().sum(1).argsort(descending=True)[:8].sort().values
    assert torch.equal(student.get_parameter("stage2.conv1.weight"), after[rows][:, expected])
    assert torch.equal(
        student.get_buffer("stage1.bn1.running_var"),
        trained.get_buffer("stage1.bn1.running_var")[expected],
    )


def test_channels_of_residual_sum_are_ranked_jointly() -> None:
    source = Resnet(depth=14, width=4)
    trained = _trained(source)
    bound = ["stem.0", "stage1.0.conv2", "stage1.1.conv2"]
    weights = [trained.get_parameter(f"{name}.weight") for name in bound]
    norms = sum(weight.detach().flatten(1).norm(dim=1) for weight in weights)
    assert isinstance(norms, Tensor)
    expected = norms.argsort(descending=True)[:2].sort().values
    student = _derived(ChannelPruning(base=source, norm="l2"), trained)
    assert torch.equal(student.get_parameter("stem.0.weight"), weights[0][expected])


@option
class Branches(Model):
    """Model of two parallel branches with concatenated channels."""

    name: str = "branches"

    def build(self, signature: Signature) -> nn.Module:
        return _Branches(signature)


class _Branches(nn.Module):
    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.mixed = nn.Conv2d(14, 10, 1)
        self.classifier = nn.Linear(10, signature.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        both = torch.cat([self.left(inputs), self.right(inputs)], dim=1)
        return self.classifier(self.mixed(both).mean(dim=(2, 3)))


PRUNED = [
    Resnet(depth=14, width=6),
    Resnet(block="bottleneck", depth=11, width=2),
    Vgg(depth=8, width=6),
    MobilenetV2(width_multiplier=0.25, expansion=2),
    Torchvision(name="torchvision/mobilenet_v3_small"),
    Mlp(depth=3, width=10),
    Branches(),
]


@pytest.mark.parametrize("source", PRUNED, ids=lambda model: model.name)
def test_pruning_equals_zeroing_channels(source: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums, depthwise convolutions, squeeze-excite: remaining channels keep their values."""
    trained = _trained(source, CIFAR)
    silenced = copy.deepcopy(trained)
    step = torch_pruning.pruner.BasePruner.step

    def silencing(pruner: Any) -> None:
        names = {module: name for name, module in pruner.model.named_modules()}
        for channels in step(pruner, interactive=True) or ():
            for channel in channels:
                module = channel.dep.target.module
                if module in names and pruner.DG.is_out_channel_pruning_fn(channel.dep.handler):
                    _silence(silenced.get_submodule(names[module]), list(channel.idxs))
            channels.prune()

    monkeypatch.setattr(torch_pruning.pruner.BasePruner, "step", silencing)
    student = _derived(ChannelPruning(base=source), trained, CIFAR)
    with torch.no_grad():
        before, expected = trained(_samples(CIFAR)), silenced(_samples(CIFAR))
        actual = student(_samples(CIFAR))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (before - expected).abs().max() > 0.1 * expected.std(), "something was silenced"


@torch.no_grad()
def _silence(module: nn.Module, channels: list[int]) -> None:
    for parameter in module.parameters(recurse=False):
        parameter[channels] = 0


def test_attention_heads_are_narrowed() -> None:
    source = Vit(depth=2, width=16, heads=4, patch=2)
    student = ChannelPruning(base=source, keep=0.5).build(DIGITS)
    attention = student.get_submodule("stage1.0.attention")
    assert attention.heads == 4 and attention.get_submodule("qkv").out_features == 24


# Low rank


@pytest.mark.parametrize(
    "layer", [nn.Linear(7, 5), nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)], ids=str
)
def test_full_rank_product_equals_layer(layer: nn.Conv2d | nn.Linear) -> None:
    inputs = torch.randn(3, 7) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 9, 9)
    whole = factorize(layer, 5 if isinstance(layer, nn.Linear) else 6)
    torch.testing.assert_close(whole(inputs), layer(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.weight, layer.weight, rtol=1e-4, atol=1e-5)
    assert (whole.bias is None) == (layer.bias is None)
    if whole.bias is not None and layer.bias is not None:
        assert torch.equal(whole.bias, layer.bias)


def test_low_rank_product_is_best_approximation() -> None:
    layer = nn.Linear(12, 9)
    with torch.no_grad():
        product = factorize(layer, 4).weight
        values = torch.linalg.svdvals(layer.weight)
        error = (product - layer.weight).square().sum()
    assert torch.linalg.matrix_rank(product) == 4
    torch.testing.assert_close(error, values[4:].square().sum(), rtol=1e-3, atol=1e-6)


def test_layers_that_would_not_shrink_and_classifier_are_kept() -> None:
    student = LowRank(base=Vit(depth=2, width=16, heads=4), rank=0.4).build(DIGITS)
    kinds = {name: type(module).__name__ for name, module in student.named_modules()}
    assert kinds["stage1.0.attention.qkv"] == "Factorized"  # 6 x (48 + 16) < 48 x 16
    assert kinds["stage1.0.mlp.fc1"] == "Factorized"
    small = LowRank(base=Vit(depth=2, width=16, heads=4), rank=0.5).build(DIGITS)
    assert type(small.get_submodule("stage1.0.attention.project")) is nn.Linear  # 8 x 32 = 16 x 16
    assert kinds["classifier"] == "Linear"
    only = LowRank(base=RESNET, operators="linear").build(DIGITS)
    assert not any(type(module).__name__ == "Factorized" for module in only.modules())


# Separable


def test_separable_kernel_is_recovered() -> None:
    """A dense convolution that factorizes into depthwise and 1x1 is replaced exactly."""
    places, shares = torch.randn(4, 3, 3), torch.randn(6, 4)
    layer = nn.Conv2d(4, 6, 3, padding=1, stride=2)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("oi,ihw->oihw", shares, places))
    inputs = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(separate(layer)(inputs), layer(inputs), rtol=1e-3, atol=1e-4)


def test_block_diagonal_kernel_is_recovered() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        layer.weight[:3, 2:] = 0
        layer.weight[3:, :2] = 0
    inputs = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(group(layer, 2)(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


def test_all_but_first_and_pointwise_convolutions_are_replaced() -> None:
    student = Separable(base=RESNET).build(DIGITS)
    dense = [
        name
        for name, layer in student.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and max(layer.kernel_size) > 1
    ]
    assert dense == ["stem.0"]
    groups = Separable(base=Resnet(depth=8, width=6), operator="group", groups=4).build(DIGITS)
    counts = [layer.groups for layer in groups.modules() if isinstance(layer, nn.Conv2d)]
    assert 4 in counts and 3 in counts  # of 6 channels the largest divisor that is no more than 4


# Mistakes

TEXTS = Signature((8,), 3, Text(50))
WRONG: list[tuple[CompressedModel, Signature, str]] = [
    (
        LayerPruning(),
        DIGITS,
        "`layer_pruning` has no base model; set `base`",
    ),
    (LayerPruning(base=Resnet(depth=8)), DIGITS, "resnet has no blocks to remove"),
    (ChannelPruning(base=ShufflenetV1()), DIGITS, "the channels of shufflenet_v1 cannot be pruned"),
    (Separable(base=Mlp()), DIGITS, "mlp has no dense convolution that `separable` can replace"),
    (Quantized(base=Mlp(depth=1), ends="float"), DIGITS, "mlp has no convolution or linear layer"),
    (LowRank(base=RESNET), TEXTS, "resnet, the base of low_rank, does not take texts"),
    (LowRank(base=Convnext(depths=(9,) * 9)), DIGITS, "a convnext of 9 stages"),
]


@pytest.mark.parametrize(
    ("model", "signature", "message"), WRONG, ids=[row[2][:40] for row in WRONG]
)
def test_invalid_options_raise_when_profiled(
    model: CompressedModel, signature: Signature, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        profile_model(model, signature)


def test_network_of_another_architecture_raises() -> None:
    with pytest.raises(ValueError, match=r"not match `resnet`.*such as .*correct the teacher's"):
        LowRank(base=RESNET).build_from(Resnet(depth=14, width=8).build(DIGITS), DIGITS)
    with pytest.raises(ValueError, match="resnet inherits nothing"):
        RESNET.build_from(RESNET.build(DIGITS), DIGITS)


def test_gradients_reach_every_parameter_of_chain() -> None:
    model = Quantized(base=ChannelPruning(base=Resnet(depth=14, width=8)))
    student = model.build(DIGITS).train()
    F.cross_entropy(student(_samples()), torch.arange(4)).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in student.parameters()
    )
