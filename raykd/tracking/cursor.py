"""How far each store has been served from a journal, and under which ids it keeps the runs.

A small JSON file beside the journal (`<journal>.sent`), one entry a store.  With the ids in it a
summary names the pages of a study without importing MLflow or asking its server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sent:
    """What a store has received.

    Attributes:
        end: bytes of the journal.
        experiment: MLflow's id of the experiment; empty where it is not known.
        runs: MLflow's ids of the study's run (key "") and of the runs with a model (key: their
            id in the journal).
        refused: models and files that the store refused, by the byte at which their event ends,
            each with the reason; they are tried again.
    """

    end: int = 0
    experiment: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """MLflow's id of the study's run; empty where it is not known."""
        return self.runs.get("", "")


class Cursor:
    """The entry of one store.

    Args:
        journal: the journal's path.
        place: the store's URI, absolute and without its password.
    """

    def __init__(self, journal: Path, place: str) -> None:
        self._journal = journal
        self._file = journal.with_name(journal.name + ".sent")
        self._place = place

    def load(self) -> Sent:
        """What the store has received; nothing where the journal is shorter than that."""
        kept = self._all().get(self._place)
        sent = _read(kept if isinstance(kept, dict) else {"sent": kept})
        size = self._journal.stat().st_size if self._journal.exists() else 0
        return sent if 0 <= sent.end <= size else Sent()

    def save(self, sent: Sent) -> None:
        """Replace the entry.  Models of the same study's run that were known stay known."""
        known = self.load()
        runs = {**known.runs, **sent.runs} if known.run == sent.run else dict(sent.runs)
        refused = {str(end): reason for end, reason in sent.refused.items()}
        entry = {"sent": sent.end, "experiment": sent.experiment, "runs": runs, "refused": refused}
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(json.dumps({**self._all(), self._place: entry}))
        os.replace(new, self._file)

    def _all(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _read(entry: Mapping[str, Any]) -> Sent:
    end, runs = entry.get("sent"), entry.get("runs")
    return Sent(
        end if isinstance(end, int) else 0,
        str(entry.get("experiment", "")),
        {str(key): str(value) for key, value in runs.items()} if isinstance(runs, dict) else {},
        _refused(entry.get("refused")),
    )


def _refused(kept: Any) -> dict[int, str]:
    if not isinstance(kept, dict):
        return {}
    return {int(end): str(reason) for end, reason in kept.items() if str(end).isdigit()}
