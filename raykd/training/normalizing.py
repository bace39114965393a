"""Teachers adapted to the normalization of a study's data."""

from __future__ import annotations

from torch import nn

from raykd.architecture.delivered import unwrapped
from raykd.architecture.normalization import Normalization, expected_by, renormalized
from raykd.data import Dataset


def adapted(network: nn.Module, data: Dataset, stored: Normalization | None = None) -> nn.Module:
    """A teacher, such that it takes the batches of `data`.

    Preprocessing that travels with a network is taken off: batches are normalized already.  Where
    it was trained with another mean or deviation, an affine map in front corrects its inputs.

    Args:
        network: of any origin.
        data: what the batches are made of.
        stored: the normalization that is known from elsewhere; None: what the network knows.

    Raises:
        ValueError: the normalization is for another number of channels.
    """
    inner, found = unwrapped(network)
    normalization = stored or found
    if normalization is None or data.vocabulary:
        return inner
    return renormalized(inner, normalization, data.mean, data.std)


def trained_with(network: nn.Module, data: Dataset) -> Normalization | None:
    """The normalization that a network trained on `data` expects; None where there is none."""
    if not data.mean:
        return None
    return expected_by(network) or Normalization(mean=data.mean, std=data.std)
