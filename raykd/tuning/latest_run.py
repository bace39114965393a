"""Newest run of a study file, which a job that is started again continues."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from raykd.errors import StudyError
from raykd.storage import is_uri
from raykd.tuning.study_dir import Verb, open_folder
from raykd.tuning.study_input import load_or_use
from raykd.tuning.study_lock import STALE_S, active_driver
from raykd.tuning.study_lookup import list_folders, study_name

PATIENCE_S = STALE_S + 30
"""Seconds to wait for a driver on a lost machine; after `STALE_S` it counts as dead."""


def latest_run(
    file: str, overrides: Sequence[str], verb: Verb, *, allow_import: bool = False
) -> Path | None:
    """Return the folder of the newest run of a study file; None if there is none.

    It started with the same study file, the same overrides and the same storage.  A run that has
    ended is returned, too: resuming it trains nothing.

    Args:
        file: study file.
        overrides: `a.b=value`, as on the command line.
        verb: command of the run.
        allow_import: let models run code of their own.

    Raises:
        StudyError: the study has errors.
    """
    study = load_or_use(file, overrides, (), allow_import=allow_import)
    storage = study.settings.cluster.storage
    root = Path("studies") if is_uri(storage) else Path(storage).expanduser()
    for path in list_folders(root):
        if study_name(path) != study.settings.name:
            continue
        try:
            folder, old_overrides = open_folder(path)
            text = folder.study_file.read_text()
            del old_overrides[len(old_overrides) - len(folder.extended) :]
        except (OSError, ValueError, StudyError):
            continue
        if (text, old_overrides, folder.verb) == (study.text, list(study.overrides), verb):
            has_events = folder.journal.exists() and folder.journal.stat().st_size > 0
            return folder.path if has_events else None
    return None


def wait_for_driver(folder: Path, patience: float = PATIENCE_S) -> None:
    """Wait until no process works on a run.

    The driver of a lost machine counts as working for a while.
    """
    until = time.monotonic() + patience
    while active_driver(folder) is not None and time.monotonic() < until:
        time.sleep(1)
