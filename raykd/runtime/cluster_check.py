"""Check within seconds that the cluster of RAY_ADDRESS can be joined.

`ray.init` tries for minutes to reach a cluster that is not there.  So the address is resolved and
connected to first.  Then a separate process asks the cluster's control service (GCS) for its
versions: Ray's C++ part tries forever, prints warnings, and cannot be interrupted.
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
"""Seconds for resolving a host's name and for a connection, each."""

ANSWER_S = 10.0
"""Seconds for a response of the cluster's control service, including the import of Ray."""

PORT = 6379


def check_cluster(address: str) -> None:
    """Check that a cluster responds, accepts this machine's token and runs the same versions.

    Args:
        address: as in RAY_ADDRESS: `HOST:PORT` or `auto`.

    Raises:
        StudyError: it does not, or the address is of another kind; names the address and, if the
            token is the cause, the token's file.
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
    _compare_versions(address, _query_versions(address))


def _connect(address: str) -> None:
    """Check that a process listens at the address.

    Raises:
        StudyError: none does.
    """
    host, port = host_and_port(address)
    errors: list[str] = []
    # In a thread, because resolving a name has no time limit.
    thread = threading.Thread(
        target=lambda: errors.append(_connection_error(host, port)), daemon=True
    )
    thread.start()
    thread.join(2 * CONNECT_S)
    error = errors[0] if errors else f"{host} could not be resolved in {2 * CONNECT_S:.0f} s"
    if error:
        raise join_error(address, error)


def host_and_port(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`; without a port, it is Ray's default.

    Raises:
        StudyError: the port is not a number from 1 to 65535.
    """
    host, colon, port = address.strip().rstrip("/").rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.endswith("]")):
        host, port = address.strip().rstrip("/"), str(PORT)  # a name, or a bare IPv6 address
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise join_error(address, "it is not of the form HOST:PORT", "write RAY_ADDRESS=HOST:6379")
    return host.strip("[]"), int(port)


def _connection_error(host: str, port: int) -> str:
    """Return the reason why no connection can be opened; empty if one can."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except socket.gaierror as error:
        return f"the host {host} is unknown ({error.strerror})"
    except TimeoutError:
        return f"{host}:{port} does not answer within {CONNECT_S:.0f} s"
    except OSError as error:
        return f"no process listens at {host}:{port} ({error.strerror})"
    except UnicodeError:
        return f"{host!r} is not a host's name"
    return ""


def _query_versions(address: str) -> dict[str, str]:
    """Return the versions of the cluster.

    Raises:
        StudyError: it does not respond.
    """
    command = [sys.executable, "-c", CLUSTER_QUERY, address]
    quiet = os.environ | {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, env=quiet, check=False
        )
    except subprocess.TimeoutExpired as timeout:
        message = f"no Ray cluster responded within {ANSWER_S:.0f} s"
        if b"asks" not in (timeout.stdout or b""):
            message = f"Ray could not be imported within {ANSWER_S:.0f} s"
        raise join_error(address, message) from None
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    lines = process.stderr.strip().splitlines() or ["no reason was given"]
    error = next((line for line in reversed(lines) if "Error" in line.split(":")[0]), lines[-1])
    kind, _, reason = error.partition(": ")
    if kind.endswith("AuthenticationError"):
        raise _refused_token(address)
    if "Could not find any running Ray instance" in error:
        raise join_error(address, "no Ray runs on this machine")
    raise join_error(address, f"no Ray cluster responds there ({(reason or error)[:200]})")


def token_file() -> Path:
    """Return the file with the token for Ray; it need not exist."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def has_token() -> bool:
    """Return whether the environment or the token file holds a token for Ray."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    try:
        return bool(token_file().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeError):
        return False


def is_exposed(file: Path) -> bool:
    """Return whether other users of this machine can read a file."""
    try:
        resolved = file.resolve()
        shared = resolved.stat().st_mode & 0o044
        return bool(shared) and all(path.stat().st_mode & 0o011 for path in resolved.parents)
    except OSError:
        return False


def _refused_token(address: str) -> StudyError:
    """Return the error of a cluster that refuses this machine's token."""
    file, is_set = token_file(), bool(os.environ.get("RAY_AUTH_TOKEN"))
    token = "the token in RAY_AUTH_TOKEN" if is_set else f"the token file {file}"
    copy = (
        "copy the file ~/.ray/auth_token of the cluster's head node there, or name it in "
        "RAY_AUTH_TOKEN_PATH"
    )
    if not has_token():
        state = "is empty or cannot be read" if file.exists() else "does not exist"
        return join_error(address, f"it needs a token, and {token} {state}", copy)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        message = "it needs a token, but RAY_AUTH_MODE is not `token`"
        return join_error(address, message, f"set RAY_AUTH_MODE=token; then {token} is used")
    return join_error(address, f"it does not accept {token}", copy)


def _compare_versions(address: str, versions: dict[str, str]) -> None:
    """Check that the cluster and this machine have the same versions."""
    local = {"ray_version": version("ray"), "python_version": platform.python_version()}
    names = {"ray_version": "Ray", "python_version": "Python"}
    differences = [
        f"{name} {versions[key]}, this machine {local[key]}"
        for key, name in names.items()
        if versions.get(key) and versions[key] != local[key]
    ]
    if differences:
        message = f"the cluster has {' and '.join(differences)}"
        raise join_error(address, message, "install the same versions here and on the cluster")


def join_error(address: str, message: str, fix: str = "") -> StudyError:
    """Return the error of a cluster that cannot be joined."""
    return StudyError(
        Problem(
            f"the cluster at RAY_ADDRESS={address} cannot be joined: {message}",
            fix=fix
            or "start it (`ray start --head`), correct RAY_ADDRESS, or unset it to run here",
        )
    )
