"""Log file of a training: output of its process and its traceback, up to a maximum size.

Nothing of the environment is written.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import re
import site
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from raykd.storage import Storage

LIMIT, HEAD, TAIL = 512 << 10, 64 << 10, 192 << 10
"""A file longer than `LIMIT` bytes is cut to its first `HEAD` and its last `TAIL` bytes."""

OTHER_THREADS = ("raykd-tracker", "raykd-display")
"""Threads of raykd whose output belongs to no training."""

LIBRARIES = frozenset(
    {"torch", "torchvision", "torchgen", "numpy", "scipy", "ray", "timm", "transformers", "PIL"}
    | {"tokenizers", "safetensors", "huggingface_hub", "torch_pruning", "onnx", "onnxruntime"}
    | {"onnxscript", "mlflow", "optuna", "pandas", "pyarrow", "sklearn", "pydantic", "einops"}
)
"""Installed packages whose frames are not reported as the place of an error."""


class TrainingLog:
    """Log of what one rank prints during a training.

    It also receives the Python stack if the process crashes (`faulthandler`).  If the log cannot
    be written, the training continues without it.

    Args:
        storage: of the study.
        name: of the file below it; an existing file is appended to.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._local = storage.local(name)
        self._lock = threading.Lock()
        self._size = 0
        self._broken = False
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            self._open()
        self._crashes = faulthandler.is_enabled()
        if self._file is not None:
            faulthandler.enable(self._file.fileno(), all_threads=False)

    def write(self, text: str) -> None:
        """Append text; the middle of a long log is removed."""
        with self._lock:
            if self._file is None or self._broken:
                return
            try:
                self._size += self._file.write(text.encode("utf-8", "replace"))
                if self._size > LIMIT:
                    self._shorten(self._file)
            except (OSError, ValueError):
                self._broken = True

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Copy standard output and standard error into the log."""
        before = sys.stdout, sys.stderr
        copies = _TeeStream(sys.stdout, self), _TeeStream(sys.stderr, self)
        sys.stdout, sys.stderr = copies  # type: ignore[assignment]
        try:
            yield
        finally:
            if sys.stdout is copies[0]:
                sys.stdout = before[0]
            if sys.stderr is copies[1]:
                sys.stderr = before[1]

    def failed(self, error: BaseException) -> None:
        """Append the whole traceback of an error, and make the log readable for others."""
        self.write("".join(traceback.format_exception(error)))
        if self._local is None and self._file is not None:
            with contextlib.suppress(OSError):
                self._file.seek(0)
                self._storage.write(self._name, self._file.read())

    def close(self, *, keep: bool = True) -> None:
        """Close the log; it is removed if it is empty, or unless `keep`."""
        with self._lock:
            file, self._file = self._file, None
        if file is None:
            return
        if self._crashes:
            faulthandler.enable(2, all_threads=False)
        else:
            faulthandler.disable()
        with contextlib.suppress(OSError):
            file.close()
            if self._local is not None and (not keep or not self._local.stat().st_size):
                self._local.unlink()

    def _open(self) -> None:
        if self._local is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - until close()
            return
        try:
            self._file = open(self._local, "ab+", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            self._local.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._local, "ab+", buffering=0)  # noqa: SIM115
        self._size = self._file.seek(0, io.SEEK_END)

    def _shorten(self, file: IO[bytes]) -> None:
        file.seek(0)
        content = truncate_log(file.read())
        file.seek(0)
        file.truncate()
        self._size = file.write(content)


class _TeeStream:
    """A text stream whose output is also written into a log."""

    def __init__(self, stream: TextIO, log: TrainingLog) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        if threading.current_thread().name not in OTHER_THREADS:
            self._log.write(text)
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def truncate_log(content: bytes) -> bytes:
    """Return the first `HEAD` and last `TAIL` bytes of a log, or all of a shorter one."""
    if len(content) <= HEAD + TAIL:
        return content
    head, tail = content[:HEAD], content[-TAIL:]
    omitted = len(content) - HEAD - TAIL
    return head + f"\n[... {omitted:,} bytes left out ...]\n".encode() + tail


def raised_at(error: BaseException) -> str:
    """Return the file and line of the user's code in which an error was raised, "models.py:12".

    It is empty if no code of the user is in the traceback.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    for link in reversed(links):
        frames = reversed(traceback.extract_tb(link.__traceback__))
        for frame in frames:
            if is_own(frame.filename):
                return f"{frame.filename}:{frame.lineno}"
    return ""


CRASH = re.compile(r"Fatal Python error: (.+)")
FRAME = re.compile(r'File "(.+)", line (\d+) in')


def find_crash(log: str) -> tuple[str, str]:
    """Read the report of `faulthandler` in a log.

    Returns:
        The kind of crash, "Segmentation fault", and the file and line of the user's code; empty
        if there was no crash, or no such frame.
    """
    *_, last = [None, *CRASH.finditer(log)]
    if last is None:
        return "", ""
    frames = FRAME.findall(log, last.end())
    return last[1].strip(), next((f"{f}:{line}" for f, line in frames if is_own(f)), "")


def is_own(file: str) -> bool:
    """Return whether a source file is the user's: not of raykd, Python or a common library."""
    if file.startswith("<"):
        return False
    for root in _site_folders():
        if file.startswith(root):
            package = file[len(root) :].lstrip("/").split("/")[0]
            return package.removesuffix(".py") not in LIBRARIES | {"raykd"}
    return not file.startswith(_PLAIN_LIBRARIES)


def _site_folders() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]


_PLAIN_LIBRARIES = (
    str(Path(__file__).resolve().parents[1]) + "/",
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")),
)
