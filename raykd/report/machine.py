"""A running search for machines: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from raykd.report.display import Display
from raykd.report.view import Budget


class JsonLines(Display):
    """Every event as one line of strict JSON; NaN and the infinities are the strings "nan",
    "inf" and "-inf", as in the journal.

    Args:
        write: prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(jsonable({"at": time.time_ns() // 1_000_000, **_plain(event)}))
        with self._lock:
            self._write(line)


def _plain(event: Mapping[str, Any]) -> Mapping[str, Any]:
    if event["event"] != "plan":
        return event
    return {
        "event": "plan",
        "slots": asdict(event["plan"]) if event["plan"] is not None else None,
        "budget": asdict(Budget.of(event["study"], event.get("trials"))),
        "folder": event["folder"].path,
    }


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
