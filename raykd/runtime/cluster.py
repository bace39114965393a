"""Ray cluster of a study: joined or started, and divided into slots."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import secrets
import shutil
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykd.compat import ray_patches
from raykd.errors import Problem, RayLost, StudyError
from raykd.runtime.cluster_check import (
    check_cluster,
    has_token,
    is_exposed,
    join_error,
    token_file,
)
from raykd.runtime.session_sweeper import session_processes, swept
from raykd.runtime.signals import begin_cleanup, restore_signal_handlers
from raykd.study.config import Cluster
from raykd.tracking.events import SlotPlan

Resources = Mapping[str, float]
"""Resources of a node by Ray's names: "CPU", "GPU"."""

RAY_SETTINGS = {
    ray_patches.UV_SETTING: "0",  # `uv run` must not be repeated for every worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a busy machine imports slowly
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a study are relative to where it was started
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow holds the metrics
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an idle slot reports none
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # an interrupted search resumes from its own folder
    "TUNE_WARN_THRESHOLD_S": "10",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

LOCAL_RAY_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # one process less for each slot

SPIN_SETTING = ("GOMP_SPINCOUNT", "20000")
"""Turns for which a thread of PyTorch on a CPU waits busily for the others (GNU OpenMP).

The default is hundreds of thousands, some milliseconds.  If another process uses one of the cores,
the threads burn the time in which the last of them could compute.  This number costs nothing on an
idle machine and about halves a step on a busy one; smaller ones are slower on an idle machine
(benchmarks/threads.py).
"""

START_ATTEMPTS = 4
"""Attempts to start Ray on a machine so busy that its raylet gives up waiting for its agents."""

SLOW_AGENT = "Timed out waiting for file"
"""Text of a raylet that gave up waiting for its agents, after 15 seconds that cannot be changed."""

RAYLET_S = 180.0
"""Seconds in which a raylet that this process starts must be ready."""

PRELOADED_MODULES = ("raykd.runtime.slot", "raykd.runtime.worker")
"""Imports of the idle processes that Ray starts at once, one for each CPU, and makes slots of."""

MAX_CPUS_PER_SLOT = 2
"""Idle processes import ahead only if there are at most this many of them for each slot."""


def this_machine() -> list[Resources]:
    """Return the resources of a Ray that is started on this machine, as one node."""
    return [{"CPU": float(usable_cpus()), "GPU": float(_gpus())}]


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    These are the CPUs of its affinity (`taskset`, SLURM), limited by the whole CPUs of its cgroup's
    quota (`docker --cpus`, limits of Kubernetes).
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, int(_cpu_quota())))


def _cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")
) -> float:
    """Return the CPUs that this process's control groups grant it; a large number: no limit."""
    quotas = [float(1 << 20)]
    for file, period in _quota_files(root, groups):
        with suppress(OSError, ValueError):
            fields = file.read_text(encoding="ascii").split()
            quota = float(fields[0])  # "max" is no number: no limit
            length = float(fields[1] if period is None else period.read_text(encoding="ascii"))
            if quota > 0 and length > 0:
                quotas.append(quota / length)
    return min(quotas)


