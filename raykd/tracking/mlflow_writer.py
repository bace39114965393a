"""From a journal's events to MLflow's runs.

- experiment = the study's `experiment`; parent run = the study; its children are the runs, each
  nested under its parent by the tag `mlflow.parentRunId`.
- A run is known again by the tag `raykd.id` (the study's id, and for children a slash and the
  run's), so that delivering the same events twice changes nothing.
- MLflow's status: FINISHED for `finished` and also for `stopped` (a trial a scheduler ended early
  is no error, and MLflow paints KILLED red), FAILED for `failed`, KILLED for what a broken-off
  study left open.  The tag `raykd.status` has the exact word: `tags."raykd.status" = 'stopped'`.
- Numbers that are not finite are no metrics (MLflow turns infinity into 1.8e308); the tag
  `raykd.not_finite` names them.
- Params longer than MLflow takes are cut; the tag `raykd.cut_params` names them and the artifact
  `params.json` holds them whole.  Params cannot be changed: where a study goes on with others, the
  first stay and the tag `raykd.changed_params` has the new ones.
"""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raykd.tracking.mlflow_client import experiment_id, run_ids
from raykd.tracking.mlflow_models import send_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


Event = dict[str, Any]


@dataclass
class RunStory:
    """One run so far.

    Attributes:
        told: its last `run` event.
        epoch: the highest epoch told, 0 before the first.
        metrics: the last epoch's metrics.
        ended: whether its end was told.
    """

    told: Event
    epoch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    ended: bool = False


class Story:
    """The study, its data and its runs, as told so far.

    Every event passes through `take` exactly once, in order, however often it is delivered
    afterwards: what depends on earlier events is settled there.
    """

    def __init__(self) -> None:
        self.study: Event | None = None
        self.dataset: Event | None = None
        self.runs: dict[str, RunStory] = {}

    def take(self, event: Event) -> Event | None:
        """Remember `event`; returns it as it is to be delivered, or None for nothing to say.

        - An epoch already told is dropped: a trial that lost its workers repeats epochs, and a
          metric has one value a step.  The first telling stands.
        - `end` gets the last `epoch`, and leaves out metrics that epoch has told.
        - `done` gets the runs left `open`.

        Raises:
            KeyError: the event lacks a field, or speaks of a run nobody started.
        """
        kind = event["event"]
        if kind == "study":
            self.study = event
        elif kind == "dataset":
            self.dataset = event
        elif kind == "run":
            self._start(event)
        elif kind == "epoch":
            return self._epoch(event)
        elif kind == "end":
            return self._end(event)
        elif kind == "done":
            return {**event, "open": [id for id, run in self.runs.items() if not run.ended]}
        elif event.get("id") is not None:
            self._run(event)
        return event

    def _run(self, event: Event) -> RunStory:
        if event["id"] not in self.runs:
            raise KeyError(f"run {event['id']!r}, of which no `run` event was told")
        return self.runs[event["id"]]

    def _start(self, event: Event) -> None:
        before = self.runs.get(event["id"])
        if before is None:
            self.runs[event["id"]] = RunStory(event)
        else:
            before.told, before.ended = event, False

    def _epoch(self, event: Event) -> Event | None:
        run = self._run(event)
        if event["epoch"] <= run.epoch:
            return None
        run.epoch = event["epoch"]
        run.metrics = event["metrics"]
        return event

    def _end(self, event: Event) -> Event:
        run = self._run(event)
        run.ended = True
        news = {k: v for k, v in event.get("metrics", {}).items() if run.metrics.get(k) != v}
        return {**event, "epoch": run.epoch, "metrics": news}


MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
MAX_DIGEST = 36
METRICS_A_CALL = 1000
TEXTS_A_CALL = 50  # params or tags: keeps a request under MLflow's 1 MB

CUT = " ... [cut]"
RUN_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
STUDY_STATUS = {"finished": "FINISHED", "failed": "FAILED"}

