"""Study folders on this machine: by the name of a study, and near a wrong path."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from raykd.errors import Problem, StudyError

STUDIES = Path("studies")
"""Folder of the studies of a working folder, unless `cluster.storage` names another one."""

DESCRIPTION = "folder.json"
MOST_LISTED = 3
"""Maximum number of folders that a message lists."""

STAMP = re.compile(r"-(\d{8}-\d{6})(?:-(\d+))?$")
"""End of a folder's name: time of its start, and a number if several started in that second."""


def age(name: str) -> tuple[str, int]:
    """Return the time in a folder's name, and the number of a folder of the same second."""
    match = STAMP.search(name)
    return (match[1], int(match[2] or 0)) if match else ("", 0)


def list_folders(root: Path) -> list[Path]:
    """Return the study folders in a folder, the newest first; empty if it does not exist."""
    try:
        folders = [path for path in root.iterdir() if (path / DESCRIPTION).is_file()]
    except OSError:
        return []
    return sorted(folders, key=lambda path: age(path.name), reverse=True)


def find_folder(reference: str | Path) -> Path | None:
    """Return the folder that a text names; None if there is none on this machine.

    A text without `/` may be the name of a folder in `studies/`, or the name of a study, which
    means its newest folder there.
    """
    path = Path(reference).expanduser()
    if path.is_dir() or len(path.parts) != 1:
        return path if path.is_dir() else None
    folders = list_folders(STUDIES)
    named = [folder for folder in folders if folder.name == path.name]
    return next(iter(named or (each for each in folders if study_name(each) == path.name)), None)


def current_folder() -> Path:
    """Return the newest study folder in `studies/`, one that a process runs before all others.

    Raises:
        StudyError: there is none.
    """
    from raykd.tuning.study_lock import active_driver

    folders = list_folders(STUDIES)
    if not folders:
        raise StudyError(
            Problem(f"there is no study in {STUDIES}/", fix="name the folder of a study")
        )
    return next((each for each in folders if active_driver(each) is not None), folders[0])


def study_name(folder: Path) -> str:
    """Return the name of the study in a folder's name."""
    return STAMP.sub("", folder.name)


def near_folders(path: str | os.PathLike[str]) -> str:
    """Return the fix for a path that is no study's folder: similar folders, else the newest.

    They are looked up beside the path, or else in `studies/`.
    """
    wrong = Path(path).expanduser()
    folders = list_folders(wrong.parent) or list_folders(STUDIES)
    if not folders:
        return "name the folder that `raykd search` printed (below `cluster.storage`)"
    newest = {study_name(folder): folder for folder in reversed(folders)}
    by_name = newest | {folder.name: folder for folder in folders}
    close = get_close_matches(wrong.name, by_name, n=MOST_LISTED, cutoff=0.6)
    close = close or get_close_matches(STAMP.sub("", wrong.name), newest, n=MOST_LISTED, cutoff=0.6)
    if close:
        texts = dict.fromkeys(str(by_name[name]) for name in close)
        return f"did you mean {' or '.join(texts)}?"
    more = f" and {len(folders) - MOST_LISTED} more" if len(folders) > MOST_LISTED else ""
    listed = ", ".join(folder.name for folder in folders[:MOST_LISTED])
    return f"{folders[0].parent}/ has {listed}{more} (raykd ls)"
