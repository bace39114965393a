"""Reads pictures that stay on disk: decoded by worker processes, ahead of their use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from raykd.data.augment import Augment
from raykd.data.source import FileSplit
from raykd.data.views import view


@dataclass(frozen=True)
class Read:
    """A batch as it is read: (B, C, H, W) uint8, (B,) targets, (B,) index."""

    pictures: Tensor
    targets: Tensor
    index: Tensor


@dataclass(frozen=True)
class _Request:
    """What a worker process is asked for: rows, and the view of them it is to make."""

    rows: Tensor
    augment: tuple[Augment, ...]
    seed: int
    number: int


class FileReader:
    """Batches of a `FileSplit`, decoded by its `workers` processes while others are in use.

    Batched augmentations are done on the device; if any is done sample by sample, all are done
    by the worker processes (which see the same numbers: views do not depend on where).

    Args:
        split: the files.
        device: where batches are wanted; to a GPU they go through pinned memory.
    """

    def __init__(self, split: FileSplit, device: torch.device) -> None:
        self.device = device
        self._requests: list[_Request] = []
        self._loader = DataLoader(
            _Decoding(split.to("cpu")),  # type: ignore[arg-type]
            sampler=self._requests,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=split.workers,
            persistent_workers=split.workers > 0,
            pin_memory=device.type == "cuda",
        )

    def epoch(
        self, rows: Sequence[Tensor], augment: tuple[Augment, ...], seed: int, number: int
    ) -> Iterator[Read]:
        """The batches of those rows, in that order, as that view."""
        on_device = all(step.batched for step in augment)
        made_there = () if on_device else augment
        self._requests[:] = [_Request(part, made_there, seed, number) for part in rows]
        for pictures, targets, index in self._loader:
            read = Read(self._moved(pictures), self._moved(targets), self._moved(index))
            if on_device:
                made = view(read.pictures, read.index, augment, seed=seed, number=number)
                read = dataclasses.replace(read, pictures=made)
            yield read

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=True)


class _Decoding(MapDataset[tuple[Tensor, Tensor, Tensor]]):
    """Answers a request with (pictures, targets, index); runs in a worker process."""

    def __init__(self, split: FileSplit) -> None:
        self.split = split

    def __getitem__(self, request: _Request) -> tuple[Tensor, Tensor, Tensor]:
        index = self.split.index[request.rows]
        pictures = view(
            self.split.take(request.rows),
            index,
            request.augment,
            seed=request.seed,
            number=request.number,
        )
        return pictures, self.split.targets[request.rows], index
