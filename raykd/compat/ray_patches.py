"""Private parts of Ray (2.60): start-up, shutdown and the environment of its processes.

Ray is imported inside the functions: it reads some of its settings while it is imported.
"""

from __future__ import annotations

import atexit
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

UV_SETTING = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""Environment variable; "0": Ray does not repeat `uv run` for every worker."""

KEY_NAMESPACE = "raykd"
"""Namespace of raykd's keys in the key-value store of a cluster."""

RAYLET = "its raylet"
"""Name of the raylet in `local_processes`."""

CLUSTER_QUERY = """
import json, sys
import ray
from ray._common.usage import usage_lib
from ray._private import services
from ray._raylet import GcsClient
address = services.canonicalize_bootstrap_address(sys.argv[1])
if sys.argv[1] == "auto":
    from ray._private.authentication import authentication_token_setup
    authentication_token_setup.maybe_enable_token_auth_if_token_available(False)
print("asks", address, flush=True)
metadata = usage_lib.get_cluster_metadata(GcsClient(address=address)) or {}
print(json.dumps({key: metadata.get(key) for key in ("ray_version", "python_version")}))
"""
"""Script that prints the versions of the cluster whose address is its argument.

The public `ray.init` tries for minutes to reach a cluster that is not there, and joins it.
"""


@contextmanager
def inherit_environment() -> Iterator[None]:
    """Let Tune's actors start in processes that exist already, with the environment they have.

    Tune gives every actor some environment variables of the driver.  Ray starts new processes for
    them, while idle processes with the same variables stay unused.
    """
    from ray.tune.execution import class_cache

    names = ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE")
    before = {name: getattr(class_cache, name) for name in names if hasattr(class_cache, name)}
    for name, value in before.items():
        setattr(class_cache, name, type(value)())
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(class_cache, name, value)


@contextmanager
def count_every_loss_as_dead_actor() -> Iterator[None]:
    """Let Tune treat every error of Ray about a lost process as the death of an actor.

    Tune ends the whole experiment at an error that is neither `RayActorError` nor `RayTaskError`:
    at `OutOfMemoryError` if Ray ends an actor that is starting because its node runs low on memory.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError

    before = RayActorManager._actor_task_failed

    def task_failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        is_handled = isinstance(exception, RayActorError | RayTaskError)
        if isinstance(exception, RayError) and not is_handled:
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        before(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = before


@contextmanager
def skip_api_server() -> Iterator[None]:
    """Keep Ray from starting the API server behind a dashboard that is turned off.

    Ray waits for that server: over two of the seven seconds of its start on two cores.  Ray itself
    continues without the server where it cannot be started.
    """
    from ray._private import services

    before = services.start_api_server
    services.start_api_server = lambda *args, **kwargs: (None, None)
    try:
        yield
    finally:
        services.start_api_server = before


@contextmanager
def wait_for_raylet(seconds: float) -> Iterator[None]:
    """Let Ray wait longer for a raylet that it starts, as long as that lives.

    Ray gives up after 30 seconds, in which a busy machine does not start it.
    """
    from ray._private import services

    get_node, start_raylet = services.get_node, services.start_raylet
    raylets: list[Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> Any:
        information = start_raylet(*arguments, **options)
        raylets.append(information.process)
        return information

    def get_patiently(*arguments: Any, **options: Any) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                lives = raylets and raylets[-1].poll() is None
                if not lives or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node, services.start_raylet = get_patiently, start
    try:
        yield
    finally:
        services.get_node, services.start_raylet = get_node, start_raylet


@contextmanager
def bind_to_loopback() -> Iterator[None]:
    """Let a Ray that starts on this machine listen on 127.0.0.1 only.

    On Linux Ray replaces a loopback address by the address of the network card, and its ports are
    then open to the network.  On macOS it does not, depending on this setting.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def choose_agent_port() -> Iterator[None]:
    """Let the agent of a Ray that starts on this machine listen on a free port.

    Ray's default is a fixed port.  The agent of a second Ray on the machine waits three seconds for
    it, and then continues without its server.
    """
    from ray._private import parameter

    before = parameter.RayParams
    parameter.RayParams = partial(before, dashboard_agent_listen_port=0)  # type: ignore[misc]
    try:
        yield
    finally:
        parameter.RayParams = before  # type: ignore[misc]


