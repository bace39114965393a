"""What travels from the data to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        inputs: (B, ...) a tensor, or a mapping of such tensors (tokens and their mask, say).
        targets: (B,) class indices, int64.
        index: (B,) each sample's number in the data set, int64; the same sample has the same
            number in every epoch, trial and process.
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.targets)
