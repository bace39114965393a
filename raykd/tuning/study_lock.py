"""The lock of a study's folder: one process at a time writes there.

Two things guard a folder.  `driver.json` says who works there: host, process, since when.  An
operating-system lock on `driver.lock` ends with its process, so that a crash frees the folder at
once.  Where the file system has no such locks, and between two machines, the modification time of
`driver.json` decides: its process renews it every `BEAT_S` seconds.

Imports the standard library alone: `raykd report` asks who works on a study.
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
"""Seconds between two signs of life."""

STALE_S = 120.0
"""Seconds without a sign of life after which a process of another machine counts as dead."""

TRUSTED_S = 30.0
"""Seconds after the last sign of life for which a process may write without looking again."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""

Work = Literal["search", "pairs", "distill", "teacher", "sync"]


@dataclass(frozen=True)
class Identity:
    """A process, told apart from every other one that ever had its number.

    Attributes:
        host: name of its machine.
        pid: its number.
        started: when it started, in the kernel's ticks since boot; 0: unknown.
        boot: the machine's boot id; empty: unknown.
        namespace: the process numbers' namespace (containers have their own); empty: unknown.
    """

    host: str
    pid: int
    started: int
    boot: str
    namespace: str

    @classmethod
    def own(cls) -> Identity:
        """The identity of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _start_of(pid) or 0, _boot(), _namespace())

    @property
    def is_local(self) -> bool:
        """Return whether its machine is this one and its number means the same here."""
        own = Identity.own()
        if self.boot and own.boot:
            return (self.boot, self.namespace) == (own.boot, own.namespace)
        return self.host == own.host

    @property
    def is_alive(self) -> bool:
        """Return whether the process exists; ask only where `is_local`."""
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
    """A process that took a study's folder.

    Attributes:
        folder: the study's.
        identity: the process.
        work: the verb it runs.
        since: when it took the folder, in seconds since 1970.
        token: unlike that of any other time a folder was taken.
        released: whether it has given the folder back.
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
        """Seconds since the process's last sign of life."""
        try:
            return max(0.0, _time_in(self.folder) - (self.folder / RECORD).stat().st_mtime)
        except OSError:
            return 0.0

    @property
    def is_at_work(self) -> bool:
        """Whether the process is alive and has not given the folder back, as far as can be known
        without asking it."""
        if self.released:
            return False
        return self.identity.is_alive if self.identity.is_local else self.silence < STALE_S


class LockLost(StudyError):
    """Another process has taken the folder: this one must not write there any more."""