@contextmanager
def skip_uv_environments() -> Iterator[None]:
    """Apply `UV_SETTING` also where Ray was imported, and read its settings, before it was set.

    Otherwise uv builds an environment for every worker.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, UV_SETTING, None)
    if os.environ.get(UV_SETTING) == "0":
        setattr(ray_constants, UV_SETTING, False)
    try:
        yield
    finally:
        setattr(ray_constants, UV_SETTING, before)


@contextmanager
def skip_sigterm_handler() -> Iterator[None]:
    """Keep Ray from replacing the handler of SIGTERM while it starts."""
    from ray._private import utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def reset_token_cache() -> None:
    """Make Ray read its authentication token again.

    Ray reads `RAY_AUTH_TOKEN` once in a process; no public name makes it read a changed one.
    """
    raylet: Any = importlib.import_module("ray._raylet")  # compiled, without types
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def session_folder() -> Path | None:
    """Return the folder of the running session's logs and sockets; None if Ray does not tell."""
    node = _local_node()
    return None if node is None else Path(node.get_session_dir_path())


def forget_figures(trial: Trial) -> None:
    """Drop all figures of an ended trial of Tune but the plain values of its last result.

    Tune keeps every trial to its end, with averages of each of its metrics.
    """
    metadata = trial.run_metadata
    metadata.metric_analysis, metadata.metric_n_steps = {}, {}
    plain = {k: v for k, v in metadata.last_result.items() if isinstance(v, int | float | str)}
    metadata.last_result = plain


def local_processes() -> dict[str, Popen[bytes]]:
    """Return the processes that Ray needs, if this process has started them."""
    node = _local_node()
    running = getattr(node, "all_processes", {})  # a node that was joined has none
    names = {"gcs_server": "its control service (gcs_server)", "raylet": RAYLET}
    return {text: running[name][0].process for name, text in names.items() if running.get(name)}


def log_folder() -> str:
    """Return the folder of the running session's logs; empty if Ray does not tell."""
    node = _local_node()
    return "" if node is None else node.get_logs_dir_path()


def kill_session() -> None:
    """Kill all processes of a session whose control service is gone.

    `ray.shutdown`, and what Ray and Tune do when the interpreter ends, would wait a minute for it.
    """
    from ray._private import worker
    from ray.tune import registry

    atexit.unregister(worker.shutdown)
    atexit.unregister(registry._unregister_all)
    node = _local_node()
    if not hasattr(node, "all_processes"):  # Ray was started elsewhere
        return
    psutil: Any = importlib.import_module("psutil")  # Ray brings it
    raylets = [info.process.pid for info in node.all_processes.get("raylet", ())]
    children: list[Any] = []
    for pid in raylets:  # its agents, too, would wait
        with suppress(psutil.NoSuchProcess):
            children += psutil.Process(pid).children(recursive=True)
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def before_processes_end(action: Callable[[], None]) -> None:
    """Call `action` when a shutdown begins to end Ray's processes.

    Most of the time of `ray.shutdown` goes there, after Ray's C++ part has reset the signal
    handlers.
    """
    node = _local_node()
    if node is None:
        return
    end = node.kill_all_processes

    def end_processes(*args: Any, **kwargs: Any) -> Any:
        action()
        return end(*args, **kwargs)

    node.kill_all_processes = end_processes


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are drained: they take no new work, and end soon.

    The public `ray.nodes` does not tell.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())


def own_job() -> str:
    """Return the id of this driver's job."""
    ray: Any = importlib.import_module("ray")
    return ray.get_runtime_context().get_job_id()


def living_jobs() -> list[str]:
    """Return the ids of the jobs whose drivers live, in the order of their starts.

    The public `ray.util.state.list_jobs` needs the dashboard.
    """
    from ray._private.state import state

    return sorted(job["JobID"] for job in state.job_table() if not job["IsDead"])


def write_shared_value(key: str, value: str) -> None:
    """Write to the cluster's key-value store, which all drivers share."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=KEY_NAMESPACE)


def read_shared_value(key: str) -> str | None:
    """Read from the cluster's key-value store; None if there is no such key."""
    from ray.experimental import internal_kv

    value = internal_kv._internal_kv_get(key, namespace=KEY_NAMESPACE)
    return None if value is None else value.decode()


def delete_shared_value(key: str) -> None:
    """Delete a key of the cluster's key-value store if it exists."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=KEY_NAMESPACE)


def release_idle_actors(controller: Any, most: int) -> None:
    """End the actors that Tune keeps for its next trial if there would be more than `most`.

    Tune keeps one actor, with its resources, although the searcher may give no trial for hours.
    """
    controller = getattr(controller, "_trial_runner", controller)  # Tune wraps it for schedulers
    idle = controller._actor_cache.num_cached_objects
    if not idle:
        return
    statuses = [trial.status for trial in controller.get_live_trials()]
    if "PENDING" not in statuses and len(statuses) + idle > most:
        controller._cleanup_cached_actors(force_all=True)


def _local_node() -> Any:
    """Return the node that this process started; None if it started none."""
    from ray._private import worker

    return getattr(worker, "_global_node", None)
