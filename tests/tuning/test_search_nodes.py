"""A search on a cluster that grows and shrinks: slots follow its nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import paired_model
from helpers.search_cases import epochs_of
from raykd.compat import ray_patches
from raykd.runtime.cluster import RAY_SETTINGS
from raykd.tracking.events import EpochFinished, Event, RunEnded, WarningIssued
from raykd.tracking.journal import events
from raykd.tuning.search_run import search

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="several raylets on one host"),
]

STUDY = """\
name: nodes
seed: 3
data: {{name: digits, limit: 160, val_limit: 60}}
teacher: {{model: {{name: mlp, depth: 2, width: 32}}, train: {{epochs: 2, batch_size: 32}}}}
student: {{model: {{name: "{model}:build", args: {args}}}}}
knowledge: [{{loss: {{name: kd, temperature: 4}}}}]
train: {{epochs: 3, batch_size: 32, optimizer: {{name: sgd, lr: {{choice: [0.05, 0.1, 0.2]}}}}}}
search: {{objectives: {{val_accuracy: max}}, sampler: grid, trials: 3, replicates: 0}}
cluster: {{storage: {folder}/studies, gpus_per_worker: 0, max_slots: 2}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""

QUICK_HEALTH_CHECK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""Ray notices after three seconds, not fifteen, that the processes of a node are gone."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster of one node with one CPU, which this process has joined."""
    import ray
    from ray.cluster_utils import Cluster

    tests = Path(paired_model.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests), prepend=os.pathsep)
    for name, value in RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 1, "_system_config": QUICK_HEALTH_CHECK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def autoscaler(cluster: Any, nodes: list[Any]) -> Iterator[None]:
    """Add one node with one CPU to the cluster, and to `nodes`, for a pending placement group."""
    from ray.util import placement_group_table

    ended = threading.Event()

    def add_node() -> None:
        while not ended.wait(0.2):
            if any(group["state"] == "PENDING" for group in placement_group_table().values()):
                with ray_patches.skip_sigterm_handler():  # this is not the main thread
                    nodes.append(cluster.add_node(num_cpus=1))
                ended.wait()  # Ray ends a node with the thread that has started it

    thread = threading.Thread(target=add_node)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("killed", marks=pytest.mark.slow),
        pytest.param("drained", marks=pytest.mark.faults),
    ],
)
def test_slots_follow_nodes_that_join_and_leave(cluster: Any, tmp_path: Path, ending: str) -> None:
    """Two trials wait for one another, so they need a second node; it leaves after an epoch."""
    from ray.util import placement_group_table

    meeting = tmp_path / "meeting"
    meeting.mkdir()
    args = json.dumps({"folder": str(meeting), "driver": os.getpid()})
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(folder=tmp_path, model=paired_model.__name__, args=args))
    nodes: list[Any] = []
    slots: list[str] = []

    warnings: list[str] = []

    def change_nodes(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.text)
        if not isinstance(event, EpochFinished) or event.slot is None:
            return
        slots.append(event.slot)
        if event.slot == slots[0] or not nodes:
            return
        node = nodes.pop()  # this is the first epoch of its slot
        if ending == "killed":
            cluster.remove_node(node, allow_graceful=False)
        else:
            drain(cluster.address, node.node_id)

    with autoscaler(cluster, nodes):
        result = search(file, allow_import=True, listeners=[change_nodes])
    # A slot's process may also be replaced, so more than two processes are fine.
    assert len(set(slots)) >= 2, "the second node was not used"
    assert {record.status for record in result.records.of("teacher", "trial")} == {"finished"}
    journal = events(result.folder / "journal.jsonl")
    for record in result.records.of("trial"):
        assert epochs_of(journal)[record.id] == [1, 2, 3]
    ended = Counter(event.id for event in journal if isinstance(event, RunEnded))
    assert set(ended.values()) == {1}
    if ending == "drained":
        assert [text for text in warnings if "its node is drained; it continues after" in text]
        assert not [text for text in warnings if "Ray lost its slot" in text]
    states = {group["state"] for group in placement_group_table().values()}
    assert "PENDING" not in states, "the requests for slots are withdrawn"