class FolderLock:
    """This process's lock of one folder; see `locked`."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder = folder
        self.driver = Driver(folder, Identity.own(), work, time.time(), uuid.uuid4().hex)
        self._file = -1
        self._seen = _clock()
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="raykd-lock", daemon=True)

    def take(self) -> None:
        """Take the lock.

        Raises:
            StudyError: another process has it, or the folder cannot be written.
        """
        try:
            guarded = self._lock_file()
            self._check_record(guarded)
            self._write_record(guarded)
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
        """Give the folder back."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._write(replace(self.driver, released=True))
        self._close()

    def check(self) -> None:
        """See that the lock is still held; costs nothing while the signs of life are fresh.

        Raises:
            LockLost: another process has taken the folder, as after a long suspension.
        """
        if self._lost or (_clock() - self._seen > TRUSTED_S and not self._renewed()):
            new = read_driver(self.folder)
            raise LockLost(
                Problem(
                    f"this process was silent for more than {STALE_S:.0f} s and lost {self.folder}"
                    + (f" to {new}" if new is not None else ""),
                    fix="nothing more was written; let the other process finish",
                )
            )

    def _lock_file(self) -> bool:
        """Take the operating system's lock; False where the file system has none."""
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

    def _check_record(self, guarded: bool) -> None:
        found = read_driver(self.folder)
        if found is None or found.released:
            return
        if found.identity.is_local:
            # Without a start time another process may have the number: the lock knows better.
            alive = found.identity.is_alive and not (guarded and not found.identity.started)
        else:
            here = bool(found.identity.boot) and found.identity.boot == _boot()  # a container
            alive = found.silence < (TRUSTED_S if guarded and here else STALE_S)
        if alive:
            raise _refusal(self.folder, found)

    def _write_record(self, guarded: bool) -> None:
        self._write(self.driver)
        if not guarded:  # whoever replaced the record last has it
            time.sleep(0.5)
        if not self._is_ours():
            raise _refusal(self.folder, read_driver(self.folder))
        self._seen = _clock()

    def _write(self, driver: Driver) -> None:
        content = {**asdict(driver.identity), "format": 1}
        content |= {key: getattr(driver, key) for key in ("work", "since", "token", "released")}
        draft = self.folder / f".{RECORD}.{driver.token[:8]}"
        draft.write_text(json.dumps(content), encoding="utf-8")
        os.replace(draft, self.folder / RECORD)

    def _is_ours(self) -> bool:
        found = read_driver(self.folder)
        return found is not None and found.token == self.driver.token

    def _renewed(self) -> bool:
        """Renew the sign of life; False where the folder is another process's now."""
        began = _clock()
        try:
            if not self._is_ours():
                # A record that is merely gone is written again, unless others had time to come.
                gone = not (self.folder / RECORD).exists() and self.folder.exists()
                self._lost = not gone or began - self._seen > STALE_S
                if self._lost:
                    return False
                self._write(self.driver)
            os.utime(self.folder / RECORD)
        except OSError:  # a file server that is away
            return began - self._seen < STALE_S - TRUSTED_S
        self._seen = began
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            if not self._renewed() and self._lost:
                return

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_HELD: dict[str, FolderLock] = {}
_GUARD = threading.Lock()


@contextlib.contextmanager
def locked(folder: Path, work: Work) -> Iterator[FolderLock]:
    """Keep every other process, and every other thread, from writing in a study's folder.

    Args:
        folder: the study's.
        work: the verb, for messages.

    Raises:
        StudyError: another process works there; says which.
    """
    key = os.path.realpath(folder)
    with _GUARD:  # closing any handle of the lock's file would free it: look here first
        if key in _HELD:
            raise _refusal(folder, _HELD[key].driver)
        lock = FolderLock(folder, work)
        lock.take()
        _HELD[key] = lock
    try:
        yield lock
    finally:
        with _GUARD:
            del _HELD[key]
            lock.release()


def check_lock(folder: Path) -> None:
    """See that a lock this process took of a folder is still its own; nothing where it took none.

    Raises:
        LockLost: it is not.
    """
    for lock in tuple(_HELD.values()):
        if lock.folder == folder:
            lock.check()


def is_lost(folder: Path) -> bool:
    """Return whether this process took a folder's lock and has lost it since."""
    try:
        check_lock(folder)
    except LockLost:
        return True
    return False


def active_driver(folder: Path) -> Driver | None:
    """The process that runs the study in a folder now; None where none does."""
    found = read_driver(folder)
    return found if found is not None and found.work != "sync" and found.is_at_work else None


def read_driver(folder: Path) -> Driver | None:
    """The process that took a folder last, alive or not; None where none ever did."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = ("host", "pid", "started", "boot", "namespace")
        identity = Identity(**{name: content[name] for name in names})
        more = {key: content[key] for key in ("work", "since", "token", "released")}
        return Driver(folder, identity, **more)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refusal(folder: Path, driver: Driver | None) -> StudyError:
    if driver is None or driver.released:
        return StudyError(
            Problem(
                f"another process works on the study in {folder}",
                fix="wait until it ends; `raykd report` shows how far it is",
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
    """The time by the clock of the folder's file system, which may be another machine's."""
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
    """Seconds that also pass while the process or the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where it does not exist or is a zombie."""
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
