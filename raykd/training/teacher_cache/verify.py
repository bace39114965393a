"""Kept outputs compared with what the teacher says now."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raykd.data import Dataset
from raykd.models import Model
from raykd.schemes import LiveTeacher
from raykd.study.config import read_study
from raykd.study.teachers import teachers_of
from raykd.training.build import task_of
from raykd.training.memory_format import to_device
from raykd.training.metrics import autocast_for
from raykd.training.stored_networks import load_stored_network
from raykd.training.teacher_cache.builder import outputs_of, view_loader
from raykd.training.teacher_cache.reader import Outputs
from raykd.training.teacher_cache.spec import LOGITS
from raykd.training.teacher_cache.store import FOLDER, CacheStore, Manifest

TOLERANCE = 0.02
"""How far, as a part of the largest value, outputs may differ: another device rounds otherwise."""


@dataclass(frozen=True)
class Comparison:
    """One kind of output on a random sample.

    Attributes:
        name: of the layer; "logits" for those.
        samples: that were compared.
        largest: absolute value of what the teacher says now.
        difference: largest absolute one between that and what is kept.
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
    """Run the teacher on random samples under random views, and compare.

    Args:
        store: where the outputs are.
        key: their address.
        samples: about how many.
        seed: of the sample.
        device: where the teacher runs.
        allow_import: let a teacher run code that is not raykd's.

    Raises:
        ValueError: there are no such outputs, or their data or their teacher cannot be had.
    """
    manifest = store.manifest(key)
    if manifest is None:
        raise ValueError(f"there are no complete outputs {key} below {store.storage.root}")
    here = store.storage.local(f"{FOLDER}/{key}")
    if here is None:
        raise ValueError("outputs behind a URI are compared on a copy: fetch the folder first")
    device = torch.device(device)
    study = read_study(manifest.about["study"])
    data = study.data.load().to(device)
    if data.fingerprint != manifest.description.data:
        raise ValueError(f"the data {study.data.name} are not those that {key} was computed on")
    network = to_device(_teacher(store, manifest, data, allow_import), device)
    teacher = LiveTeacher(network, manifest.description.layers, task_of(data))
    batches = view_loader(manifest.description, study, data)
    outputs = Outputs(manifest.description, here, data, "cpu")
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    views = min(manifest.description.views, 4)
    for view in torch.randperm(manifest.description.views, generator=generator)[:views].tolist():
        each = max(1, samples // views)
        rows = torch.randperm(manifest.description.rows, generator=generator)[:each]
        precision = autocast_for(study.train.precision, device)
        now = outputs_of(manifest.description, teacher, batches, rows, view, precision)
        for name, fresh in now.items():
            kept = outputs.stored(name, view, rows)
            found.setdefault(name, []).append((kept.float(), fresh.float()))
    return [_compared(name, pairs) for name, pairs in found.items()]


def _compared(name: str, pairs: list[tuple[Tensor, Tensor]]) -> Comparison:
    kept, fresh = (torch.cat(each) for each in zip(*pairs, strict=True))
    return Comparison(
        name="logits" if name == LOGITS else name,
        samples=len(fresh),
        largest=fresh.abs().max().item(),
        difference=(kept - fresh).abs().nan_to_num(nan=float("inf")).max().item(),
    )


def _teacher(store: CacheStore, manifest: Manifest, data: Dataset, allow_import: bool) -> nn.Module:
    study, file = read_study(manifest.about["study"]), str(manifest.about.get("file", ""))
    model = teachers_of(study)[int(manifest.about["teacher"])].model
    content = store.storage.read(file) if file else None
    if content is None:
        raise ValueError(f"the teacher's weights {file} are not below {store.storage.root}")
    if not allow_import and (not file.endswith(".safetensors") or _runs_code(model)):
        raise ValueError("the teacher runs code that is not raykd's; add --allow-import")
    return load_stored_network(file, content, model, data)


def _runs_code(model: Model | None) -> bool:
    return model is not None and model.runs_code
