"""Computing a teacher's outputs, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from raykd.data import BatchLoader, Dataset, Placement, ViewOptions
from raykd.losses import ModelOutputs
from raykd.models import Task
from raykd.schemes import LiveTeacher
from raykd.study.config import Study, plain
from raykd.training.memory_format import to_device, to_memory_format
from raykd.training.metrics import Autocast, autocast_for
from raykd.training.teacher_cache.spec import DTYPES, LOGITS, Description, Shard
from raykd.training.teacher_cache.store import CacheStore

BATCH = 256
"""Samples of one forward; the same for every worker, so that the bytes are, too."""


class Build:
    """A worker's share in building one entry.

    Which shards are there already is found out at the start; what was interrupted goes on after
    the last shard that was finished, and comes to the same bytes.

    Args:
        description: of the entry.
        study: concrete; its augmentation and precision are the description's.
        network: the teacher, or what loads it where there is something to compute.
        data: on `device`.
        task: what the teacher takes and gives.
        store: where the entry goes.
        about: for the manifest.
        share, shares: of all shards, every `shares`-th from number `share` on is this worker's.

    Raises:
        ValueError: the teacher has no such layer.
    """

    def __init__(
        self,
        description: Description,
        study: Study,
        network: nn.Module | Callable[[], nn.Module],
        data: Dataset,
        task: Task,
        store: CacheStore,
        *,
        about: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        share: int = 0,
        shares: int = 1,
    ) -> None:
        self.description = description
        self.about = about or provenance_of(study, 0)
        self.store = store
        self.device = torch.device(device)
        self._task = task
        self._network = network
        self._data = data
        self._study = study
        self._read: tuple[LiveTeacher, BatchLoader] | None = None
        self._autocast: Autocast = autocast_for(study.train.precision, self.device)
        own = description.shards[share::shares]
        there = set() if self._is_done() else store.finished(description.key)
        self.total = len(own)
        self.left = [] if self._is_done() else [one for one in own if one.file not in there]

    def advance(self, seconds: float = 0.0) -> int:
        """Compute shards for so long, at least one; how many are left."""
        began = time.perf_counter()
        while self.left:
            shard = self.left[0]
            self.store.put(self.description.key, shard, self._content(shard))
            del self.left[0]
            if time.perf_counter() - began >= seconds:
                break
        return len(self.left)

    def finish(self) -> bool:
        """Write the manifest if every worker's shards are there; whether the entry is complete."""
        return self.store.complete(self.description, self.about)

    def _is_done(self) -> bool:
        return self.store.manifest(self.description.key) is not None

    def _content(self, shard: Shard) -> bytes:
        rows = torch.arange(shard.start, shard.stop)
        ready = self._ready()
        return safetensors.torch.save(
            outputs_of(self.description, *ready, rows, shard.view, self._autocast)
        )

    def _ready(self) -> tuple[LiveTeacher, BatchLoader]:
        """The teacher and the pictures; made once, and not at all where nothing is left to do."""
        if self._read is None:
            given = self._network
            network = to_device(given if isinstance(given, nn.Module) else given(), self.device)
            teacher = LiveTeacher(network, self.description.layers, self._task)
            self._read = teacher, view_loader(self.description, self._study, self._data)
        return self._read


def view_loader(description: Description, study: Study, data: Dataset) -> BatchLoader:
    """The training samples under the description's views."""
    return BatchLoader(
        data.train,
        data,
        batch_size=BATCH,
        shuffle_seed=None,
        views=ViewOptions(study.data.augment, description.seed),
        placement=Placement(data.train.targets.device),
    )


@torch.inference_mode()
def outputs_of(
    description: Description,
    teacher: LiveTeacher,
    batches: BatchLoader,
    rows: Tensor,
    view: int,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """What is kept of some samples, computed now: on the CPU, maps with their channels innermost.

    Args:
        description: of the outputs.
        teacher, batches: the network and the pictures.
        rows: (B,) places in the training split.
        view: of the samples.
        precision: in which the teacher runs.

    Raises:
        ValueError: an output is of another shape than described, or beyond its type's range.
    """
    dtype = DTYPES[description.dtype]
    held = {
        name: torch.empty(len(rows), *_stored(shape), dtype=dtype)
        for name, shape in description.shapes.items()
    }
    at = 0
    for batch in batches.read_rows(rows.split(BATCH), view):
        with autocast():
            shown = teacher(to_memory_format(batch))
        for name, target in held.items():
            found = _named(shown, name)
            if tuple(found.shape[1:]) != tuple(description.shapes[name]):
                raise ValueError(
                    f"the teacher's {_called(name)} of one batch has shape "
                    f"{tuple(found.shape[1:])}, that of others {description.shapes[name]}; "
                    "set cache.use to never"
                )
            target[at : at + len(batch)] = _innermost(found)
        at += len(batch)
    for name, target in held.items():
        if not torch.isfinite(target).all():
            raise ValueError(
                f"the teacher's {_called(name)} holds values that {description.dtype} cannot; set "
                "cache.dtype to bf16 or fp32"
            )
    return held


def provenance_of(study: Study, teacher: int, file: str = "") -> dict[str, Any]:
    """What computes the outputs anew: the study, which of its teachers it is, and the file of that
    one's weights below the storage."""
    return {"study": plain(study), "teacher": teacher, "file": file}


def _named(shown: ModelOutputs, name: str) -> Tensor:
    return shown.logits if name == LOGITS else shown.layers[name]


def _called(name: str) -> str:
    return "logits" if name == LOGITS else f"layer {name!r}"


def _stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How one sample's output lies in a file: (C, H, W) as (H, W, C)."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)


def _innermost(output: Tensor) -> Tensor:
    return output.permute(0, 2, 3, 1) if output.dim() == 4 else output
