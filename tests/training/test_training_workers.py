"""Two workers over gloo, started once for this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from helpers import worker_cases
from raykd.tasks import TASKS


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of each rank."""
    folder = tmp_path_factory.mktemp("workers")
    spawn(worker_cases.run, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in (0, 1)]


def near(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize("name", [*worker_cases.STUDIES, "resumed", "cached"])
def test_ranks_are_bitwise_equal(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = ranks[0][name], ranks[1][name]
    assert first["history"] == second["history"] and first["test"] == second["test"]
    for tensor in first["weights"]:
        assert torch.equal(first["weights"][tensor], second["weights"][tensor]), tensor


@pytest.mark.parametrize(
    "name",
    [
        *("even", "uneven", "deployed", "few_labels", "labels_alone", "agreement"),
        *("positions_alone", "boxes_alone", "unlabeled", "inputs", "texts"),
        *TASKS.members,
    ],
)
def test_two_workers_train_like_one(ranks: list[dict[str, Any]], name: str) -> None:
    single, pair = worker_cases.alone_in_the_world(worker_cases.STUDIES[name]), ranks[0][name]
    for ours, theirs in zip(pair["history"], single["history"], strict=True):
        near(ours, theirs)
    near(pair["test"], single["test"])
    for tensor, value in single["weights"].items():
        torch.testing.assert_close(pair["weights"][tensor], value, rtol=1e-4, atol=1e-5, msg=tensor)


def test_workers_read_cached_outputs_of_their_samples(ranks: list[dict[str, Any]]) -> None:
    """Results equal those of one worker with a live teacher."""
    single, pair = worker_cases.alone_in_the_world(worker_cases.CACHED), ranks[0]["cached"]
    for ours, theirs in zip(pair["history"], single["history"], strict=True):
        near(ours, theirs)


def test_late_term_does_not_deadlock(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks[0]["late"]["history"]
    assert "term_hint" not in first and second["term_hint"] > 0


def test_resumed_training_equals_uninterrupted_one(ranks: list[dict[str, Any]]) -> None:
    whole, resumed = ranks[0]["uneven"], ranks[0]["resumed"]
    assert whole["history"] == resumed["history"]
    for tensor, value in whole["weights"].items():
        assert torch.equal(resumed["weights"][tensor], value), tensor


def test_batch_norm_statistics_use_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """One epoch from the same weights: the statistics are near those of one worker."""
    single = worker_cases.alone_in_the_world(worker_cases.STUDIES["normalized"])["weights"]
    pair = ranks[0]["normalized"]["weights"]
    name = next(key for key in single if key.endswith("running_mean"))
    torch.testing.assert_close(pair[name], single[name], rtol=0.2, atol=0.05)


def test_ranges_of_quantized_inputs_use_all_ranks(ranks: list[dict[str, Any]]) -> None:
    single = worker_cases.alone_in_the_world(worker_cases.STUDIES["quantized"])["weights"]
    pair = ranks[0]["quantized"]["weights"]
    names = [key for key in single if key.endswith("inputs.high")]
    assert len(names) > 5
    for name in names:
        torch.testing.assert_close(pair[name], single[name], rtol=0.5, atol=0.1)


def test_nan_on_one_rank_fails_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks[0]["diverged"], ranks[1]["diverged"]
    assert first == second
    assert first == "1: term 'task' and term 'kd' not finite in step 1 of 7"
