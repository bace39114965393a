"""Writing of a comparison as a run of MLflow that links its members."""

from __future__ import annotations

import json
import tempfile
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raykd.tracking.mlflow_client import connect, open_experiment, run_page
from raykd.tracking.mlflow_notes import NOTE
from raykd.tracking.mlflow_values import MAX_TAG, clean_key, clean_tags, cut, split_finite
from raykd.tracking.store_uri import masked

COMPARISON = "comparison"
"""Role of the runs of comparisons (tag `raykd.role`), and folder of their artifacts."""

DEFAULT_EXPERIMENT = "comparisons"
"""Experiment of comparisons none of whose members is in the store."""


@dataclass(frozen=True)
class MemberLink:
    """Member of a comparison in the store.

    Attributes:
        name: name of the member.
        experiment_id, run_id: MLflow's IDs; `run_id` is empty for a group without a parent run,
            both are empty for a member that is not in the store.
    """

    name: str
    experiment_id: str
    run_id: str

    @property
    def text(self) -> str:
        """Name of the member in Markdown, with a link to its page."""
        name = self.name.replace("[", "(").replace("]", ")")
        if not self.experiment_id:
            return f"{name} (not in this store)"
        run = f"/runs/{self.run_id}" if self.run_id else "/runs"
        return f"[{name}](#/experiments/{self.experiment_id}{run})"


@dataclass(frozen=True)
class ComparisonRun:
    """Content of the run of a comparison.

    Attributes:
        members: members of the comparison.
        summary: Markdown: verdict and figures.
        metrics: figures of the reference arm.
        files: texts of its artifacts by name.
    """

    members: Sequence[MemberLink]
    summary: str
    metrics: Mapping[str, float]
    files: Mapping[str, str]


def log_comparison(uri: str, comparison: ComparisonRun) -> str:
    """Write a comparison as a new run, and return the address of its page.

    The run is in the experiment of the first member that the store has.

    Raises:
        ValueError: the store does not respond or rejects the run.
    """
    stored = [member for member in comparison.members if member.experiment_id]
    try:
        client = connect(uri)
        experiment = (
            stored[0].experiment_id
            if stored
            else open_experiment(client, DEFAULT_EXPERIMENT, uri).id
        )
        names = ", ".join(member.name for member in comparison.members)
        run = client.create_run(
            experiment, tags=_tags(comparison), run_name=cut(f"comparison: {names}", 200)
        )
        run_id = run.info.run_id
        finite, _ = split_finite(comparison.metrics)
        for key, value in finite.items():
            client.log_metric(run_id, clean_key(key), value)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in comparison.files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            client.log_artifacts(run_id, folder, COMPARISON)
        client.set_terminated(run_id, "FINISHED", int(time.time() * 1000))
    except Exception as error:
        raise ValueError(f"MLflow at {masked(uri)}: {masked(str(error))}") from error
    return run_page(uri, experiment, run_id)


def _tags(comparison: ComparisonRun) -> dict[str, str]:
    run_ids = [member.run_id for member in comparison.members if member.run_id]
    note = [comparison.summary, "", "Members:", ""]
    note += [f"- {member.text}" for member in comparison.members]
    if len(run_ids) > 1:
        note += ["", f"[Compare the runs in MLflow]({_own_comparison(comparison.members)})"]
    tags = {
        "raykd.role": COMPARISON,
        "raykd.members": " ".join(run_ids),
        NOTE: cut("\n".join(note), MAX_TAG),
    }
    numbered = {f"raykd.member.{number}": id for number, id in enumerate(run_ids)}
    return clean_tags({**tags, **numbered})


def _own_comparison(members: Sequence[MemberLink]) -> str:
    """Return the address of MLflow's page that compares runs."""
    run_ids = json.dumps([member.run_id for member in members if member.run_id])
    experiments = json.dumps(sorted({m.experiment_id for m in members if m.run_id}))
    query = {"runs": run_ids, "experiments": experiments}
    return f"#/compare-runs?{urllib.parse.urlencode(query)}"
