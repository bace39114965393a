"""Views: replayable augmentations of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raykd.data.augment import Augment
from raykd.data.draws import Draws, key_of


@dataclass(frozen=True)
class Wanted:
    """A batch that is still to be read.

    Attributes:
        rows: (B,) of the split.
        numbers: which views of those rows; the first is the batch's own.
        partners: (B,) the rows of their partners, where they are wanted.
        partners_number: which view of the partners.
    """

    rows: Tensor
    numbers: tuple[int, ...]
    partners: Tensor | None = None
    partners_number: int = 0


def view(
    pictures: Tensor, index: Tensor, augment: Sequence[Augment], *, seed: int, number: int
) -> Tensor:
    """One view of each picture: a pure function of (picture, index, augment, seed, number).

    Args:
        pictures: (B, C, H, W) uint8.
        index: (B,) int64, the samples' numbers, on the pictures' device.
        augment: what is done, in this order.
        seed: of the views.
        number: which view.

    Returns:
        (B, C, H, W) uint8; the pictures themselves where `augment` is empty.
    """
    for place, step in enumerate(augment):
        pictures = step(pictures, Draws(key_of(seed, number, place), index))
    return pictures
