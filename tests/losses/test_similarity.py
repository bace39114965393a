"""CKA between layers, against what is known of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raykd.losses.cka_map import CkaMap

generator = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def cka(one: Tensor, other: Tensor) -> float:
    found = CkaMap(("one",), ("other",))
    found.add({"one": one}, {"other": other})
    return float(found.values[0, 0])


def test_a_layer_is_like_itself_whatever_its_scale_and_its_turn() -> None:
    layer = drawn(16, 6)
    turned = layer @ torch.linalg.qr(drawn(6, 6)).Q
    assert cka(layer, layer) == pytest.approx(1)
    assert cka(layer, 3 * turned + 5) == pytest.approx(1, abs=1e-5)


def test_the_estimate_is_that_of_the_formula() -> None:
    """Nguyen 2020, Eq. 3, written out with matrices as the paper writes it."""
    one, other = drawn(7, 3, 2, 2), drawn(7, 5)

    def hsic(k: np.ndarray, ell: np.ndarray) -> float:
        k, ell, n = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell)), len(k)
        ones = np.ones(n)
        middle = (ones @ k @ ones) * (ones @ ell @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ ell) + middle - 2 / (n - 2) * (ones @ k @ ell @ ones)) / (n * (n - 3))

    k, ell = ((x.flatten(1) @ x.flatten(1).T).double().numpy() for x in (one, other))
    expected = hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))
    assert cka(one, other) == pytest.approx(expected, rel=1e-4)


def test_wide_layers_of_noise_are_not_alike() -> None:
    """The biased estimate says 0.9 and more of two wide layers that have nothing in common."""
    rows, columns = ("a", "b"), ("c",)
    found = CkaMap(rows, columns)
    for _ in range(20):
        found.add({name: drawn(16, 400) for name in rows}, {"c": drawn(16, 400)})
    assert found.values.shape == (2, 1)
    assert found.values.abs().max() < 0.1


def test_where_nothing_varies_there_is_no_value_and_small_batches_are_refused() -> None:
    assert np.isnan(cka(torch.ones(8, 4), drawn(8, 4)))
    with pytest.raises(ValueError, match="at least 4"):
        cka(drawn(3, 2), drawn(3, 2))
