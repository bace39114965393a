"""What is kept of a teacher, and the address that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from raykd.data import Dataset
from raykd.losses.shapes import Shape
from raykd.models import Model
from raykd.study.config import Study, plain

VERSION = 1
"""Part of every address; raised when the same description comes to mean other bytes."""

LOGITS = "@logits"
"""What the logits are called among the layers; no module can bear this name."""

SHARD_BYTES = 64 << 20
"""How large one file may become."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Shard(NamedTuple):
    """One file: a stretch of samples under one view.

    Attributes:
        number: of the shard, over all views.
        view: which view of the samples.
        start, stop: the samples, by their place in the training split.
    """

    number: int
    view: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.number:06d}.safetensors"


@dataclass(frozen=True)
class Description:
    """The outputs of one teacher on the training split, so exactly that they can be told apart.

    Attributes:
        teacher: digest of its architecture.
        weights: digest of its weights.
        data: `Dataset.fingerprint`.
        rows: samples of the training split.
        augment: what is done to the pictures, as plain data.
        seed: of the views.
        views: how many.
        shapes: what is kept of each sample: `LOGITS` and the hint layers, without the batch.
        dtype: in which it is kept.
        precision: in which the teacher runs, as `Train.precision`.
        shard_rows: samples of one file.
        version: of this description's meaning.
        layouts: of the hint layers whose axes are moved, how; other layers are left out.
    """

    teacher: str
    weights: str
    data: str
    rows: int
    augment: tuple[Mapping[str, Any], ...]
    seed: int
    views: int
    shapes: Mapping[str, Shape]
    dtype: str
    precision: str
    shard_rows: int
    version: int = VERSION
    layouts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The content address: 32 hex digits; whatever changes in the description changes it."""
        text = json.dumps(self.plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def layers(self) -> tuple[str, ...]:
        """The hint layers."""
        return tuple(name for name in self.shapes if name != LOGITS)

    @property
    def bytes(self) -> int:
        """Of all outputs; the files' headers are a little more."""
        return self.views * self.rows * row_bytes(self.shapes, self.dtype)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The files, in order; none holds samples of two views."""
        starts = range(0, self.rows, self.shard_rows)
        places = [(view, start) for view in range(self.views) for start in starts]
        return tuple(
            Shard(number, view, start, min(start + self.shard_rows, self.rows))
            for number, (view, start) in enumerate(places)
        )

    def plain(self) -> dict[str, Any]:
        """As mappings, lists and scalars."""
        data = json.loads(json.dumps(asdict(self)))
        if not self.layouts:  # addresses of layers that are kept as they are stay the same
            del data["layouts"]
        return data

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Description:
        shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
        return cls(**{**data, "shapes": shapes, "augment": tuple(data["augment"])})


def describe_outputs(
    study: Study,
    *,
    teacher: str,
    weights: str,
    fingerprint: str,
    rows: int,
    classes: int,
    layers: Mapping[str, Shape],
    views: int,
    shard_rows: int | None = None,
    layouts: Mapping[str, str] | None = None,
) -> Description:
    """The outputs that trainings of a concrete study would read.

    Without augmentation there is one view.

    Args:
        study: gives the augmentation, the precision, and how outputs are kept.
        teacher, weights: as in `Description`.
        fingerprint: of the data.
        rows: samples of the training split.
        classes: of the logits.
        layers: the hint layers to keep, with their shapes without the batch.
        views: how many, where the samples are augmented.
        shard_rows: samples of one file; None: as `SHARD_BYTES` allows.
        layouts: of the hint layers whose axes are moved, how.
    """
    shapes = {LOGITS: (classes,), **{name: tuple(layers[name]) for name in sorted(layers)}}
    augment = study.data.augment
    most = SHARD_BYTES // row_bytes(shapes, study.cache.dtype)
    return Description(
        teacher=teacher,
        weights=weights,
        data=fingerprint,
        rows=rows,
        augment=tuple(plain(augment)),
        seed=study.seed if study.cache.seed is None else study.cache.seed,
        views=views if augment else 1,
        shapes=shapes,
        dtype=study.cache.dtype,
        precision=study.train.precision,
        shard_rows=shard_rows or max(1, min(most, rows)),
        layouts=layouts or {},
    )


def model_digest(model: Model | None) -> str:
    """A digest of what a model option builds: its fields, and the files it is built of.

    Of None, a network that comes whole with its weights, it is empty.
    """
    if model is None:
        return ""
    digest = hashlib.sha256(json.dumps(plain(model), sort_keys=True, default=str).encode())
    for file in model.files():
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def row_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Bytes of one sample under one view."""
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    return numbers * DTYPES[dtype].itemsize


def serves(description: Description, study: Study, data: Dataset, seed: int) -> str:
    """Why a training of a concrete study, whose views are of `seed`, cannot read these outputs;
    empty where it can."""
    wanted = study.train.epochs if study.cache.views == "auto" else study.cache.views
    shown = min(wanted, study.train.epochs)
    if description.data != data.fingerprint or description.rows != len(data.train):
        return "they are of other data"
    if list(description.augment) != plain(study.data.augment):
        return "they are of pictures augmented otherwise"
    if description.augment and description.seed != seed:
        return f"their views are of seed {description.seed}, those of the training of {seed}"
    if description.augment and description.views < shown:
        return f"they hold {description.views} views, and the training shows {shown}"
    return ""


def network_digest(network: nn.Module) -> str:
    """A digest of a network's classes and weights, for one that lies in no file."""
    digest = hashlib.sha256(str(network).encode())
    for name, tensor in network.state_dict().items():
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.flatten().view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
