"""Stage aliases are independent of depth and width, so that a pairing space is stable."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from helpers.model_cases import FAMILY_MEMBERS, FASHION, NAMES, VARIANTS, variants
from raykd.models import COMPRESSED_MODELS, MODELS, Model, ModelProfile, profile_model
from raykd.models.introspection.stages import BLOCK_STAGES

BLOCKS_END_STAGES = {"vit": "depth", "mixer": "depth", "mlp": "depth"}
"""Families whose stages are made of repeated blocks, and how many there are: fewer blocks than
`BLOCK_STAGES` make fewer stages."""

SIZES: dict[str, dict[str, tuple[Any, ...]]] = {
    "resnet": {"depth": (8, 14, 26), "width": (2, 4, 9)},
    "wide_resnet": {"depth": (10, 16, 28), "widen": (1, 2)},
    "vgg": {"depth": (8, 11, 13, 16, 19), "width": (2, 4, 6)},
    "mobilenet_v2": {"width_multiplier": (0.1, 0.125, 0.3), "expansion": (1, 2, 6)},
    "shufflenet_v1": {
        "width_multiplier": (0.1, 0.25, 0.5),
        "depths": ((1, 1, 1), (4, 8, 4)),
        "groups": (1, 2, 3, 4, 8),
    },
    "shufflenet_v2": {"width": (4, 8, 24), "depths": ((1, 1, 1), (4, 8, 4)), "head": (8, 64)},
    "convnext": {"width": (4, 8, 16), "depths": ((1, 1, 1), (3, 3, 9)), "kernel": (3, 5, 7)},
    "vit": {"depth": (4, 5, 7, 12), "width": (8, 16), "mlp_ratio": (1.0, 4.0)},
    "mixer": {"depth": (4, 5, 7, 12), "width": (4, 16)},
    "mlp": {"depth": (4, 5, 7, 12), "width": (4, 16)},
}
"""For each family: what a search opens, with its ends and something between."""


def aliases(model: Model) -> set[str]:
    return {*profile_model(model, FASHION).aliases}


def corners(name: str) -> list[Model]:
    """The family's first small member with each size changed in turn, then with all at
    their last."""
    first = {**VARIANTS[name][0]}
    sizes = SIZES[name]
    changed = [{key: value} for key, values in sizes.items() for value in values]
    changed.append({key: values[-1] for key, values in sizes.items()})
    return [MODELS[name](**{**first, **change}) for change in changed]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_aliases_are_equal_over_depth_and_width(name: str) -> None:
    alias_sets = [aliases(model) for model in corners(name)]
    assert all(names == alias_sets[0] for names in alias_sets)
    assert "embedding" in alias_sets[0]
    assert "stage1" in alias_sets[0]
    numbers = sorted(int(alias[5:]) for alias in alias_sets[0] if alias.startswith("stage"))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", [cls.name for cls in COMPRESSED_MODELS])
def test_compressed_students_keep_teachers_aliases(name: str) -> None:
    for model in variants(name):
        source = getattr(model, "base")  # noqa: B009 - a field that derived models alone have
        assert aliases(model) == aliases(source)


UNLIKE = ("cnn", *(cls.name for cls in COMPRESSED_MODELS))
"""Families with tests of their own here."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNLIKE])
def test_every_searched_family_is_covered(name: str) -> None:
    assert name in SIZES
    assert {*SIZES[name]} <= {field.name for field in dataclasses.fields(MODELS[name])}


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_macro_space_has_alias_per_stage(stages: int) -> None:
    whole = FAMILY_MEMBERS["cnn"][0]["stages"][0]
    expected = {*(f"stage{i + 1}" for i in range(stages)), "embedding"}
    for change in ({"depth": 1}, {"depth": 3}, {"width": 2}, {"width": 9}, {"kernel": 5}):
        stage = dataclasses.replace(whole, **change)
        assert aliases(MODELS["cnn"](stages=(stage,) * stages)) == expected


@pytest.mark.parametrize(("name", "depth"), BLOCKS_END_STAGES.items())
def test_fewer_blocks_than_stages_give_fewer_stages(name: str, depth: str) -> None:
    """Aliases of a shallower member are the first aliases of a deeper one."""
    first = VARIANTS[name][0]
    for blocks in range(1, BLOCK_STAGES + 2):
        names = aliases(MODELS[name](**{**first, depth: blocks}))
        stages = min(blocks, BLOCK_STAGES)
        assert {f"stage{i + 1}" for i in range(stages)} <= names


@pytest.mark.parametrize("name", sorted(SIZES))
def test_aliases_are_ordered_by_depth(name: str) -> None:
    for model in corners(name):
        profile: ModelProfile = profile_model(model, FASHION)
        depth = {layer.stage: layer.depth for layer in profile.ordered_layers if layer.stage}
        ordered = sorted(depth, key=lambda alias: (alias == "embedding", alias))
        assert [depth[alias] for alias in ordered] == sorted(depth.values())
