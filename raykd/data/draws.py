"""Random numbers that are a function of what they are for, not of what was drawn before.

Each sample's numbers come from a counter-based generator keyed by (seed, view, place in the list
of augmentations, number of the draw) and counted by the sample's index, so they are the same
whatever batch, order, process or device the sample turns up in.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def key_of(*parts: int) -> int:
    """One 64-bit key for a tuple of integers."""
    key = 0
    for part in parts:
        key = splitmix64((key ^ part) & _MASK)
    return key


def splitmix64(state: int) -> int:
    """SplitMix64's output for `state` (Steele, Lea & Flood 2014, OOPSLA, figure 16)."""
    word = (state + _STEP) & _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def splitmix64_of(states: Tensor) -> Tensor:
    """`splitmix64` of each element; int64 in and out, read as unsigned."""
    word = states + _signed(_STEP)
    word = (word ^ _shifted(word, 30)) * _signed(_FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(_SECOND)
    return word ^ _shifted(word, 31)


class Draws:
    """The random numbers of one augmentation of a batch.

    Successive calls give successive, independent numbers.

    Args:
        key: from `key_of`.
        index: (B,) int64, the samples' numbers; the draws live on its device.
    """

    def __init__(self, key: int, index: Tensor) -> None:
        self._key = key
        self._counter = index * _signed(_STEP)
        self._drawn = 0

    def words(self) -> Tensor:
        """(B,) int64: 64 random bits a sample."""
        key = key_of(self._key, self._drawn)
        self._drawn += 1
        return splitmix64_of(self._counter + _signed(key))

    def below(self, bound: int) -> Tensor:
        """(B,) int64, uniform over 0 ... bound - 1 (bound up to 2^31)."""
        return (_shifted(self.words(), 33) * bound) >> 31

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,) float32, uniform over [low, high)."""
        return _scaled(self.words(), low, high)

    def uniforms(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(count, B) float32, uniform over [low, high): as many draws for little more than one."""
        steps = torch.arange(count, device=self._counter.device) * _signed(_STEP)
        return _scaled(splitmix64_of(self.words() + steps[:, None]), low, high)


def _scaled(words: Tensor, low: float, high: float) -> Tensor:
    return _shifted(words, 40).to(torch.float32) * (2.0**-24 * (high - low)) + low


def _signed(word: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """Logical shift to the right (torch's own copies the sign)."""
    return (words >> by) & ((1 << (64 - by)) - 1)
