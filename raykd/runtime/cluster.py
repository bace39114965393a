"""The cluster a study runs on: found or started, and how many slots it holds."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykd.compat import ray_patches
from raykd.errors import Problem, StudyError
from raykd.runtime.cluster_check import check_cluster, has_token, join_error
from raykd.runtime.signals import closing, restore_signal_handlers
from raykd.storage import Storage, is_uri
from raykd.study.config import Cluster

Resources = Mapping[str, float]

QUIET = {
    ray_patches.UV_SETTING: "0",  # `uv run` must not be repeated for every worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a busy machine imports slowly
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a study are relative to where it was started
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow holds the metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a slot that waits has none to report
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # an interrupted search goes on from its own folder
    "TUNE_WARN_THRESHOLD_S": "10",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # one process a slot less to start

PRELOADED = ("raykd.runtime.slot", "raykd.runtime.worker")
"""What the processes that Ray starts at once, one a CPU, import while they wait to become slots."""

SPARE = 2
"""Of so many such processes at most one slot is made; of more, most would import in vain."""


@dataclass(frozen=True)
class SlotPlan:
    """What the trials of a study get.

    Attributes:
        slots: trials side by side.
        workers: ranks of each.
        cpus, gpus: of each rank.
    """

    slots: int
    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        trials = f"{self.slots} parallel trials" if self.slots > 1 else "1 trial at a time"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        each = f"{self.cpus:g} CPU" + (f" + {self.gpus:g} GPU" if self.gpus else "")
        return f"{trials}, {workers} each ({each} per worker)"


def here() -> list[Resources]:
    """The resources of a Ray started on this machine, as one node."""
    return [{"CPU": float(usable_cpus()), "GPU": float(_gpus())}]


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1: those of its affinity (`taskset`, SLURM), and no
    more whole ones than its cgroup's quota (`docker --cpus`, Kubernetes' limits)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(own, int(_cpu_quota())))


def _cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that the control groups of this process grant it together; a large number: no limit."""
    quotas = [float(1 << 20)]
    for file, period in _quota_files(root, own):
        with suppress(OSError, ValueError):
            words = file.read_text(encoding="ascii").split()
            granted = float(words[0])  # "max" is no number: no limit
            per = float(words[1] if period is None else period.read_text(encoding="ascii"))
            if granted > 0 and per > 0:
                quotas.append(granted / per)
    return min(quotas)


def _quota_files(root: Path, own: Path) -> Iterator[tuple[Path, Path | None]]:
    """The files of a quota, of version 2 and 1, from this process's group up to the root."""
    inside = {"": "/"}
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            inside |= dict.fromkeys(controllers.split(","), path)
    for controller, folders in (("", [root]), ("cpu", [root / "cpu", root / "cpu,cpuacct"])):
        path = Path(inside.get(controller, "/").lstrip("/"))
        for folder in folders:
            for level in (path, *path.parents):
                if controller:
                    group = folder / level
                    yield group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
                else:
                    yield folder / level / "cpu.max", None


def plan_slots(cluster: Cluster, nodes: Sequence[Resources]) -> SlotPlan:
    """How many trials run side by side, and on what.

    Args:
        cluster: what the study asks for.
        nodes: each node's total "CPU" and "GPU".

    Raises:
        StudyError: the cluster can never place what is asked; says what there is, and what to
            change.
    """
    gpus = cluster.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise StudyError(
            Problem(
                f"got {gpus:g}; must be a fraction of one GPU (at most 1) or a whole number",
                path="cluster.gpus_per_worker",
                fix=f"write {int(gpus)} or {int(gpus) + 1}",
            )
        )
    places = sum(_places(node, cluster.cpus_per_worker, gpus) for node in nodes)
    most = places // cluster.workers_per_trial
    plan = SlotPlan(most, cluster.workers_per_trial, cluster.cpus_per_worker, gpus)
    if most < 1:
        raise StudyError(_refusal(cluster, plan, nodes, places))
    if cluster.slots == "auto":
        return plan
    if cluster.slots > most:
        raise StudyError(
            Problem(
                f"{cluster.slots} slots requested, but {_described(nodes)} has resources for at "
                f"most {most} ({_needs(plan)})",
                path="cluster.slots",
                fix=f"set cluster.slots to {most} or auto, or use a larger cluster (RAY_ADDRESS)",
            )
        )
    return SlotPlan(cluster.slots, plan.workers, plan.cpus, plan.gpus)


