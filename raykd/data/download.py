"""Paths of data, and the availability of downloads."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path

CONNECT_SECONDS = 3.0


def folder_path(name: str) -> Path:
    """Return the absolute path of a folder or file given in a study; `~` is the home folder.

    Raises:
        ValueError: `name` is not a valid path.
    """
    if "\0" in name:
        raise ValueError(f"{name!r} is not a valid path: it contains a NUL character")
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as error:  # ~user without a home folder on this machine
        raise ValueError(f"{name} is not a valid path: {error}") from None


def printable(path: str | Path) -> str:
    """Return a path for a message: one printable line, whatever bytes it contains."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def reachable(url: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether `url` answers a HEAD request in time (proxies of the environment apply)."""
    answers: list[bool] = []
    # In a thread, because a name look-up has no time limit.
    thread = threading.Thread(target=lambda: answers.append(_answers(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers) and answers[0]


def _answers(url: str, seconds: float) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def missing_data(
    name: str, folders: Sequence[str], remedies: Sequence[str], cause: str
) -> ValueError:
    """Return the error for data that are neither on this machine nor available for download.

    Args:
        name: name of the data set.
        folders: folders that were searched.
        remedies: things that the user can do, a sentence each.
        cause: reason that the download failed.
    """
    return ValueError(
        f"{name} was not found in {', '.join(folders)}, and could not be downloaded ({cause}); "
        f"either {', or '.join(remedies)}"
    )
