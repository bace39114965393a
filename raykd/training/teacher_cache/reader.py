"""Teachers whose outputs are read from the cache."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import shutil
import tempfile
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raykd.data import Batch, Dataset, channels_last_for
from raykd.losses import ModelOutputs
from raykd.models import Signature
from raykd.schemes import LiveTeacher
from raykd.schemes.distiller import TeacherSource
from raykd.training.memory_format import to_device
from raykd.training.stored_outputs import StoredOutputs, StoredTeacher
from raykd.training.teacher_cache.spec import LOGITS, CacheSpec
from raykd.training.teacher_cache.store import FOLDER, CacheStore, Manifest
from raykd.training.teacher_responses import TeacherResponses

log = logging.getLogger("raykd")

CPU = torch.device("cpu")

COPIES = "raykd-outputs"
"""Folder of copies, below the system's temporary folder."""

DEVICE_SHARE = 0.25
"""Maximum share of the free memory of a GPU for cached outputs."""

Table = list[Tensor]
"""One output under one view: (rows, ...) for each shard, in order."""


class CachedOutputs:
    """Cached outputs of one teacher, open for reading.

    On the CPU they are memory maps of the files, private and copied on write: all processes of a
    node share the pages and none can change the files.  On a GPU, outputs that fit are copied to
    its memory, one view at a time if not all fit; the others are gathered on the CPU.

    Args:
        spec: of the outputs.
        folder: of the shards, in a file system of this machine.
        data: source of the training split.
        device: of the returned tensors.
    """

    def __init__(
        self,
        spec: CacheSpec,
        folder: Path,
        data: Dataset,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        index = data.train.index.cpu()
        rows = torch.full((data.data_size,), -1)
        rows[index] = torch.arange(len(index))
        self._rows = {self.device: rows.to(self.device)}  # row of each sample, by its number
        self._rows.setdefault(CPU, rows)
        self._maps = _map_files(spec, folder)
        self._device_bytes = 0
        if self.device.type == "cuda":
            self._device_bytes = int(torch.cuda.mem_get_info(self.device)[0] * DEVICE_SHARE)
        self._tables: OrderedDict[tuple[str, int], Table] = OrderedDict()
        self._resident = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Hint layers in the cache."""
        return self.spec.layers

    def take(self, name: str, batch: Batch) -> Tensor:
        """Return one output for a batch, in its stored type.

        Args:
            name: `LOGITS`, or a hint layer.
            batch: of the training split.

        Returns:
            (B, *shape), on the device.
        """
        view = batch.view if self.spec.augment else 0
        table = self._table(name, view)
        device = CPU if table[0].device == CPU else self.device
        rows = self._rows[device].index_select(0, batch.index.to(device))
        output = table[0].index_select(0, rows) if len(table) == 1 else self._gather(table, rows)
        output = output.to(self.device, non_blocking=True)
        if output.dim() != 4:
            return output
        maps = output.permute(0, 3, 1, 2)
        return maps if channels_last_for(self.device) else maps.contiguous()

    def stored(self, name: str, view: int, rows: Tensor) -> Tensor:
        """Return one output as it is stored (maps channels-last), on the CPU.

        Args:
            name: `LOGITS`, or a hint layer.
            view: number of the view.
            rows: (B,) rows of the training split.
        """
        return self._gather(self._maps[name][view], rows)

    def _gather(self, table: Table, rows: Tensor) -> Tensor:
        """Return rows of several shards."""
        size = self.spec.shard_rows
        output = table[0].new_empty((len(rows), *table[0].shape[1:]))
        shards = rows.div(size, rounding_mode="floor")
        for number in shards.unique().tolist():
            places = (shards == number).nonzero()[:, 0]
            part = table[number].index_select(0, rows.index_select(0, places) - number * size)
            output.index_copy_(0, places, part)
        return output

    def _table(self, name: str, view: int) -> Table:
        """Return a table on the device, which replaces older ones, or the mapped files."""
        mapped = self._maps[name][view]
        needed = sum(part.nbytes for part in mapped)
        if needed > self._device_bytes:
            return mapped
        if (name, view) not in self._tables:
            while self._resident + needed > self._device_bytes:
                _, oldest = self._tables.popitem(last=False)
                self._resident -= sum(part.nbytes for part in oldest)
            self._resident += needed
            self._tables[name, view] = [torch.cat([part.to(self.device) for part in mapped])]
        return self._tables[name, view]


def _map_files(spec: CacheSpec, folder: Path) -> dict[str, list[Table]]:
    """Map the tables of every output, by view; they stay readable if the entry is removed."""
    tables = {name: [Table() for _ in range(spec.views)] for name in spec.shapes}
    for shard in spec.shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            for name, views in tables.items():
                views[shard.view].append(file.get_tensor(name))
    return tables


class CachedTeacher:
    """Teacher whose outputs come from the cache.

    A `TeacherSource`.  Layers that are not cached come from a live teacher, whose forward pass
    ends after the last of them.

    Args:
        outputs: cached outputs.
        layers: cached hint layers to return, as the pairs name them.
        live: returns the other layers.
        logits: whether a term reads the logits; if not, they are (B, 0).
    """

    def __init__(
        self,
        outputs: CachedOutputs,
        layers: Sequence[str],
        live: LiveTeacher | None = None,
        *,
        logits: bool = True,
    ) -> None:
        assert live is None or not live.logits, "logits come from the cache"
        self.outputs = outputs
        self.layers = tuple(layers)
        self.live = live
        self.logits = logits
        self.other_input = None if live is None else live.other_input

    def __call__(self, batch: Batch) -> ModelOutputs:
        layers = {name: self.outputs.take(name, batch) for name in self.layers}
        if self.live is not None:
            layers |= self.live(batch).layers
        if self.logits:
            return ModelOutputs(self.outputs.take(LOGITS, batch), layers)
        return ModelOutputs(torch.empty(len(batch), 0, device=self.outputs.device), layers)


class TeacherHandle:
    """A trained teacher: its network, which may be loaded later, and its cached outputs, if any.

    Args:
        network: the network, or a function that loads it.
        outputs: its cached outputs on the training samples.
        responses: on the validation and test splits, computed before; None: computed when needed.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[], nn.Module],
        outputs: CachedOutputs | None = None,
        responses: TeacherResponses | None = None,
    ) -> None:
        self._network = network if isinstance(network, nn.Module) else None
        self._load = network
        self.outputs = outputs
        self.responses = responses or TeacherResponses(lambda: self.network)

    @property
    def network(self) -> nn.Module:
        """The trained network; loaded on first use."""
        if self._network is None:
            self._network = self._load()
        return self._network

    @property
    def loaded(self) -> nn.Module | None:
        """The network if it is loaded, else None."""
        return self._network

    def without_outputs(self) -> TeacherHandle:
        """Return a handle of the same teacher that always runs the network."""
        return TeacherHandle(self._load, responses=self.responses)

    def source(
        self,
        layers: Sequence[str],
        signature: Signature,
        device: torch.device,
        *,
        logits: bool,
        other_input: str | None = None,
    ) -> TeacherSource:
        """Return the source of these layers: the cache, and the network for layers not in it.

        Args:
            layers: hint layers, as the pairs name them.
            signature: inputs and classes of the network.
            device: device of the batches.
            logits: whether a term reads the logits.
            other_input: key of `Batch.more_inputs` of its input; None: that of the student.

        Raises:
            ValueError: the teacher has no such layer.
        """
        live = partial(LiveTeacher, signature=signature, other_input=other_input)
        if self.outputs is None:
            if isinstance(self.network, StoredOutputs):
                if layers:
                    raise ValueError(f"a teacher that is a file of outputs has no {layers[0]}")
                return StoredTeacher(self.network.to(device))
            return live(to_device(self.network, device), layers, logits=logits)
        cached = [name for name in layers if name in self.outputs.layers]
        missing = [name for name in layers if name not in cached]
        rest = None
        if missing:
            rest = live(to_device(self.network, device), missing, logits=False)
        return CachedTeacher(self.outputs, cached, rest, logits=logits)


