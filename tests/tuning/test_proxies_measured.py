"""The benchmark of proxies: its figures are the published ones, its statistics are right."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from helpers.pictures_at_hand import write_fashion_mnist
from raykd.models import profile_model

FILE = Path(__file__).parents[2] / "benchmarks" / "proxies.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_of_proxies", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def column(bench: ModuleType, key: str) -> np.ndarray:
    return np.array([float(row[key]) for row in bench.diswot_rows()])


def test_table_equals_published_one(bench: ModuleType) -> None:
    rows = bench.diswot_rows()
    assert len(rows) == 64
    assert {row["arch"] for row in rows} == {
        f"{a}{b}{c}" for a in "1357" for b in "1357" for c in "1357"
    }
    assert all(row["arch"] == row["depth1"] + row["depth2"] + row["depth3"] for row in rows)
    best_ce = max(rows, key=lambda row: float(row["acc_ce"]))
    best_kd = max(rows, key=lambda row: float(row["acc_kd"]))
    assert (best_ce["arch"], best_kd["arch"]) == ("777", "557")
    gains = column(bench, "acc_kd") - column(bench, "acc_ce")
    assert (gains.min(), gains.max()) == (pytest.approx(0.42), pytest.approx(2.93))
    assert bench.scipys_tau(column(bench, "acc_kd"), column(bench, "acc_ce")) == pytest.approx(
        0.836, abs=5e-4
    )


def test_all_64_students_have_their_published_sizes(bench: ModuleType) -> None:
    for row in bench.diswot_rows():
        profile = profile_model(bench.diswot_model(row), bench.CIFAR)
        assert profile.params == int(row["params_computed"]), row["arch"]
        assert profile.macs == int(row["macs_computed"]), row["arch"]


def test_parameter_count_ranks_students_well(bench: ModuleType) -> None:
    params = column(bench, "params_computed")
    tau = bench.scipys_tau(params, column(bench, "acc_kd"))
    assert tau == pytest.approx(0.873, abs=5e-4)
    score = bench.PROXIES["params"]().scorer(bench.ProxyContext(bench.CIFAR, None, None))
    scores = [score(bench.diswot_model(row)) for row in bench.diswot_rows()]
    assert bench.scipys_tau(scores, column(bench, "acc_kd")) == tau


def test_weighted_tau_equals_scipys(bench: ModuleType) -> None:
    drawer = np.random.default_rng(0)
    left, right = drawer.integers(6, size=(2, 20)).astype(float)  # with ties
    everyone = np.ones((20, 20))
    tau = bench.weighted_tau(bench.signs(left), bench.signs(right), everyone)
    assert tau == pytest.approx(bench.scipys_tau(left, right))
    drawn = next(bench.resamples(20))
    times = np.sqrt(np.diag(drawn)).astype(int)
    assert times.sum() == 20 and (drawn == np.outer(times, times)).all()
    repeated = np.repeat(np.arange(20), times)
    tau = bench.weighted_tau(bench.signs(left), bench.signs(right), drawn)
    assert tau == pytest.approx(bench.scipys_tau(left[repeated], right[repeated]))


def test_students_of_similar_size_are_compared_beyond_size(bench: ModuleType) -> None:
    params = np.array([100.0, 105.0, 200.0, 215.0, 300.0])
    accuracy = np.array([50.0, 49.0, 61.0, 60.0, 70.0])
    close = bench.close_pairs(params)
    pairs = [(i, j) for i, j in combinations(range(5), 2) if close[i, j]]
    assert pairs == [(0, 1), (2, 3)]
    comparison = bench.compared(-params, params, accuracy, close)
    assert comparison["tau"].value == pytest.approx(-0.6)
    assert comparison["over_params"].value == pytest.approx(-1.2)
    assert comparison["of_like_size"].value == 1
    assert comparison["of_like_size_over_params"].value == 2
    null = bench.compared(params, params, accuracy, close)
    assert null["over_params"] == bench.Tau(0, 0, 0) and not null["over_params"].clear
    assert null["of_like_size"].value == -1


def test_interval_coverage(bench: ModuleType) -> None:
    drawer = np.random.default_rng(1)
    params = np.linspace(1, 40, 40)
    accuracy, noise = params + drawer.normal(size=40), drawer.normal(size=40)
    close = bench.close_pairs(params)
    comparison = bench.compared(noise, params, accuracy, close)
    assert comparison["tau"].low < 0 < comparison["tau"].high
    assert comparison["over_params"].clear and comparison["over_params"].high < 0
    repeated = bench.compared(noise, params, accuracy, close)
    assert repeated == comparison, "the same resamples each time"


def test_students_can_be_scored_without_training(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion_mnist(tmp_path / "data" / "FashionMNIST" / "raw")
    monkeypatch.chdir(tmp_path)
    [students] = bench.fashion_students(4)
    assert len(students.models) == len(set(students.models)) == 32
    signature = students.about.signature
    assert all(profile_model(model, signature).macs <= 2_000_000 for model in students.models)
    accuracy = students.accuracies["acc_kd"]
    assert 20 < accuracy.min() < accuracy.max() < 95
    assert students.about.teacher is not None and len(students.about.targets) == 4
