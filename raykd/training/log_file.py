"""The log of a training: what its process printed, and its traceback, in a file of bounded size.

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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from raykd.storage import Storage

LIMIT, HEAD, TAIL = 512 << 10, 64 << 10, 192 << 10
"""A file longer than `LIMIT` bytes is cut to its first `HEAD` and its last `TAIL` bytes."""

OTHERS = ("raykd-tracker", "raykd-display")
"""Threads of raykd whose output belongs to no training."""

LIBRARIES = frozenset(
    {"torch", "torchvision", "torchgen", "numpy", "scipy", "ray", "timm", "transformers", "PIL"}
    | {"tokenizers", "safetensors", "huggingface_hub", "torch_pruning", "onnx", "onnxruntime"}
    | {"onnxscript", "mlflow", "optuna", "pandas", "pyarrow", "sklearn", "pydantic", "einops"}
)
"""Installed packages whose frames are not where a user's mistake is."""


class TrainingLog:
    """Keeps what one rank prints while it trains.

    It also receives Python's stack where the process crashes (`faulthandler`).  A log that cannot
    be written is given up: the training goes on.

    Args:
        storage: of the study's files.
        name: the file below it; what is there already is kept.
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
        """Append text; the middle of a long log is left out."""
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
        copies = _Copied(sys.stdout, self), _Copied(sys.stderr, self)
        sys.stdout, sys.stderr = copies  # type: ignore[assignment]
        try:
            yield
        finally:
            if sys.stdout is copies[0]:
                sys.stdout = before[0]
            if sys.stderr is copies[1]:
                sys.stderr = before[1]

    def failed(self, error: BaseException) -> None:
        """Append an error's whole traceback; the log is complete and readable from then on."""
        self.write("".join(traceback.format_exception(error)))
        if self._local is None and self._file is not None:
            with contextlib.suppress(OSError):
                self._file.seek(0)
                self._storage.write(self._name, self._file.read())

    def close(self, *, keep: bool = True) -> None:
        """End the log; an empty one is removed, and so is any other unless `keep`."""
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
        content = shortened(file.read())
        file.seek(0)
        file.truncate()
        self._size = file.write(content)


class _Copied:
    """A text stream whose output is also written into a log."""

    def __init__(self, stream: Any, log: TrainingLog) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        if threading.current_thread().name not in OTHERS:
            self._log.write(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def shortened(content: bytes) -> bytes:
    """A log cut to its first and last lines where it is longer than both together."""
    if len(content) <= HEAD + TAIL:
        return content
    head, tail = content[:HEAD], content[-TAIL:]
    left_out = len(content) - HEAD - TAIL
    return head + f"\n[... {left_out:,} bytes left out ...]\n".encode() + tail


def raised_at(error: BaseException) -> str:
    """The file and line of the user's own code in which an error was raised, "models.py:12"; empty
    where none of it took part."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    places = (_own_place(one.__traceback__) for one in reversed(links))
    return next(filter(None, places), "")


def _own_place(trace: TracebackType | None) -> str:
    frames = [(one.filename, one.lineno) for one in traceback.extract_tb(trace)]
    own = [f"{file}:{line}" for file, line in frames if is_own(file)]
    return own[-1] if own else ""


CRASH = re.compile(r"Fatal Python error: (.+)")
FRAME = re.compile(r'File "(.+)", line (\d+) in')


def find_crash(log: str) -> tuple[str, str]:
    """What `faulthandler` wrote of a crash, "Segmentation fault", and the user's own file and line
    it happened in; empty texts where there was no crash, or no such frame."""
    *_, last = [None, *CRASH.finditer(log)]
    if last is None:
        return "", ""
    frames = FRAME.findall(log, last.end())
    return last[1].strip(), next((f"{f}:{line}" for f, line in frames if is_own(f)), "")


def is_own(file: str) -> bool:
    """Return whether a source file is neither raykd's, nor Python's, nor a well-known library's."""
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
