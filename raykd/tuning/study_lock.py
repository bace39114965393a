"""Lock of a study's folder: one process at a time writes there.

Two files guard a folder.  `driver.json` names the process that works there: its host, its number
and its start.  An operating-system lock on `driver.lock` ends with its process, so that a crash
frees the folder at once.  If the file system has no such locks, and between two machines, the
modification time of `driver.json` decides: its process renews it every `BEAT_S` seconds.

Imports only the standard library: `raykd report` reads which process works on a study.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from raykd.errors import Problem, StudyError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

RECORD, LOCK = "driver.json", "driver.lock"
BEAT_S = 10.0
"""Seconds between two renewals of `driver.json`."""

STALE_S = 120.0
"""Seconds without renewal after which a process of another machine counts as dead."""

TRUSTED_S = 30.0
"""Seconds after a renewal in which its process may write without another check."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""

Work = Literal["search", "pairs", "distill", "teacher", "sync", "reproduce"]


@dataclass(frozen=True)
class Identity:
    """Identity of a process, unlike any other that has had the same number.

    Attributes:
        host: name of its machine.
        pid: its number.
        started: its start, in the kernel's ticks since boot; 0: unknown.
        boot: boot id of the machine; empty: unknown.
        namespace: namespace of process numbers (containers have their own); empty: unknown.
    """

    host: str
    pid: int
    started: int
    boot: str
    namespace: str

    @classmethod
    def of_this_process(cls) -> Identity:
        """Return the identity of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _start_of(pid) or 0, _boot(), _namespace())

    @property
    def is_local(self) -> bool:
        """Return whether its machine is this one and its number means the same here."""
        present = Identity.of_this_process()
        if self.boot and present.boot:
            return (self.boot, self.namespace) == (present.boot, present.namespace)
        return self.host == present.host

    @property
    def is_alive(self) -> bool:
        """Return whether the process exists; only valid if `is_local`."""
        if self.started:
            return _start_of(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


@dataclass(frozen=True)
class Driver:
    """Process that locked a study's folder.

    Attributes:
        folder: of the study.
        identity: of the process.
        work: the command it runs.
        since: time of the lock, in seconds since 1970.
        token: unique to this lock.
        released: whether the process has released the folder.
    """

    folder: Path
    identity: Identity
    work: Work
    since: float
    token: str
    released: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.identity.pid} on {self.identity.host}, since {since}"

    @property
    def silence(self) -> float:
        """Seconds since the process last renewed `driver.json`."""
        try:
            return max(0.0, _time_in(self.folder) - (self.folder / RECORD).stat().st_mtime)
        except OSError:
            return 0.0

    @property
    def is_at_work(self) -> bool:
        """Return whether the process still works on the study, as far as its files show."""
        if self.released:
            return False
        return self.identity.is_alive if self.identity.is_local else self.silence < STALE_S


class LockLost(StudyError):
    """The folder is locked by another process now: this one must not write there any more."""


class FolderLock:
    """Lock of one folder by this process; see `locked`."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder = folder
        self.driver = Driver(
            folder, Identity.of_this_process(), work, time.time(), uuid.uuid4().hex
        )
        self._file = -1
        self._renewed_at = _clock()
        self._lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="raykd-lock", daemon=True)

    def take(self) -> None:
        """Take the lock.

        Raises:
            StudyError: another process has it, or the folder cannot be written.
        """
        try:
            has_file_lock = self._lock_file()
            self._check_record(has_file_lock)
            self._write_record(has_file_lock)
        except StudyError:
            self._close()
            raise
        except OSError as error:
            self._close()
            raise StudyError(
                Problem(
                    f"{self.folder} cannot be written: {error.strerror}",
                    fix="make the folder writable, or copy it elsewhere and resume the copy",
                )
            ) from None
        self._thread.start()

    def release(self) -> None:
        """Release the folder."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._write(replace(self.driver, released=True))
        self._close()

    def check(self) -> None:
        """Check that the folder is still locked; costs nothing soon after a renewal.

        Raises:
            LockLost: another process has taken the folder, as after a long suspension.
        """
        if self._lost or (_clock() - self._renewed_at > TRUSTED_S and not self._renew()):
            new = read_driver(self.folder)
            raise LockLost(
                Problem(
                    f"this process was silent for more than {STALE_S:.0f} s and lost {self.folder}"
                    + (f" to {new}" if new is not None else ""),
                    fix="nothing more was written; let the other process finish",
                )
            )

    def _lock_file(self) -> bool:
        """Take the operating system's lock; False if the file system has none."""
        self._file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise _refusal(self.folder, read_driver(self.folder)) from None
        return True

    def _check_record(self, has_file_lock: bool) -> None:
        """Refuse the folder if the process in `driver.json` is alive."""
        driver = read_driver(self.folder)
        if driver is None or driver.released:
            return
        identity = driver.identity
        if identity.is_local:
            # Without a start time, another process may have the number: the file lock is certain.
            alive = identity.is_alive and not (has_file_lock and not identity.started)
        else:
            same_machine = bool(identity.boot) and identity.boot == _boot()  # another container
            limit = TRUSTED_S if has_file_lock and same_machine else STALE_S
            alive = driver.silence < limit
        if alive:
            raise _refusal(self.folder, driver)

    def _write_record(self, has_file_lock: bool) -> None:
        """Write `driver.json`; without a file lock, the process that writes it last has it."""
        self._write(self.driver)
        if not has_file_lock:
            time.sleep(0.5)
        if not self._is_ours():
            raise _refusal(self.folder, read_driver(self.folder))
        self._renewed_at = _clock()

    def _write(self, driver: Driver) -> None:
        content = {**asdict(driver.identity), "format": 1}
        content |= {key: getattr(driver, key) for key in ("work", "since", "token", "released")}
        draft = self.folder / f".{RECORD}.{driver.token[:8]}"
        draft.write_text(json.dumps(content), encoding="utf-8")
        os.replace(draft, self.folder / RECORD)

    def _is_ours(self) -> bool:
        driver = read_driver(self.folder)
        return driver is not None and driver.token == self.driver.token

    def _renew(self) -> bool:
        """Renew `driver.json`; False if the folder is locked by another process now."""
        start = _clock()
        try:
            if not self._is_ours():
                # A deleted record is written again, unless another process had time to come.
                is_deleted = not (self.folder / RECORD).exists() and self.folder.exists()
                self._lost = not is_deleted or start - self._renewed_at > STALE_S
                if self._lost:
                    return False
                self._write(self.driver)
            os.utime(self.folder / RECORD)
        except OSError:  # the file server is away
            return start - self._renewed_at < STALE_S - TRUSTED_S
        self._renewed_at = start
        return True

    def _keep_alive(self) -> None:
        """Renew `driver.json` until the folder is released or lost."""
        while not self._released.wait(BEAT_S):
            if not self._renew() and self._lost:
                return

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_LOCKS: dict[str, FolderLock] = {}
_GUARD = threading.Lock()


