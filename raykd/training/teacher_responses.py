"""Responses of a teacher on the validation and test splits, for its agreement with students."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from raykd.data import BatchLoader, to_memory_format
from raykd.training.stored_outputs import respond

Autocast = Callable[[], AbstractContextManager[object]]
"""Returns the context in which forward passes run."""

Split = Literal["train", "val", "test"]


class TeacherResponses:
    """Responses of a trained teacher, computed once for each split.

    Args:
        network: returns the teacher, frozen and on the device; stored outputs are looked up.
        input: input of the samples that it takes; None: the whole sample.
    """

    def __init__(self, network: Callable[[], nn.Module], input: str | None = None) -> None:
        self._network = network
        self.input = input
        self._responses: dict[tuple[str, Split, int, int, bool], Tensor] = {}

    def of(self, split: Split, data: str, loader: BatchLoader, autocast: Autocast) -> Tensor:
        """Return the responses for the samples of this rank in stored order.

        They are (N, C) float32, or (N, H, W) uint8: the most likely class of each position.

        Args:
            split: of the loader.
            data: fingerprint of the data set.
            loader: of the split as the teacher takes it, without a shuffle seed.
            autocast: context of the forward passes.
        """
        with autocast():
            reduced = torch.is_autocast_enabled(loader.device.type)
        key = (data, split, loader.rank, loader.world_size, reduced)
        if key not in self._responses:
            network = self._network().eval()
            with torch.inference_mode():
                parts = []
                for batch in map(to_memory_format, loader.epoch(0)):
                    with autocast():
                        response = respond(network, batch).float()
                    is_dense = response.dim() == 4
                    parts.append(response.argmax(1).to(torch.uint8) if is_dense else response)
            self._responses[key] = torch.cat(parts) if parts else torch.empty(0)
        return self._responses[key]
