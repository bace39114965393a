"""Studies in MLflow as members of a comparison, read from their journals instead of their runs.

A server needs seconds for 1,000 runs, because it reads all of their params.  When a study ends, its
journal becomes an artifact of its run; a file of the same content takes a fraction of that.  The
journal counts only if MLflow has exactly its runs: none deleted since, none added.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial

from raykd.errors import StudyError
from raykd.report.comparison.members import (
    Member,
    Place,
    member_of_history,
    members_of_runs,
)
from raykd.tracking.events import RunStarted, StudyStarted
from raykd.tracking.mlflow_client import quoted
from raykd.tracking.mlflow_comparison import COMPARISON
from raykd.tracking.mlflow_reader import download_artifact, text_artifact
from raykd.tracking.mlflow_runs import ClientRuns, StoredRun
from raykd.tuning.records import read_history

JOURNAL = "study/journal.jsonl"
"""Artifact of a study's run: its journal, once the study has ended."""

RESOLVED = "study/resolved.yaml"
"""Artifact of a study's run: the study with all its defaults."""

PARSING = threading.Lock()
"""Journals are parsed one after the other, so that only one is in memory as events."""


class StoredStudies:
    """Studies in experiments of a tracking store.

    Args:
        store: the store.
        uri: its URI.
        experiments: IDs of the experiments.
        metric: metric that is compared; a journal without it does not count, since somebody may
            have logged it to the runs.  None: any.
    """

    def __init__(
        self, store: ClientRuns, uri: str, experiments: Sequence[str], metric: str | None
    ) -> None:
        self._store = store
        self._uri = uri
        self._experiments = experiments
        self._metric = metric

    def all(self) -> list[Member] | None:
        """Return all studies, the oldest first; None if there are other runs, or no study."""
        members: list[Member] = []
        count = len(self._with_role(COMPARISON))
        studies = self._with_role("study")
        for parent in reversed(studies):
            member, runs = self._from_journal(parent) or self._from_runs(parent)
            members += [member] if member is not None else []
            count += runs
        is_complete = bool(studies) and self._store.has_count(self._experiments, "", count)
        return members if is_complete else None

    def of_run(self, run: StoredRun) -> list[Member] | None:
        """Return the study whose own run this is, from its journal; else None."""
        read = self._from_journal(run) if run.tags.get("raykd.role") == "study" else None
        return [read[0]] if read is not None else None

    def _with_role(self, role: str) -> list[StoredRun]:
        return self._store.runs(self._experiments, f"tags.`raykd.role` = {quoted(role)}")

    def _from_journal(self, parent: StoredRun) -> tuple[Member, int] | None:
        """Return a finished study and the number of its runs; None if its journal does not count.

        Args:
            parent: the study's own run.
        """
        if parent.tags.get("raykd.status") != "finished":
            return None
        read = self._downloaded(parent)
        if read is None:
            return None
        member, runs = read
        has_metric = self._metric is None or any(
            self._metric in t.metrics for t in member.trainings
        )
        if not member.trainings or not has_metric:
            return None
        of_study = f"tags.`raykd.study` = {quoted(parent.study)}"
        return read if self._store.has_count(self._experiments, of_study, runs) else None

    def _downloaded(self, parent: StoredRun) -> tuple[Member, int] | None:
        with tempfile.TemporaryDirectory(prefix="raykd-") as folder:
            file = download_artifact(self._uri, parent.run_id, JOURNAL, folder)
            if file is None:
                return None
            with PARSING:
                try:
                    history, records = read_history(file)
                except StudyError:
                    return None
                starts = [event for event in history if isinstance(event, StudyStarted)]
                if not starts or starts[-1].id != parent.study:
                    return None
                place = Place(None, self._uri, parent.experiment_id, parent.run_id)
                runs = {event.id for event in history if isinstance(event, RunStarted)}
                return member_of_history(parent.name, history, records, place), 1 + len(runs)

    def _from_runs(self, parent: StoredRun) -> tuple[Member | None, int]:
        """Return a study without a complete journal, and the number of its runs."""
        of_study = f"tags.`raykd.study` = {quoted(parent.study)}"
        runs = self._store.runs(self._experiments, of_study)
        members = members_of_runs(runs, parent.name, self._uri, settings_reader(self._uri))
        return (members[0] if members else None), len(runs)


def settings_reader(uri: str) -> Callable[[str], str]:
    """Return a function that reads a resolved study as YAML, by the ID of the study's run."""
    return partial(text_artifact, uri, path=RESOLVED)
