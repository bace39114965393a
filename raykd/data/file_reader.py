"""Reads pictures that stay on disk: decoded by worker processes, ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from raykd.data.augment import Augment
from raykd.data.batch import Batch
from raykd.data.source import FileSplit
from raykd.data.views import Wanted, view


@dataclass(frozen=True)
class _Request:
    """What a worker process is asked for: rows, and the views of them it is to make."""

    wanted: Wanted
    augment: tuple[Augment, ...]
    seed: int


Pictures = tuple[list[Tensor], Tensor]
"""(B, C, H, W) uint8 of some samples, one tensor a view, and (B,) their numbers."""


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
        self, wanted: Sequence[Wanted], augment: tuple[Augment, ...], seed: int
    ) -> Iterator[Batch]:
        """Those batches, in that order, their pictures uint8."""
        on_device = all(step.batched for step in augment)
        made_there, made_here = ((), augment) if on_device else (augment, ())
        self._requests[:] = [_Request(one, made_there, seed) for one in wanted]
        for one, (own, theirs, targets) in zip(wanted, self._loader, strict=True):
            index = self._moved(own[1])
            first, *more = self._views(own, made_here, seed, one.numbers)
            partners = None
            if theirs is not None:
                (partners,) = self._views(theirs, made_here, seed, (one.partners_number,))
            there, shown = self._moved(targets), one.numbers[0]
            yield Batch(first, there, index, tuple(more), partners, shown)

    def _views(
        self, read: Pictures, augment: tuple[Augment, ...], seed: int, numbers: Sequence[int]
    ) -> list[Tensor]:
        """On the device, those views: as the worker process made them, or made here."""
        pictures, index = [self._moved(part) for part in read[0]], self._moved(read[1])
        if len(pictures) == len(numbers) and not augment:
            return pictures
        return [view(pictures[0], index, augment, seed=seed, number=number) for number in numbers]

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=True)


class _Decoding(MapDataset[tuple[Pictures, Pictures | None, Tensor]]):
    """Answers a request with the samples, their partners and their targets; runs in a worker
    process.  Pictures come as the views asked for, or once where they are made elsewhere."""

    def __init__(self, split: FileSplit) -> None:
        self.split = split

    def __getitem__(self, request: _Request) -> tuple[Pictures, Pictures | None, Tensor]:
        wanted = request.wanted
        own = self._decoded(request, wanted.rows, wanted.numbers)
        theirs = None
        if wanted.partners is not None:
            theirs = self._decoded(request, wanted.partners, (wanted.partners_number,))
        return own, theirs, self.split.targets[wanted.rows]

    def _decoded(self, request: _Request, rows: Tensor, numbers: Sequence[int]) -> Pictures:
        pictures, index = self.split.take(rows), self.split.index[rows]
        if not request.augment:
            return [pictures], index
        views = [
            view(pictures, index, request.augment, seed=request.seed, number=number)
            for number in numbers
        ]
        return views, index
