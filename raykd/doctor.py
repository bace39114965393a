"""Is this machine, or the cluster, ready?  One finding a thing, each ok or with what to do.

Nothing is started and nothing is written; everything is over within about 15 seconds.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from raykd.errors import StudyError
from raykd.terminal_tables import Labeled

if TYPE_CHECKING:
    from raykd.data.dataset import Source

ANSWER_WITHIN = 3.0
"""Seconds a server is given."""

ALL_WITHIN = 6.0
"""Seconds all data sources together are given."""

GIB = 1 << 30
ENOUGH_MEMORY = 2 * GIB
ENOUGH_SHARED = GIB
ENOUGH_DISK = 2 * GIB
DASHBOARD_PORT = 8265
DASHBOARD_PARTS = ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client", "colorful")
"""What `ray[default]` adds to `ray`, and its dashboard needs."""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        about: the thing.
        message: what was found.
        fix: what to do; empty where all is well.
        essential: whether a search fails without it.
    """

    about: str
    message: str
    fix: str = ""
    essential: bool = True

    @property
    def fatal(self) -> bool:
        return bool(self.fix) and self.essential


@dataclass(frozen=True)
class Needs:
    """What a study needs of the place it runs in.

    Attributes:
        uri: of MLflow's store.
        storage: the folder (or URI) of the study's files.
        source: the study's data; None: every source is looked at, and none is essential.
    """

    uri: str
    storage: str
    source: Source | None = None


def needs_of(
    file: str | None,
    overrides: Sequence[str] = (),
    uri: str | None = None,
    *,
    allow_import: bool = False,
) -> Needs:
    """What a study file needs; without one, what a study needs that says nothing about it.

    Raises:
        StudyError: the file is no study.
    """
    if file is None:
        from raykd.study.config import Cluster, Tracking
        from raykd.tracking.mlflow_client import TRACKING

        return Needs(uri or os.environ.get(TRACKING) or Tracking().uri, Cluster().storage)
    from raykd.tuning.study_input import load_or_use

    settings = load_or_use(file, overrides, (), allow_import=allow_import).settings
    return Needs(uri or settings.tracking.uri, settings.cluster.storage, settings.data)


def examine(needs: Needs) -> Iterator[Finding]:
    """Look at everything, one thing after the other."""
    yield from _packages()
    yield from _ray()
    yield from _machine()
    yield _folder(needs.storage)
    yield _store(needs.uri)
    yield from _data(needs.source)


def shown(finding: Finding) -> RenderableType:
    """A finding for a `rich` console."""
    mark = "ok" if not finding.fix else "error" if finding.essential else "note"
    style = {"ok": "green", "error": "bold red", "note": "yellow"}[mark]
    text = Text(finding.message)
    if finding.fix:
        text.append(f"\n-> {finding.fix}")
    label = Text.assemble((f"{mark:5} ", style), finding.about)
    block = Labeled(width=20, gap=1)
    block.add(label, text)
    return block


# Python and packages


def _packages() -> Iterator[Finding]:
    wanted, python = _wanted()
    yield _python(python)
    missing = [text for text in wanted if _version_problem(text)]
    if missing:
        problems = "; ".join(_version_problem(text) for text in missing)
        install = " ".join(f"'{text}'" for text in missing)
        yield Finding("packages", problems, f"python -m pip install {install}")
    else:
        names = ("ray", "torch", "optuna", "mlflow")
        have = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        yield Finding("packages", have)


