"""Counter-based random numbers: a pure function of their purpose, not of earlier draws.

The numbers of a sample come from a generator keyed by (seed, view, position in the list of
augmentations, number of the draw), with the index of the sample as its counter, so they do not
depend on the batch, order, process or device of the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def key_of(*parts: int) -> int:
    """Return a 64-bit key for a tuple of integers."""
    key = 0
    for part in parts:
        key = splitmix64((key ^ part) & _MASK)
    return key


def splitmix64(state: int) -> int:
    """Return the output of SplitMix64 (Steele, Lea & Flood 2014, OOPSLA, figure 16)."""
    word = (state + _STEP) & _MASK
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def splitmix64_of(states: Tensor) -> Tensor:
    """Apply `splitmix64` to each element; int64 in and out, interpreted as unsigned."""
    word = states + _signed(_STEP)
    word = (word ^ _shifted(word, 30)) * _signed(_FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(_SECOND)
    return word ^ _shifted(word, 31)


class CounterRNG:
    """Random numbers for each sample of a batch.

    Successive calls return independent numbers.

    Args:
        key: from `key_of`.
        index: (B,) int64, the numbers of the samples; results are on its device.
    """

    def __init__(self, key: int, index: Tensor) -> None:
        self._key = key
        self._counter = index * _signed(_STEP)
        self._draws = 0

    def words(self) -> Tensor:
        """Return (B,) int64: 64 random bits for each sample."""
        key = key_of(self._key, self._draws)
        self._draws += 1
        return splitmix64_of(self._counter + _signed(key))

    def below(self, bound: int) -> Tensor:
        """Return (B,) int64, uniform over 0 ... bound - 1 (bound up to 2^31)."""
        return (_shifted(self.words(), 33) * bound) >> 31

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return (B,) float32, uniform over [low, high)."""
        return _scaled(self.words(), low, high)

    def uniforms(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return (count, B) float32, uniform over [low, high), from a single draw."""
        steps = torch.arange(count, device=self._counter.device) * _signed(_STEP)
        return _scaled(splitmix64_of(self.words() + steps[:, None]), low, high)


def _scaled(words: Tensor, low: float, high: float) -> Tensor:
    return _shifted(words, 40).to(torch.float32) * (2.0**-24 * (high - low)) + low


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift right logically (the operator of torch repeats the sign bit)."""
    return (words >> by) & ((1 << (64 - by)) - 1)
