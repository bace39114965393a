"""The CRD benchmark's networks (Tian et al. 2020, arXiv:1910.10699) have their published sizes.

`_resnet`, `_wrn` and `_vgg` work the sizes out on paper, layer by layer, from the papers'
tables; the literal figures are those of the benchmark's models for 100 classes.
"""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from model_cases import CIFAR, DIGITS
from raykd.architecture import MODELS, Model, Resnet, Vgg, WideResnet, anatomy

PUBLISHED = {
    "resnet20": (Resnet(depth=20), 278_324),
    "resnet32": (Resnet(depth=32), 472_756),
    "resnet56": (Resnet(depth=56), 861_620),
    "resnet110": (Resnet(depth=110), 1_736_564),
    "resnet8x4": (Resnet(depth=8, width=64, stem=32), 1_233_540),
    "resnet32x4": (Resnet(depth=32, width=64, stem=32), 7_433_860),
    "wrn_16_2": (WideResnet(depth=16, widen=2), 703_284),
    "wrn_40_1": (WideResnet(depth=40, widen=1), 569_780),
    "wrn_40_2": (WideResnet(depth=40, widen=2), 2_255_156),
    "vgg8": (Vgg(depth=8), 3_965_028),
    "vgg13": (Vgg(depth=13), 9_462_180),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    model, published = PUBLISHED[name]
    assert _on_paper(model) == published
    assert anatomy(model, CIFAR).params == published


def test_stages_of_the_benchmark() -> None:
    def shapes(model: Model) -> list[tuple[int, ...]]:
        told = anatomy(model, CIFAR)
        return [told.layers[alias] for alias in told.aliases]

    assert shapes(PUBLISHED["resnet8x4"][0]) == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)]
    assert shapes(PUBLISHED["wrn_40_2"][0]) == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)]
    assert shapes(PUBLISHED["vgg13"][0]) == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 4, 4),
        (512,),
    ]


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (Resnet(depth=10), "6n.2.*not 10"),
        (Resnet(depth=2), "6n.2.*not 2"),
        (WideResnet(depth=20), "6n.4.*not 20"),
        (Vgg(depth=9), "8, 11, 13, 16, 19, not 9"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_depths_that_do_not_exist(model: Model, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        anatomy(model, DIGITS)


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet", 10), ("wide_resnet", 20), ("vgg", 9), ("mlp", 0)]
)
def test_a_study_file_cannot_name_such_depths(name: str, depth: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.depth"):
        TypeAdapter(MODELS.annotation).validate_python({"name": name, "depth": depth})


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (1, [1, 1, 1, 1, 1]),
        (3, [3, 1, 1, 1, 1]),
        (8, [8, 4, 2, 1, 1]),
        (28, [28, 14, 7, 3, 3]),
        (64, [64, 32, 16, 8, 4]),
    ],
)
def test_vgg_pools_where_there_is_something_to_pool(side: int, sides: list[int]) -> None:
    told = anatomy(Vgg(width=2), type(DIGITS)((1, side, side + 1), 10))
    assert [told.layers[f"stage{number}"][1] for number in range(1, 6)] == sides


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
    convolutions = {8: (1, 1, 1, 1, 1), 13: (2, 2, 2, 2, 2)}[depth]
    total, before = 0, 3
    for outputs, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(count):
            total += before * outputs * 9 + outputs + 2 * outputs
            before = outputs
    return total + 512 * 100 + 100
