"""BatchLoader: order, shares of ranks, sizes, device of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from raykd.data import AnySplit, Augment, Batch, BatchLoader, Dataset, Placement, Split, ViewOptions
from raykd.data.augment import HorizontalFlip, RandomCrop


def batches(
    dataset: Dataset,
    split: AnySplit | None = None,
    *,
    batch_size: int = 64,
    seed: int | None = 0,
    augment: Sequence[Augment] = (),
    placement: Placement = Placement(),  # noqa: B008 - it never changes
) -> BatchLoader:
    return BatchLoader(
        dataset.train if split is None else split,
        dataset,
        batch_size=batch_size,
        shuffle_seed=seed,
        views=ViewOptions(augment),
        placement=placement,
    )


def numbers(of: BatchLoader, epoch: int = 0) -> list[list[int]]:
    return [batch.index.tolist() for batch in of.epoch(epoch)]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def first_samples(split: Any, count: int) -> Split:
    return Split(split.inputs[:count], split.targets[:count], split.index[:count])


def test_batch_contains_its_samples(digits: Dataset) -> None:
    assert isinstance(digits.train, Split)
    raw = dict(zip(digits.train.index.tolist(), torch.as_tensor(digits.train.inputs), strict=True))
    labels = dict(zip(digits.train.index.tolist(), digits.train.targets.tolist(), strict=True))
    batch = next(iter(batches(digits).epoch(0)))
    assert isinstance(batch, Batch)
    assert isinstance(batch.inputs, Tensor)
    assert len(batch) == 64
    expected = torch.stack([raw[n] for n in batch.index.tolist()]).double() / 255
    expected = (expected - digits.mean[0]) / digits.std[0]
    assert torch.allclose(batch.inputs.double(), expected, atol=1e-5)
    assert batch.targets.tolist() == [labels[n] for n in batch.index.tolist()]


def test_each_epoch_has_all_samples_in_new_order(digits: Dataset) -> None:
    first_epoch, second_epoch = numbers(batches(digits)), numbers(batches(digits), epoch=1)
    assert sorted(flat(first_epoch)) == sorted(flat(second_epoch)) == digits.train.index.tolist()
    assert first_epoch != second_epoch
    assert first_epoch == numbers(batches(digits))
    assert first_epoch != numbers(batches(digits, seed=1))


def test_order_is_independent_of_earlier_epochs(digits: Dataset) -> None:
    used = batches(digits)
    for epoch in (0, 1):
        numbers(used, epoch)
    assert numbers(used, 2) == numbers(batches(digits), 2)


def test_global_generator_is_not_used(digits: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    numbers(batches(digits, augment=(RandomCrop(), HorizontalFlip())))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_split_each_global_batch(digits: Dataset, world: int) -> None:
    whole = numbers(batches(digits))
    ranks = [
        batches(digits, placement=Placement(rank=rank, world_size=world)) for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    for batch, shares in zip(whole, zip(*map(numbers, ranks), strict=True), strict=True):
        assert sorted(batch) == sorted(flat(shares))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 50])
def test_evaluation_has_each_sample_once(digits: Dataset, world: int, count: int) -> None:
    split = first_samples(digits.val, count)
    ranks = [
        batches(
            digits,
            split=split,
            seed=None,
            batch_size=8,
            placement=Placement(rank=rank, world_size=world),
        )
        for rank in range(world)
    ]
    samples = [number for rank in ranks for batch in numbers(rank) for number in batch]
    assert sorted(samples) == split.index.tolist()
    assert [len(rank) for rank in ranks] == [len(numbers(rank)) for rank in ranks]


@pytest.mark.parametrize(
    ("count", "size", "world", "expected"),
    [
        (128, 64, 1, [64, 64]),
        (130, 64, 1, [64, 64, 2]),
        (129, 64, 1, [64, 65]),  # one sample left over: merged, batch norm needs two
        (131, 64, 2, [64, 67]),  # three left over, two workers: merged
        (132, 64, 2, [64, 64, 4]),
        (10, 64, 1, [10]),
        (3, 1, 1, [1, 1, 1]),
        (5, 2, 2, [2, 2 + 1]),
    ],
)
def test_number_of_batches(
    digits: Dataset, count: int, size: int, world: int, expected: list[int]
) -> None:
    split = first_samples(digits.train, count)
    ranks = [
        numbers(
            batches(
                digits,
                split=split,
                batch_size=size,
                placement=Placement(rank=rank, world_size=world),
            )
        )
        for rank in range(world)
    ]
    assert [sum(map(len, shares)) for shares in zip(*ranks, strict=True)] == expected
    assert all(len(share) >= min(2, size // world) for rank in ranks for share in rank)


@pytest.mark.parametrize(("count", "batch_size", "world_size"), [(1, 8, 1), (3, 8, 2), (50, 2, 4)])
def test_too_few_samples_raise(
    digits: Dataset, count: int, batch_size: int, world_size: int
) -> None:
    split = first_samples(digits.train, count)
    with pytest.raises(ValueError, match=r"train\.batch_size"):
        batches(
            digits,
            split=split,
            batch_size=batch_size,
            placement=Placement(world_size=world_size),
        )


def test_view_defaults_to_epoch(digits: Dataset) -> None:
    loader = batches(digits, augment=(RandomCrop(padding=1),))
    plain = batches(digits)

    def inputs(of: BatchLoader, epoch: int, view: int | None = None) -> Tensor:
        received = list(of.epoch(epoch, view=view))
        order = torch.cat([batch.index for batch in received]).argsort()
        return torch.cat([torch.as_tensor(batch.inputs) for batch in received])[order]

    assert torch.equal(inputs(loader, 3), inputs(loader, 7, view=3))
    assert not torch.equal(inputs(loader, 3), inputs(loader, 4))
    assert not torch.equal(inputs(loader, 3), inputs(plain, 3))
    other_ranks = [
        batches(digits, augment=(RandomCrop(padding=1),), placement=Placement(rank=r, world_size=2))
        for r in (0, 1)
    ]
    received = [batch for rank in other_ranks for batch in rank.epoch(3)]
    order = torch.cat([batch.index for batch in received]).argsort()
    shared = torch.cat([torch.as_tensor(batch.inputs) for batch in received])[order]
    assert torch.equal(shared, inputs(loader, 3))


def test_augmentation_of_other_inputs_raises(digits: Dataset) -> None:
    split = Split({"tokens": torch.zeros(4, 2)}, torch.zeros(4).long(), torch.arange(4))
    with pytest.raises(ValueError, match="augmentation needs images"):
        batches(digits, split=split, augment=(HorizontalFlip(),))


def test_device_data_are_not_copied(digits: Dataset) -> None:
    assert isinstance(digits.train, Split)
    resident = batches(digits.to("cpu")).split
    assert isinstance(resident, Split)
    inputs = torch.as_tensor(resident.inputs)
    assert inputs.data_ptr() == torch.as_tensor(digits.train.inputs).data_ptr()
    assert inputs.dtype == torch.uint8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_batches_equal_cpu_batches(digits: Dataset) -> None:
    options: dict[str, Any] = {"augment": (RandomCrop(), HorizontalFlip())}
    for here, there in zip(
        batches(digits, **options).epoch(0),
        batches(digits, placement=Placement("cuda"), **options).epoch(0),
        strict=True,
    ):
        assert isinstance(there.inputs, Tensor)
        assert there.inputs.is_cuda
        assert torch.equal(here.index, there.index.cpu())
        assert torch.allclose(torch.as_tensor(here.inputs), there.inputs.cpu(), atol=1e-6)
