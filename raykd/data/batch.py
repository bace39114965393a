"""Batches of samples, and requests for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class ExtraInputs:
    """Inputs that a scheme needs in addition to the samples of its batches.

    Attributes:
        views: number of further views of the same samples, each with its own augmentation.
        partners: add another sample of the same class for each sample.
    """

    views: int = 0
    partners: bool = False


@dataclass(frozen=True)
class Batch:
    """Samples, their targets and their numbers.

    Attributes:
        inputs: (B, ...) a tensor, or a mapping of such tensors (tokens and their mask, say).
        targets: (B,) class indices, int64; (B, D) labels or values, float32; (B, H, W) class
            indices of positions, int64; or (B, boxes, 5) boxes, float32.
        index: (B,) number of each sample in the data set, int64; a sample keeps its number
            across epochs, trials and processes.
        views: like `inputs`, each: the further views of `ExtraInputs.views`.
        partners: like `inputs`: the partner of each sample, if `ExtraInputs.partners` is set.
        view: number of the view in `inputs`.
        more_inputs: like `inputs`, each: the same view of the same samples as other networks take
            it, by the name of their input (`ViewOptions.more_inputs`).
    """

    inputs: Inputs
    targets: Tensor
    index: Tensor
    views: tuple[Inputs, ...] = ()
    partners: Inputs | None = None
    view: int = 0
    more_inputs: Mapping[str, Inputs] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def map(self, change: Callable[[Inputs], Inputs]) -> Batch:
        """Return this batch with `change` applied to all its inputs."""
        return dataclasses.replace(
            self,
            inputs=change(self.inputs),
            views=tuple(change(view) for view in self.views),
            partners=None if self.partners is None else change(self.partners),
            more_inputs={name: change(inputs) for name, inputs in self.more_inputs.items()},
        )


@dataclass(frozen=True)
class BatchRequest:
    """Rows and views of a batch to be read.

    Attributes:
        rows: (B,) rows of the split.
        views: numbers of the views of these rows; the first becomes `Batch.inputs`.
        partners: (B,) rows of the partners, if any.
        partner_view: number of the view of the partners.
    """

    rows: Tensor
    views: tuple[int, ...]
    partners: Tensor | None = None
    partner_view: int = 0


def channels_last_for(device: torch.device) -> bool:
    """Return whether images, kernels and cached maps are channels-last on `device`.

    See `raykd.training.memory_format` for measurements.
    """
    return device.type in ("cpu", "cuda")  # not measured on others


def to_memory_format(batch: Batch) -> Batch:
    """Return a batch with channels-last images if that is faster on its device."""
    return batch.map(_to_channels_last)


def _to_channels_last(inputs: Inputs) -> Inputs:
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not channels_last_for(inputs.device):
        return inputs
    # `contiguous` would leave images of one channel alone, whose strides are ambiguous.
    if inputs.shape[1] == 1 and inputs.is_contiguous():
        height, width = inputs.shape[2:]
        return inputs.as_strided(inputs.shape, (height * width, 1, width, 1))
    return torch.empty_like(inputs, memory_format=torch.channels_last).copy_(inputs)
