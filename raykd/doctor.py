"""Checks of this machine, or of the cluster, with a fix for each problem.

No Ray is started here, and nothing stays in the storage.  The checks of this machine take at most
about 15 seconds; those of a cluster also wait for a process on each of its nodes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
import tomllib
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from raykd.compat.packages import is_installed
from raykd.errors import Problem, StudyError
from raykd.storage import Storage
from raykd.terminal_tables import Labeled

if TYPE_CHECKING:
    from raykd.data.dataset import Source

SERVER_TIMEOUT = 3.0
"""Time limit for the answer of a server, in seconds."""

SOURCES_TIMEOUT = 6.0
"""Time limit for all data sources together, in seconds."""

GIB = 1 << 30
ENOUGH_MEMORY = 2 * GIB
MIN_SHARED_MEMORY = GIB
SHARED_MEMORY = "/dev/shm"
MORE_SHARED_MEMORY = "increase it, for example with `docker run --shm-size=4g`"
ENOUGH_DISK = 2 * GIB
DASHBOARD_PORT = 8265
INSTALL_RAY = "python -m pip install 'ray[default,train,tune]'"

DASHBOARD_PARTS = ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client", "colorful")
"""Packages of `ray[default]` that the dashboard of Ray needs."""


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        subject: part of the system that was checked.
        message: its state.
        fix: way to fix a problem; empty without one.
        essential: a search fails with this problem.
    """

    subject: str
    message: str
    fix: str = ""
    essential: bool = True

    @property
    def fatal(self) -> bool:
        return bool(self.fix) and self.essential


@dataclass(frozen=True)
class Requirements:
    """Requirements of a study.

    Attributes:
        uri: URI of the MLflow store.
        storage: folder (or URI) of the files of the study.
        source: data of the study; None: check all sources, none of which is essential.
    """

    uri: str
    storage: str
    source: Source | None = None


def requirements_of(
    file: str | None,
    overrides: Sequence[str] = (),
    uri: str | None = None,
    *,
    allow_import: bool = False,
) -> Requirements:
    """Return the requirements of a study file, or the default requirements without a file.

    Raises:
        StudyError: the file is not a valid study.
    """
    if file is None:
        from raykd.study.config import Cluster, Tracking
        from raykd.tracking.store_uri import TRACKING

        return Requirements(uri or os.environ.get(TRACKING) or Tracking().uri, Cluster().storage)
    from raykd.tuning.study_input import load_or_use

    settings = load_or_use(file, overrides, (), allow_import=allow_import).settings
    return Requirements(uri or settings.tracking.uri, settings.cluster.storage, settings.data)


def run_checks(requirements: Requirements) -> Iterator[CheckResult]:
    """Run all checks, one after the other."""
    yield from _packages()
    yield from _ray(requirements)
    yield from _machine()
    yield _folder(requirements.storage)
    yield _store(requirements.uri)
    yield from _data(requirements.source)


def render(result: CheckResult) -> RenderableType:
    """Render a result for a `rich` console."""
    mark = "ok" if not result.fix else "error" if result.essential else "note"
    style = {"ok": "green", "error": "bold red", "note": "yellow"}[mark]
    text = Text(result.message)
    if result.fix:
        text.append(f"\n-> {result.fix}")
    label = Text.assemble((f"{mark:5} ", style), result.subject)
    block = Labeled(width=20, gap=1)
    block.add(label, text)
    return block


# Python and packages


def _packages() -> Iterator[CheckResult]:
    requirements, python = _package_requirements()
    yield _python(python)
    missing = [text for text in requirements if _version_problem(text)]
    if missing:
        problems = "; ".join(_version_problem(text) for text in missing)
        install = " ".join(f"'{text}'" for text in missing)
        yield CheckResult("packages", problems, f"python -m pip install {install}")
    else:
        names = ("ray", "torch", "optuna", "mlflow")
        have = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        yield CheckResult("packages", have)


def _python(specifier: str) -> CheckResult:
    from packaging.specifiers import SpecifierSet

    have = platform.python_version()
    fits = SpecifierSet(specifier).contains(have, prereleases=True)
    message = f"{have} at {sys.executable}"
    return CheckResult("python", message, "" if fits else f"use Python {specifier}")


