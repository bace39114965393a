"""Check every node of a joined cluster: storage, data, versions, shared memory and GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from raykd.errors import Problem, StudyError
from raykd.storage import Storage

if TYPE_CHECKING:
    from ray import ObjectRef

    from raykd.data.dataset import Source

COMPARED_PACKAGES = ("ray", "torch", "torchvision", "numpy")
"""Packages that must have the same version on every node, as must Python."""

NODE_TIMEOUT_S = 300.0
"""Time limit for the reports of all nodes.  A busy machine starts processes slowly."""

COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
"""Script that counts the GPUs of a machine.  Ray hides them from a task that requests none."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and `COMPARED_PACKAGES` on this machine."""
    versions = {"Python": platform.python_version()}
    for package in COMPARED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


@dataclass(frozen=True)
class NodeRequest:
    """Needs of a study on every node.

    Attributes:
        storage: a folder or a URI.
        marker: name of a file below `storage` that the driver has written.
        data_file: a file of data that the workers read from disk; empty: they read none.
        source: data source to check; None: it is not checked.
        versions: of Python and `COMPARED_PACKAGES`, on the machine of the driver.
    """

    storage: str
    marker: str
    data_file: str = ""
    source: Source | None = None
    versions: Mapping[str, str] = field(default_factory=package_versions)


@dataclass(frozen=True)
class NodeReport:
    """Result of the check of one node.

    Attributes:
        node: its address; empty until the driver adds it, with the resources.
        failure: reason why it could not be checked; empty if it could.
        storage_problem: reason why it cannot use the storage; empty if it can.
        data_problem: reason why it cannot read the data; empty if it can.
        versions: of Python and `COMPARED_PACKAGES`.
        shared_memory: free bytes; None if unknown.
        gpus: GPUs that PyTorch finds; None on a node that offers none to Ray.
        resources: CPUs and GPUs that the node offers to Ray.
    """

    node: str
    failure: str = ""
    storage_problem: str = ""
    data_problem: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    shared_memory: int | None = None
    gpus: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Describe a node without problems."""
        parts = [f"{package} {number}" for package, number in self.versions.items()]
        parts += [f"{number:g} {name}" for name, number in self.resources.items() if number]
        if self.shared_memory is not None:
            parts.append(f"{self.shared_memory / (1 << 30):.1f} GiB of shared memory free")
        if self.resources["CPU"]:
            parts.append("storage writable")
        return ", ".join(parts)


def check_nodes(request: NodeRequest) -> None:
    """Check that every node reaches storage and data and has the same packages.

    A cluster of one node is the machine of the driver, and is not checked.

    Raises:
        StudyError: a node does not; names the nodes.
    """
    import ray

    if sum(node["Alive"] for node in ray.nodes()) < 2:
        return
    Storage(request.storage).write(request.marker, b"")
    problems = merge_problems(
        (report.node, node_problems(report, request)) for report in examine_nodes(request)
    )
    if problems:
        raise StudyError(problems)


def examine_nodes(request: NodeRequest) -> list[NodeReport]:
    """Return the reports of all living nodes, the head first."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: "node:__internal_head__" not in node["Resources"])
    examine = ray.remote(num_cpus=0, max_retries=0)(_examine_node)
    tasks = []
    for node in nodes:
        here = {"ray.io/node-id": node["NodeID"]}
        gpus = node["Resources"].get("GPU", 0) > 0
        tasks.append(examine.options(label_selector=here).remote(request, gpus))
    answered, _ = ray.wait(tasks, num_returns=len(tasks), timeout=NODE_TIMEOUT_S)
    reports = []
    for node, task in zip(nodes, tasks, strict=True):
        report = NodeReport("", failure=f"no answer within {NODE_TIMEOUT_S:.0f} s")
        if task in answered:
            report = _report_of(task)
        resources = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
        address = str(node["NodeManagerAddress"])
        reports.append(replace(report, node=address, resources=resources))
    return reports


def _report_of(task: ObjectRef) -> NodeReport:
    import ray

    try:
        return cast(NodeReport, ray.get(task))
    except Exception as error:  # noqa: BLE001 - a lost node, or a missing package
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return NodeReport("", failure=lines[-1][:200])


def _examine_node(request: NodeRequest, has_gpus: bool) -> NodeReport:
    """Check the node that this runs on."""
    return NodeReport(
        node="",
        storage_problem=_storage_problem(request),
        data_problem=_data_problem(request),
        versions=package_versions(),
        shared_memory=_free_shared_memory(),
        gpus=_count_gpus() if has_gpus else None,
    )


def _storage_problem(request: NodeRequest) -> str:
    """Return the reason why this node cannot read or write the storage; empty if it can."""
    draft = f"{request.marker}-{platform.node()}-{os.getpid()}"
    try:
        storage = Storage(request.storage)
        if not storage.exists(request.marker):
            return "the file is not there"
        storage.write(draft, b"")
        storage.remove(draft)
    except Exception as error:  # noqa: BLE001 - Arrow raises errors of many kinds
        return str(error)[:200]
    return ""


def _data_problem(request: NodeRequest) -> str:
    if request.data_file and not os.access(request.data_file, os.R_OK):
        return f"{request.data_file} cannot be read"
    try:
        if request.source is not None:
            request.source.check()
    except ValueError as error:
        return str(error)
    return ""


def _free_shared_memory() -> int | None:
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return None


def _count_gpus() -> int:
    """Count the GPUs that PyTorch finds on this node."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", COUNT_GPUS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return int(run.stdout) if run.returncode == 0 else 0


# Problems


def node_problems(report: NodeReport, request: NodeRequest) -> Iterator[Problem]:
    """Yield the problems of one node with which a search fails."""
    if report.failure:
        yield Problem(
            f"raykd's check did not run ({report.failure})",
            fix="install the driver's packages there, or remove the node from the cluster",
        )
        return
    trains = report.resources["CPU"] > 0  # a head often offers none
    if report.storage_problem and trains:
        yield Problem(
            f"{request.storage} cannot be used ({report.storage_problem})",
            path="cluster.storage",
            fix="name a folder on a shared file system that every node can write, or a URI such as "
            "s3://bucket/path",
        )
    if report.data_problem and trains:
        yield Problem(
            report.data_problem,
            path="data",
            fix="copy the data to the same folder of every node, put them on a shared file system, "
            "or raise data.resident_limit_mb so that they are sent to the nodes",
        )
    for package, expected in request.versions.items():
        if report.versions[package] != expected:
            yield Problem(
                f"{package} is {report.versions[package]}, but {expected} here",
                fix=f"install {package} {expected} on every node",
            )
    if report.gpus is not None and report.gpus < report.resources["GPU"]:
        yield Problem(
            f"Ray offers {report.resources['GPU']:g} GPU, but PyTorch finds {report.gpus}",
            fix="install a driver and a PyTorch build that fit, or start Ray with fewer --num-gpus",
        )


def merge_problems(problems: Iterable[tuple[str, Iterable[Problem]]]) -> list[Problem]:
    """Merge equal problems of several nodes into one that names the nodes."""
    nodes: dict[Problem, list[str]] = {}
    for node, of_node in problems:
        for problem in of_node:
            nodes.setdefault(problem, []).append(node)
    return [
        Problem(f"{_listed(names)}: {problem.message}", path=problem.path, fix=problem.fix)
        for problem, names in nodes.items()
    ]


def _listed(nodes: Sequence[str]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(nodes)}"