# What MLflow means when it says no for good; everything else may pass (a server that starts, a
# locked database, credentials).
REFUSALS = frozenset(
    {
        "ALREADY_EXISTS",
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_FOUND",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)


TOO_LARGE = re.compile(r"error code 413\b|\b413 Client Error|Payload Too Large", re.IGNORECASE)
"""Said by servers and proxies that limit the size of an upload."""


def is_refusal(error: Exception) -> bool:
    """Whether the event itself is at fault: the store answers, and will not have it."""
    if isinstance(error, ValueError) or TOO_LARGE.search(str(error)):
        return True
    return getattr(error, "error_code", "") in REFUSALS


def is_unreachable(error: Exception) -> bool:
    """Whether the store is at fault: trying again later will do."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and not is_refusal(error)


class Delivery:
    """One connection's view of one study; thrown away after any failure to reach the store.

    Args:
        client: MLflow's client.
        story: what was told so far; holds the study.
        folder: the journal's, for relative paths.
        uri: the store's.

    Attributes:
        experiment: MLflow's id of the experiment.
        resumed: whether the study's parent run was there already.

    Metrics wait in a buffer until `flush`.
    """

    def __init__(self, client: MlflowClient, story: Story, folder: Path, uri: str) -> None:
        assert story.study is not None
        self._client = client
        self._story = story
        self._folder = folder
        self._study_id: str = story.study["id"]
        name = story.study.get("experiment") or story.study["name"]
        self.experiment = experiment_id(client, name, uri)
        self._runs = run_ids(client, self.experiment, self._study_id)
        self._with_model: set[str] = set()
        self._metrics: dict[str, list[Metric]] = {}
        self._dataset: str | None = None
        self.resumed = self._study_id in self._runs

    def deliver(self, event: Event) -> None:
        """Bring one event (as `Story.take` gave it) to the store.

        Raises:
            ValueError: the event cannot be delivered: a file is missing.
            MlflowException: the store refuses it (`is_refusal`) or is out of reach.
        """
        handlers: dict[str, Callable[[Event], None]] = {
            "study": self._on_study,
            "dataset": self._on_dataset,
            "run": self._on_run,
            "epoch": self._on_epoch,
            "end": self._on_end,
            "model": self._on_model,
            "artifact": self._on_artifact,
            "note": self._on_note,
            "done": self._on_done,
        }
        handler = handlers.get(event["event"])
        if handler is not None:
            handler(event)

    @property
    def pages(self) -> dict[str, str]:
        """MLflow's ids of the study's run (key "") and of the runs that got a model here."""
        known = {id: self._runs.get(self._key(id), "") for id in self._with_model}
        return {"": self._runs.get(self._study_id, ""), **known}

    def flush(self, *, tolerant: bool = False) -> list[Exception]:
        """Send the metrics that wait.

        Returns:
            Where `tolerant`, the refusals: their metrics are given up.
        """
        refusals: list[Exception] = []
        for run_id in list(self._metrics):
            try:
                self._flush(run_id)
            except Exception as error:
                if not tolerant or is_unreachable(error):
                    raise
                refusals.append(error)
        return refusals

    def complain(self, event: Event, problem: str) -> None:
        """Leave word of a refused event on its run."""
        run_id = self._runs.get(self._key(event.get("id")))
        if run_id is not None:
            self._tag(run_id, {"raykd.tracking_problem": f"{event['event']}: {problem}"})

    # -- events -----------------------------------------------------------------------------

    def _on_study(self, event: Event) -> None:
        run_id = self._run(None)
        self._client.update_run(run_id, status="RUNNING")
        self._tag(run_id, {**self._study_tags(event), "raykd.status": "running"})
        if event.get("given"):
            self._client.log_text(run_id, event["given"], "study/given.yaml")
        resolved = yaml.safe_dump(event.get("resolved") or {}, sort_keys=False)
        self._client.log_text(run_id, resolved, "study/resolved.yaml")
        around = {key: event.get(key) for key in ("argv", "file", "git", "seed", "versions")}
        self._client.log_dict(run_id, around, "study/environment.json")

    def _on_dataset(self, event: Event) -> None:
        tags = {"raykd.data_fingerprint": event["fingerprint"]}
        if event.get("warnings"):
            tags["raykd.data_warnings"] = "\n".join(event["warnings"])
        self._tag(self._run(None), tags)
        for run_id in self._runs.values():
            self._log_dataset(run_id)

    def _on_run(self, event: Event) -> None:
        known = self._key(event["id"]) in self._runs
        run_id = self._run(event["id"])
        if known:
            self._client.update_run(run_id, status="RUNNING")
            self._tag(run_id, {"raykd.status": "running"})
        self._log_params(run_id, run_params(event))
        self._log_dataset(run_id)

    def _on_epoch(self, event: Event) -> None:
        self._measure(self._run(event["id"]), event, event["epoch"])

    def _on_end(self, event: Event) -> None:
        run_id = self._run(event["id"])
        self._measure(run_id, event, event["epoch"])
        self._flush(run_id)
        tags = {"raykd.status": event["status"]}
        if event.get("reason"):
            tags["raykd.reason"] = event["reason"]
        self._tag(run_id, tags)
        status = RUN_STATUS.get(event["status"], "KILLED")
        self._client.set_terminated(run_id, status, event["at"])

    def _on_model(self, event: Event) -> None:
        from mlflow.entities import Metric

        run_id = self._run(event["id"])
        told = self._story.runs[event["id"]].told
        uri = send_model(
            self._client,
            event,
            self._folder,
            experiment_id=self.experiment,
            run_id=run_id,
            params={key: cut(value, MAX_PARAM) for key, value in run_params(told).items()},
            tags=clean_tags({**(told.get("tags") or {}), **self._own_tags(told)}),
        )
        tags = {"raykd.model": uri}
        if event.get("register"):
            tags["raykd.registered"] = event["register"]
        if event.get("aliases"):
            tags["raykd.aliases"] = ", ".join(event["aliases"])
        self._tag(run_id, tags)
        self._with_model.add(event["id"])
        good, _ = split_finite(event.get("metrics") or {})
        at, model_id = event["at"], uri.rpartition("/")[2]
        step = self._story.runs[event["id"]].epoch
        measured = [Metric(k, v, at, step, model_id=model_id) for k, v in good.items()]
        self._client.log_batch(run_id, metrics=measured)

    def _on_artifact(self, event: Event) -> None:
        path = self._folder / event["path"]
        folder = event.get("folder") or None
        if path.is_dir():
            self._client.log_artifacts(self._run(event["id"]), str(path), folder)
        elif path.is_file():
            self._client.log_artifact(self._run(event["id"]), str(path), folder)
        else:
            raise ValueError(f"{path}: no such file")

    def _on_note(self, event: Event) -> None:
        run_id = self._run(event["id"])
        self._measure(run_id, event, event.get("step", 0))
        self._tag(run_id, event.get("tags") or {})

    def _on_done(self, event: Event) -> None:
        self.flush()
        for id in event["open"]:
            run_id = self._run(id)
            self._tag(run_id, {"raykd.status": "interrupted"})
            self._client.set_terminated(run_id, "KILLED", event["at"])
        run_id = self._run(None)
        self._tag(run_id, {"raykd.status": event["status"]})
        status = STUDY_STATUS.get(event["status"], "KILLED")
        self._client.set_terminated(run_id, status, event["at"])

    # -- runs -------------------------------------------------------------------------------

    def _key(self, id: str | None) -> str:
        return self._study_id if id is None else f"{self._study_id}/{id}"

    def _run(self, id: str | None) -> str:
        """MLflow's id of a run (None: the study's), which is created where there is none."""
        key = self._key(id)
        if key not in self._runs:
            self._runs[key] = self._create_study() if id is None else self._create(id)
        return self._runs[key]

    def _create_study(self) -> str:
        study = self._story.study
        assert study is not None
        tags = {**self._source_tags(), **self._study_tags(study), "raykd.status": "running"}
        run_id = self._start(study["name"], study["at"], tags)
        self._log_dataset(run_id)
        return run_id

    def _create(self, id: str) -> str:
        told = self._story.runs[id].told
        tags = {
            **(told.get("tags") or {}),
            **self._source_tags(),
            **self._own_tags(told),
            "mlflow.parentRunId": self._run(told.get("parent")),
            "raykd.status": "running",
        }
        return self._start(id, told["at"], tags)

    def _start(self, name: str, at: int, tags: Mapping[str, Any]) -> str:
        run = self._client.create_run(
            self.experiment, start_time=at, tags=clean_tags(tags), run_name=name
        )
        return run.info.run_id

    def _own_tags(self, told: Event) -> dict[str, str]:
        return {
            "raykd.id": self._key(told["id"]),
            "raykd.study": self._study_id,
            "raykd.role": told["role"],
        }

    def _study_tags(self, study: Event) -> dict[str, str]:
        tags = {
            "raykd.id": self._study_id,
            "raykd.study": self._study_id,
            "raykd.role": "study",
            "raykd.seed": str(study.get("seed")),
        }
        versions = study.get("versions") or {}
        return tags | {f"raykd.version.{name}": version for name, version in versions.items()}

    def _source_tags(self) -> dict[str, str]:
        study = self._story.study
        assert study is not None
        git = study.get("git") or {}
        git = git if isinstance(git, dict) else {"commit": git}
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": study.get("file") or " ".join(study.get("argv") or ["raykd"]),
            "mlflow.source.git.commit": git.get("commit"),
            "mlflow.source.git.branch": git.get("branch"),
            "raykd.git_dirty": git.get("dirty"),
        }
        return {key: text(value) for key, value in tags.items() if value is not None}

    # -- what runs hold ---------------------------------------------------------------------

    def _tag(self, run_id: str, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        clean = [RunTag(key, value) for key, value in clean_tags(tags).items()]
        for part in _parts(clean, TEXTS_A_CALL):
            self._client.log_batch(run_id, tags=part)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        long = {key: value for key, value in params.items() if len(value) > MAX_PARAM}
        self._send_params(run_id, {key: cut(value, MAX_PARAM) for key, value in params.items()})
        if long:
            self._tag(run_id, {"raykd.cut_params": ", ".join(long)})
            self._client.log_dict(run_id, long, "params.json")

    def _send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        try:
            for part in _parts([Param(k, v) for k, v in params.items()], TEXTS_A_CALL):
                self._client.log_batch(run_id, params=part)
        except MlflowException as error:
            held = self._client.get_run(run_id).data.params
            changed = {k: v for k, v in params.items() if held.get(k, v) != v}
            if not is_refusal(error) or not changed:
                raise
            self._tag(run_id, {"raykd.changed_params": json.dumps(changed)})
            self._send_params(run_id, {k: v for k, v in params.items() if k not in changed})

    def _log_dataset(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        told = self._story.dataset
        if told is None:
            return
        sizes = told.get("sizes") or {}
        profile = {"num_rows": sum(sizes.values()), **sizes, "classes": told.get("classes")}
        dataset = Dataset(
            name=told["name"],
            digest=told["fingerprint"][:MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": str(told.get("origin", ""))}),
            schema=self._schema(told),
            profile=json.dumps(profile),
        )
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [DatasetInput(dataset, [context])])

    def _schema(self, told: Event) -> str:
        """MLflow's form of "float32 pictures of this shape, an integer class each"."""
        if self._dataset is None:
            import numpy as np
            from mlflow.data.schema import TensorDatasetSchema
            from mlflow.types import Schema, TensorSpec

            shape = (-1, *told.get("input_shape", ()))
            features = Schema([TensorSpec(np.dtype("float32"), shape)])
            targets = Schema([TensorSpec(np.dtype("int64"), (-1,))])
            self._dataset = json.dumps(TensorDatasetSchema(features, targets).to_dict())
        return self._dataset

    def _measure(self, run_id: str, event: Event, step: int) -> None:
        from mlflow.entities import Metric

        good, bad = split_finite(event.get("metrics") or {})
        waiting = self._metrics.setdefault(run_id, [])
        waiting += [Metric(key, value, event["at"], step) for key, value in good.items()]
        if bad:
            what = ", ".join(f"{key} = {value}" for key, value in bad.items())
            self._tag(run_id, {"raykd.not_finite": f"{what} at step {step}"})
        if len(waiting) >= METRICS_A_CALL:
            self._flush(run_id)

    def _flush(self, run_id: str) -> None:
        for part in _parts(self._metrics.pop(run_id, []), METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=part)


# -- pure helpers ---------------------------------------------------------------------------


def text(value: Any) -> str:
    """A value as it would stand in a study file."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def run_params(told: Event) -> dict[str, str]:
    """A `run` event's params by names MLflow takes, in full length."""
    params = dict(told.get("params") or {})
    if told.get("seed") is not None:
        params.setdefault("seed", told["seed"])
    named: dict[str, str] = {}
    for key, value in params.items():
        named[_free(clean_key(key), named)] = text(value)
    return named


def clean_key(key: str) -> str:
    """`key` as MLflow takes it: `knowledge[0].loss` becomes `knowledge.0.loss`."""
    key = re.sub(r"\[([^\]]*)\]", r".\1", str(key))
    key = re.sub(r"[^\w.\- /]", "_", key)
    key = "/".join(part for part in key.split("/") if part not in ("", ".", ".."))
    return key[:MAX_KEY] or "_"


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags by names and of a length that MLflow takes; those without a value are left out."""
    kept = {key: value for key, value in tags.items() if value is not None}
    return {clean_key(key): cut(text(value), MAX_TAG) for key, value in kept.items()}


def cut(value: str, limit: int) -> str:
    """`value`, at most `limit` characters long, saying so where it was longer."""
    return value if len(value) <= limit else value[: limit - len(CUT)] + CUT


def split_finite(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics that are numbers, and those that are not."""
    values = {clean_key(key): float(value) for key, value in metrics.items()}
    good = {key: value for key, value in values.items() if math.isfinite(value)}
    return good, {key: value for key, value in values.items() if key not in good}


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """`key`, or the next of `key_2`, `key_3` ... that is not taken."""
    free, number = key, 1
    while free in taken:
        number += 1
        free = f"{key[: MAX_KEY - 6]}_{number}"
    return free


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without this user's name
        return "unknown"
