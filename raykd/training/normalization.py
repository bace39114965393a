"""Teachers adapted to the normalization of the data of a study."""

from __future__ import annotations

from torch import nn

from raykd.data import Dataset
from raykd.models.normalization import Normalization, adapt_normalization, expected_normalization
from raykd.models.preprocessing import strip_preprocessing


def adapted(network: nn.Module, data: Dataset, stored: Normalization | None = None) -> nn.Module:
    """Return a teacher that takes the batches of `data`.

    Preprocessing that is part of the network is removed, because batches are already normalized.
    If the network was trained with another mean or standard deviation, an affine map before it
    corrects its inputs.

    Args:
        network: of any origin.
        data: source of the batches.
        stored: normalization of the network's inputs; None: as the network states.

    Raises:
        ValueError: the normalization is for another number of channels.
    """
    inner, stated = strip_preprocessing(network)
    normalization = stored or stated
    if normalization is None or data.vocabulary:
        return inner
    return adapt_normalization(inner, normalization, data.mean, data.std)


def training_normalization(network: nn.Module, data: Dataset) -> Normalization | None:
    """Return the normalization that a network trained on `data` expects; None if there is none."""
    if not data.mean:
        return None
    return expected_normalization(network) or Normalization(mean=data.mean, std=data.std)
