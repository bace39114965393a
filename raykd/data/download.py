"""Places of data: folders of a study, paths in messages, mirrors."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path

CONNECT_SECONDS = 3.0


def folder_path(name: str) -> Path:
    """An absolute path of a folder or file as a study names it; `~` is the home folder.

    Raises:
        ValueError: it cannot be a path.
    """
    if "\0" in name:
        raise ValueError(f"{name!r} is no path: it holds a NUL character")
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as error:  # ~somebody, of whom the machine knows no home
        raise ValueError(f"{name} is no path: {error}") from None


def printable(path: str | Path) -> str:
    """A path for a message: one line, whatever bytes its name has."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def reachable(url: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Whether `url` answers a HEAD request within `seconds` (proxies of the environment apply)."""
    answers: list[bool] = []
    # In a thread, because a name look-up has no time limit of its own.
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


def missing(what: str, looked: Sequence[str], remedies: Sequence[str], cause: str) -> ValueError:
    """The error for data that are neither here nor to be downloaded.

    Args:
        what: the data set's name.
        looked: the places looked at.
        remedies: what the user can do, one sentence each.
        cause: why it could not be downloaded.
    """
    return ValueError(
        f"{what} was not found in {', '.join(looked)}, and could not be downloaded ({cause}); "
        f"either {', or '.join(remedies)}"
    )
