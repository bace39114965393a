"""Loading of images that stay on disk: worker processes decode them ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from raykd.data.augment import Augment, augmented_view
from raykd.data.batch import Batch, BatchRequest
from raykd.data.dataset import FileSplit

Augments = tuple[Augment, ...]

Images = tuple[list[Tensor], Tensor]
"""(B, C, H, W) uint8 of some samples, one tensor for each view, and (B,) their numbers."""


@dataclass(frozen=True)
class _Task:
    """Request for a worker process: rows, and the views that it augments."""

    request: BatchRequest
    augment: Augments
    seed: int


class FileReader:
    """Batches of a `FileSplit`, decoded ahead by `FileSplit.workers` processes.

    Batched augmentations run on the device; if any augmentation works sample by sample, all run
    in the worker processes (with the same random numbers, so the views are the same).

    Args:
        split: the files.
        device: device of the batches; a GPU gets them through pinned memory.
    """

    def __init__(self, split: FileSplit, device: torch.device) -> None:
        self.device = device
        self._tasks: list[_Task] = []
        self._loader = DataLoader(
            _DecodingDataset(split.to("cpu")),  # type: ignore[arg-type]
            sampler=self._tasks,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=split.workers,
            persistent_workers=split.workers > 0,
            pin_memory=device.type == "cuda",
        )

    def read(
        self, requests: Sequence[BatchRequest], augment: Augments, seed: int
    ) -> Iterator[Batch]:
        """Iterate over the requested batches, in this order, with uint8 images."""
        on_device = all(step.batched for step in augment)
        in_worker, here = ((), augment) if on_device else (augment, ())
        self._tasks[:] = [_Task(request, in_worker, seed) for request in requests]
        for request, (images, partner_images, targets) in zip(requests, self._loader, strict=True):
            first, *more = self._views(images, here, seed, request.views)
            partners = None
            if partner_images is not None:
                (partners,) = self._views(partner_images, here, seed, (request.partner_view,))
            index, labels = self._to_device(images[1]), self._to_device(targets)
            yield Batch(first, labels, index, tuple(more), partners, request.views[0])

    def _views(
        self, images: Images, augment: Augments, seed: int, views: Sequence[int]
    ) -> list[Tensor]:
        """Return the views on the device; those that no worker process augmented, augmented."""
        decoded, index = [self._to_device(part) for part in images[0]], self._to_device(images[1])
        if len(decoded) == len(views) and not augment:
            return decoded
        return [augmented_view(decoded[0], index, augment, seed=seed, view=view) for view in views]

    def _to_device(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=True)


class _DecodingDataset(MapDataset[tuple[Images, Images | None, Tensor]]):
    """Samples, their partners and their targets for a task; used in the worker processes.

    Images are returned once for each view, or once if they are augmented elsewhere.
    """

    def __init__(self, split: FileSplit) -> None:
        self.split = split

    def __getitem__(self, task: _Task) -> tuple[Images, Images | None, Tensor]:
        request = task.request
        images = self._decode(task, request.rows, request.views)
        partners = None
        if request.partners is not None:
            partners = self._decode(task, request.partners, (request.partner_view,))
        return images, partners, self.split.targets[request.rows]

    def _decode(self, task: _Task, rows: Tensor, views: Sequence[int]) -> Images:
        images, index = self.split.take(rows), self.split.index[rows]
        if not task.augment:
            return [images], index
        return [
            augmented_view(images, index, task.augment, seed=task.seed, view=view) for view in views
        ], index
