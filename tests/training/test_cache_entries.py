"""Cache entries: keys cover everything that determines the bytes; damage is detected."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helpers import cache_cases
from helpers.cache_cases import CROP, FLIP, LAYERS, build, built, cropped, data, described, files
from helpers.training_cases import digits, teacher_model, untaught
from raykd.data import AUGMENTATIONS
from raykd.models import Resnet
from raykd.schemes import LiveTeacher
from raykd.storage import Storage
from raykd.study.config import Cache, Study
from raykd.training.build import signature_of
from raykd.training.teacher_cache import LOGITS, CacheSpec, CacheStore, network_digest
from raykd.training.teacher_cache.reader import copy_entry
from raykd.training.teacher_cache.spec import model_digest

STUDY = cropped()


def augmented(*steps: object) -> Study:
    return dataclasses.replace(STUDY, data=dataclasses.replace(STUDY.data, augment=steps))


def cached(**changed: object) -> Study:
    return dataclasses.replace(STUDY, cache=dataclasses.replace(STUDY.cache, **changed))


CHANGES: dict[str, Callable[[], CacheSpec]] = {
    "weights": lambda: described(STUDY, weights=network_digest(untaught(teacher_model(), 1))),
    "architecture": lambda: described(STUDY, teacher=model_digest(Resnet(depth=14, width=8))),
    "another transform": lambda: described(augmented(CROP, FLIP)),
    "a transform's field": lambda: described(augmented(AUGMENTATIONS["random_crop"](padding=2))),
    "no transform": lambda: described(augmented()),
    "order of transforms": lambda: described(augmented(FLIP, CROP)),
    "seed": lambda: described(cached(seed=6)),
    "layers": lambda: described(STUDY, ("stage2",)),
    "more layers": lambda: described(STUDY, ("stage2", "stage3")),
    "data": lambda: described(STUDY, fingerprint=digits(None).fingerprint),
    "rows": lambda: described(STUDY, rows=95),
    "views": lambda: described(STUDY, views=3),
    "dtype": lambda: described(cached(dtype="fp16")),
    "precision": lambda: described(
        dataclasses.replace(STUDY, train=dataclasses.replace(STUDY.train, precision="bf16"))
    ),
    "version": lambda: dataclasses.replace(described(STUDY), version=99),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_determines_outputs_changes_key(change: str) -> None:
    keys = {name: make().key for name, make in CHANGES.items()} | {"none": described(STUDY).key}
    assert [name for name, key in keys.items() if key == keys[change]] == [change]


def test_other_fields_do_not_change_key() -> None:
    other = dataclasses.replace(
        STUDY,
        name="other",
        seed=9,
        knowledge=(),
        train=dataclasses.replace(STUDY.train, epochs=7, batch_size=5),
        cache=dataclasses.replace(STUDY.cache, limit_gb=1, folder="/tmp", use="always"),
    )
    assert described(other).key == described(STUDY).key
    assert (
        CacheSpec.from_plain(described(STUDY, LAYERS).plain()).key == described(STUDY, LAYERS).key
    )


def test_shards_contain_each_sample_of_each_view_once() -> None:
    description = described(STUDY, views=3, shard_rows=40)
    rows = [(s.view, row) for s in description.shards for row in range(s.start, s.stop)]
    assert rows == [(view, row) for view in range(3) for row in range(96)]
    assert description.bytes == 3 * 96 * 10 * 4


def test_bytes_equal_tensors(tmp_path: Path) -> None:
    for dtype, size in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        study = cached(dtype=dtype)
        description = described(study, LAYERS)
        built(tmp_path, study, description)
        stored = [
            safetensors.torch.load(content)
            for name, content in files(tmp_path, description.key).items()
            if name.endswith(".safetensors")
        ]
        total = sum(tensor.nbytes for tensors in stored for tensor in tensors.values())
        assert description.bytes == total
        assert {tensor.element_size() for tensors in stored for tensor in tensors.values()} == {
            size
        }


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_reduced_precision_error_is_bounded(dtype: str, tmp_path: Path) -> None:
    """Stored values are within half a unit in the last place of the exact values."""
    whole = built(tmp_path, STUDY, described(STUDY, LAYERS))
    study = cached(dtype=dtype)
    less = built(tmp_path, study, described(study, LAYERS))
    rows = torch.arange(96)
    bound = {"fp16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    for name in (LOGITS, *LAYERS):
        exact, near = (store.stored(name, 1, rows).float() for store in (whole, less))
        assert (near - exact).abs().max() <= bound * exact.abs().max()


def test_any_number_of_shares_gives_same_entry(tmp_path: Path) -> None:
    description = described(STUDY, ("stage2",))
    built(tmp_path / "one", STUDY, description)
    shares = [build(tmp_path / "three", STUDY, description, share, 3) for share in (2, 0, 1)]
    for number, share in enumerate(shares):
        while share.advance():
            pass
        assert share.finish() == (number == 2)
    ours, theirs = (files(tmp_path / name, description.key) for name in ("one", "three"))
    assert ours.keys() == theirs.keys() and len(ours) == 7
    assert ours == theirs


def test_existing_shards_are_not_recomputed(tmp_path: Path) -> None:
    description = described(STUDY)
    built(tmp_path, STUDY, description)
    second = build(tmp_path, STUDY, description)
    assert second.remaining == [] and second.finish()


def test_temporary_files_of_killed_build_are_removed(tmp_path: Path) -> None:
    description = described(STUDY, LAYERS, shard_rows=32)
    folder = tmp_path / "outputs" / description.key
    folder.mkdir(parents=True)
    shard = description.shards[0].file
    for draft in (f".{shard}.2954da9a", f".{shard}.sum.2954da9a"):
        (folder / draft).write_bytes(b"half")
    built(tmp_path, STUDY, description)
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


@pytest.mark.slow
def test_killed_build_resumes_to_equal_bytes(tmp_path: Path) -> None:
    """kill -9 at three points of one build, each in a separate process."""
    description = described(STUDY, LAYERS, shard_rows=4)
    assert len(description.shards) == 48
    for moment, done in enumerate((2, 9, 17)):
        folder = tmp_path / "killed"
        process = subprocess.Popen(
            [sys.executable, cache_cases.__file__, str(folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        for _ in range(done):
            assert process.stdout.readline()
        time.sleep(0.003 * moment)  # somewhere in the next shard
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert not CacheStore(Storage(str(folder))).is_whole(description.key)
    resumed = build(tmp_path / "killed", STUDY, description)
    assert 0 < len(resumed.remaining) <= 48 - 3, "what was finished is kept"
    built(tmp_path / "killed", STUDY, description)
    built(tmp_path / "whole", STUDY, description)
    ours, theirs = (files(tmp_path / name, description.key) for name in ("killed", "whole"))
    assert ours == theirs


def test_partial_shard_and_stray_temporary_file_are_ignored(tmp_path: Path) -> None:
    """Files of a process that dies between a shard and its checksum, or while it writes."""
    description = described(STUDY)
    build(tmp_path, STUDY, description).advance()
    folder = tmp_path / "outputs" / description.key
    first = description.shards[0].file
    (folder / f"{first}.sum").unlink()
    (folder / f".{first}.0123abcd").write_bytes(b"half")
    assert len(build(tmp_path, STUDY, description).remaining) == len(description.shards)
    built(tmp_path, STUDY, description)
    built(tmp_path / "whole", STUDY, description)
    assert files(tmp_path, description.key) == files(tmp_path / "whole", description.key)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_shard_is_detected_and_recomputed(damage: str, tmp_path: Path) -> None:
    description = described(STUDY, ("stage2",))
    built(tmp_path, STUDY, description)
    before = files(tmp_path, description.key)
    store = CacheStore(Storage(str(tmp_path)))
    assert store.verify(description.key) == [] and store.is_whole(description.key)
    shard = tmp_path / "outputs" / description.key / description.shards[3].file
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flipped" else content[:-9])
    assert store.is_whole(description.key) == (damage == "flipped"), "sizes tell the others"
    if damage == "cut":
        store.repair(description.key)
    else:
        assert store.verify(description.key) == [description.shards[3].file]
    assert not store.is_whole(description.key)
    repair = build(tmp_path, STUDY, description)
    assert [missing.number for missing in repair.remaining] == [3], "only the damaged one"
    built(tmp_path, STUDY, description)
    assert files(tmp_path, description.key) == before


def test_manifest_of_another_format_is_ignored(tmp_path: Path) -> None:
    description = described(STUDY)
    built(tmp_path, STUDY, description)
    manifest = tmp_path / "outputs" / description.key / "manifest.json"
    store = CacheStore(Storage(str(tmp_path)))
    for content in ("{", "[]", '{"format": 2}', '{"format": 1}'):
        manifest.write_text(content)
        assert store.manifest(description.key) is None


def test_least_recently_used_entries_are_evicted(tmp_path: Path) -> None:
    store = CacheStore(Storage(str(tmp_path)))
    keys = []
    for views in (1, 2, 3):
        description = described(STUDY, views=views)
        built(tmp_path, STUDY, description)
        keys.append(description.key)
    store.touch(keys[0])
    assert [entry.key for entry in store.entries()] == [keys[0], keys[2], keys[1]]
    sizes = {entry.key: entry.bytes for entry in store.entries()}
    assert store.make_room(10, sum(sizes.values()) + 10) == []
    assert store.make_room(10, sum(sizes.values())) == [keys[1]], "the one read longest ago"
    assert store.make_room(10, 20, keep=[keys[2]]) == [keys[0]], "what is in use stays"
    assert [entry.key for entry in store.entries()] == [keys[2]]


def test_entries_in_use_are_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (CacheStore(Storage(str(tmp_path))) for _ in range(2))
    description = described(STUDY)
    built(tmp_path, STUDY, description)
    key = description.key
    first.hold(key, "a")
    assert second.make_room(10, 20) == []
    first.release(key, "a")
    second.hold(key, "b")
    with monkeypatch.context() as patched:
        patched.setattr("raykd.training.teacher_cache.store.LEASE_S", -1.0)  # its study has died
        assert first.make_room(10, 20) == [key]
    first.hold("nothing", "a")
    first.release("nothing", "a")
    assert first.entries() == [], "no empty folder is left"


def test_second_study_does_not_replace_shards(tmp_path: Path) -> None:
    """Two machines may differ in the last bits; the manifest's checksums stay true."""
    description = described(STUDY)
    late, early = (CacheStore(Storage(str(tmp_path))) for _ in range(2))
    first, *rest = description.shards
    early.put(description.key, first, b"early")
    late.put(description.key, first, b"later")
    for shard in rest:
        late.put(description.key, shard, b"both")
    assert early.complete(description, {}) and late.complete(description, {})
    late.put(description.key, first, b"later")
    manifest = early.manifest(description.key)
    assert manifest is not None and early.verify(description.key) == []
    assert manifest.checksums[first.file] == hashlib.sha256(b"early").hexdigest()


