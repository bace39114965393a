"""Logs of failed jobs, collected from their processes into the study's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raykd.runtime.jobs import Job
from raykd.storage import Storage
from raykd.training.log_file import find_crash, truncate_log
from raykd.tuning.study_dir import StudyFolder

KILLED = "its process was killed by signal 9, perhaps because memory ran out"
SIGNALS = {"Segmentation fault": 11, "Aborted": 6, "Bus error": 7, "Illegal instruction": 4}


@dataclass(frozen=True)
class Failure:
    """Reason why a training failed, and its log.

    Attributes:
        reason: in one line.
        raised_at: the place in the user's own code, "FILE:LINE"; empty if it took no part.
        log: the log file, below the study's folder; empty if there is none.
    """

    reason: str
    raised_at: str = ""
    log: str = ""


@dataclass(frozen=True)
class Logs:
    """Logs of a study.

    Args:
        folder: the study's folder on this machine.
        workers: number of processes of each training.
    """

    folder: StudyFolder
    workers: int = 1

    def collect(
        self,
        job: Job,
        reason: str,
        *,
        raised_at: str = "",
        more: str = "",
        died: bool = False,
    ) -> Failure:
        """Collect the log of a failed job in one file, and return the reason that it shows.

        Args:
            job: that failed.
            reason: of the failure, as its slot reports it.
            raised_at: the place in the user's own code, if it is known.
            more: a traceback, or the error of the slot; added if the logs do not hold it.
            died: whether the job's process ended without a response.
        """
        parts = self._parts(job)
        crash, place = self._crash(parts)
        if crash:
            number = f" (signal {SIGNALS[crash]})" if crash in SIGNALS else ""
            reason, raised_at = f"its process crashed: {crash}{number}", place
        elif died:
            reason = KILLED
        missing = more.strip().encode() not in b"\n".join(parts)
        texts = [*parts, *([more.encode()] if missing else [])] or [reason.encode()]
        name = f"logs/{job.log_name()}"
        try:
            path = self.folder.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(truncate_log(b"\n".join(text.rstrip() + b"\n" for text in texts)))
        except OSError:
            name = ""
        self._remove(job)
        return Failure(reason, raised_at, name)

    def _parts(self, job: Job) -> list[bytes]:
        """Return the logs of the job's processes, by rank."""
        storage = Storage(self.folder.storage)
        parts: list[bytes] = []
        for rank in range(self.workers):
            content = storage.read(job.log_file(rank))
            if content and self.workers > 1:
                content = f"--- worker {rank} of {self.workers} ---\n".encode() + content
            parts += [content] if content else []
        return parts

    def _crash(self, parts: list[bytes]) -> tuple[str, str]:
        """Return the first crash of a process and its place; empty if there is none."""
        crashes = (find_crash(part.decode("utf-8", "replace")) for part in parts)
        return next((crash for crash in crashes if crash[0]), ("", ""))

    def _remove(self, job: Job) -> None:
        """Remove the logs that are in the collected file."""
        storage = Storage(self.folder.storage)
        for rank in range(self.workers):
            local = storage.local(job.log_file(rank))
            if local != Path(self.folder.path, "logs", job.log_name()):
                storage.remove(job.log_file(rank))
