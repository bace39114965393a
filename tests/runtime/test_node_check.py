"""Checks of the nodes of a cluster: problems with the nodes that have them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raykd.runtime.node_check import (
    NodeReport,
    NodeRequest,
    merge_problems,
    node_problems,
    package_versions,
)

REQUEST = NodeRequest("/shared", "marker", "/data/a/1.png")
HEALTHY = NodeReport(
    "10.0.0.1",
    versions=package_versions(),
    shared_memory=4 << 30,
    resources={"CPU": 4.0, "GPU": 0.0},
)


def test_healthy_node_describes_itself() -> None:
    assert not list(node_problems(HEALTHY, REQUEST))
    text = str(HEALTHY)
    assert f"torch {package_versions()['torch']}, " in text
    assert text.endswith("4 CPU, 4.0 GiB of shared memory free, storage writable")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"failure": "No module named 'torch'"}, "did not run (No module named 'torch')"),
        ({"storage_problem": "read-only"}, "/shared cannot be used (read-only)"),
        ({"data_problem": "/data/a/1.png cannot be read"}, "/data/a/1.png cannot be read"),
        ({"versions": package_versions() | {"torch": "1.0"}}, "torch is 1.0, but "),
        ({"versions": package_versions() | {"ray": "missing"}}, "ray is missing, but "),
        ({"versions": package_versions() | {"Python": "3.10.1"}}, "Python is 3.10.1, but "),
        (
            {"gpus": 1, "resources": {"CPU": 4.0, "GPU": 2.0}},
            "Ray offers 2 GPU, but PyTorch finds 1",
        ),
    ],
)
def test_each_problem_of_node(change: dict[str, object], message: str) -> None:
    [problem] = node_problems(replace(HEALTHY, **change), REQUEST)  # type: ignore[arg-type]
    assert message in problem.message and problem.fix


def test_node_without_cpus_trains_nothing() -> None:
    head = replace(HEALTHY, resources={"CPU": 0.0, "GPU": 0.0}, storage_problem="not mounted")
    assert not list(node_problems(head, REQUEST))


def test_equal_problems_are_one_that_names_nodes() -> None:
    old = {"versions": package_versions() | {"torch": "1.0"}}
    nodes = [
        replace(HEALTHY, node="10.0.0.2", **old),
        replace(HEALTHY, node="10.0.0.3", **old, storage_problem="the file is not there"),
        HEALTHY,
    ]
    problems = merge_problems((node.node, node_problems(node, REQUEST)) for node in nodes)
    torch, storage = problems
    assert torch.message.startswith("nodes 10.0.0.2, 10.0.0.3: torch is 1.0, but ")
    assert torch.fix == f"install torch {package_versions()['torch']} on every node"
    assert storage.message.startswith("node 10.0.0.3: ") and storage.path == "cluster.storage"


TWO_NODES = """\
import os, ray, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from raykd.cli.commands import app
from raykd.runtime.cluster import ray_session
from raykd.runtime.node_check import NodeRequest, check_nodes

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1, num_gpus=1)  # this machine has none
os.environ["RAY_ADDRESS"] = cluster.address
Path("my_module.py").write_text("x = 1")
with ray_session(verbose=False, code=[Path("my_module.py").resolve()]):
    places = ray.get(ray.remote(lambda: [str(file) for folder in sys.path
                                         for file in Path(folder).glob("my_module.py")]).remote())
    assert any("py_modules_files" in place for place in places), places
    try:
        check_nodes(NodeRequest(sys.argv[1], "study/reachable", "/no/such/file"))
    except ValueError as error:
        print(error)
print(Path(sys.argv[1], "study/reachable").exists())
app(["doctor", "--address", cluster.address], standalone_mode=False)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="several raylets on one machine")
def test_every_node_is_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path / "storage")]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    search, exists, checks = run.stdout.partition("True\n")
    assert exists, run.stdout + run.stderr[-2000:]
    # the search: one problem for both nodes, one for the second
    assert search.count("/no/such/file cannot be read") == 1
    assert search.count("Ray offers 1 GPU, but PyTorch finds 0") == 1
    # the doctor: a line for the first node, and one for the problem of the second
    lines = [line for line in checks.splitlines() if line[6:].startswith("node ")]
    assert len(lines) == 2, run.stdout + run.stderr[-2000:]
    assert lines[0].startswith("ok") and "storage writable" in lines[0] + checks
    assert lines[1].startswith("error")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["my_module.py", "storage"], "the doctor leaves nothing"