def _package_requirements() -> tuple[list[str], str]:
    """Return the required packages and Python version.

    They are read from the installed package, or from pyproject.toml in a clone.
    """
    try:
        metadata = importlib.metadata.metadata("raykd")
        return list(metadata.get_all("Requires-Dist") or ()), metadata["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        file = Path(__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["dependencies"], project["requires-python"]


def _version_problem(requirement: str) -> str:
    """Return the problem with a required package; empty without one."""
    from packaging.requirements import Requirement

    required = Requirement(requirement)
    if required.marker is not None and not required.marker.evaluate({"extra": ""}):
        return ""
    try:
        have = importlib.metadata.version(required.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{required.name} is not installed"
    if required.specifier.contains(have, prereleases=True):
        return ""
    return f"{required.name} {have} is installed, {required.name}{required.specifier} is required"


# Ray


def _ray(requirements: Requirements) -> Iterator[CheckResult]:
    broken = _ray_import()
    if broken:
        yield broken
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield CheckResult("ray", "RAY_ADDRESS is not set: each search starts Ray on this machine")
    elif address == "local":
        yield CheckResult("ray", "RAY_ADDRESS=local: each search starts Ray on this machine")
    else:
        yield from _cluster(address, requirements)
    yield from _exposed_files()


def _exposed_files() -> Iterator[CheckResult]:
    """Check that other users cannot read the files with tokens, keys and passwords."""
    from raykd.runtime.cluster_check import is_exposed, token_file

    home = Path.home()
    names = (".aws/credentials", ".netrc", ".pgpass", ".cache/huggingface/token")
    files = [token_file(), *(home / name for name in names)]
    exposed = [str(file) for file in files if is_exposed(file)]
    if exposed:
        message = f"other users of this machine can read {', '.join(exposed)}"
        yield CheckResult("secrets", message, f"chmod 600 {' '.join(exposed)}", essential=False)


def _ray_import() -> CheckResult | None:
    if not is_installed("ray"):
        return CheckResult("ray", "is not installed", INSTALL_RAY)
    missing = [name for name in DASHBOARD_PARTS if not is_installed(name)]
    if missing:
        message = f"the dashboard of Ray is required to free slots, but lacks {', '.join(missing)}"
        return CheckResult("ray", message, INSTALL_RAY)
    try:
        import ray  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        return CheckResult(
            "ray", f"cannot be imported: {error}", "reinstall ray[default,train,tune]"
        )
    return None


def _cluster(address: str, requirements: Requirements) -> Iterator[CheckResult]:
    from raykd.runtime.cluster_check import check_cluster, host_and_port

    try:
        check_cluster(address)
    except StudyError as error:
        (problem,) = error.problems
        yield CheckResult("ray", problem.message, problem.fix)
        return
    yield CheckResult(
        "ray", f"the cluster at RAY_ADDRESS={address} responds, and its versions match"
    )
    if address != "auto":
        yield _dashboard(host_and_port(address)[0])
    yield from _nodes(requirements)


def _nodes(requirements: Requirements) -> Iterator[CheckResult]:
    """Join the cluster and check each of its nodes."""
    from raykd.runtime.cluster import ray_session
    from raykd.runtime.node_check import NodeRequest, examine_nodes, node_problems

    storage, marker = Storage(requirements.storage), f"raykd-doctor-{uuid.uuid4().hex[:8]}"
    request = NodeRequest(storage.root, marker, source=requirements.source)
    folder = storage.local("")
    is_new = folder is not None and not folder.exists()
    try:
        storage.write(marker, b"")
        with ray_session(verbose=False):
            reports = examine_nodes(request)
    except (OSError, StudyError) as error:
        problem = error.problems[0] if isinstance(error, StudyError) else Problem(str(error))
        fix = problem.fix or "make cluster.storage writable, or set it to another folder"
        yield CheckResult("nodes", f"not checked: {problem.message}", fix)
        return
    finally:
        with suppress(OSError):
            storage.remove(marker)
            if folder is not None and is_new:
                folder.rmdir()
    for report in reports:
        problems = list(node_problems(report, request))
        for problem in problems:
            # the nodes read data from disk only if these are larger than data.resident_limit_mb
            essential = problem.path != "data"
            yield CheckResult(f"node {report.node}", problem.message, problem.fix, essential)
        if report.shared_memory is not None and report.shared_memory < MIN_SHARED_MEMORY:
            message = f"{_gib(report.shared_memory)} free in {SHARED_MEMORY}"
            yield CheckResult(f"node {report.node}", message, MORE_SHARED_MEMORY, essential=False)
        if not problems:
            yield CheckResult(f"node {report.node}", str(report))


def _dashboard(host: str) -> CheckResult:
    """Check the dashboard, through which Ray Train frees the resources of stopped workers.

    Without it a search with early stopping does not end.
    """
    url = os.environ.get("RAY_DASHBOARD_ADDRESS") or f"http://{host}:{DASHBOARD_PORT}"
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=SERVER_TIMEOUT) as answer:
            cluster = json.loads(answer.read(100_000)).get("ray_version", "")
    except (OSError, ValueError, AttributeError) as error:
        fix = (
            "start the head node with `ray start --head --dashboard-host=ADDRESS` (an address "
            "that every node can reach), or set RAY_DASHBOARD_ADDRESS"
        )
        return CheckResult("dashboard", f"no answer from {url} ({error})", fix)
    here = importlib.metadata.version("ray")
    if cluster and cluster != here:
        message = f"the cluster runs Ray {cluster}, this machine {here}"
        return CheckResult("dashboard", message, "install the same version on both")
    return CheckResult("dashboard", f"{url} responds")


# The machine


def _machine() -> Iterator[CheckResult]:
    from raykd.runtime.cluster import this_machine

    yield CheckResult("CPUs", f"{this_machine()[0]['CPU']:g}")
    yield _gpus()
    yield from _memory()


def _gpus() -> CheckResult:
    import torch

    count = torch.cuda.device_count()
    if count:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
        return CheckResult("GPUs", f"{count} ({names})")
    if shutil.which("nvidia-smi") is not None:
        message = f"nvidia-smi is installed, but PyTorch {torch.__version__} does not see a GPU"
        fix = "install a PyTorch build for the CUDA version of the driver, or run on the CPU"
        return CheckResult("GPUs", message, fix, essential=False)
    return CheckResult("GPUs", "none; training runs on the CPU")


def _memory() -> Iterator[CheckResult]:
    free = _free_memory()
    if free is not None:
        fix = "" if free >= ENOUGH_MEMORY else "close other programs, or reduce cluster.slots"
        yield CheckResult("memory", f"{_gib(free)} free", fix, essential=False)
    if os.path.isdir(SHARED_MEMORY):
        free = shutil.disk_usage(SHARED_MEMORY).free
        fix = "" if free >= MIN_SHARED_MEMORY else MORE_SHARED_MEMORY
        message = f"{_gib(free)} free in {SHARED_MEMORY}"
        yield CheckResult("shared memory", message, fix, essential=False)


def _free_memory() -> int | None:
    """Return the free memory of this machine or container, in bytes; None if unknown."""
    limits = []
    try:
        fields = dict(line.split(":") for line in _text("/proc/meminfo").splitlines())
        limits.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = (int(_text(f"/sys/fs/cgroup/memory.{part}")) for part in ("max", "current"))
        limits.append(limit - used)
    except (OSError, ValueError):  # not in a container, or no limit ("max")
        pass
    return min(limits, default=None)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="ascii")


