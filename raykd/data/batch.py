"""What travels from the data to the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Beside:
    """What a scheme wants beside the samples of its batches.

    Attributes:
        views: how many further views of the same samples, each augmented anew.
        partners: for each sample another one of its class.
    """

    views: int = 0
    partners: bool = False


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        inputs: (B, ...) a tensor, or a mapping of such tensors (tokens and their mask, say).
        targets: (B,) class indices, int64.
        index: (B,) each sample's number in the data set, int64; the same sample has the same
            number in every epoch, trial and process.
        views: as `inputs`, each: the further views a scheme asked for.
        partners: as `inputs`: each sample's partner, where a scheme asked for them.
        view: which view of the samples `inputs` is.
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor
    views: tuple[Inputs, ...] = ()
    partners: Inputs | None = None
    view: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def map(self, change: Callable[[Inputs], Inputs]) -> Batch:
        """The same batch with its inputs, views and partners changed."""
        return dataclasses.replace(
            self,
            inputs=change(self.inputs),
            views=tuple(change(view) for view in self.views),
            partners=None if self.partners is None else change(self.partners),
        )
