"""Private parts of Ray (2.60): start-up, shutdown and the environment of its processes.

Ray is imported inside the functions: it reads some of its settings while it is imported.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UV_SETTING = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""Environment variable; "0": Ray does not repeat `uv run` for every worker."""

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


def _local_node() -> Any:
    """Return the node that this process started; None if it started none."""
    from ray._private import worker

    return getattr(worker, "_global_node", None)
