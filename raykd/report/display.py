"""What every display of a running study is."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self


class Display:
    """Hears every event of a study while it runs; used in a `with` statement around the run."""

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put away, unless a display has something."""
