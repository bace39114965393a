"""Batches that are split where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.training_cases import digits, taught, teacher, train_of, unnormalized, weights
from raykd.data import Batch
from raykd.losses import LOSSES, Term
from raykd.study.config import Study
from raykd.training.out_of_memory import LEAST, may_split, split
from raykd.training.trainer import Training

ERRORS: dict[str, Callable[[], Exception]] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    "python": MemoryError,
}


def splitting(study: Study) -> Study:
    return replace(study, cluster=replace(study.cluster, split_batches=True))


def limit_memory(training: Training, samples: int, error: Callable[[], Exception]) -> list[int]:
    """Let the student fail on more samples in training; return the sizes of its batches."""
    sizes = list[int]()

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > samples:
                raise error()

    training.student.register_forward_pre_hook(check)
    return sizes


def close(ours: Training, theirs: Training) -> None:
    expected = weights(theirs.student)
    for name, tensor in weights(ours.student).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ERRORS)
def test_gradient_is_that_of_whole_batch(kind: str) -> None:
    study = splitting(unnormalized(batch_size=32, epochs=2))
    whole, ours = train_of(study), train_of(study)
    sizes = limit_memory(ours, 10, ERRORS[kind])
    for epoch in range(2):
        expected, metrics = whole.run_epoch(), ours.run_epoch()
        assert metrics["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
        assert metrics["batch_parts"] == 4 and "batch_parts" not in expected
        assert epoch or sizes[:3] == [32, 16, 8]
    assert sum(size > 10 for size in sizes) == 2, "later batches are split at once"
    close(ours, whole)


def test_terms_with_teacher_are_split() -> None:
    study = splitting(taught(Term(loss=LOSSES["kd"]()), batch_size=32, epochs=1))
    ours = Training(study, digits(), seed=0, teacher=teacher())
    limit_memory(ours, 16, ERRORS["gpu"])
    assert ours.run_epoch()["batch_parts"] == 2


def test_off_by_default_and_bounded() -> None:
    study = unnormalized(batch_size=32, epochs=1)
    training = train_of(study)
    limit_memory(training, 16, ERRORS["gpu"])
    with pytest.raises(torch.OutOfMemoryError):
        training.run_epoch()
    training = train_of(splitting(study))
    sizes = limit_memory(training, 1, ERRORS["gpu"])
    with pytest.raises(torch.OutOfMemoryError):
        training.run_epoch()
    assert sizes == [32, 16, 8, 4, LEAST]
    training = train_of(splitting(study))
    limit_memory(training, 1, lambda: RuntimeError("another error"))
    with pytest.raises(RuntimeError, match="another error"):
        training.run_epoch()


def test_losses_that_relate_samples_need_whole_batch() -> None:
    for loss in LOSSES.members.values():
        study = splitting(taught(Term(loss=loss())))
        relates = loss.knowledge == "relation"
        assert may_split(study, workers=1) != relates
        assert not may_split(study, workers=2)


@pytest.mark.parametrize(("samples", "parts"), [(32, 4), (33, 4), (7, 8), (2, 2), (1, 1)])
def test_every_sample_is_in_one_part(samples: int, parts: int) -> None:
    numbers = torch.arange(samples)
    inputs = {"tokens": numbers[:, None], "mask": numbers[:, None] * 2}
    batch = Batch(inputs, numbers, numbers, (numbers,), {"tokens": numbers}, view=3)
    pieces = list(split(batch, parts))
    assert torch.equal(torch.cat([piece.targets for piece in pieces]), numbers)
    for piece in pieces:
        assert len(piece) >= min(LEAST, samples) and piece.view == 3
        assert isinstance(piece.inputs, dict) and isinstance(piece.partners, dict)
        assert torch.equal(piece.inputs["mask"][:, 0], piece.targets * 2)
        assert torch.equal(piece.partners["tokens"], piece.targets)
        assert torch.equal(piece.index, piece.targets)
