"""Networks have their published sizes and compute the same values as published code.

The benchmark's figures are the numbers of parameters of its models (HobbitLong/RepDistiller,
`models/`, at 100 classes), counted by running that code.  `_resnet`, `_wrn` and `_vgg` work some
of them out on paper, layer by layer, from the papers' tables.
"""

from __future__ import annotations

import pickle

import pytest
import torch
import torchvision.models as tv
from pydantic import TypeAdapter
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from helpers.model_cases import CIFAR
from raykd.models import (
    CRD_BENCHMARK,
    MODELS,
    AnyModel,
    Convnext,
    Mixer,
    MobilenetV2,
    Model,
    Resnet,
    ShufflenetV1,
    ShufflenetV2,
    Signature,
    Vgg,
    Vit,
    WideResnet,
    profile_model,
)
from raykd.models.zoo.crd_benchmark import MEMBERS

IMAGENET = Signature((3, 224, 224), 1000)
HALF = Signature((3, 64, 64), 1000)

BENCHMARK = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "ResNet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
}

# Parameters for 1,000 classes at 224x224: torchvision's documentation, but where it is said.
IMAGENET_SIZES = {
    "resnet18": (Resnet(stages=4, depth=18, width=64, stem_type="imagenet"), 11_689_512),
    "resnet34": (Resnet(stages=4, depth=34, width=64, stem_type="imagenet"), 21_797_672),
    "resnet50": (
        Resnet(stages=4, block="bottleneck", depth=50, width=64, stem_type="imagenet"),
        25_557_032,
    ),
    "resnet101": (
        Resnet(stages=4, block="bottleneck", depth=101, width=64, stem_type="imagenet"),
        44_549_160,
    ),
    "resnet152": (
        Resnet(stages=4, block="bottleneck", depth=152, width=64, stem_type="imagenet"),
        60_192_808,
    ),
    "mobilenet_v2": (MobilenetV2(variant="imagenet"), 3_504_872),
    "shufflenet_v2_x0_5": (ShufflenetV2(width=48, stem_type="imagenet"), 1_366_792),
    "shufflenet_v2_x1_0": (ShufflenetV2(width=116, stem_type="imagenet"), 2_278_604),
    "shufflenet_v2_x1_5": (ShufflenetV2(width=176, stem_type="imagenet"), 3_503_624),
    "shufflenet_v2_x2_0": (ShufflenetV2(width=244, head=2048, stem_type="imagenet"), 7_393_996),
    "convnext_tiny": (Convnext(patch=4, width=96, depths=(3, 3, 9, 3)), 28_589_128),
    "convnext_base": (Convnext(patch=4, width=128, depths=(3, 3, 27, 3)), 88_591_464),
    "vit_b_16": (Vit(patch=16, depth=12, width=768, heads=12), 86_567_656),
    # timm 1.0's deit_tiny_patch16_224, deit_small_patch16_224 and mixer_s16_224.
    "deit_tiny": (Vit(patch=16, depth=12, width=192, heads=3), 5_717_416),
    "deit_small": (Vit(patch=16, depth=12, width=384, heads=6), 22_050_664),
    "mixer_s16": (Mixer(patch=16, depth=8, width=512), 18_528_264),
}

# The authors' own table (megvii-model/ShuffleNet-Series): millions of multiply-accumulates and
# of parameters, by groups and multiplier.
SHUFFLENET_V1 = {
    (3, 0.5): (38, 0.7),
    (8, 0.5): (40, 1.0),
    (3, 1.0): (138, 1.9),
    (8, 1.0): (138, 2.4),
    (3, 2.0): (524, 5.4),
    (8, 2.0): (522, 6.5),
}


@pytest.mark.parametrize("name", BENCHMARK)
def test_benchmark_networks_have_published_sizes(name: str) -> None:
    model = TypeAdapter(AnyModel).validate_python({"name": name})
    assert profile_model(model, CIFAR).params == BENCHMARK[name]
    if isinstance(MEMBERS[name], Resnet | WideResnet | Vgg) and name != "ResNet50":
        assert _on_paper(MEMBERS[name]) == BENCHMARK[name]


def test_benchmark_networks_are_options() -> None:
    assert [cls.name for cls in CRD_BENCHMARK] == list(BENCHMARK)
    for cls in CRD_BENCHMARK:
        model = cls()  # pyright: ignore[reportCallIssue]
        assert pickle.loads(pickle.dumps(model)) == model
        assert hash(model) == hash(cls())  # pyright: ignore[reportCallIssue]
        with pytest.raises(ValueError, match="width"):
            TypeAdapter(AnyModel).validate_python({"name": cls.name, "width": 8})
    assert MODELS["resnet8x4"].__doc__ == (
        "The CRD benchmark's resnet8x4: {name: resnet, depth: 8, width: 64, stem: 32}."
    )


@pytest.mark.parametrize("name", IMAGENET_SIZES)
def test_imagenet_networks_have_published_sizes(name: str) -> None:
    model, published = IMAGENET_SIZES[name]
    with torch.device("meta"):
        network = model.build(IMAGENET)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize(("groups", "multiplier"), SHUFFLENET_V1)
def test_shufflenets_have_published_costs(groups: int, multiplier: float) -> None:
    model = ShufflenetV1(groups=groups, width_multiplier=multiplier, variant="imagenet")  # type: ignore[arg-type]
    macs, params = SHUFFLENET_V1[groups, multiplier]
    profile = profile_model(model, IMAGENET)
    assert profile.macs / 1e6 == pytest.approx(macs, abs=0.6)
    assert profile.params / 1e6 == pytest.approx(params, abs=0.06)


