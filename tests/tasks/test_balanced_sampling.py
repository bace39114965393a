"""Epochs of balanced samples: every class equally often, the same for any number of workers."""

from __future__ import annotations

import torch

from helpers.training_cases import digits
from raykd.data import BatchLoader, Dataset, Placement
from raykd.data.dataset import Split
from raykd.data.loader import ViewOptions


def imbalanced() -> Dataset:
    """Digits with few samples of the classes above 4."""
    import dataclasses

    data = digits()
    assert isinstance(data.train, Split)
    rows = torch.arange(len(data.train))
    kept = rows[(data.train.targets < 5) | (rows % 10 == 0)]
    train = Split(data.train.take(kept), data.train.targets[kept], data.train.index[kept])
    return dataclasses.replace(data, train=train)


def epoch(data: Dataset, number: int, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
    loader = BatchLoader(
        data.train,
        data,
        batch_size=64,
        shuffle_seed=3,
        views=ViewOptions(balanced=True),
        placement=Placement("cpu", rank, world),
    )
    return [batch.index for batch in loader.epoch(number)]


def test_classes_are_equally_frequent() -> None:
    data = imbalanced()
    counts = torch.zeros(10)
    class_of = dict(zip(data.train.index.tolist(), data.train.targets.tolist(), strict=True))
    for number in range(20):
        drawn = torch.cat(epoch(data, number)).tolist()
        assert len(drawn) == len(data.train)
        counts += torch.bincount(torch.tensor([class_of[i] for i in drawn]), minlength=10)
    share = counts / counts.sum()
    assert ((share - 0.1).abs() < 0.02).all()
    assert min(data.class_counts("train")) < len(data.train) / 30, "they were not before"


def test_epochs_differ_and_are_replayable() -> None:
    data = imbalanced()
    first, again, second = (torch.cat(epoch(data, number)) for number in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_workers_share_samples_of_one() -> None:
    data = imbalanced()
    alone = epoch(data, 0)
    shares = [epoch(data, 0, rank, 2) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(batch.tolist()) == sorted(torch.cat(parts).tolist())
