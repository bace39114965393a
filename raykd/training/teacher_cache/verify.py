"""Comparison of cached outputs with those the teacher computes now."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykd.data import Dataset
from raykd.schemes import LiveTeacher
from raykd.study.config import read_study
from raykd.training.build import signature_of
from raykd.training.memory_format import to_device
from raykd.training.metrics import autocast_for
from raykd.training.stored_networks import load_stored_network
from raykd.training.teacher_cache.builder import compute_outputs, view_loader
from raykd.training.teacher_cache.reader import CachedOutputs
from raykd.training.teacher_cache.spec import LOGITS
from raykd.training.teacher_cache.store import FOLDER, CacheStore, Manifest

TOLERANCE = 0.02
"""Allowed difference relative to the largest value; devices round differently."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of one output on random samples.

    Attributes:
        name: of the layer, or "logits".
        samples: number of samples.
        largest: largest absolute value that the teacher computes now.
        difference: largest absolute difference from the cached values.
    """

    name: str
    samples: int
    largest: float
    difference: float

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE * max(self.largest, 1e-6)


def compare(
    store: CacheStore,
    key: str,
    *,
    samples: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    allow_import: bool = False,
) -> list[Comparison]:
    """Run the teacher of a cache entry on random samples and views, and compare the outputs.

    Args:
        store: of the entry.
        key: of the entry.
        samples: approximate number of samples.
        seed: of the choice of samples.
        device: of the teacher.
        allow_import: allow a teacher to run code that is not part of raykd.

    Raises:
        ValueError: there is no such entry, or its data or its teacher are not available.
    """
    manifest = store.manifest(key)
    if manifest is None:
        raise ValueError(f"there are no complete outputs {key} below {store.storage.root}")
    folder = store.storage.local(f"{FOLDER}/{key}")
    if folder is None:
        raise ValueError("outputs behind a URI are compared on a copy: download the folder first")
    # Data, teacher and cached outputs
    device, spec = torch.device(device), manifest.spec
    study = read_study(manifest.provenance["study"])
    data = study.data.load().to(device)
    if data.fingerprint != spec.data:
        raise ValueError(f"the data {study.data.name} are not those that {key} was computed on")
    data = data.as_input(spec.input)
    network = to_device(_teacher(store, manifest, data, allow_import), device)
    teacher = LiveTeacher(network, spec.layers, signature_of(data))
    loader = view_loader(spec, study, data)
    outputs = CachedOutputs(spec, folder, data, "cpu")
    # Random samples of random views
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    views = min(spec.views, 4)
    for view in torch.randperm(spec.views, generator=generator)[:views].tolist():
        rows = torch.randperm(spec.rows, generator=generator)[: max(1, samples // views)]
        autocast = autocast_for(study.train.precision, device)
        computed = compute_outputs(spec, teacher, loader, rows, view, autocast)
        for name, output in computed.items():
            cached = outputs.stored(name, view, rows)
            pairs.setdefault(name, []).append((cached.float(), output.float()))
    return [_comparison(name, tensors) for name, tensors in pairs.items()]


def _comparison(name: str, pairs: list[tuple[Tensor, Tensor]]) -> Comparison:
    cached, computed = (torch.cat(each) for each in zip(*pairs, strict=True))
    return Comparison(
        name="logits" if name == LOGITS else name,
        samples=len(computed),
        largest=computed.abs().max().item(),
        difference=(cached - computed).abs().nan_to_num(nan=float("inf")).max().item(),
    )


def _teacher(store: CacheStore, manifest: Manifest, data: Dataset, allow_import: bool) -> nn.Module:
    study, file = read_study(manifest.provenance["study"]), str(manifest.provenance.get("file", ""))
    model = study.teacher_specs()[int(manifest.provenance["teacher"])].model
    content = store.storage.read(file) if file else None
    if content is None:
        raise ValueError(f"the teacher's weights {file} are not below {store.storage.root}")
    runs_code = model is not None and model.runs_code
    if not allow_import and (runs_code or not file.endswith(".safetensors")):
        raise ValueError("the teacher runs code that is not part of raykd; add --allow-import")
    return load_stored_network(file, content, model, data, allow_code=allow_import)
