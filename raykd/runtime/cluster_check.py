"""Sees within seconds whether the cluster that RAY_ADDRESS names can be joined.

`ray.init` tries for minutes to reach a cluster that is not there.  So the address is first looked
up and connected to, then a process of its own asks the cluster's control service (GCS) for its
versions: Ray's C++ part tries for ever, prints warnings, and cannot be interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

from raykd.compat.ray_patches import CLUSTER_QUERY
from raykd.errors import Problem, StudyError

CONNECT_S = 4.0
"""Seconds for the look-up of a host's name and for a connection, each."""

ANSWER_S = 10.0
"""Seconds for an answer of the cluster's control service, the import of Ray included."""

PORT = 6379


def check_cluster(address: str) -> None:
    """See that a cluster answers, accepts this machine's token and runs the same versions.

    Args:
        address: as in RAY_ADDRESS: `HOST:PORT` or `auto`.

    Raises:
        StudyError: it does not, or the address is of another kind; names the address and, where it
            is about the token, the token's file.
    """
    if "://" in address:
        raise join_error(
            address,
            "raykd runs in the cluster, not through a Ray client or another scheme",
            "set RAY_ADDRESS to HOST:PORT (6379 by default) on a machine of the cluster, or submit "
            "the command with `ray job submit`",
        )
    if address != "auto":
        _connect(address)
    if os.environ.get("RAY_AUTH_MODE") == "token" and not has_token():
        raise _refused_token(address)
    _compare_versions(address, _asked(address))


def _connect(address: str) -> None:
    """See that somebody listens.

    Raises:
        StudyError: nobody does.
    """
    host, port = host_and_port(address)
    found: list[str] = []
    # In a thread, because a name look-up has no time limit of its own.
    thread = threading.Thread(target=lambda: found.append(_trouble(host, port)), daemon=True)
    thread.start()
    thread.join(2 * CONNECT_S)
    trouble = found[0] if found else f"{host} could not be looked up in {2 * CONNECT_S:.0f} s"
    if trouble:
        raise join_error(address, trouble)


def host_and_port(address: str) -> tuple[str, int]:
    """`HOST:PORT` in two; Ray's usual port where there is none.

    Raises:
        StudyError: the port is no number from 1 to 65535.
    """
    host, colon, port = address.strip().rstrip("/").rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.endswith("]")):
        host, port = address.strip().rstrip("/"), str(PORT)  # a name, or a bare IPv6 address
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise join_error(address, "it is not of the form HOST:PORT", "write RAY_ADDRESS=HOST:6379")
    return host.strip("[]"), int(port)


def _trouble(host: str, port: int) -> str:
    """Why no connection can be opened; empty where one can."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except socket.gaierror as error:
        return f"the host {host} is unknown ({error.strerror})"
    except TimeoutError:
        return f"{host}:{port} does not answer within {CONNECT_S:.0f} s"
    except OSError as error:
        return f"nobody answers at {host}:{port} ({error.strerror})"
    except UnicodeError:
        return f"{host!r} is not a host's name"
    return ""


def _asked(address: str) -> dict[str, str]:
    """The versions of the cluster.

    Raises:
        StudyError: it gives no answer.
    """
    command = [sys.executable, "-c", CLUSTER_QUERY, address]
    quiet = os.environ | {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, env=quiet, check=False
        )
    except subprocess.TimeoutExpired as late:
        begun = b"asks" in (late.stdout or b"")
        what = f"no Ray cluster answered within {ANSWER_S:.0f} s"
        if not begun:
            what = f"Ray could not be imported within {ANSWER_S:.0f} s"
        raise join_error(address, what) from None
    if asked.returncode == 0:
        return json.loads(asked.stdout.splitlines()[-1])
    lines = asked.stderr.strip().splitlines() or ["no reason was given"]
    said = next((line for line in reversed(lines) if "Error" in line.split(":")[0]), lines[-1])
    kind, _, reason = said.partition(": ")
    if kind.endswith("AuthenticationError"):
        raise _refused_token(address)
    if "Could not find any running Ray instance" in said:
        raise join_error(address, "no Ray runs on this machine")
    raise join_error(address, f"it is not a Ray cluster that answers ({(reason or said)[:200]})")


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def has_token() -> bool:
    """Return whether the environment or the token file holds a token for Ray."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    try:
        return bool(_token_file().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeError):
        return False


def _refused_token(address: str) -> StudyError:
    file, given = _token_file(), bool(os.environ.get("RAY_AUTH_TOKEN"))
    token = "the token in RAY_AUTH_TOKEN" if given else f"the token file {file}"
    copy = (
        "copy the file ~/.ray/auth_token of the cluster's head node there, or name it in "
        "RAY_AUTH_TOKEN_PATH"
    )
    if not has_token():
        state = "is empty or cannot be read" if file.exists() else "does not exist"
        return join_error(address, f"it needs a token, and {token} {state}", copy)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        what = "it needs a token, but RAY_AUTH_MODE is not `token`"
        return join_error(address, what, f"set RAY_AUTH_MODE=token; then {token} is used")
    return join_error(address, f"it does not accept {token}", copy)


def _compare_versions(address: str, found: dict[str, str]) -> None:
    here = {"ray_version": version("ray"), "python_version": platform.python_version()}
    names = {"ray_version": "Ray", "python_version": "Python"}
    said = [
        f"{name} {found[key]}, this machine {here[key]}"
        for key, name in names.items()
        if found.get(key) and found[key] != here[key]
    ]
    if said:
        what = f"the cluster has {' and '.join(said)}"
        raise join_error(address, what, "install the same versions here and on the cluster")


def join_error(address: str, message: str, fix: str = "") -> StudyError:
    """The error of a cluster that cannot be joined."""
    return StudyError(
        Problem(
            f"the cluster at RAY_ADDRESS={address} cannot be joined: {message}",
            fix=fix
            or "start it (`ray start --head`), correct RAY_ADDRESS, or unset it to run here",
        )
    )
