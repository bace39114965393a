"""Registration of students in MLflow's model registry, with the figures of their study."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raykd.tracking.mlflow_client import connect, quoted
from raykd.tracking.mlflow_models import create_version
from raykd.tracking.mlflow_students import model_of
from raykd.tracking.store_uri import absolute, database_file, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COSTS = ("params", "macs", "memory", "latency")


@dataclass(frozen=True)
class RegisteredStudent:
    """Version of a registered model.

    Attributes:
        name: name of the registered model.
        version: its number.
        is_new: False if the student was registered under this name before.
        aliases: aliases that were set.
        description: description of the version.
        tags: tags with the figures of the student.
    """

    name: str
    version: str
    is_new: bool
    aliases: tuple[str, ...]
    description: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """URI for `mlflow.pytorch.load_model`."""
        suffix = f"@{self.aliases[0]}" if self.aliases else f"/{self.version}"
        return f"models:/{self.name}{suffix}"


def register_student(
    source: str, name: str, aliases: Sequence[str] = (), *, uri: str
) -> RegisteredStudent:
    """Register the model of a run, and set aliases, tags and the description of its version.

    Registering a student again under the same name creates no second version.

    Args:
        source: MLflow's run ID of a study (its best student), a trial or a training, or their
            `raykd.id` (`STUDY_ID/trial-0007`).
        name: name of the registered model.
        aliases: aliases that will name this version, and no other any more.
        uri: URI of the store.

    Raises:
        ValueError: the name or an alias is invalid, or the store has no such run or no model of it.
    """
    from mlflow.exceptions import MlflowException

    _check_names(name, aliases)
    file = database_file(uri)
    if file is not None and not file.is_file():  # connecting would create it
        raise ValueError(f"MLflow: there is no {file}; name the store with --uri")
    try:
        client = connect(absolute(uri))
        run = _run(client, source)
        model = None if run is None else model_of(client, run)
        if run is None or model is None or model.source_run_id is None:
            missing = "run" if run is None else "model of run"
            raise ValueError(
                f"MLflow at {masked(uri)} has no {missing} {source}; if its folder is here, upload "
                "it: raykd sync FOLDER; only finalists (search.replicates >= 1) have models"
            )
        training = client.get_run(model.source_run_id)
        versions = {v.version for v in client.search_model_versions(f"name = {quoted(name)}")}
        tags = _tags(client, training, model.tags)
        version = create_version(client, name, model, training.info.run_id, tags)
        number, description = str(version.version), _description(training, tags)
        client.update_model_version(name, number, description)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        for alias in aliases:
            client.set_registered_model_alias(name, alias, number)
    except MlflowException as error:
        raise ValueError(f"MLflow at {masked(uri)}: {masked(str(error))}") from error
    is_new = version.version not in versions
    return RegisteredStudent(name, number, is_new, tuple(aliases), description, tags)


def _check_names(name: str, aliases: Sequence[str]) -> None:
    if not name.strip() or re.search(r"[/:]", name):
        raise ValueError(f"{name!r} is no name of a model: it is empty or contains '/' or ':'")
    for alias in aliases:
        invalid = not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"v?\d+", alias, re.IGNORECASE)
        if invalid or alias.lower() == "latest":
            raise ValueError(
                f"{alias!r} is no alias: use letters, digits, '_' and '-', but no version such as "
                "3 or v3, and not `latest`"
            )


def _run(client: MlflowClient, source: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    if re.fullmatch(r"[0-9a-f]{32}", source):
        try:
            return client.get_run(source)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    experiments = [each.experiment_id for each in client.search_experiments()]
    filter_ = f"tags.`raykd.id` = {quoted(source)}"
    return next(iter(client.search_runs(experiments, filter_, max_results=1)), None)


def _tags(client: MlflowClient, training: Run, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the figures of a student: over the seeds of its trial, and its costs."""
    parent = training.data.tags.get("mlflow.parentRunId")
    figures = client.get_run(parent).data.metrics if parent else training.data.metrics
    tags = {key: facts[key] for key in ("raykd.input", "raykd.format") if key in facts}
    if "raykd.accuracy" in facts:
        tags["accuracy"] = facts["raykd.accuracy"]
    for name, key in (("test_accuracy", "accuracy_over_seeds"), ("gain", "gain_over_alone")):
        values = [figures.get(f"{name}_{part}") for part in ("mean", "low", "high", "n")]
        mean, low, high, count = values
        if mean is None or low is None or high is None or count is None:
            continue
        unit = " points" if name == "gain" else "%"
        sign = "+" if name == "gain" else ""
        interval = f"95% CI {100 * low:{sign}.2f} to {100 * high:{sign}.2f}, {count:.0f} seeds"
        tags[key] = f"{100 * mean:{sign}.2f}{unit} ({interval})"
    metrics = training.data.metrics
    tags |= {name: f"{metrics[name]:g}" for name in COSTS if name in metrics}
    names = ("student", "teacher", "scheme", "losses", "pairs", "data", "raykd.id")
    return tags | {name: training.data.tags[name] for name in names if name in training.data.tags}


def _description(training: Run, tags: Mapping[str, str]) -> str:
    """Return the description of a version as Markdown."""
    head = f"{tags.get('student', 'A student')} from {tags.get('teacher', 'no teacher')}"
    lines = [f"**{head}**, trained with raykd ({training.info.run_name})."]
    words = {
        "losses": "learns from",
        "pairs": "layer pairs",
        "data": "data",
        "accuracy": "test accuracy",
        "accuracy_over_seeds": "test accuracy over seeds",
        "gain_over_alone": "gain over training alone",
        "params": "parameters",
        "macs": "multiply-accumulates",
        "raykd.input": "input",
        "raykd.format": "format",
    }
    lines += ["", *(f"- {text}: {tags[key]}" for key, text in words.items() if key in tags)]
    return "\n".join(lines)
