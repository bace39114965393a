"""CKA between layers: invariances, formula, bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raykd.losses.cka_map import CkaMap

generator = torch.Generator().manual_seed(0)


def random_layer(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def cka(left: Tensor, right: Tensor) -> float:
    similarity = CkaMap(("one",), ("other",))
    similarity.add({"one": left}, {"other": right})
    return float(similarity.values[0, 0])


def test_cka_with_itself_is_one_under_scale_and_rotation() -> None:
    layer = random_layer(16, 6)
    turned = layer @ torch.linalg.qr(random_layer(6, 6)).Q
    assert cka(layer, layer) == pytest.approx(1)
    assert cka(layer, 3 * turned + 5) == pytest.approx(1, abs=1e-5)


def test_estimate_matches_formula() -> None:
    """Nguyen 2020, Eq. 3, with explicit matrices as in the paper."""
    left, right = random_layer(7, 3, 2, 2), random_layer(7, 5)

    def hsic(k: np.ndarray, ell: np.ndarray) -> float:
        k, ell, n = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell)), len(k)
        ones = np.ones(n)
        middle = (ones @ k @ ones) * (ones @ ell @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ ell) + middle - 2 / (n - 2) * (ones @ k @ ell @ ones)) / (n * (n - 3))

    k, ell = ((x.flatten(1) @ x.flatten(1).T).double().numpy() for x in (left, right))
    expected = hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))
    assert cka(left, right) == pytest.approx(expected, rel=1e-4)


def test_wide_noise_layers_have_low_similarity() -> None:
    """The biased estimate is above 0.9 for two wide unrelated layers."""
    rows, columns = ("a", "b"), ("c",)
    similarity = CkaMap(rows, columns)
    for _ in range(20):
        similarity.add({name: random_layer(16, 400) for name in rows}, {"c": random_layer(16, 400)})
    assert similarity.values.shape == (2, 1)
    assert similarity.values.abs().max() < 0.1


def test_constant_layers_give_nan_and_small_batches_raise() -> None:
    assert np.isnan(cka(torch.ones(8, 4), random_layer(8, 4)))
    with pytest.raises(ValueError, match="at least 4"):
        cka(random_layer(3, 2), random_layer(3, 2))
