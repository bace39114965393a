"""Helpers of the tests of cached outputs; as a script, builds an entry until it is killed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from helpers.training_cases import DIGITS, digits, taught, teacher, teacher_model
from raykd.data import AUGMENTATIONS, Dataset, Placement
from raykd.losses import Term
from raykd.models import profile_model
from raykd.schemes import LiveTeacher
from raykd.storage import Storage
from raykd.study.config import Cache, Study
from raykd.train_config import SGD
from raykd.training.build import signature_of
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache import (
    CacheBuilder,
    CachedOutputs,
    CacheSpec,
    CacheStore,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    network_digest,
    open_cached_outputs,
)

EPOCHS = 2
ROWS = 96
CROP = AUGMENTATIONS["random_crop"](padding=1)
FLIP = AUGMENTATIONS["horizontal_flip"]()
LAYERS = ("stage1", "stage2", "stage3", "embedding")


def data() -> Dataset:
    return digits(ROWS)


def data_of(study: Study) -> Dataset:
    """Return the data of a study of `ROWS` training samples, of which few may have labels."""
    return data() if study.data.labels_per_class is None else study.data.load()


def cropped(*terms: Term, cache: Cache | None = None, **train: Any) -> Study:
    """Study with augmentation: each epoch has another view."""
    study = taught(*terms, **{"epochs": EPOCHS, "optimizer": SGD(lr=0.02), **train})
    source = dataclasses.replace(DIGITS, limit=ROWS, augment=(CROP,))
    return dataclasses.replace(study, data=source, cache=cache or Cache(dtype="fp32", seed=5))


def described(study: Study, layers: tuple[str, ...] = (), **changed: Any) -> CacheSpec:
    """Describe the outputs of the shared teacher that `study` reads."""
    shapes = profile_model(teacher_model(), signature_of(data())).layers
    fields: dict[str, Any] = {
        "teacher": "resnet",
        "weights": network_digest(teacher()),
        "fingerprint": data().fingerprint,
        "rows": len(data().train),
        "classes": 10,
        "layers": {name: shapes[name] for name in layers},
        "views": EPOCHS,
        "shard_rows": 40,
    }
    fields |= changed
    outputs = TeacherOutputs(
        fields["teacher"], fields["weights"], fields["layers"], fields.get("layouts", {})
    )
    samples = TrainingSamples(fields["fingerprint"], fields["rows"], (fields["classes"],))
    return cache_spec(
        study, outputs, samples, views=fields["views"], shard_rows=fields["shard_rows"]
    )


def build(
    folder: Path, study: Study, description: CacheSpec, share: int = 0, shares: int = 1
) -> CacheBuilder:
    def load_teacher() -> LiveTeacher:
        network = to_device(teacher(), torch.device("cpu"))
        return LiveTeacher(network, description.layers, signature_of(data()))

    store = CacheStore(Storage(str(folder)))
    placement = Placement("cpu", share, shares)
    return CacheBuilder(description, study, load_teacher, data_of(study), store, placement)


def built(folder: Path, study: Study, description: CacheSpec) -> CachedOutputs:
    """Build all outputs and open them."""
    whole = build(folder, study, description)
    while whole.advance():
        pass
    assert whole.finish()
    opened = open_cached_outputs(whole.store, description.key, data_of(study))
    assert opened is not None
    return opened


def files(folder: Path, key: str) -> dict[str, bytes]:
    """Every file of an entry except its last-use file."""
    paths = (folder / "outputs" / key).iterdir()
    return {path.name: path.read_bytes() for path in paths if path.name != "used"}


if __name__ == "__main__":
    to_kill = cropped()
    one_by_one = build(Path(sys.argv[1]), to_kill, described(to_kill, LAYERS, shard_rows=4))
    print("begun", flush=True)
    while one_by_one.advance():
        print(len(one_by_one.remaining), flush=True)
    one_by_one.finish()
