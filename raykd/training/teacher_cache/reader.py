"""Reading a teacher's outputs: the cached teacher, which is never run."""

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
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raykd.data import Batch, Dataset
from raykd.losses import ModelOutputs
from raykd.models import Task
from raykd.schemes import LiveTeacher
from raykd.schemes.distiller import TeacherSource
from raykd.training.memory_format import channels_last_for, to_device
from raykd.training.teacher_cache.spec import LOGITS, Description
from raykd.training.teacher_cache.store import FOLDER, CacheStore, Manifest

log = logging.getLogger("raykd")

CPU = torch.device("cpu")

DEVICE_SHARE = 0.25
"""Of a GPU's free memory, what outputs may take."""

Table = list[Tensor]
"""One output under one view: (rows, ...) each, the shards in order."""


class Outputs:
    """The kept outputs of one teacher, ready to be read.

    On the CPU they are memory maps of the files, private and copied on write, so that all
    processes of a node share the pages and none can change the files.  On a GPU what fits is put
    into its memory, one view at a time where not all fit; the rest is gathered on the CPU.

    Args:
        description: of the outputs.
        folder: where the shards are, on a file system of this machine.
        data: whose training split they belong to.
        device: where they are wanted.
    """

    def __init__(
        self,
        description: Description,
        folder: Path,
        data: Dataset,
        device: torch.device | str = "cpu",
    ) -> None:
        self.description = description
        self.device = torch.device(device)
        index = data.train.index.cpu()
        places = torch.full((data.data_size,), -1)
        places[index] = torch.arange(len(index))
        self._places = {self.device: places.to(self.device)}
        self._places.setdefault(CPU, places)
        self._maps = _mapped(description, folder)
        self._room = _room(self.device)
        self._tables: OrderedDict[tuple[str, int], Table] = OrderedDict()
        self._resident = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The hint layers that are kept."""
        return self.description.layers

    def take(self, name: str, batch: Batch) -> Tensor:
        """A batch's logits (`LOGITS`) or hint layer, (B, *shape), on the device, as it is kept."""
        view = batch.view if self.description.augment else 0
        table = self._table(name, view)
        where = CPU if table[0].device == CPU else self.device
        rows = self._places[where].index_select(0, batch.index.to(where))
        taken = table[0].index_select(0, rows) if len(table) == 1 else self._gathered(table, rows)
        taken = taken.to(self.device, non_blocking=True)
        if taken.dim() != 4:
            return taken
        maps = taken.permute(0, 3, 1, 2)
        return maps if channels_last_for(self.device) else maps.contiguous()

    def stored(self, name: str, view: int, rows: Tensor) -> Tensor:
        """An output as it lies in the files (maps with their channels innermost), by the samples'
        places (B,) in the training split, on the CPU."""
        return self._gathered(self._maps[name][view], rows)

    def _gathered(self, table: Table, rows: Tensor) -> Tensor:
        """Rows that lie in several shards."""
        size = self.description.shard_rows
        taken = table[0].new_empty((len(rows), *table[0].shape[1:]))
        shards = rows.div(size, rounding_mode="floor")
        for number in shards.unique().tolist():
            here = (shards == number).nonzero()[:, 0]
            part = table[number].index_select(0, rows.index_select(0, here) - number * size)
            taken.index_copy_(0, here, part)
        return taken

    def _table(self, name: str, view: int) -> Table:
        """On the device where it fits, older tables making way; else as the files are mapped."""
        mapped = self._maps[name][view]
        needed = sum(part.nbytes for part in mapped)
        if needed > self._room:
            return mapped
        if (name, view) not in self._tables:
            while self._resident + needed > self._room:
                _, old = self._tables.popitem(last=False)
                self._resident -= sum(part.nbytes for part in old)
            self._resident += needed
            self._tables[name, view] = [torch.cat([part.to(self.device) for part in mapped])]
        return self._tables[name, view]


def _mapped(description: Description, folder: Path) -> dict[str, list[Table]]:
    """Every output's tables, by view.  All files are opened now: what is mapped stays readable
    even if the entry is removed."""
    tables = {name: [Table() for _ in range(description.views)] for name in description.shapes}
    for shard in description.shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            for name, views in tables.items():
                views[shard.view].append(file.get_tensor(name))
    return tables


