"""Upload position of each tracking store in a journal, and the store's IDs of the runs.

They are kept in a small JSON file next to the journal (`<journal>.sent`) with one entry per store.
With these IDs a summary can link to the pages of a study without importing MLflow or contacting
its server.
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
    """Part of a journal that a store has received.

    Attributes:
        end: number of bytes of the journal that were uploaded.
        experiment: MLflow's ID of the experiment; empty if unknown.
        runs: MLflow's IDs of the study's run (key "") and of the runs with a model (key: their
            ID in the journal).
        refused: reasons for which the store rejected models and files, by the byte at which
            their event ends.  They are uploaded again later.
    """

    end: int = 0
    experiment: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Return MLflow's ID of the study's run, or an empty string if it is unknown."""
        return self.runs.get("", "")


class Cursor:
    """Entry of one store.

    Args:
        journal: path of the journal.
        place: absolute URI of the store, without its password.
    """

    def __init__(self, journal: Path, place: str) -> None:
        self._journal = journal
        self._file = journal.with_name(journal.name + ".sent")
        self._place = place

    def load(self) -> Sent:
        """Return the store's entry, or an empty one if the journal is shorter than its `end`."""
        stored = self._all().get(self._place)
        sent = _read(stored if isinstance(stored, dict) else {"sent": stored})
        size = self._journal.stat().st_size if self._journal.exists() else 0
        return sent if 0 <= sent.end <= size else Sent()

    def save(self, sent: Sent) -> None:
        """Replace the entry.  IDs of models that belong to the same study's run are kept."""
        previous = self.load()
        runs = {**previous.runs, **sent.runs} if previous.run == sent.run else dict(sent.runs)
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


def _refused(stored: Any) -> dict[int, str]:
    if not isinstance(stored, dict):
        return {}
    return {int(end): str(reason) for end, reason in stored.items() if str(end).isdigit()}