def test_values_beyond_range_of_type_raise(tmp_path: Path) -> None:
    network = untaught(teacher_model(), 3)
    study = cached(dtype="fp16")
    making = build(tmp_path, study, described(study))
    scaled = torch.nn.Sequential(network, Times(1e6))
    making._load_teacher = lambda: LiveTeacher(scaled, (), signature_of(data()))
    with pytest.raises(
        ValueError, match=r"logits of the teacher exceeds the range of fp16; set cache\.dtype"
    ):
        making.advance()


class Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.factor


def test_node_fetches_once_and_verifies_checksums(tmp_path: Path) -> None:
    description = described(STUDY)
    built(tmp_path, STUDY, description)
    store = CacheStore(Storage(str(tmp_path)))
    manifest = store.manifest(description.key)
    assert manifest is not None
    node = tmp_path / "node"
    copy = copy_entry(store, description.key, manifest, node)
    for shard in description.shards:
        original = tmp_path / "outputs" / description.key / shard.file
        assert (copy / shard.file).read_bytes() == original.read_bytes()
    stamp = (copy / description.shards[0].file).stat().st_mtime_ns
    assert copy_entry(store, description.key, manifest, node) == copy
    assert (copy / description.shards[0].file).stat().st_mtime_ns == stamp
    spoilt = tmp_path / "outputs" / description.key / description.shards[0].file
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"000000\.safetensors of the outputs .* is damaged"):
        copy_entry(store, description.key, manifest, tmp_path / "another")
    assert not [path for path in (tmp_path / "another").iterdir() if path.is_dir()]


def test_copies_on_node_are_evicted_by_size(tmp_path: Path) -> None:
    store, node = CacheStore(Storage(str(tmp_path))), tmp_path / "node"
    copies = []
    for views in (1, 2, 3):
        description = described(STUDY, views=views)
        built(tmp_path, STUDY, description)
        manifest = store.manifest(description.key)
        assert manifest is not None
        limit = 1e9 if views < 3 else manifest.bytes + 10
        copies.append(copy_entry(store, description.key, manifest, node, limit))
        os.utime(copies[-1], (views, views))
    assert [copy.is_dir() for copy in copies] == [False, False, True]


def test_storage_uri_gives_equal_outputs(tmp_path: Path) -> None:
    """Object store accessed through Arrow, here a local file system."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    remote = Storage(str(tmp_path / "remote"))
    (tmp_path / "remote").mkdir()
    remote._filesystem = SubTreeFileSystem(str(tmp_path / "remote"), LocalFileSystem())
    description = described(STUDY)
    making = build(tmp_path, STUDY, description)
    making.store = CacheStore(remote)
    while making.advance():
        pass
    assert making.finish() and making.store.is_whole(description.key)
    built(tmp_path / "local", STUDY, description)
    ours, theirs = (files(tmp_path / name, description.key) for name in ("remote", "local"))
    assert ours == theirs
    assert [entry.key for entry in making.store.entries()] == [description.key]
    assert remote.local("anything") is None
    making.store.remove(description.key)
    assert making.store.entries() == []


def test_arrays_are_read_only(tmp_path: Path) -> None:
    outputs = built(tmp_path, STUDY, described(STUDY, shard_rows=96))
    before = files(tmp_path, outputs.spec.key)
    outputs._maps[LOGITS][0][0].fill_(7.0)
    assert files(tmp_path, outputs.spec.key) == before
    second = built(tmp_path, STUDY, outputs.spec)
    assert second.stored(LOGITS, 0, torch.arange(5)).ne(7.0).any()


def test_removed_outputs_remain_readable_while_open(tmp_path: Path) -> None:
    """Another study may evict them while a training reads them."""
    outputs = built(tmp_path, STUDY, described(STUDY))
    CacheStore(Storage(str(tmp_path))).remove(outputs.spec.key)
    for view in (0, 1):
        assert outputs.stored(LOGITS, view, torch.arange(96)).isfinite().all()


def test_default_options() -> None:
    assert Cache().use == "auto" and Cache().views == "auto" and Cache().dtype == "fp16"
    assert len(data().train) == 96
