"""Specification of cached teacher outputs, and the key that follows from it."""

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
from raykd.user_code import code_digests

VERSION = 1
"""Part of every key; raised when the same specification comes to mean other bytes."""

LOGITS = "@logits"
"""Name of the logits among the layers; no module can have this name."""

SHARD_BYTES = 64 << 20
"""Maximum size of a file."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Shard(NamedTuple):
    """File with consecutive samples under one view.

    Attributes:
        number: of the shard, over all views.
        view: number of the view.
        start, stop: range of the samples, by their rows in the training split.
    """

    number: int
    view: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.number:06d}.safetensors"


@dataclass(frozen=True)
class CacheSpec:
    """Specification of the outputs of one teacher on the training split.

    It holds everything that determines the bytes of a cache entry, up to rounding on different
    machines.

    Attributes:
        teacher: digest of the architecture.
        weights: digest of the weights.
        data: `Dataset.fingerprint`.
        rows: samples of the training split.
        augment: augmentation of the images, as plain data.
        seed: of the views.
        views: number of views.
        shapes: shape of each output without the batch: `LOGITS` and the hint layers.
        dtype: of the stored outputs.
        precision: of the forward passes, as `Train.precision`.
        shard_rows: samples of a file.
        version: of the meaning of this specification.
        layouts: order of the axes of hint layers that are permuted; other layers are left out.
        input: input of the samples that the teacher takes; None: the whole sample.
    """

    teacher: str
    weights: str
    data: str
    rows: int
    augment: tuple[Mapping[str, object], ...]
    seed: int
    views: int
    shapes: Mapping[str, Shape]
    dtype: str
    precision: str
    shard_rows: int
    version: int = VERSION
    layouts: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None

    @cached_property
    def key(self) -> str:
        """Key of the cache entry: 32 hex digits that change with every field."""
        text = json.dumps(self.plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def layers(self) -> tuple[str, ...]:
        """Hint layers in the entry."""
        return tuple(name for name in self.shapes if name != LOGITS)

    @property
    def bytes(self) -> int:
        """Size of all outputs, without the headers of the files."""
        return self.views * self.rows * row_bytes(self.shapes, self.dtype)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Files of the entry, in order; none holds samples of two views."""
        starts = range(0, self.rows, self.shard_rows)
        places = [(view, start) for view in range(self.views) for start in starts]
        return tuple(
            Shard(number, view, start, min(start + self.shard_rows, self.rows))
            for number, (view, start) in enumerate(places)
        )

    def plain(self) -> dict[str, object]:
        """Return the fields as mappings, lists and scalars."""
        data = json.loads(json.dumps(asdict(self)))
        if not self.layouts:  # keys of entries without permuted layers stay the same
            del data["layouts"]
        if self.input is None:
            del data["input"]
        return data

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> CacheSpec:
        shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
        return cls(**{**data, "shapes": shapes, "augment": tuple(data["augment"])})


@dataclass(frozen=True)
class TeacherOutputs:
    """Outputs of a trained teacher that are to be cached.

    Attributes:
        model: digest of the architecture (`model_digest`).
        weights: digest of the weights.
        layers: hint layers in addition to the logits, with their shapes without the batch.
        layouts: order of the axes of hint layers that are permuted.
        input: input of the samples that the teacher takes; None: the whole sample.
    """

    model: str
    weights: str
    layers: Mapping[str, Shape] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None


@dataclass(frozen=True)
class TrainingSamples:
    """Samples that a teacher is run on.

    Attributes:
        fingerprint: of the data set.
        rows: samples of the training split.
        response: shape of a response, without the batch.
    """

    fingerprint: str
    rows: int
    response: Shape

    @classmethod
    def of(cls, data: Dataset) -> TrainingSamples:
        shape = (data.classes, *data.input_shape[1:]) if data.is_dense else (data.classes,)
        return cls(data.fingerprint, len(data.train), shape)


def cache_spec(
    study: Study,
    teacher: TeacherOutputs,
    samples: TrainingSamples,
    *,
    views: int,
    shard_rows: int | None = None,
) -> CacheSpec:
    """Specify the outputs that trainings of a concrete study read.

    Args:
        study: determines augmentation, precision and how outputs are stored.
        teacher: the outputs.
        samples: the training split.
        views: number of views; 1 is used if the study has no augmentation.
        shard_rows: samples of a file; None: as many as `SHARD_BYTES` allows.
    """
    layers = {name: tuple(teacher.layers[name]) for name in sorted(teacher.layers)}
    shapes = {LOGITS: samples.response, **layers}
    augment = plain_augment(study)
    most = SHARD_BYTES // row_bytes(shapes, study.cache.dtype)
    return CacheSpec(
        teacher=teacher.model,
        weights=teacher.weights,
        data=samples.fingerprint,
        rows=samples.rows,
        augment=tuple(augment),
        seed=study.seed if study.cache.seed is None else study.cache.seed,
        views=views if augment else 1,
        shapes=shapes,
        dtype=study.cache.dtype,
        precision=study.train.precision,
        shard_rows=shard_rows or max(1, min(most, samples.rows)),
        layouts=teacher.layouts,
        input=teacher.input,
    )


def plain_augment(study: Study) -> list[dict[str, object]]:
    """Return the augmentations as plain data; those of user code with a digest of the code."""
    coded = [(each, code_digests(each)) for each in plain(study.data.augment)]
    return [{**each, "code": code} if code else each for each, code in coded]


def model_digest(model: Model | None) -> str:
    """Return a digest of a model option: its fields, and the files it is built from.

    It is empty for None, a network that is stored whole with its weights.
    """
    if model is None:
        return ""
    fields = plain(model)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    if code := code_digests(fields):
        digest.update(json.dumps(code).encode())
    for file in model.files():
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def network_digest(network: nn.Module) -> str:
    """Return a digest of the classes and weights of a network that is stored in no file."""
    digest = hashlib.sha256(str(network).encode())
    for name, tensor in network.state_dict().items():
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.flatten().view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def row_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Return the size of the outputs for one sample under one view."""
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    return numbers * DTYPES[dtype].itemsize


def find_mismatch(spec: CacheSpec, study: Study, data: Dataset, seed: int) -> str:
    """Return the reason why a training cannot read a cache entry; empty if it can.

    Args:
        spec: of the entry.
        study: of the training; concrete.
        data: of the training, as the teacher takes it.
        seed: of the views of the training.
    """
    views = study.train.epochs if study.cache.views == "auto" else study.cache.views
    needed = min(views, study.train.epochs)
    if spec.input != data.input:
        return f"they are of the input '{spec.input}', and the teacher takes '{data.input}'"
    if spec.data != data.fingerprint or spec.rows != len(data.train):
        return "they are of other data"
    if list(spec.augment) != plain_augment(study):
        return "they are of images with another augmentation"
    if spec.augment and spec.seed != seed:
        return f"their views have seed {spec.seed}, those of the training have {seed}"
    if spec.augment and spec.views < needed:
        return f"they have {spec.views} views, and the training uses {needed}"
    return ""