def _refusal(cluster: Cluster, plan: SlotPlan, nodes: Sequence[Resources], places: int) -> Problem:
    if plan.gpus and not any(node.get("GPU", 0) for node in nodes):
        field, fix = "gpus_per_worker", "set cluster.gpus_per_worker to 0 or auto"
    elif not places and any(_places(node, cluster.cpus_per_worker, 0) for node in nodes):
        field, fix = "gpus_per_worker", "request a smaller fraction of a GPU per worker"
    elif not places:
        most = max(node.get("CPU", 0) for node in nodes)
        field, fix = "cpus_per_worker", f"set cluster.cpus_per_worker to at most {most:g}"
    else:
        field, fix = "workers_per_trial", f"set cluster.workers_per_trial to at most {places}"
    return Problem(
        f"a trial does not fit on {_described(nodes)}: it needs {_needs(plan)}, and there are "
        f"resources for {places}",
        path=f"cluster.{field}",
        fix=f"{fix}, or use a larger cluster (RAY_ADDRESS)",
    )


def _needs(plan: SlotPlan) -> str:
    """Resources of one trial, in words."""
    workers = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
    return f"{workers} with {plan.cpus:g} CPU and {plan.gpus:g} GPU each"


def _described(nodes: Sequence[Resources]) -> str:
    cpus = sum(node.get("CPU", 0) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    where = "this machine" if len(nodes) == 1 else f"the cluster of {len(nodes)} nodes"
    return f"{where} ({cpus:g} CPU, {gpus:g} GPU)"


def _places(node: Resources, cpus: float, gpus: float) -> int:
    places = int(node.get("CPU", 0) / cpus + 1e-9)
    return min(places, _gpu_places(node.get("GPU", 0), gpus)) if gpus else places


def _gpu_places(there: float, each: float) -> int:
    # Parts of a GPU must lie on one GPU.
    return int(there) * int(1 / each + 1e-9) if each < 1 else int(there / each + 1e-9)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def is_remote() -> bool:
    """Whether the study is to run on a cluster that is there already."""
    return os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local")


def check_resources(cluster: Cluster) -> None:
    """See, before anything is read or started, that there is room for a study's trials: on this
    machine, or on a cluster that can be joined.

    Raises:
        StudyError: there is not; see `plan_slots` and `check_cluster`.
    """
    if is_initialized():
        return
    if is_remote():
        check_cluster(os.environ["RAY_ADDRESS"].strip())
    else:
        plan_slots(cluster, here())


def check_storage(storage: str, marker: str, nodes: Sequence[Resources]) -> None:
    """Check that every node of a cluster of several reaches the folder where files are kept.

    Args:
        storage: a folder or a URI.
        marker: name of the file, below `storage`, that the nodes look for.
        nodes: the cluster's.

    Raises:
        StudyError: a node does not see the file.
    """
    if len(nodes) < 2 or is_uri(storage):
        return
    import ray

    Storage(storage).write(marker, b"")

    @ray.remote(num_cpus=0.01)
    def sees_marker() -> bool:
        return Storage(storage).exists(marker)

    answers = [
        sees_marker.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    if not all(ray.get(answers)):
        raise StudyError(
            Problem(
                f"{storage} cannot be reached from every node of the cluster",
                path="cluster.storage",
                fix="name a folder on a shared file system, or a URI such as s3://bucket/path",
            )
        )


def uses_existing_ray() -> bool:
    """Whether Ray is there already, and will be there after the search.

    It is not imported for that: Ray reads some of its settings while it is imported, and those of
    `QUIET` must stand by then.
    """
    return is_remote() or is_initialized()


def is_initialized() -> bool:
    """Whether this process has started or joined Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextmanager
def ray_session(*, verbose: bool, groups: bool = True, slots: int = 0) -> Iterator[list[Resources]]:
    """Join the cluster `RAY_ADDRESS` names, or start Ray on this machine and end it afterwards.

    Gives each node's total resources.

    Args:
        verbose: let Ray's own output through.
        groups: whether trials will be trained by groups of processes.
        slots: how many slots there will be on this machine, as far as that is known.

    Raises:
        StudyError: the cluster cannot be joined.
    """
    for name, value in (QUIET if is_remote() else QUIET | ALONE).items():
        os.environ.setdefault(name, value)
    threading.Thread(target=_import_meanwhile, daemon=True).start()  # now that the settings stand
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        ours = not ray.is_initialized()
    with session_token() if ours and not is_remote() else nullcontext():
        try:
            if ours:
                with (
                    warnings.catch_warnings(),
                    ray_patches.skip_uv_environments(),
                    ray_patches.skip_sigterm_handler(),
                ):
                    warnings.simplefilter("ignore")
                    _connect(verbose, groups, slots)
                restore_signal_handlers()  # Ray's C++ part has installed its own
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            if ours:
                files = None if verbose or is_remote() else ray_patches.session_folder()
                well = sys.exc_info()[0] is None
                _shut_down()
                if files is not None and well:
                    _remove_session(files)


@contextmanager
def session_token() -> Iterator[None]:
    """Give a Ray session on this machine a token of its own where the user has none.

    Ray itself would write one to `~/.ray/auth_token`, readable by everybody, and fail where the
    home folder cannot be written.
    """
    name = "RAY_AUTH_TOKEN"
    if has_token():
        yield
        return
    before = os.environ.get(name)  # empty, if anything
    os.environ[name] = secrets.token_hex(32)
    ray_patches.reset_token_cache()
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        ray_patches.reset_token_cache()


def _shut_down() -> None:
    """End Ray, also where it had only begun to start, without being interrupted again."""
    import ray

    closing()
    ray_patches.before_processes_end(restore_signal_handlers)
    try:
        ray.shutdown()
    finally:
        restore_signal_handlers()  # with the end of its C++ part the defaults are back


def _remove_session(folder: Path) -> None:
    """Remove what Ray leaves of a session that ended well: megabytes under /tmp for each."""
    latest = folder.parent / "session_latest"
    with suppress(OSError):
        if latest.is_symlink() and latest.resolve() == folder.resolve():
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _import_meanwhile() -> None:
    """What will be wanted as soon as Ray is there, whose processes take seconds to come up."""
    with suppress(ImportError):
        for module in ("optuna", "raykd.tuning.samplers", "raykd.runtime.slot"):
            importlib.import_module(module)


LONGEST_FOLDER = 35
"""Characters of a folder below which Ray's sockets still have paths of at most 107 bytes."""


def ray_temp_folder() -> str | None:
    """A folder for Ray's files where the usual one, by RAY_TMPDIR or TMPDIR, is too deep for its
    sockets; None: the usual one.

    Raises:
        StudyError: there is no other.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(os.path.abspath(usual))) <= LONGEST_FOLDER:
        return None
    if os.access("/tmp", os.W_OK | os.X_OK):
        return f"/tmp/ray-{os.getuid()}"
    raise StudyError(
        Problem(
            f"Ray's sockets would have paths of more than 107 bytes below {usual}, and /tmp "
            "cannot be written",
            fix=f"set RAY_TMPDIR to a folder of at most {LONGEST_FOLDER} characters",
        )
    )


def _connect(verbose: bool, groups: bool, slots: int) -> None:
    import ray

    shared: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": True,
    }
    if not is_remote():
        # The dashboard is not only for show: Ray Train frees a stopped group's place through it.
        cpus = usable_cpus()
        shared |= {"num_cpus": cpus, "_temp_dir": ray_temp_folder()}
        if groups or verbose:
            ray.init(address="local", include_dashboard=True, **shared)
            return
        worth_it = cpus <= SPARE * slots
        own = {"preload_python_modules": list(PRELOADED) if worth_it else []}
        with ray_patches.skip_api_server():
            ray.init(address="local", include_dashboard=False, _system_config=own, **shared)
        return
    package = str(Path(__file__).parents[1])  # raykd itself
    try:
        ray.init(address="auto", runtime_env={"py_modules": [package]}, **shared)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise join_error(os.environ["RAY_ADDRESS"], str(error)) from None
