"""URI of MLflow's tracking store: its form, its file and its password."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


TRACKING = "MLFLOW_TRACKING_URI"
"""MLflow's environment variable."""


DEFAULT_STORE = "sqlite:///mlflow.db"
"""Store of studies that name none."""


def absolute(uri: str) -> str:
    """Return `uri` in a form that does not depend on the working folder.

    A masked password, as in a journal, is replaced by the one in MLFLOW_TRACKING_URI.
    """
    file = database_file(uri)
    if file is not None:
        query = uri.partition("?")[1:]
        return f"sqlite:///{file}" + "".join(query)
    variable = os.environ.get(TRACKING, "")
    return variable if HIDDEN in uri and masked(variable) == uri else uri


def unusable(uri: str) -> tuple[str, str]:
    """Return the reason MLflow cannot store runs at `uri`, and a fix; empty strings if it can.

    Only the form of the URI is checked.
    """
    scheme, colon, rest = uri.partition(":")
    kind = scheme.split("+")[0]
    advice = "write sqlite:///mlflow.db (a file here), sqlite:////folder/mlflow.db, or the "
    advice += "http(s):// address of an MLflow server"
    if kind == "sqlite" and colon:
        return _unusable_sqlite(uri, rest)
    if is_server(uri):
        host = urllib.parse.urlsplit(uri).hostname
        return ("", "") if host else (f"{masked(uri)!r} names no host", "write http://host:port")
    if kind in (*DATABASE_PORTS, "databricks", "databricks-uc", "uc") or uri == "databricks":
        return "", ""
    if not colon or kind == "file" or not re.fullmatch(r"[A-Za-z][\w.+-]+", scheme):
        return f"{uri!r} is a folder or file; MLflow keeps runs in a database", advice
    hidden = re.sub(r":[^/\s:@]+@", f"{HIDDEN}@", masked(uri))  # the slashes may be missing
    return f"{hidden!r} is no tracking store of MLflow", advice


def _unusable_sqlite(uri: str, rest: str) -> tuple[str, str]:
    file = database_file(uri)
    if file is None:
        name = rest.strip("/").partition("?")[0]
        example = f"sqlite:///{name}" if name and name != ":memory:" else "sqlite:///mlflow.db"
        return f"{uri!r} names no file: three slashes come before a file's path", f"write {example}"
    query = uri.partition("?")[2]
    if "?" in str(file) or (query and not QUERY.fullmatch(query)):
        reason = f"{str(file) if '?' in str(file) else uri!r}: '?' ends the path of a database"
        return reason, "use a folder and a file without '?'"
    if re.search(r"%[0-9A-Fa-f]{2}", str(file)):
        reason = f"{file}: MLflow reads '%' and two digits in a path as another character"
        return reason, "write the character itself, such as a space, or use another folder"
    if file.is_dir():
        return f"{file} is a folder", f"name a file: {uri.rstrip('/')}/mlflow.db"
    return "", ""


QUERY = re.compile(r"[\w.]+=[^&=?/]*(&[\w.]+=[^&=?/]*)*")


def holds_password(uri: str) -> bool:
    """Return True if `uri` contains a password."""
    return masked(uri) != uri


def database_file(uri: str) -> Path | None:
    """Return the absolute path of a sqlite URI's file, or None for other URIs."""
    prefix, slashes, path = uri.partition(":///")
    if not slashes or prefix.split("+")[0] != "sqlite" or not path or path == ":memory:":
        return None
    path = path.partition("?")[0]
    return Path(os.path.abspath(os.path.expanduser(path))) if path else None


def database_folder(uri: str) -> Path | None:
    """Return the folder of a sqlite URI's file, or None for other URIs."""
    file = database_file(uri)
    return None if file is None else file.parent


def masked(uri: str) -> str:
    """Return `uri` with its password hidden, for use in messages and files."""
    hidden = re.sub(r"(?<=://)([^/@:\s]*):[^/\s]+@", rf"\1{HIDDEN}@", uri)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|token)=)[^&\s]+", r"\1***", hidden)


HIDDEN = ":***"


def is_server(uri: str) -> bool:
    """Return True if the URI is the address of an MLflow server."""
    return uri.startswith(("http://", "https://"))
