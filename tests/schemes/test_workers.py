"""Several workers share the memory of schemes and train like one worker where the method allows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from helpers import two_workers
from helpers.scheme_cases import batch, ready
from helpers.study_cases import STUDIES
from raykd.losses import LOSSES
from raykd.losses.functional import from_all_workers
from raykd.schemes import PsKd

NOT_ALIKE = {
    "scheme-kdcl-ensemble=linear_batch": "one combination for each worker's share of the batch",
    "scheme-byot-distance=norm": "the root of a worker's share is not a share of the root",
    **{
        f"scheme-multi_teacher-combine={combine}": "losses on layers use the mean share over a "
        "worker's samples"
        for combine in ("confidence", "gate")
    },
}
"""Schemes that two workers cannot train like one, with the reason."""
NOT_ALIKE |= {
    f"loss-{name}": "it compares the samples of a batch, and a worker has but its share of them"
    for name, loss in LOSSES.members.items()
    if loss.relates_samples
}
NOT_ALIKE |= {
    f"loss-{name}": "each worker draws its own random numbers"
    for name, loss in LOSSES.members.items()
    if loss.random
}


Ranks = list[tuple[dict[str, Any], dict[str, Any]]]
"""Of each worker: what it remembered after a step, and what came of its trainings, by name."""


def test_single_worker_gathers_nothing() -> None:
    rows = torch.arange(3.0, requires_grad=True)
    gathered = from_all_workers(rows)
    assert torch.equal(gathered, rows) and not gathered.requires_grad


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Memory and trainings of each of two workers."""
    folder = tmp_path_factory.mktemp("workers")
    spawn(two_workers.run, args=(str(folder), list(STUDIES)), nprocs=two_workers.WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(two_workers.WORLD)]


@pytest.mark.slow
def test_two_workers_have_equal_memories(ranks: Ranks) -> None:
    first, second = (remembered for remembered, _ in ranks)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert first["rows"].tolist() == [0, 0, 1, 1, 1]
    whole = ready(PsKd())
    whole.distiller.train()
    whole.step(0)
    assert torch.equal(first["ps_kd.has_prediction"], whole.distiller.get_buffer("has_prediction"))
    assert first["kdcl.shares.samples"] == len(batch(0))
    memory = "terms.losses.crd.judges.0."
    assert first[f"crd.{memory}used_slots"] == len(batch(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STUDIES))
def test_two_workers_train_like_one(name: str, ranks: Ranks) -> None:
    two, other = (trainings[name] for _, trainings in ranks)
    assert two["history"] == other["history"]
    for tensor, value in two["weights"].items():
        assert torch.equal(other["weights"][tensor], value), tensor
    assert all(map(math.isfinite, two["history"][-1].values()))
    if name in NOT_ALIKE:
        return
    single = two_workers.trained(name)
    for ours, theirs in zip(two["history"], single["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for tensor, value in single["weights"].items():
        torch.testing.assert_close(
            two["weights"][tensor], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {tensor}"
        )


def test_exceptions_are_listed() -> None:
    assert set(NOT_ALIKE) <= set(STUDIES)
