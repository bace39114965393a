"""Writing of an experiment's pages: its saved views and its note."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raykd.tracking.events import SummaryWritten
from raykd.tracking.journal_state import JournalState
from raykd.tracking.mlflow_notes import NOTE, Section, with_section
from raykd.tracking.mlflow_views import (
    NAMES,
    STUDIES,
    tables_of,
    view_key,
    view_link,
    views_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


class ExperimentPages:
    """Pages of one study's experiment.

    Args:
        client: MLflow's client.
        experiment: MLflow's ID of the experiment.
        state: state of the journal so far.
    """

    def __init__(self, client: MlflowClient, experiment: str, state: JournalState) -> None:
        self._client = client
        self._experiment = experiment
        self._state = state
        self._written: dict[str, str] = {}

    def write_views(self) -> None:
        """Write the views that have changed since the last call."""
        for view in views_of(self._state):
            key, value = view.tag(self._state.started_at)
            if self._written.get(key) != value:
                self._client.set_experiment_tag(self._experiment, key, value)
                self._written[key] = value

    def write_summary(self, event: SummaryWritten) -> str:
        """Write a summary into the experiment's note, and return it with links to the views."""
        study = self._state.study
        assert study is not None
        keys = {name: view_key(name, study.id) for name in tables_of(self._state)}
        keys[STUDIES] = view_key(STUDIES)
        links = " · ".join(
            f"[{NAMES[name]}]({view_link(self._experiment, key)})" for name, key in keys.items()
        )
        content = f"{event.headline} {links}\n\n{event.text}"
        section = Section(study.id, self._state.started_at, content, event.has_result)
        before = self._client.get_experiment(self._experiment).tags.get(NOTE, "")
        after = with_section(before, section)
        if after != before:
            self._client.set_experiment_tag(self._experiment, NOTE, after)
        return content
