"""Connectors: their shapes, and errors where none fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.loss_cases import CLASSES
from raykd.losses import Hint, LossContext, Pair, RelationalKD
from raykd.losses.connectors import PlaceMean, connector, resized
from raykd.losses.shapes import Shape


@pytest.mark.parametrize(
    ("guided", "hint"),
    [
        ((4, 8, 8), (4, 8, 8)),
        ((4, 8, 8), (6, 8, 8)),
        ((4, 8, 8), (6, 4, 4)),
        ((4, 8, 8), (6, 4, 2)),
        ((4, 4, 4), (6, 8, 8)),
        ((4, 7, 7), (6, 4, 4)),
        ((4, 4, 4), (6, 7, 7)),
        ((4, 8, 2), (6, 2, 8)),
        ((5,), (5,)),
        ((5,), (9,)),
        ((7, 5), (7, 9)),
        ((4, 8, 8), (4,)),
        ((4, 8, 8), (9,)),
        ((7, 5), (9,)),
    ],
)
def test_connector_output_shape(guided: Shape, hint: Shape) -> None:
    bridge = connector(guided, hint)
    assert bridge(torch.randn(3, *guided)).shape == (3, *hint)


def test_equal_shapes_need_no_parameters_by_default() -> None:
    assert isinstance(connector((4, 8, 8), (4, 8, 8)), nn.Identity)
    always = connector((4, 8, 8), (4, 8, 8), always=True)
    assert sum(parameter.numel() for parameter in always.parameters()) == 4 * 4 + 2 * 4


def test_pooling_maps_feature_map_to_embedding_of_its_width() -> None:
    bridge = connector((4, 8, 8), (4,))
    assert isinstance(bridge, PlaceMean)
    torch.testing.assert_close(
        bridge(torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 8, 8)), torch.arange(4.0)[None]
    )


@pytest.mark.parametrize(
    ("guided", "hint", "reason"),
    [
        ((5,), (6, 4, 4), "an embedding (5,) cannot become a map (6, 4, 4)"),
        ((5,), (7, 5), "an embedding (5,) cannot become tokens (7, 5)"),
        ((6, 4, 4), (7, 5), "a map (6, 4, 4) cannot become tokens (7, 5)"),
        ((7, 5), (8, 5), "7 tokens cannot become 8 tokens"),
        ((2, 3, 4, 5), (5,), "neither a map"),
    ],
)
def test_incompatible_shapes_raise(guided: Shape, hint: Shape, reason: str) -> None:
    with pytest.raises(ValueError, match=r"neither|cannot become") as raised:
        connector(guided, hint)
    assert reason in str(raised.value)


def test_error_names_both_layers_and_shapes() -> None:
    context = LossContext(
        pairs=(Pair(hint="layer2", guided="fc"),),
        guided_shapes=((5,),),
        hint_shapes=((6, 4, 4),),
        classes=CLASSES,
        train_size=8,
        data_size=8,
    )
    with pytest.raises(ValueError, match=r"'fc'.*'layer2'") as raised:
        Hint().build(context)
    assert "(5,)" in str(raised.value) and "(6, 4, 4)" in str(raised.value)
    RelationalKD().build(context)


def test_resized_preserves_constant_map() -> None:
    for size in [(2, 2), (3, 3), (8, 8)]:
        torch.testing.assert_close(resized(torch.ones(1, 1, 4, 4), size), torch.ones(1, 1, *size))


def test_shrinking_connector_maps_each_patch_linearly() -> None:
    bridge = connector((3, 4, 4), (5, 2, 2)).double().eval()
    convolution = bridge.get_submodule("0")
    kernel = convolution.get_parameter("weight").detach().numpy()
    student = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    patches = student.reshape(2, 3, 2, 2, 2, 2)  # (batch, channel, row, within, column, within)
    expected = np.einsum("ocij,bcxiyj->boxy", kernel, patches) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(bridge(torch.from_numpy(student)).detach().numpy(), expected)


def test_growing_connector_maps_each_position_to_patch() -> None:
    bridge = connector((3, 2, 2), (5, 4, 4)).double().eval()
    kernel = bridge.get_submodule("0").get_parameter("weight").detach().numpy()
    student = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
    patches = np.einsum("coij,bcxy->boxiyj", kernel, student)
    expected = patches.reshape(2, 5, 4, 4) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(bridge(torch.from_numpy(student)).detach().numpy(), expected)


READY_ON_META = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from helpers.loss_cases import context_of, variants
for loss in variants():
    with torch.device("meta"):
        loss.build(context_of(loss))
print([name for name in ("sympy", "torch._inductor") if name in sys.modules])
"""


def test_building_losses_on_meta_does_not_import_sympy() -> None:
    """Losses are built for every checked point of a space; importing sympy takes seconds."""
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", READY_ON_META, here], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
