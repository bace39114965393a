"""The replay of searches on a table of trainings."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], ModuleType]


@pytest.fixture
def quality(load: Load) -> ModuleType:
    return load("search_quality")


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """A conditional space of 36 members whose accuracy grows with width and rate."""
    listed = []
    for width, loss, lr in itertools.product((1, 2, 4), ("none", "kd"), range(4)):
        for temperature in (1, 2) if loss == "kd" else (None,):
            drawn = {"width": width, "loss": loss}
            if temperature is not None:
                drawn["temperature"] = temperature
            final = 0.5 + 0.05 * width + 0.04 * lr + 0.01 * (temperature or 0)
            accuracy = [final * epoch / 9 for epoch in range(1, 10)]
            curve = {"val_accuracy": accuracy, "epoch_seconds": [0.1 * width] * 9}
            listed.append({"drawn": {**drawn, "lr": lr}, "params": width, "curves": {"0": curve}})
    return listed


def test_every_member_can_be_drawn(quality: ModuleType, rows: list[dict[str, Any]]) -> None:
    table = quality.Table(rows, "0")
    for number, row in enumerate(rows):
        assert table.draw(lambda name, _, drawn=row["drawn"]: drawn[name]) == number
    assert table.volume(range(len(rows))) == 1
    assert table.volume([]) == 0


@pytest.mark.parametrize("kind", ["single", "several"])
@pytest.mark.parametrize("slots", [1, 7])
def test_searches_find_the_best_and_count_their_time(
    quality: ModuleType, rows: list[dict[str, Any]], kind: str, slots: int
) -> None:
    replays = quality.Replays(rows)
    peers = [name for name in quality.PEERS[kind] if name.startswith("optuna")]
    for name in ["random", "raykd random+none", "raykd tpe+none", "raykd tpe+asha", *peers]:
        trials = 36 if "random" in name else 8
        outcome = replays.of(quality.Cell(name, kind, slots, trials, 0))
        assert outcome.slot_s / slots <= outcome.total_s + 1e-9
        assert [point[0] for point in outcome.curve] == sorted(p[0] for p in outcome.curve)
        if name in ("random", "raykd random+none"):  # every member, once
            assert outcome.slot_s == pytest.approx(sum(9 * 0.1 * r["params"] for r in rows))
            assert outcome.volume == pytest.approx(1) and math.isfinite(outcome.best_s)


def test_defaults_are_among_the_methods(quality: ModuleType) -> None:
    assert quality.default_method() == "raykd tpe+none"
    changes = quality.changes_of("random+hyperband-g2-r4-b2-f50")
    assert (changes["sampler"].name, changes["finish"]) == ("random", 0.5)
    scheduler = changes["scheduler"]
    assert (scheduler.grace_epochs, scheduler.reduction, scheduler.brackets) == (2, 4, 2)


def test_oracle_finds_the_front_first(quality: ModuleType, rows: list[dict[str, Any]]) -> None:
    replays = quality.Replays(rows)
    outcome = replays.of(quality.Cell("oracle", "several", 1, 36, 0))
    front = replays.table(0).front(list(range(len(rows))))
    assert outcome.volume == pytest.approx(1) and outcome.coverage == 1
    assert outcome.front_s == pytest.approx(sum(0.9 * rows[n]["params"] for n in front))


def test_killed_search_loses_no_trial(quality: ModuleType, rows: list[dict[str, Any]]) -> None:
    replays = quality.Replays(rows)
    for name in ("raykd random+none", "raykd random+asha"):
        cell = quality.Cell(name, "several", 4, 36, 0, killed=True)
        undisturbed = replays.of(quality.Cell(name, "several", 4, 36, 0))
        assert replays.of(cell).volume == pytest.approx(undisturbed.volume, abs=0.1)


def test_stored_table_is_whole(quality: ModuleType) -> None:
    file = quality.TABLE
    assert file.stat().st_size < 5e6
    content = json.loads(gzip.decompress(file.read_bytes()))
    assert content["study"] == quality.STUDY
    for row in content["rows"]:
        for curve in row["curves"].values():
            assert all(len(curve[name]) == content["epochs"] for name in quality.METRICS)


def test_intervals_hold_their_medians_and_searches_without_success(quality: ModuleType) -> None:
    median, low, high = quality.median_interval([1.0, 2.0, 3.0, math.inf, math.inf])
    assert low <= median == 3.0 <= high
    ratio, low, high = quality.ratio_interval([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert low == ratio == high == 2.0
