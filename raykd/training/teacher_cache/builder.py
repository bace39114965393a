"""Computation of teacher outputs, shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import safetensors.torch
import torch
from torch import Tensor

from raykd.data import BatchLoader, Dataset, Placement, ViewOptions, to_memory_format
from raykd.data.loader import ON_CPU
from raykd.schemes import LiveTeacher
from raykd.study.config import Study, plain
from raykd.training.metrics import Autocast, autocast_for
from raykd.training.teacher_cache.spec import DTYPES, LOGITS, CacheSpec, Shard
from raykd.training.teacher_cache.store import CacheStore

BATCH = 256
"""Samples of a forward pass; the same for every worker, so that the bytes are the same."""


class CacheBuilder:
    """Computes the share of one worker in a cache entry.

    Shards that exist at the start are not computed again, so that an interrupted build continues
    after its last finished shard, and gives the same bytes.

    Args:
        spec: of the entry.
        study: concrete; has the augmentation and precision of `spec`.
        load_teacher: returns the teacher with the layers of `spec`; called only if shards are
            missing.
        data: on the device of the placement.
        store: of the entry.
        placement: device, and the number of this worker among those that build the entry; shards
            are dealt in turn.
    """

    def __init__(
        self,
        spec: CacheSpec,
        study: Study,
        load_teacher: Callable[[], LiveTeacher],
        data: Dataset,
        store: CacheStore,
        placement: Placement = ON_CPU,
    ) -> None:
        self.spec, self.store, self._study = spec, store, study
        self._load_teacher = load_teacher
        self._data = data
        self._ready: tuple[LiveTeacher, BatchLoader] | None = None
        self._autocast = autocast_for(study.train.precision, torch.device(placement.device))
        share = spec.shards[placement.rank :: placement.world_size]
        self.total = len(share)
        self.remaining: list[Shard] = []
        if store.manifest(spec.key) is None:
            finished = store.finished(spec.key)
            self.remaining = [shard for shard in share if shard.file not in finished]

    def advance(self, seconds: float = 0.0) -> int:
        """Compute shards for a number of seconds, at least one; return how many remain."""
        start = time.perf_counter()
        while self.remaining:
            if self._ready is None:
                loader = view_loader(self.spec, self._study, self._data)
                self._ready = self._load_teacher(), loader
            shard = self.remaining[0]
            rows = torch.arange(shard.start, shard.stop)
            outputs = compute_outputs(self.spec, *self._ready, rows, shard.view, self._autocast)
            self.store.put(self.spec.key, shard, safetensors.torch.save(outputs))
            del self.remaining[0]
            if time.perf_counter() - start >= seconds:
                break
        return len(self.remaining)

    def finish(self, provenance: Mapping[str, object] | None = None) -> bool:
        """Write the manifest if the shards of all workers exist; return whether it exists now.

        Args:
            provenance: see `provenance_of`; None: the first teacher of the study.
        """
        return self.store.complete(self.spec, provenance or provenance_of(self._study, 0))


def view_loader(spec: CacheSpec, study: Study, data: Dataset) -> BatchLoader:
    """Return a loader of the training samples under the views of a cache entry."""
    return BatchLoader(
        data.train,
        data.as_input(spec.input),
        batch_size=BATCH,
        shuffle_seed=None,
        views=ViewOptions(study.data.augment, spec.seed),
        placement=Placement(data.train.targets.device),
    )


@torch.inference_mode()
def compute_outputs(
    spec: CacheSpec,
    teacher: LiveTeacher,
    loader: BatchLoader,
    rows: Tensor,
    view: int,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Compute the outputs of some samples as they are stored: on the CPU, maps channels-last.

    Args:
        spec: of the outputs.
        teacher: with the layers of `spec`.
        loader: of the training split.
        rows: (B,) rows of the training split.
        view: number of the view.
        autocast: context of the forward passes.

    Raises:
        ValueError: an output has another shape than specified, or exceeds the range of its type.
    """
    dtype = DTYPES[spec.dtype]
    outputs = {
        name: torch.empty(len(rows), *_stored_shape(shape), dtype=dtype)
        for name, shape in spec.shapes.items()
    }
    start = 0
    for batch in loader.read_rows(rows.split(BATCH), view):
        with autocast():
            evidence = teacher(to_memory_format(batch))
        for name, target in outputs.items():
            output = evidence.logits if name == LOGITS else evidence.layers[name]
            if tuple(output.shape[1:]) != tuple(spec.shapes[name]):
                raise ValueError(
                    f"{_display_name(name)} of the teacher has shape {tuple(output.shape[1:])} "
                    f"for one batch, and {spec.shapes[name]} for others; set cache.use to never"
                )
            if output.dim() == 4:
                output = output.permute(0, 2, 3, 1)
            target[start : start + len(batch)] = output
        start += len(batch)
    for name, target in outputs.items():
        if not torch.isfinite(target).all():
            raise ValueError(
                f"{_display_name(name)} of the teacher exceeds the range of {spec.dtype}; set "
                "cache.dtype to bf16 or fp32"
            )
    return outputs


def provenance_of(study: Study, teacher: int, file: str = "") -> dict[str, object]:
    """Return the provenance of an entry, from which it can be computed again.

    Args:
        study: concrete.
        teacher: number of the teacher among those of the study.
        file: of the teacher's weights, below the storage.
    """
    return {"study": plain(study), "teacher": teacher, "file": file}


def _display_name(name: str) -> str:
    return "logits" if name == LOGITS else f"layer {name!r}"


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one output in a file: (H, W, C) for (C, H, W)."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)
