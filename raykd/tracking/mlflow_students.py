"""Reading of trained students from MLflow, with the record of their training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raykd.tracking.mlflow_client import absolute, connect, masked, quoted
from raykd.tracking.mlflow_models import load_model_uri
from raykd.tracking.mlflow_reader import values_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from torch import nn


@dataclass(frozen=True)
class StoredStudent:
    """Network of a training in MLflow.

    Attributes:
        network: on the CPU, in eval mode.
        name: of the model.
        training: ID of the training (`trial-0007/replicate-0`).
        study: values of the concrete study; empty for a model without a run.
        metrics: last metrics of the training.
        about: further facts that were saved with the model.
    """

    network: nn.Module
    name: str
    training: str
    study: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def stored_student(source: str, tracking_uri: str | None = None) -> StoredStudent:
    """Load the network of a run or of a model.

    Loading a model runs the code it was saved with.

    Args:
        source: run ID of a study (its best student), a trial or a training, or a model URI.
        tracking_uri: URI of the store; None: MLflow's default.

    Raises:
        ValueError: the store does not respond, or it has no such network.
    """
    import mlflow

    store = absolute(tracking_uri or mlflow.get_tracking_uri())
    if source.startswith(("models:/", "runs:/")):
        return StoredStudent(load_model_uri(source, tracking_uri=store), "student", source)
    try:
        client = connect(store)
        run = client.get_run(source)
        model = model_of(client, run)
        training = client.get_run(str(model.source_run_id)) if model is not None else run
    except Exception as error:
        raise ValueError(f"MLflow at {masked(store)}: {masked(str(error))}") from error
    if model is None:
        raise ValueError(
            f"MLflow at {masked(store)}: no network was saved by run {source} "
            f"({run.info.run_name}) or its children"
        )
    return StoredStudent(
        network=load_model_uri(f"models:/{model.model_id}", tracking_uri=store),
        name=model.name,
        training=training.data.tags.get("raykd.id", training.info.run_id).partition("/")[2],
        study=_with_names(values_of(training.data.params)),
        metrics=dict(training.data.metrics),
        about={"accuracy": model.tags["raykd.accuracy"]} if "raykd.accuracy" in model.tags else {},
    )


def model_of(client: MlflowClient, run: Run) -> LoggedModel | None:
    """Return the model of a run or of its descendants; of a study, that of its best trial."""
    runs = {each.info.run_id: each for each in (run, *_descendants(client, run))}
    saved = client.search_logged_models([run.info.experiment_id])
    models = [model for model in saved if model.source_run_id in runs]
    best = run.data.tags.get("best", "")

    def rank(model: LoggedModel) -> tuple[bool, int]:
        path = runs[model.source_run_id or ""].data.tags.get("raykd.id", "").split("/")
        return not best or best not in path, model.creation_timestamp

    return min(models, key=rank, default=None)


def _descendants(client: MlflowClient, run: Run) -> Iterator[Run]:
    filter_string = f"tags.mlflow.parentRunId = {quoted(run.info.run_id)}"
    for child in client.search_runs([run.info.experiment_id], filter_string):
        yield child
        yield from _descendants(client, child)


def _with_names(study: dict[str, Any]) -> dict[str, Any]:
    """Return a study's values with options as mappings; params hold a bare name without fields."""
    named = {key: _named(study.get(key)) for key in ("data", "scheme")}
    for part in ("student", "teacher"):
        network = study.get(part)
        if isinstance(network, dict):
            named[part] = {**network, "model": _named(network.get("model"))}
    terms = study.get("knowledge") or []
    if isinstance(terms, list):
        named["knowledge"] = [
            {**term, "loss": _named(term.get("loss"))} for term in terms if isinstance(term, dict)
        ]
    return {**study, **named}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value
