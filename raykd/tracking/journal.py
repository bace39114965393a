"""The journal: what a study did, one JSON object a line, in the order in which it happened.

It is the only thing the search writes while it runs; MLflow is filled from it, afterwards or
alongside (`raykd.tracking.sync`).  Every line carries `at`, milliseconds since 1970 (UTC), and
`event`; replaying the same lines therefore gives the same runs, metrics and time stamps.

Numbers that JSON does not know are written as the strings "nan", "inf" and "-inf".  Files inside
the journal's own folder are written relative to it, so that the folder can be moved whole.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Role = Literal["teacher", "trial", "alone", "replicate", "probe"]
End = Literal["finished", "stopped", "failed"]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """One event and the byte at which the line after it begins."""

    end: int
    event: dict[str, Any]


class Journal:
    """Appends events to a journal; one writer, any number of readers.

    Each event is one `write` of one whole line, so a reader sees it whole or as a torn last line
    (which `read` leaves alone).  A torn line left by a process that died is closed off when the
    journal is opened again, and is skipped from then on.  Threads may share a journal.

    Args:
        path: the file; its folder is created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.abspath(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open until close()
        if _is_torn(self.path):
            self._file.write(b"\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        record = {"at": time.time_ns() // 1_000_000, "event": event, **fields}
        line = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self._file.write(line.encode())

    def study(
        self,
        id: str,
        *,
        name: str,
        experiment: str | None = None,
        register: str | None = None,
        given: str = "",
        resolved: Mapping[str, Any] | None = None,
        file: str | None = None,
        argv: Sequence[str] = (),
        git: Mapping[str, Any] | str | None = None,
        versions: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        """The study starts, or goes on under the same `id`.

        Args:
            id: unlike any other study's, in every store it may ever be sent to.
            experiment: MLflow's experiment; None: the study's name.
            given: the study file's text; `resolved`: the study with all defaults.
            git: the commit, or a mapping with `commit` and perhaps `branch` and `dirty`.
            versions: package versions by name.
        """
        self.write(
            "study",
            id=id,
            name=name,
            experiment=experiment,
            register=register,
            given=given,
            resolved=resolved or {},
            file=file,
            argv=list(argv),
            git=git,
            versions=versions or {},
            seed=seed,
        )

    def dataset(
        self,
        *,
        name: str,
        origin: str,
        fingerprint: str,
        sizes: Mapping[str, int],
        classes: int,
        input_shape: Sequence[int],
        class_names: Sequence[str] = (),
        notes: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        """The data the study runs on; the fields are those of `raykd.data.Dataset`."""
        self.write(
            "dataset",
            name=name,
            origin=origin,
            fingerprint=fingerprint,
            sizes=dict(sizes),
            classes=classes,
            input_shape=list(input_shape),
            class_names=list(class_names),
            notes=list(notes),
            warnings=list(warnings),
        )

    def run(
        self,
        id: str,
        *,
        role: Role,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        """A training starts (or starts again); `parent` None: it belongs to the study itself."""
        self.write(
            "run",
            id=id,
            role=role,
            parent=parent,
            params=params or {},
            tags=tags or {},
            seed=seed,
        )

    def epoch(self, id: str, epoch: int, metrics: Metrics) -> None:
        """Epoch `epoch` (from 1) of run `id` is done."""
        self.write("epoch", id=id, epoch=epoch, metrics=_numbers(metrics))

    def end(
        self, id: str, status: End, *, reason: str = "", metrics: Metrics | None = None
    ) -> None:
        """Run `id` ended; `stopped` means early, by a scheduler."""
        self.write("end", id=id, status=status, reason=reason, metrics=_numbers(metrics or {}))

    def model(
        self,
        id: str,
        path: str | Path,
        *,
        input_shape: Sequence[int],
        input_dtype: str = "float32",
        example: str | Path | None = None,
        register: str | None = None,
        aliases: Sequence[str] = (),
        metrics: Metrics | None = None,
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """The network run `id` produced.

        Args:
            path: a whole `nn.Module` on the CPU, written by `torch.save`.
            input_shape: one sample's shape without the batch.
            example: a `.npy` file of a few samples, (B, *input_shape).
            register: registered model's name; None: the model is logged but not registered.
            aliases: names of this version among the registered ones ("champion", "smallest").
            metrics: what the model reached, shown beside it.
            name: what it is, such as `digits-resnet-d8-w4-kd`; None: "model".
            about: more facts on it, shown beside it.
        """
        self.write(
            "model",
            id=id,
            path=self._place(path),
            input_shape=list(input_shape),
            input_dtype=input_dtype,
            example=None if example is None else self._place(example),
            register=register,
            aliases=list(aliases),
            metrics=_numbers(metrics or {}),
            name=name,
            about=dict(about or {}),
        )

    def artifact(self, path: str | Path, *, id: str | None = None, folder: str = "") -> None:
        """Keep a file, or a folder's content, with run `id` (None: with the study)."""
        self.write("artifact", id=id, path=self._place(path), folder=folder)

    def note(
        self,
        *,
        id: str | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Metrics | None = None,
        step: int = 0,
    ) -> None:
        """Say something about run `id` (None: about the study): the best trial, the gain."""
        self.write("note", id=id, tags=tags or {}, metrics=_numbers(metrics or {}), step=step)

    def done(self, status: str = "finished") -> None:
        """The study is over: "finished", "failed", or anything else for one broken off."""
        self.write("done", status=status)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, path: str | Path) -> str:
        full = Path(os.path.abspath(path))
        folder = self.path.parent
        return str(full.relative_to(folder) if full.is_relative_to(folder) else full)


def read(path: str | Path, start: int = 0) -> Iterator[Entry]:
    """Every whole event from byte `start` on; none where there is no journal yet.

    A torn last line is not read; a line that is no JSON object is skipped.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        file.seek(start)
        end = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            event = _parsed(line)
            if event is not None:
                yield Entry(end, event)


def events(path: str | Path) -> list[dict[str, Any]]:
    """Every event of a journal."""
    return [entry.event for entry in read(path)]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _is_torn(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def _plain(value: Any) -> Any:
    """`value` in JSON's own types; what JSON lacks becomes a string."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
