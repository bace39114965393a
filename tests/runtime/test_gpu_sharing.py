"""Sharing of a GPU by trials: when it is measured, the choice, a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raykd.runtime import gpu_sharing
from raykd.runtime.cluster import plan_slots, ray_session
from raykd.runtime.gpu_sharing import (
    best_count,
    example_training,
    load_rates,
    max_trials_per_gpu,
    measure_rates,
    measure_sharing,
    save_rates,
)
from raykd.study.checks.load import load_study
from raykd.study.config import Cluster
from raykd.study.open_study import OpenStudy
from raykd.training.build import signature_of

SERVER = [{"CPU": 16.0, "GPU": 4.0}]
STUDY = """\
name: packing
data: {name: digits, limit: 160, val_limit: 60}
teacher: {model: {name: mlp, depth: 2, width: 32}}
student: {model: {name: mlp, depth: 1, width: {choice: [8, 16]}}}
knowledge: [{loss: {name: kd, temperature: {uniform: [1, 4]}}}]
train: {epochs: 3, batch_size: 32}
"""


@pytest.fixture
def study(tmp_path: Path) -> OpenStudy:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return load_study(file)


@pytest.mark.parametrize(
    ("fields", "nodes", "most"),
    [
        ({}, SERVER, 4),
        ({}, [{"CPU": 8.0, "GPU": 4.0}], 2),
        ({}, [{"CPU": 6.0, "GPU": 2.0}], 2),  # three would fit; one, two and four are tried
        ({}, [{"CPU": 4.0, "GPU": 4.0}], 1),
        ({}, [{"CPU": 2.0, "GPU": 4.0}], 1),
        ({"cpus_per_worker": 4}, SERVER, 1),
        ({}, [*SERVER, {"CPU": 64.0}], 4),
        ({}, [*SERVER, {"CPU": 8.0, "GPU": 8.0}], 1),  # the node that has the fewest CPUs decides
        ({}, [{"CPU": 64.0}], 1),
        ({"slots": 2}, SERVER, 1),
        ({"gpus_per_worker": 1}, SERVER, 1),
        ({"gpus_per_worker": 0}, SERVER, 1),
        ({"workers_per_trial": 2}, SERVER, 1),
    ],
)
def test_measured_if_study_leaves_it_open_and_cpus_suffice(
    fields: dict[str, Any], nodes: list[dict[str, float]], most: int
) -> None:
    assert max_trials_per_gpu(Cluster(**fields), nodes) == most


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 100.0, 2: 180.0, 4: 300.0}, 4),
        ({1: 100.0, 2: 180.0, 4: 170.0}, 2),
        ({1: 100.0, 2: 103.0, 4: 104.0}, 1),  # not worth the memory
        ({1: 100.0, 2: 90.0, 4: 150.0}, 4),
        ({1: 100.0}, 1),  # two did not fit into memory
        ({}, 1),
    ],
)
def test_more_trials_per_gpu_only_for_clear_speedup(rates: dict[int, float], chosen: int) -> None:
    assert best_count(rates) == chosen


def test_plan_uses_best_share(study: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Mapping[str, float]] = []

    def measured(
        example: Any, data: Any, counts: list[int], share: Mapping[str, float]
    ) -> dict[int, float]:
        tried.append(share)
        return {1: 10.0, 2: 19.0, 4: 19.5} if counts == [1, 2, 4] else {}

    monkeypatch.setattr(gpu_sharing, "measure_rates", measured)
    data = study.settings.data.load()
    cluster, rates = measure_sharing(study, signature_of(data), data, SERVER)
    assert tried == [{"num_cpus": 1, "num_gpus": 0.25}]
    assert (cluster.gpus_per_worker, rates[2]) == (0.5, 19.0)
    assert plan_slots(cluster, SERVER).slots == 8


def test_measurement_is_reused_for_equal_gpus(tmp_path: Path) -> None:
    file, rates = tmp_path / "packing.json", {1: 10.0, 2: 19.0}
    assert load_rates(file, SERVER) == {}
    save_rates(file, SERVER, rates)
    assert load_rates(file, SERVER) == rates
    assert load_rates(file, [*SERVER, *SERVER]) == {}
    for damaged in (b"", b"{", b"[]", b"\xff", b'{"gpus": []}', file.read_bytes()[:-3]):
        file.write_bytes(damaged)
        assert load_rates(file, SERVER) == {}


def test_nothing_is_measured_without_gpu(study: OpenStudy) -> None:
    data = study.settings.data.load()
    cluster, rates = measure_sharing(study, signature_of(data), data, [{"CPU": 2.0}])
    assert (cluster, rates) == (study.settings.cluster, {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_run_concurrently_on_ray(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shares of a CPU, because there may be no GPU."""
    monkeypatch.setattr(gpu_sharing, "MEASURE_S", 0.5)
    data = study.settings.data.load()
    example = example_training(study, signature_of(data))
    assert example is not None and example.scheme.name == "alone"
    with ray_session(verbose=False):
        rates = measure_rates(example, data, [1, 2], {"num_cpus": 0.5, "num_gpus": 0})
    assert set(rates) == {1, 2}
    assert all(rate > 0 for rate in rates.values())