def _quota_files(root: Path, groups: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield the quota files of cgroup versions 2 and 1, from this process's group to the root."""
    paths = {"": "/"}
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
    for controller, folders in (("", [root]), ("cpu", [root / "cpu", root / "cpu,cpuacct"])):
        path = Path(paths.get(controller, "/").lstrip("/"))
        for folder in folders:
            for level in (path, *path.parents):
                if controller:
                    group = folder / level
                    yield group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
                else:
                    yield folder / level / "cpu.max", None


def plan_slots(cluster: Cluster, nodes: Sequence[Resources], *, grows: bool = False) -> SlotPlan:
    """Plan how many trials run at the same time, and their resources.

    Args:
        cluster: settings of the study.
        nodes: each node's total "CPU" and "GPU".
        grows: whether nodes are added on request: one slot is planned even if it does not fit yet.

    Raises:
        StudyError: the cluster can never place the trials; names its resources and a remedy.
    """
    gpus = cluster.gpus_per_worker
    if cluster.max_slots is not None and cluster.slots != "auto":
        raise StudyError(
            Problem(
                f"{cluster.max_slots} is set together with slots: {cluster.slots}",
                path="cluster.max_slots",
                fix="set slots to auto, or remove max_slots",
            )
        )
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
    max_slots = places // cluster.workers_per_trial
    plan = SlotPlan(max_slots, cluster.workers_per_trial, cluster.cpus_per_worker, gpus)
    if max_slots < 1 and grows:
        return replace(plan, slots=1)
    if max_slots < 1:
        raise StudyError(_refusal(cluster, plan, nodes, places))
    if cluster.slots == "auto":
        return replace(plan, slots=min(max_slots, cluster.max_slots or max_slots))
    if cluster.slots > max_slots:
        raise StudyError(
            Problem(
                f"{cluster.slots} slots requested, but {_describe(nodes)} has resources for at "
                f"most {max_slots} ({_needs(plan)})",
                path="cluster.slots",
                fix=f"set cluster.slots to {max_slots} or auto, or use a larger cluster "
                "(RAY_ADDRESS)",
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
        f"a trial does not fit on {_describe(nodes)}: it needs {_needs(plan)}, and there are "
        f"resources for {places}",
        path=f"cluster.{field}",
        fix=f"{fix}, or use a larger cluster (RAY_ADDRESS)",
    )


def _needs(plan: SlotPlan) -> str:
    """Describe the resources of one trial."""
    workers = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
    return f"{workers} with {plan.cpus:g} CPU and {plan.gpus:g} GPU each"


def _describe(nodes: Sequence[Resources]) -> str:
    """Describe the resources of a cluster."""
    cpus = sum(node.get("CPU", 0) for node in nodes)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    place = "this machine" if len(nodes) == 1 else f"the cluster of {len(nodes)} nodes"
    return f"{place} ({cpus:g} CPU, {gpus:g} GPU)"


def _places(node: Resources, cpus: float, gpus: float) -> int:
    """Return how many workers with these resources fit on a node."""
    places = int(node.get("CPU", 0) / cpus + 1e-9)
    return min(places, _gpu_places(node.get("GPU", 0), gpus)) if gpus else places


def _gpu_places(gpus: float, share: float) -> int:
    # A fraction of a GPU must lie on one GPU.
    return int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def is_remote() -> bool:
    """Return whether the study is to run on a cluster that exists already."""
    return os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local")


def check_resources(cluster: Cluster) -> None:
    """Check that this machine can place a study's trials, or that the cluster can be joined.

    It is fast, so that it can run before data are read or Ray is started.

    Raises:
        StudyError: see `plan_slots` and `check_cluster`.
    """
    if is_initialized():
        return
    if is_remote():
        check_cluster(os.environ["RAY_ADDRESS"].strip())
    else:
        plan_slots(cluster, this_machine())


def living_nodes() -> list[Resources]:
    """Return the total resources of each living node of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def uses_existing_ray() -> bool:
    """Return whether Ray runs already, and continues after the search.

    Does not import Ray: it reads some of its settings while it is imported, and `RAY_SETTINGS` must
    be set before.
    """
    return is_remote() or is_initialized()


def is_initialized() -> bool:
    """Return whether this process has started or joined Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def thread_settings() -> dict[str, str]:
    """Return the environment variables for the threads of slots; user's settings count."""
    name, default = SPIN_SETTING
    return {} if "OMP_WAIT_POLICY" in os.environ else {name: os.environ.get(name, default)}


@contextmanager
def ray_session(
    *, verbose: bool, groups: bool = True, slots: int = 0, code: Sequence[Path] = ()
) -> Iterator[list[Resources]]:
    """Join the cluster of `RAY_ADDRESS`, or start Ray on this machine and end it afterwards.

    Yields each node's total resources.

    Args:
        verbose: let Ray's own output through.
        groups: whether groups of processes will train the trials.
        slots: number of slots on this machine; 0: unknown.
        code: modules (folders or files) that are sent to the nodes of a cluster that is joined.

    Raises:
        StudyError: the cluster cannot be joined.
        RayLost: Ray was started here, and one of its processes ended.
    """
    settings = RAY_SETTINGS | ({} if is_remote() else LOCAL_RAY_SETTINGS) | thread_settings()
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    threading.Thread(target=_import_ahead, daemon=True).start()  # now that the settings are set
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        starts = not ray.is_initialized()
    starts_here = starts and not is_remote()
    if starts_here:
        ensure_token()
    with ExitStack() as stack:
        try:
            if starts:
                stack.enter_context(swept(os.path.realpath(ray_folder()) if starts_here else None))
                with (
                    warnings.catch_warnings(),
                    ray_patches.skip_uv_environments(),
                    ray_patches.skip_sigterm_handler(),
                    nullcontext() if is_remote() else ray_patches.bind_to_loopback(),
                    ray_patches.choose_agent_port(),
                    ray_patches.wait_for_raylet(RAYLET_S),
                ):
                    warnings.simplefilter("ignore")
                    _connect(verbose, groups, slots, code)
                restore_signal_handlers()  # Ray's C++ part has installed others
            yield living_nodes()
        except RayLost:
            ray_patches.kill_session()
            starts = False  # it cannot be shut down in order
            raise
        finally:
            if starts:
                folder = None if verbose or is_remote() else ray_patches.session_folder()
                succeeded = sys.exc_info()[0] is None
                _shut_down()
                if folder is not None and succeeded:
                    _remove_session(folder)


def ensure_token() -> None:
    """Give the Ray sessions that this process starts their own token if the user has none.

    Ray itself would write one to `~/.ray/auth_token`, readable by everybody, and fail if the home
    folder cannot be written.  A token file that others can read is not used.

    The token stays in the environment after the session, as does the mode `RAY_AUTH_MODE` that Ray
    sets.  Ray's C++ part reads the mode once for the life of the process, and ends the process, or
    a Ray that is started below it, where the mode asks for a token and there is none.
    """
    if not os.environ.get("RAY_AUTH_TOKEN") and (not has_token() or is_exposed(token_file())):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray_patches.reset_token_cache()


def _shut_down() -> None:
    """End Ray, even if its start was interrupted, without being interrupted again.

    An object of Ray that another thread frees during the shutdown ends the process with exit code
    1.  Tune leaves such objects in reference cycles: they are freed before, and not meanwhile.
    """
    import ray

    begin_cleanup()
    ray_patches.before_processes_end(restore_signal_handlers)
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()
        restore_signal_handlers()  # the end of Ray's C++ part sets the defaults


def _remove_session(folder: Path) -> None:
    """Remove the files of a session that succeeded: megabytes for each."""
    latest = folder.parent / "session_latest"
    with suppress(OSError):
        if latest.is_symlink() and latest.resolve() == folder.resolve():
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _import_ahead() -> None:
    """Import modules of the search while Ray's processes start, which takes seconds."""
    with suppress(ImportError):
        for module in ("optuna", "raykd.compat.optuna_tpe", "raykd.runtime.slot"):
            importlib.import_module(module)


MAX_FOLDER_LENGTH = 43
"""Length of a folder's path up to which Ray's sockets in it have paths of at most 107 bytes."""


def ray_folder() -> str:
    """Return a folder for Ray's sockets, logs and spilled objects that only this user can enter.

    It lies below RAY_TMPDIR, TMPDIR or /tmp; below /tmp if the others are too long for Ray's
    sockets.  Ray makes its own folders writable for everybody, so they need a private parent.

    Raises:
        StudyError: there is no such folder.
    """
    default = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folders = [Path(os.path.abspath(place), f"raykd-{os.getuid()}") for place in (default, "/tmp")]
    for parent in folders:
        folder = str(parent / "ray")
        if len(os.fsencode(folder)) > MAX_FOLDER_LENGTH:
            continue
        try:
            _make_private(parent)
        except OSError as error:
            message, fix = f"{parent} cannot be used for Ray's files: {error}", "another folder"
            raise StudyError(Problem(message, fix=f"set RAY_TMPDIR to {fix}")) from None
        return folder
    raise AssertionError("/tmp is short enough")


def _make_private(folder: Path) -> None:
    """Create a folder that only its owner can enter.

    Raises:
        OSError: it exists and belongs to another user, or it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = os.lstat(folder)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise PermissionError(f"it is not a folder of user {os.getuid()}")
    if state.st_mode & 0o077:
        folder.chmod(0o700)


def _connect(verbose: bool, groups: bool, slots: int, code: Sequence[Path]) -> None:
    import ray

    settings: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": True,
    }
    if not is_remote():
        _start_patiently(groups=groups or verbose, slots=slots, settings=settings)
        return
    modules = [str(module) for module in (Path(__file__).parents[1], *code)]  # raykd itself first
    try:
        shipped = {"py_modules": modules, "env_vars": thread_settings()}
        ray.init(address="auto", runtime_env=shipped, **settings)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise join_error(os.environ["RAY_ADDRESS"], str(error)) from None


def _start_patiently(*, groups: bool, slots: int, settings: dict[str, Any]) -> None:
    """Start Ray on this machine, again if its agents were too slow; arguments as of `_start`.

    Raises:
        StudyError: it could not be started.
    """
    folder = ray_folder()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            _start(groups=groups, slots=slots, _temp_dir=folder, **settings)
            return
        except Exception as error:
            logs = _own_logs(folder)
            text = (logs / "raylet.err").read_text() if (logs / "raylet.err").is_file() else ""
            if attempt == START_ATTEMPTS or SLOW_AGENT not in text:
                raise _start_error(error, logs) from error
            for pid in session_processes(os.path.realpath(folder), os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _own_logs(folder: str) -> Path:
    """Return the folder of the logs of this process's last session; it may not exist."""
    sessions = sorted(Path(folder).glob(f"session_*_{os.getpid()}"))
    return (sessions[-1] if sessions else Path(folder)) / "logs"


def _start(*, groups: bool, slots: int, **settings: Any) -> None:
    """Start Ray on this machine.

    Args:
        groups: whether to start its dashboard, by which Ray Train frees the resources of a group.
        slots: number of slots; 0: unknown.
        settings: of `ray.init`.
    """
    import ray

    cpus = usable_cpus()
    settings |= {"address": "local", "num_cpus": cpus}
    if groups:
        ray.init(include_dashboard=True, **settings)
        return
    preloads = cpus <= MAX_CPUS_PER_SLOT * slots
    system = {"preload_python_modules": list(PRELOADED_MODULES) if preloads else []}
    with ray_patches.skip_api_server():
        ray.init(include_dashboard=False, _system_config=system, **settings)


def _start_error(error: Exception, logs: Path) -> StudyError:
    """Return the error of a Ray that cannot be started, with the folder of its logs."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return StudyError(
        Problem(f"Ray could not be started on this machine: {lines[0]}", fix=f"its logs: {logs}")
    )