class CachedTeacher:
    """ModelOutputs of a teacher from its kept outputs.

    A `TeacherSource`.  Layers that are not kept are shown by a live teacher beside it, whose
    forward ends after the last of them.

    Args:
        outputs: of the teacher.
        layers: the hint layers to show, as the pairs name them, among those that are kept.
        live: shows the others.
        logits: whether any term reads the logits; if not they are (B, 0).
    """

    def __init__(
        self,
        outputs: Outputs,
        layers: Sequence[str],
        live: LiveTeacher | None = None,
        *,
        logits: bool = True,
    ) -> None:
        assert live is None or not live.logits, "the logits are kept"
        self.outputs = outputs
        self.layers = tuple(layers)
        self.live = live
        self.logits = logits

    def __call__(self, batch: Batch) -> ModelOutputs:
        shown = {name: self.outputs.take(name, batch) for name in self.layers}
        if self.live is not None:
            shown |= self.live(batch).layers
        if self.logits:
            return ModelOutputs(self.outputs.take(LOGITS, batch), shown)
        return ModelOutputs(torch.empty(len(batch), 0, device=self.outputs.device), shown)


class TeacherHandle:
    """A trained teacher: its network, which may be loaded later, and its cached outputs, if any.

    Args:
        network: the network, or a function that loads it.
        outputs: its cached outputs on the training samples.
    """

    def __init__(
        self, network: nn.Module | Callable[[], nn.Module], outputs: Outputs | None = None
    ) -> None:
        self._network = network if isinstance(network, nn.Module) else None
        self._load = network
        self.outputs = outputs

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
        return TeacherHandle(self._load)

    def source(
        self, layers: Sequence[str], task: Task, device: torch.device, *, logits: bool
    ) -> TeacherSource:
        """Return the source of these layers: the cache, and the network for layers not in it.

        Args:
            layers: hint layers, as the pairs name them.
            task: inputs and classes of the network.
            device: device of the batches.
            logits: whether a term reads the logits.

        Raises:
            ValueError: the teacher has no such layer.
        """
        if self.outputs is None:
            return LiveTeacher(to_device(self.network, device), layers, task, logits=logits)
        cached = [name for name in layers if name in self.outputs.layers]
        missing = [name for name in layers if name not in cached]
        live = None
        if missing:
            live = LiveTeacher(to_device(self.network, device), missing, task, logits=False)
        return CachedTeacher(self.outputs, cached, live, logits=logits)


def open_cached_outputs(
    store: CacheStore,
    key: str,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    folder: str | None = None,
    limit: float = math.inf,
) -> Outputs | None:
    """The outputs of an address; None where they are not whole (the reason is logged).

    Args:
        store: where they are kept.
        key: their address.
        data: whose training split they belong to.
        device: where they are wanted.
        folder: where on this node they are copied to before they are read; None: read in place,
            or copied below the system's temporary folder where the store is behind a URI.
        limit: bytes of all such copies; those unused longest make way.
    """
    manifest = store.manifest(key)
    here = store.storage.local(f"{FOLDER}/{key}")
    if manifest is None or not store.is_whole(key):
        log.warning("the teacher's outputs %s are gone or damaged; it is run live", key)
        return None
    store.touch(key)
    try:
        if folder is not None or here is None:
            own = Path(tempfile.gettempdir(), "raykd-outputs")
            root = own if folder is None else Path(folder).expanduser()
            here = fetched(store, key, manifest, root, limit)
        return Outputs(manifest.description, here, data, device)
    except (OSError, ValueError, SafetensorError) as error:
        log.warning("the teacher's outputs %s cannot be read (%s); it is run live", key, error)
        return None


def fetched(
    store: CacheStore, key: str, manifest: Manifest, root: Path, limit: float = math.inf
) -> Path:
    """A node's own copy of an entry, made by the first process that asks; checksums are seen to.

    Raises:
        ValueError: a shard's bytes are not those that were written.
        OSError: the copy cannot be written.
    """
    target = root / key
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{key}.lock"):
        if target.is_dir():
            os.utime(target)
            return target
        _make_room(root, limit - manifest.bytes)
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


def _make_room(root: Path, limit: float) -> None:
    """Remove the copies unused longest until the rest takes `limit` bytes at most.

    A process that reads one goes on reading: the system keeps its pages until it is done.
    """
    copies = sorted(
        (one for one in root.iterdir() if one.is_dir()),
        key=lambda one: one.stat().st_mtime,
        reverse=True,
    )
    taken = 0
    for copy in copies:
        taken += sum(file.stat().st_size for file in copy.iterdir())
        if taken > limit:
            shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the system lets go of it when the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _room(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE)