def _folder(storage: str) -> CheckResult:
    if "://" in storage:
        return CheckResult("studies", f"{storage}: not checked")
    folder = Path(storage).expanduser().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "make it writable, or set cluster.storage to another folder"
        return CheckResult("studies", f"{existing} is not writable", fix)
    free = shutil.disk_usage(existing).free
    fix = "" if free >= ENOUGH_DISK else "free disk space, or set cluster.storage to another folder"
    return CheckResult("studies", f"{folder}: {_gib(free)} free", fix, essential=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


# Tracking and data


def _store(uri: str) -> CheckResult:
    from raykd.tracking.store_check import check_store

    store = check_store(uri, timeout=SERVER_TIMEOUT)
    return CheckResult("MLflow", store.message, store.fix)


def _data(source: Source | None) -> Iterator[CheckResult]:
    sources = [source] if source is not None else list(_sources())
    problems: dict[str, str] = {}
    # Daemon threads, so that a name look-up that hangs does not delay the exit.
    threads = [Thread(target=_check, args=(each, problems), daemon=True) for each in sources]
    until = time.monotonic() + SOURCES_TIMEOUT
    for thread in threads:
        thread.start()
    for each, thread in zip(sources, threads, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        problem = problems.get(each.name, "no response within the time limit")
        yield _data_result(each.name, problem, essential=source is not None)


def _data_result(name: str, problem: str, *, essential: bool) -> CheckResult:
    if not problem:
        return CheckResult(name, "available, or can be downloaded")
    if not essential:
        fix = "only required by studies that use this data"
        return CheckResult(name, problem, fix, essential=False)
    return CheckResult(name, problem, "copy the data there, or correct data.root in the study")


def _check(source: Source, problems: dict[str, str]) -> None:
    try:
        source.check()
        problems[source.name] = ""
    except ValueError as error:
        problems[source.name] = str(error)


def _sources() -> Iterable[Source]:
    """Iterate over the data sources without required fields."""
    from raykd.data import SOURCES

    for name, cls in SOURCES.members.items():
        if not any(_is_required(field) for field in dataclasses.fields(cls)):
            yield cls(name=name)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING
