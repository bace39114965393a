"""Extra inputs of a batch: further views of its samples, partners of the same class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raykd.data import (
    AnySplit,
    Augment,
    Batch,
    BatchLoader,
    Dataset,
    ExtraInputs,
    FileSplit,
    Placement,
    Split,
    ViewOptions,
)
from raykd.data.augment import RandomCrop
from raykd.data.image_folder import ImageFolder
from raykd.data.loader import PartnerSampler

CROP = (RandomCrop(padding=2),)


def batches(
    dataset: Dataset,
    extra: ExtraInputs,
    split: AnySplit | None = None,
    *,
    augment: Sequence[Augment] = (),
    batch_size: int = 64,
    placement: Placement = Placement(),  # noqa: B008 - it never changes
) -> BatchLoader:
    return BatchLoader(
        dataset.train if split is None else split,
        dataset,
        batch_size=batch_size,
        shuffle_seed=0,
        views=ViewOptions(augment, extra=extra),
        placement=placement,
    )


def tensor(inputs: object) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def partners_of(split: Split | FileSplit, epoch: int = 0, seed: int = 0) -> Tensor:
    rows = torch.arange(len(split))
    return PartnerSampler(split, torch.device("cpu")).sample(rows, seed, epoch)


def test_samples_and_order_equal_those_of_plain_batch(digits: Dataset) -> None:
    plain = batches(digits, ExtraInputs(), augment=CROP)
    more = batches(digits, ExtraInputs(views=2, partners=True), augment=CROP)
    assert len(plain) == len(more)
    for first, second in zip(plain.epoch(3), more.epoch(3), strict=True):
        assert first.views == () and first.partners is None
        assert torch.equal(first.index, second.index) and torch.equal(first.targets, second.targets)
        assert torch.equal(tensor(first.inputs), tensor(second.inputs))
        assert len(second.views) == 2 and len(tensor(second.partners)) == len(second)


def test_partners_are_other_samples_of_class(digits: Dataset) -> None:
    partners, rows = partners_of(digits.train), torch.arange(len(digits.train))
    assert torch.equal(digits.train.targets[partners], digits.train.targets[rows])
    assert (partners != rows).all()


def test_partners_are_uniform_over_class() -> None:
    targets = torch.tensor([0, 1, 1, 0, 1, 1, 2])
    split = Split(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), targets, torch.arange(7))
    drawn = torch.stack([partners_of(split, epoch) for epoch in range(3000)])
    assert (drawn[:, 6] == 6).all()  # it has the class to itself
    assert (drawn[:, 0] == 3).all() and (drawn[:, 3] == 0).all()
    counts = Counter(drawn[:, 1].tolist())
    assert counts.keys() == {2, 4, 5}
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_partners_depend_only_on_seed_epoch_and_sample(digits: Dataset) -> None:
    first = partners_of(digits.train)
    assert torch.equal(first, partners_of(digits.train))
    for other in (partners_of(digits.train, epoch=1), partners_of(digits.train, seed=1)):
        assert (first == other).float().mean() < 0.1


@pytest.mark.parametrize("world", [2, 3])
def test_extra_inputs_are_on_rank_of_their_sample(digits: Dataset, world: int) -> None:
    extra = ExtraInputs(views=1, partners=True)
    whole = _by_sample(batches(digits, extra, augment=CROP).epoch(2))
    shares = [
        _by_sample(
            batches(
                digits, extra, augment=CROP, placement=Placement(rank=rank, world_size=world)
            ).epoch(2)
        )
        for rank in range(world)
    ]
    assert sum(map(len, shares)) == len(whole)
    for share in shares:
        for number, (view, partner) in share.items():
            assert torch.equal(view, whole[number][0]) and torch.equal(partner, whole[number][1])


def test_views_differ_and_are_reproducible(digits: Dataset) -> None:
    (first, *_), (repeated, *_), (later, *_) = (
        list(batches(digits, ExtraInputs(views=2), augment=CROP).epoch(epoch, view=view))
        for epoch, view in ((0, None), (0, None), (0, 1))
    )
    views = [tensor(inputs) for inputs in (first.inputs, *first.views)]
    for place, view in enumerate(views):
        assert torch.equal(view, tensor((repeated.inputs, *repeated.views)[place]))
        assert not any(torch.equal(view, other) for other in views[:place])
        assert not torch.equal(view, tensor((later.inputs, *later.views)[place]))


def test_partner_of_single_sample_class_is_another_view(digits: Dataset) -> None:
    split = digits.train
    assert isinstance(split, Split) and isinstance(split.inputs, Tensor)
    alone = Split(split.inputs[:10], torch.arange(10), split.index[:10])
    (batch,) = batches(digits, ExtraInputs(partners=True), split=alone, augment=CROP).epoch(0)
    assert not torch.equal(tensor(batch.inputs), tensor(batch.partners))
    (plain,) = batches(digits, ExtraInputs(partners=True), split=alone).epoch(0)
    assert torch.equal(tensor(plain.inputs), tensor(plain.partners))


def test_texts_have_partners(digits: Dataset) -> None:
    tokens = torch.arange(12).reshape(6, 2)
    split = Split({"input_ids": tokens}, torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(6))
    (batch,) = batches(digits, ExtraInputs(views=1, partners=True), split=split).epoch(0)
    assert isinstance(batch.inputs, dict) and isinstance(batch.partners, dict)
    assert batch.views == (batch.inputs,)
    apart = (batch.inputs["input_ids"] - batch.partners["input_ids"])[:, 0]
    assert (apart % 4 == 0).all() and (apart != 0).all()  # every other row is of the same class


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batched", [True, False])
def test_files_on_disk_equal_resident_images(pictures: Path, workers: int, batched: bool) -> None:
    source = ImageFolder(root=str(pictures), size=8, workers=workers)
    in_memory, on_disk = source.load(), dataclasses.replace(source, resident_limit_mb=0).load()
    assert isinstance(on_disk.train, FileSplit)
    crop = RandomCrop(padding=2)
    if not batched:
        crop = _OneByOne(padding=2)
    loaders = [
        list(
            batches(data, ExtraInputs(views=2, partners=True), augment=(crop,), batch_size=6).epoch(
                1
            )
        )
        for data in (in_memory, on_disk)
    ]
    for left, right in zip(*loaders, strict=True):
        assert torch.equal(left.index, right.index)
        ours, theirs = ((b.inputs, *b.views, b.partners) for b in (left, right))
        for memory_inputs, disk_inputs in zip(ours, theirs, strict=True):
            assert isinstance(memory_inputs, Tensor) and isinstance(disk_inputs, Tensor)
            torch.testing.assert_close(memory_inputs, disk_inputs)


class _OneByOne(RandomCrop):
    """Augmentation that is applied to one sample at a time."""

    batched = False


def _by_sample(batches: Any) -> dict[int, tuple[Tensor, Tensor]]:
    inputs: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in batches:
        assert isinstance(batch, Batch)
        triples = zip(
            batch.index.tolist(), tensor(batch.views[0]), tensor(batch.partners), strict=True
        )
        inputs |= {number: (view, partner) for number, view, partner in triples}
    return inputs
