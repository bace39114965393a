"""The logs of failed trainings, gathered from their processes into the study's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raykd.runtime.jobs import Assignment
from raykd.storage import Storage
from raykd.training.log_file import find_crash, shortened
from raykd.tuning.study_dir import StudyFolder

KILLED = "its process was killed by signal 9, perhaps because memory ran out"
SIGNALS = {"Segmentation fault": 11, "Aborted": 6, "Bus error": 7, "Illegal instruction": 4}


@dataclass(frozen=True)
class Failure:
    """Why a training failed.

    Attributes:
        reason: in one line.
        raised_at: the file and line of the user's own code, "FILE:LINE"; empty where it took no
            part.
        log: its log file, below the study's folder; empty where there is none.
    """

    reason: str
    raised_at: str = ""
    log: str = ""


@dataclass(frozen=True)
class Logs:
    """Where the logs of a study are.

    Args:
        folder: the study's, on this machine.
        workers: processes of each training.
    """

    folder: StudyFolder
    workers: int = 1

    def gathered(
        self,
        assignment: Assignment,
        reason: str,
        *,
        raised_at: str = "",
        more: str = "",
        died: bool = False,
    ) -> Failure:
        """The log of a failed training in one file, and what it says of the reason.

        Args:
            reason: why it failed, as far as its slot knows.
            raised_at: where, if that is known.
            more: a traceback or the error of a slot; added where the logs of its processes do not
                hold it.
            died: whether its process ended without an answer.
        """
        parts = self._parts(assignment)
        crash, place = self._crash(parts)
        if crash:
            number = f" (signal {SIGNALS[crash]})" if crash in SIGNALS else ""
            reason, raised_at = f"its process crashed: {crash}{number}", place
        elif died:
            reason = KILLED
        known = b"\n".join(parts)
        missing = more.strip().encode() not in known
        texts = [*parts, *([more.encode()] if missing else [])] or [reason.encode()]
        name = f"logs/{assignment.log_name()}"
        try:
            path = self.folder.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(shortened(b"\n".join(text.rstrip() + b"\n" for text in texts)))
        except OSError:
            name = ""
        self._remove(assignment)
        return Failure(reason, raised_at, name)

    def _parts(self, assignment: Assignment) -> list[bytes]:
        """What each of its processes wrote, the first one first."""
        storage = Storage(self.folder.storage)
        found: list[bytes] = []
        for rank in range(self.workers):
            content = storage.read(assignment.log_file(rank))
            if content and self.workers > 1:
                content = f"--- worker {rank} of {self.workers} ---\n".encode() + content
            found += [content] if content else []
        return found

    def _crash(self, parts: list[bytes]) -> tuple[str, str]:
        crashes = (find_crash(part.decode("utf-8", "replace")) for part in parts)
        return next((found for found in crashes if found[0]), ("", ""))

    def _remove(self, assignment: Assignment) -> None:
        """Remove what is in the gathered file now."""
        storage = Storage(self.folder.storage)
        for rank in range(self.workers):
            local = storage.local(assignment.log_file(rank))
            if local != Path(self.folder.path, "logs", assignment.log_name()):
                storage.remove(assignment.log_file(rank))