@contextlib.contextmanager
def locked(folder: Path, work: Work) -> Iterator[FolderLock]:
    """Keep other processes and threads from writing in a study's folder.

    Args:
        folder: of the study.
        work: the command, for messages.

    Raises:
        StudyError: another process works there; names it.
    """
    key = os.path.realpath(folder)
    with _GUARD:  # opening and closing the lock's file again would free it: check here first
        if key in _LOCKS:
            raise _refusal(folder, _LOCKS[key].driver)
        lock = FolderLock(folder, work)
        lock.take()
        _LOCKS[key] = lock
    try:
        yield lock
    finally:
        with _GUARD:
            del _LOCKS[key]
            lock.release()


def check_lock(folder: Path) -> None:
    """Check that this process still has its lock of a folder, if it took one.

    Raises:
        LockLost: another process has taken it.
    """
    for lock in tuple(_LOCKS.values()):
        if lock.folder == folder:
            lock.check()


def is_lost(folder: Path) -> bool:
    """Return whether this process had a folder's lock and has lost it."""
    try:
        check_lock(folder)
    except LockLost:
        return True
    return False


def active_driver(folder: Path) -> Driver | None:
    """Return the process that runs the study in a folder now; None if none does."""
    driver = read_driver(folder)
    return driver if driver is not None and driver.work != "sync" and driver.is_at_work else None


def read_driver(folder: Path) -> Driver | None:
    """Return the process that locked a folder last, alive or not; None if none ever did."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = ("host", "pid", "started", "boot", "namespace")
        identity = Identity(**{name: content[name] for name in names})
        fields = {key: content[key] for key in ("work", "since", "token", "released")}
        return Driver(folder, identity, **fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refusal(folder: Path, driver: Driver | None) -> StudyError:
    """Return the error of a folder that another process works in."""
    if driver is None or driver.released:
        return StudyError(
            Problem(
                f"another process works on the study in {folder}",
                fix="wait until it ends; `raykd report` shows its progress",
            )
        )
    local = driver.identity.is_local
    message = f"{driver} is running `raykd {driver.work}` on the study in {folder}"
    fix = "wait until it ends"
    if local and _is_suspended(driver.identity.pid):
        message += " (it is suspended)"
        fix = f"continue it (kill -CONT {driver.identity.pid}), or end it, then try again"
    elif not local:
        message += f" (last sign of life {driver.silence:.0f} s ago)"
        fix += (
            f", or, if that machine is gone, {STALE_S:.0f} s after its last sign of life; "
            f"if the lock outlives that, delete {folder / LOCK}"
        )
    return StudyError(Problem(message, fix=fix))


def _time_in(folder: Path) -> float:
    """Return the time by the clock of the folder's file system, which may be another machine's."""
    draft = folder / f".clock.{uuid.uuid4().hex[:8]}"
    try:
        draft.touch(exist_ok=False)
        try:
            return draft.stat().st_mtime
        finally:
            draft.unlink(missing_ok=True)
    except OSError:  # it cannot be written; its clock may still be right
        return time.time()


def _clock() -> float:
    """Return seconds that also pass while the process or the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _start_of(pid: int) -> int | None:
    """Return a process's start in ticks since boot; None if it does not exist or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _is_suspended(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