def drain(address: str, node: str) -> None:
    """Announce that a node will be preempted, as `ray drain-node` does."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    subprocess.run([*command, "--deadline-remaining-seconds", "600"], check=True, timeout=300)


GROUP = """\
name: group
seed: 3
data: {{name: digits, limit: 160, val_limit: 60}}
teacher: {{model: {{name: mlp, depth: 1, width: 8}}, train: {{epochs: 1, batch_size: 32}}}}
student: {{model: {{name: mlp, depth: 1, width: 8}}}}
knowledge: [{{loss: {{name: kd, temperature: 4}}}}]
train: {{epochs: 4, batch_size: 32, optimizer: {{name: sgd, lr: {{choice: [0.05, 0.1]}}}}}}
search: {{objectives: {{val_accuracy: max}}, sampler: grid, trials: 2, replicates: 0}}
cluster: {{storage: {folder}/studies, workers_per_trial: 2, gpus_per_worker: 0, max_slots: 1}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


@pytest.mark.faults
def test_workers_of_trial_leave_node_that_is_drained(cluster: Any, tmp_path: Path) -> None:
    """Two workers are on two nodes; one node is drained, and both continue with another node."""
    leaving = cluster.add_node(num_cpus=1)
    file = tmp_path / "study.yaml"
    file.write_text(GROUP.format(folder=tmp_path))
    drained: list[int] = []
    warnings: list[str] = []

    def drain_node(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.text)
        if isinstance(event, EpochFinished) and event.id == "trial-0000" and not drained:
            drain(cluster.address, leaving.node_id)
            drained.append(event.epoch)

    nodes: list[Any] = []
    with autoscaler(cluster, nodes):
        result = search(file, listeners=[drain_node])
    assert drained == [1] and len(nodes) == 1, "the workers did not need another node"
    assert {record.status for record in result.records.of("teacher", "trial")} == {"finished"}
    epochs: dict[str, list[int]] = defaultdict(list)
    for event in events(result.folder / "journal.jsonl"):
        if isinstance(event, EpochFinished):
            epochs[event.id].append(event.epoch)
    assert epochs["trial-0000"] == epochs["trial-0001"] == [1, 2, 3, 4]
    assert not [text for text in warnings if "failed" in text], warnings


SHARED = """\
name: {name}
data: {{name: digits, limit: 160, val_limit: 60}}
teacher: {{model: {{name: mlp, depth: 1, width: 8}}, train: {{epochs: 1, batch_size: 32}}}}
student: {{model: {{name: mlp, depth: 1, width: 8}}}}
knowledge: [{{loss: {{name: kd, temperature: 4}}}}]
train: {{epochs: {epochs}, batch_size: 32, optimizer: {{name: sgd, lr: {{choice: [0.05, 0.1]}}}}}}
search: {{objectives: {{val_accuracy: max}}, sampler: grid, trials: 2, replicates: 0}}
cluster: {{storage: {folder}/studies, gpus_per_worker: 0}}
tracking: {{uri: "sqlite:///{folder}/{name}.db"}}
"""


@pytest.mark.faults
def test_two_studies_share_cluster(cluster: Any, tmp_path: Path) -> None:
    """A study without an end uses both slots until another one starts, which finishes."""
    cluster.add_node(num_cpus=1)
    endless, short = tmp_path / "endless.yaml", tmp_path / "short.yaml"
    endless.write_text(SHARED.format(name="endless", folder=tmp_path, epochs=1_000_000))
    short.write_text(SHARED.format(name="short", folder=tmp_path, epochs=2))
    epochs: dict[str, list[int]] = defaultdict(list)
    warnings: list[str] = []
    second: list[subprocess.Popen[bytes]] = []

    def start_second(event: Event) -> None:
        if isinstance(event, WarningIssued):
            warnings.append(event.text)
        if isinstance(event, EpochFinished):
            epochs[event.id].append(event.epoch)
        if {"trial-0000", "trial-0001"} <= set(epochs) and not second:
            command = [sys.executable, "-m", "raykd", "search", str(short), "--address"]
            second.append(subprocess.Popen([*command, cluster.address]))
        if second and second[0].poll() is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(endless, listeners=[start_second])
    assert second[0].returncode == 0
    moved = [text for text in warnings if "its slot is given to another study" in text]
    assert len(moved) == 1, warnings
    for name in ("trial-0000", "trial-0001"):
        assert epochs[name] == list(range(1, len(epochs[name]) + 1)), "no epoch is trained twice"