def _python(wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    have = platform.python_version()
    fits = SpecifierSet(wanted).contains(have, prereleases=True)
    what = f"{have} at {sys.executable}"
    return Finding("python", what, "" if fits else f"use Python {wanted}")


def _wanted() -> tuple[list[str], str]:
    """The packages raykd needs and the Python: of the installed package, else of the project's
    file beside the sources."""
    try:
        about = importlib.metadata.metadata("raykd")
        return list(about.get_all("Requires-Dist") or ()), about["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        file = Path(__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["dependencies"], project["requires-python"]


def _version_problem(requirement: str) -> str:
    """What is wrong with a required package; "" where it is there and fits."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return ""
    try:
        have = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(have, prereleases=True):
        return ""
    return f"{wanted.name} {have} is installed, {wanted.name}{wanted.specifier} is required"


# Ray


def _ray() -> Iterator[Finding]:
    broken = _ray_import()
    if broken:
        yield broken
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield Finding("ray", "RAY_ADDRESS is not set: each search starts Ray on this machine")
    elif address == "local":
        yield Finding("ray", "RAY_ADDRESS=local: each search starts Ray on this machine")
    else:
        yield from _cluster(address)


def _ray_import() -> Finding | None:
    if importlib.util.find_spec("ray") is None:
        return Finding("ray", "is not installed", "python -m pip install 'ray[default,train,tune]'")
    lacking = [name for name in DASHBOARD_PARTS if importlib.util.find_spec(name) is None]
    if lacking:
        what = f"the dashboard of Ray is required to free slots, but lacks {', '.join(lacking)}"
        return Finding("ray", what, "python -m pip install 'ray[default,train,tune]'")
    try:
        import ray  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
        return Finding("ray", f"cannot be imported: {error}", "reinstall ray[default,train,tune]")
    return None


def _cluster(address: str) -> Iterator[Finding]:
    from raykd.runtime.cluster_check import check_cluster, host_and_port

    try:
        check_cluster(address)
    except StudyError as error:
        (problem,) = error.problems
        yield Finding("ray", problem.message, problem.fix)
        return
    yield Finding("ray", f"the cluster at RAY_ADDRESS={address} responds, and its versions match")
    if address != "auto":
        yield _dashboard(host_and_port(address)[0])


def _dashboard(host: str) -> Finding:
    """Ray Train frees a stopped group's place through the dashboard: without it a search with
    early stopping waits for ever."""
    url = os.environ.get("RAY_DASHBOARD_ADDRESS") or f"http://{host}:{DASHBOARD_PORT}"
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=ANSWER_WITHIN) as answer:
            cluster = json.loads(answer.read(100_000)).get("ray_version", "")
    except (OSError, ValueError, AttributeError) as error:
        fix = (
            "start the head node with `ray start --head --dashboard-host=ADDRESS` (an address "
            "that every node can reach), or set RAY_DASHBOARD_ADDRESS"
        )
        return Finding("dashboard", f"no answer from {url} ({error})", fix)
    here = importlib.metadata.version("ray")
    if cluster and cluster != here:
        message = f"the cluster runs Ray {cluster}, this machine {here}"
        return Finding("dashboard", message, "install the same version on both")
    return Finding("dashboard", f"{url} responds")


# The machine


def _machine() -> Iterator[Finding]:
    from raykd.runtime.cluster import this_machine

    yield Finding("CPUs", f"{this_machine()[0]['CPU']:g}")
    yield _gpus()
    yield from _memory()


def _gpus() -> Finding:
    import torch

    count = torch.cuda.device_count()
    if count:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(count))
        return Finding("GPUs", f"{count} ({names})")
    if shutil.which("nvidia-smi") is not None:
        message = f"nvidia-smi is installed, but PyTorch {torch.__version__} does not see a GPU"
        fix = "install a PyTorch build for the CUDA version of the driver, or run on the CPU"
        return Finding("GPUs", message, fix, essential=False)
    return Finding("GPUs", "none; training runs on the CPU")


def _memory() -> Iterator[Finding]:
    free = _free_memory()
    if free is not None:
        fix = "" if free >= ENOUGH_MEMORY else "close other programs, or reduce cluster.slots"
        yield Finding("memory", f"{_gib(free)} free", fix, essential=False)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        fix = (
            ""
            if free >= ENOUGH_SHARED
            else "increase it, for example with `docker run --shm-size=4g`"
        )
        yield Finding("shared memory", f"{_gib(free)} free in {shared}", fix, essential=False)


def _free_memory() -> int | None:
    """Bytes of this machine, or of the container we are in, that can be had; None: unknown."""
    found = []
    try:
        fields = dict(line.split(":") for line in _text("/proc/meminfo").splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = (int(_text(f"/sys/fs/cgroup/memory.{part}")) for part in ("max", "current"))
        found.append(limit - used)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return min(found, default=None)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="ascii")


def _folder(storage: str) -> Finding:
    if "://" in storage:
        return Finding("studies", f"{storage}: not checked")
    wanted = Path(storage).expanduser().absolute()
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fix = "make it writable, or set cluster.storage to another folder"
        return Finding("studies", f"{there} is not writable", fix)
    free = shutil.disk_usage(there).free
    fix = "" if free >= ENOUGH_DISK else "free disk space, or set cluster.storage to another folder"
    return Finding("studies", f"{wanted}: {_gib(free)} free", fix, essential=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


# Tracking and data


def _store(uri: str) -> Finding:
    from raykd.tracking.mlflow_client import check_store

    found = check_store(uri, timeout=ANSWER_WITHIN)
    return Finding("MLflow", found.message, found.fix)


def _data(source: Source | None) -> Iterator[Finding]:
    sources = [source] if source is not None else list(_sources())
    troubles: dict[str, str] = {}
    # Daemons, so that a look-up that hangs keeps nobody waiting.
    threads = [Thread(target=_ask, args=(one, troubles), daemon=True) for one in sources]
    until = time.monotonic() + ALL_WITHIN
    for thread in threads:
        thread.start()
    for one, thread in zip(sources, threads, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        yield _data_finding(
            one.name, troubles.get(one.name, "no response within the time limit"), source
        )


def _data_finding(name: str, trouble: str, asked_for: Source | None) -> Finding:
    if not trouble:
        return Finding(name, "available, or can be downloaded")
    if asked_for is None:
        return Finding(
            name, trouble, "only required by studies that use this data", essential=False
        )
    return Finding(name, trouble, "copy the data there, or correct data.root in the study")


def _ask(source: Source, troubles: dict[str, str]) -> None:
    try:
        source.check()
        troubles[source.name] = ""
    except ValueError as error:
        troubles[source.name] = str(error)


def _sources() -> Iterable[Source]:
    """Yield every source that has no required field."""
    from raykd.data import SOURCES

    for name, cls in SOURCES.members.items():
        if not any(_is_required(field) for field in dataclasses.fields(cls)):
            yield cls(name=name)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING
