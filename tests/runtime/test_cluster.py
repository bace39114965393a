"""Number of slots from the resources of nodes; impossible requirements raise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raykd.errors import StudyError
from raykd.runtime import cluster as ray_cluster
from raykd.runtime.cluster import (
    SPIN_SETTING,
    _cpu_quota,
    is_remote,
    plan_slots,
    this_machine,
    thread_settings,
    usable_cpus,
)
from raykd.study.config import Cluster

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 16.0, "GPU": 4.0, "memory": 1e11}]


def cluster(**changed: Any) -> Cluster:
    return Cluster(**changed)


def test_ray_is_not_imported_before_its_settings_are_set() -> None:
    """Otherwise Ray under `uv run` creates a uv environment for each worker."""
    code = "import sys; from raykd.runtime.cluster import uses_existing_ray; uses_existing_ray()"
    code += "; print('ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("fields", "nodes", "plan"),
    [
        ({}, LAPTOP, (2, 1, 1, 0)),
        ({"slots": 1}, LAPTOP, (1, 1, 1, 0)),
        ({"workers_per_trial": 2}, LAPTOP, (1, 2, 1, 0)),
        ({"cpus_per_worker": 0.5}, LAPTOP, (4, 1, 0.5, 0)),
        ({"cpus_per_worker": 0.1}, [{"CPU": 1.0}], (10, 1, 0.1, 0)),
        ({"cpus_per_worker": 1.5}, LAPTOP, (1, 1, 1.5, 0)),
        ({}, [{"CPU": 2.0}, {"CPU": 3.0}], (5, 1, 1, 0)),
        # Each node rounds down for itself: a worker lies on one node, a trial may span two.
        ({"cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], (2, 1, 2, 0)),
        ({"workers_per_trial": 4}, [{"CPU": 2.0}, {"CPU": 3.0}], (1, 4, 1, 0)),
        # A head node without CPUs, and one without a word about them.
        ({}, [{"CPU": 0.0}, {"memory": 1.0}, {"CPU": 4.0}], (4, 1, 1, 0)),
        ({}, SERVER, (4, 1, 1, 1)),
        ({"cpus_per_worker": 8}, SERVER, (2, 1, 8, 1)),
        ({"workers_per_trial": 2}, SERVER, (2, 2, 1, 1)),
        ({"gpus_per_worker": 0}, SERVER, (16, 1, 1, 0)),
        ({"gpus_per_worker": 2}, SERVER, (2, 1, 1, 2)),
        # Nodes without a GPU take no worker that needs one.
        ({}, [*SERVER, {"CPU": 64.0}], (4, 1, 1, 1)),
        # Parts of a GPU lie on one GPU: 2 x 0.4, 3 x 0.3, 10 x 0.1.
        ({"gpus_per_worker": 0.5}, [{"CPU": 8.0, "GPU": 1.0}], (2, 1, 1, 0.5)),
        ({"gpus_per_worker": 0.4}, [{"CPU": 8.0, "GPU": 1.0}], (2, 1, 1, 0.4)),
        ({"gpus_per_worker": 0.4}, [{"CPU": 9.0, "GPU": 2.0}], (4, 1, 1, 0.4)),
        ({"gpus_per_worker": 0.3}, [{"CPU": 8.0, "GPU": 1.0}], (3, 1, 1, 0.3)),
        ({"gpus_per_worker": 0.1}, [{"CPU": 16.0, "GPU": 1.0}], (10, 1, 1, 0.1)),
        ({"gpus_per_worker": 0.1}, [{"CPU": 4.0, "GPU": 1.0}], (4, 1, 1, 0.1)),
    ],
)
def test_number_of_slots(
    fields: dict[str, Any], nodes: list[dict[str, float]], plan: tuple[float, ...]
) -> None:
    slots = plan_slots(cluster(**fields), nodes)
    assert (slots.slots, slots.workers, slots.cpus, slots.gpus) == plan


@pytest.mark.parametrize(
    ("fields", "nodes", "field", "fix"),
    [
        ({"gpus_per_worker": 1}, LAPTOP, "gpus_per_worker", "to 0 or auto"),
        ({"gpus_per_worker": 0.5}, LAPTOP, "gpus_per_worker", "to 0 or auto"),
        ({"gpus_per_worker": 8}, SERVER, "gpus_per_worker", "smaller fraction of a GPU"),
        ({"cpus_per_worker": 3}, LAPTOP, "cpus_per_worker", "at most 2"),
        ({"cpus_per_worker": 9}, [{"CPU": 4.0}, {"CPU": 8.0}], "cpus_per_worker", "at most 8"),
        ({"workers_per_trial": 3}, LAPTOP, "workers_per_trial", "at most 2"),
        ({"workers_per_trial": 9}, SERVER, "workers_per_trial", "at most 4"),
        ({"slots": 3}, LAPTOP, "slots", "slots to 2 or auto"),
        ({"slots": 2, "workers_per_trial": 2}, LAPTOP, "slots", "slots to 1 or auto"),
    ],
)
def test_impossible_requirements_raise(
    fields: dict[str, Any], nodes: list[dict[str, float]], field: str, fix: str
) -> None:
    with pytest.raises(StudyError) as refused:
        plan_slots(cluster(**fields), nodes)
    [problem] = refused.value.problems
    assert problem.path == f"cluster.{field}"
    assert fix in problem.fix and "RAY_ADDRESS" in problem.fix
    assert "this machine" in problem.message if len(nodes) == 1 else "2 nodes" in problem.message
    assert "CPU" in problem.message and "GPU" in problem.message


def test_suggested_fix_of_error_works() -> None:
    for fields in ({"workers_per_trial": 2}, {"cpus_per_worker": 2}, {"gpus_per_worker": "auto"}):
        assert plan_slots(cluster(**fields), LAPTOP).slots >= 1


def test_this_machine_is_one_node() -> None:
    [node] = this_machine()
    assert node["CPU"] >= 1 and node["GPU"] >= 0
    assert plan_slots(cluster(gpus_per_worker=0), this_machine()).slots == int(node["CPU"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_plans_and_ray_use_one_cpu_count() -> None:
    """CPUs that the process may use, for example 4 of 64 under SLURM."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1 and this_machine()[0]["CPU"] == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "groups", "cpus"),
    [
        ({}, "", 1 << 20),
        ({"cpu.max": "max 100000"}, "0::/", 1 << 20),
        ({"cpu.max": "250000 100000"}, "0::/", 2.5),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", 0.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", 4),
        ({"a/cpu.max": "garbage"}, "0::/a", 1 << 20),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", 1 << 20),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", 3),
        (
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            "2:cpu,cpuacct:/job",
            1.5,
        ),
    ],
)
def test_cpu_quota_of_container(
    files: dict[str, str], groups: str, cpus: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(groups + "\n" if groups else "")
    assert _cpu_quota(tmp_path, tmp_path / "own") == cpus


def test_plan_describes_itself() -> None:
    assert (
        str(plan_slots(cluster(), LAPTOP)) == "2 parallel trials, 1 worker each (1 CPU per worker)"
    )
    assert "0.5 GPU" in str(plan_slots(cluster(gpus_per_worker=0.5), SERVER))


def test_ray_address_selects_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not is_remote()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert is_remote()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not is_remote()


SLOTS = """\
import os, ray
from raykd.runtime.cluster import ray_session

@ray.remote(num_cpus=1)
def seen():
    import sys
    names = "RAY_CHDIR_TO_TRIAL_DIR", "GOMP_SPINCOUNT"
    return "raykd.runtime.worker" in sys.modules, *map(os.environ.get, names)

with ray_session(verbose=False, groups=False, slots=os.cpu_count()):
    print(*ray.get(seen.remote()))
    assert ray.is_initialized()
assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_prestarted_processes_have_imports_preloaded() -> None:
    """They inherit the driver's settings."""
    command = [sys.executable, "-c", SLOTS]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert process.stdout.split() == ["True", "0", SPIN_SETTING[1]], process.stderr


def test_settings_of_user_for_threads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert thread_settings() == dict([SPIN_SETTING])
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert thread_settings() == {"GOMP_SPINCOUNT": "7"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert thread_settings() == {}


@pytest.mark.parametrize(
    ("cause", "failures", "attempts"), [("slow", 2, 3), ("slow", 9, 4), ("broken", 2, 1)]
)
def test_a_ray_whose_agents_are_slow_is_started_again(
    cause: str, failures: int, attempts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other error is raised at once, with the logs of this process's session."""
    starts: list[Path] = []

    def start(**settings: Any) -> None:
        logs = tmp_path / f"session_2026-01-01_00-00-0{len(starts)}_0_{os.getpid()}" / "logs"
        logs.mkdir(parents=True)
        text = f"{ray_cluster.SLOW_AGENT} /tmp/port" if cause == "slow" else "no such device"
        (logs / "raylet.err").write_text(text)
        starts.append(logs)
        if len(starts) <= failures:
            raise RuntimeError("the node timed out")

    monkeypatch.setattr(ray_cluster, "ray_folder", lambda: str(tmp_path))
    monkeypatch.setattr(ray_cluster, "_start", start)
    (tmp_path / "session_2027-01-01_00-00-00_0_1").mkdir()  # of another process
    if attempts > failures:
        ray_cluster._start_patiently(groups=False, slots=1, settings={})
    else:
        with pytest.raises(StudyError, match="the node timed out") as raised:
            ray_cluster._start_patiently(groups=False, slots=1, settings={})
        assert raised.value.problems[0].fix == f"its logs: {starts[-1]}"
    assert len(starts) == attempts