def open_cached_outputs(
    store: CacheStore,
    key: str,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    folder: str | None = None,
    limit: float = math.inf,
) -> CachedOutputs | None:
    """Open a cache entry; return None if it is incomplete or unreadable (the reason is logged).

    Args:
        store: of the entry.
        key: of the entry.
        data: source of the training split.
        device: of the returned tensors.
        folder: on this node, to which the entry is copied before it is read; None: it is read in
            place, or copied below the system's temporary folder if the store is behind a URI.
        limit: bytes of all such copies; the least recently used are removed.
    """
    manifest = store.manifest(key)
    local = store.storage.local(f"{FOLDER}/{key}")
    if manifest is None or not store.is_whole(key):
        log.warning("the teacher's outputs %s are gone or damaged; it is run live", key)
        return None
    store.touch(key)
    try:
        if folder is not None or local is None:
            copies = Path(tempfile.gettempdir(), COPIES) if folder is None else Path(folder)
            root = copies.expanduser()
            local = copy_entry(store, key, manifest, root, limit)
        return CachedOutputs(manifest.spec, local, data, device)
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("the teacher's outputs %s cannot be read (%s); it is run live", key, error)
        return None


def copy_entry(
    store: CacheStore, key: str, manifest: Manifest, root: Path, limit: float = math.inf
) -> Path:
    """Copy an entry to this node, unless another process has done so, and verify its checksums.

    Args:
        store: of the entry.
        key: of the entry.
        manifest: of the entry.
        root: folder of all copies.
        limit: bytes of all copies; the least recently used are removed.

    Returns:
        The folder of the copy.

    Raises:
        ValueError: the checksum of a shard is wrong.
        OSError: the copy cannot be written.
    """
    target = root / key
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{key}.lock"):
        if target.is_dir():
            os.utime(target)
            return target
        _limit_copies(root, limit - manifest.bytes)
        draft = root / f".{key}.{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        try:
            for file, checksum in manifest.checksums.items():
                content = store.storage.read(f"{FOLDER}/{key}/{file}") or b""
                if hashlib.sha256(content).hexdigest() != checksum:
                    raise ValueError(f"{file} of the outputs {key} is damaged")
                (draft / file).write_bytes(content)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _limit_copies(root: Path, limit: float) -> None:
    """Remove the least recently used copies until the others take `limit` bytes at most.

    Processes that read a removed copy can continue: its pages stay mapped.
    """
    copies = sorted(
        (folder for folder in root.iterdir() if folder.is_dir()),
        key=lambda folder: folder.stat().st_mtime,
        reverse=True,
    )
    total = 0
    for copy in copies:
        total += sum(file.stat().st_size for file in copy.iterdir())
        if total > limit:
            shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock of this machine; the system releases it if the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