def _convnext() -> nn.Module:
    sizes = [(8, 16, 1), (16, 32, 2), (32, None, 1)]
    return tv.ConvNeXt([CNBlockConfig(*size) for size in sizes], layer_scale=0.5)


def _vit() -> nn.Module:
    return tv.VisionTransformer(
        image_size=64, patch_size=16, num_layers=5, num_heads=3, hidden_dim=24, mlp_dim=96
    )


TWINS = {
    "resnet18": (Resnet(stages=4, depth=18, width=64, stem_type="imagenet"), tv.resnet18),
    "resnet50": (
        Resnet(stages=4, block="bottleneck", depth=50, width=64, stem_type="imagenet"),
        tv.resnet50,
    ),
    "mobilenet_v2": (
        MobilenetV2(variant="imagenet", width_multiplier=0.35),
        lambda: tv.MobileNetV2(width_mult=0.35),
    ),
    "shufflenet_v2": (ShufflenetV2(width=48, stem_type="imagenet"), tv.shufflenet_v2_x0_5),
    "convnext": (Convnext(patch=4, width=8, depths=(1, 2, 1)), _convnext),
    "vit": (Vit(patch=16, depth=5, width=24, heads=3), _vit),
}


@pytest.mark.parametrize("name", TWINS)
def test_torchvision_weights_give_torchvision_outputs(name: str) -> None:
    model, build = TWINS[name]
    torch.manual_seed(0)
    twin, network = _drawn(build()).eval(), model.build(HALF).eval()
    network.load_state_dict(_carried(twin.state_dict(), network.state_dict()))
    pictures = torch.rand(2, *HALF.input_shape)
    with torch.no_grad():
        expected = twin(pictures)
        torch.testing.assert_close(network(pictures), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3  # weights that say nothing would agree, too


def _drawn(network: nn.Module) -> nn.Module:
    """Randomize the weights: torchvision's classifiers and scales start at or near 0."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def _carried(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename their weights; in both networks modules are in execution order."""
    values = [value for name, value in theirs.items() if name != "encoder.pos_embedding"]
    if len(values) < len(theirs):
        values.insert(1, theirs["encoder.pos_embedding"])
    pairs = zip(ours.items(), values, strict=True)
    return {name: value.reshape(mine.shape) for (name, mine), value in pairs}


def test_stages_of_benchmark_networks() -> None:
    def shapes(name: str) -> list[tuple[int, ...]]:
        profile = profile_model(MODELS[name](), CIFAR)
        return [profile.layers[alias] for alias in profile.aliases]

    assert shapes("resnet8x4") == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)]
    assert shapes("ResNet50") == [
        (256, 32, 32),
        (512, 16, 16),
        (1024, 8, 8),
        (2048, 4, 4),
        (2048,),
    ]
    assert shapes("wrn_40_2") == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)]
    assert shapes("vgg13") == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 4, 4),
        (512,),
    ]
    assert shapes("MobileNetV2") == [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2), (1280,)]
    assert shapes("ShuffleV1") == [(240, 16, 16), (480, 8, 8), (960, 4, 4), (960,)]
    assert shapes("ShuffleV2") == [(116, 16, 16), (232, 8, 8), (464, 4, 4), (1024,)]


@pytest.mark.parametrize("name", BENCHMARK)
@pytest.mark.parametrize("side", [8, 28])
def test_benchmark_networks_accept_small_images(name: str, side: int) -> None:
    profile = profile_model(MODELS[name](), Signature((1, side, side), 10))
    assert list(profile.aliases) == list(profile_model(MODELS[name](), CIFAR).aliases)


def _on_paper(model: Model) -> int:
    if isinstance(model, Resnet):
        return _resnet(model.depth, model.stem or model.width, model.width)
    if isinstance(model, WideResnet):
        return _wrn(model.depth, model.widen)
    assert isinstance(model, Vgg)
    return _vgg(model.depth)


def _resnet(depth: int, stem: int, width: int) -> int:
    total = 3 * stem * 9 + 2 * stem
    before = stem
    for outputs in (width, 2 * width, 4 * width):
        blocks = (depth - 2) // 6
        total += before * outputs * 9 + (2 * blocks - 1) * outputs * outputs * 9
        total += 2 * blocks * 2 * outputs
        if before != outputs:
            total += before * outputs + 2 * outputs
        before = outputs
    return total + before * 100 + 100


def _wrn(depth: int, widen: int) -> int:
    total, before = 3 * 16 * 9, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        blocks = (depth - 4) // 6
        total += before * outputs * 9 + (2 * blocks - 1) * outputs * outputs * 9
        total += 2 * before + (2 * blocks - 1) * 2 * outputs
        if before != outputs:
            total += before * outputs
        before = outputs
    return total + 2 * before + before * 100 + 100


def _vgg(depth: int) -> int:
    convolutions = {
        8: (1, 1, 1, 1, 1),
        11: (1, 1, 2, 2, 2),
        13: (2, 2, 2, 2, 2),
        16: (2, 2, 3, 3, 3),
        19: (2, 2, 4, 4, 4),
    }[depth]
    total, before = 0, 3
    for outputs, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(count):
            total += before * outputs * 9 + outputs + 2 * outputs
            before = outputs
    return total + 512 * 100 + 100
