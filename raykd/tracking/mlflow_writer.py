"""Writing of a journal's events to MLflow.

- experiment = the study's `experiment`; parent run = the study; its children are the runs, each
  nested under its parent by the tag `mlflow.parentRunId`.
- A run is identified by the tag `raykd.id` (the study's ID, and for children a slash and the
  run's ID), so uploading the same events twice changes nothing.
- MLflow's status: FINISHED for `finished` and also for `stopped` (a trial that a scheduler ended
  early is not an error, and MLflow shows KILLED in red), FAILED for `failed`, KILLED for runs that
  an interrupted study left open, SCHEDULED for `paused` (a trial that may continue).  The tag
  `raykd.status` has the exact status:
  `tags."raykd.status" = 'stopped'`.
- The experiment gets saved views (`mlflow_views`) and a note (`mlflow_notes`), the study's run the
  same text as its description.
- Non-finite numbers are not logged as metrics (MLflow turns infinity into 1.8e308); the tag
  `raykd.not_finite` lists them.
- Params longer than MLflow's limit are cut; the tag `raykd.cut_params` lists them and the artifact
  `params.json` contains them in full.  Params cannot be changed: if a study continues with others,
  the first are kept and the tag `raykd.changed_params` has the new ones.
"""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.tracking.events import (
    ArmsPlanned,
    ArtifactSaved,
    DataLoaded,
    EpochFinished,
    Event,
    Metrics,
    ModelSaved,
    Note,
    RunEnded,
    RunPaused,
    RunPromoted,
    RunStarted,
    StudyEnded,
    StudyExtended,
    StudyStarted,
    SummaryWritten,
)
from raykd.tracking.journal_state import JournalState, Upload, run_of
from raykd.tracking.json_types import to_json
from raykd.tracking.mlflow_client import StartTimes, open_experiment, study_runs
from raykd.tracking.mlflow_models import file_in, send_model
from raykd.tracking.mlflow_notes import NOTE
from raykd.tracking.mlflow_pages import ExperimentPages
from raykd.tracking.mlflow_values import (
    MAX_PARAM,
    clean_tags,
    cut,
    run_params,
    split_finite,
    text,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

DIGEST = 8  # characters of a data set's fingerprint in its name, as in MLflow's own


METRICS_A_CALL = 1000


TEXTS_A_CALL = 50  # params or tags: keeps a request under MLflow's 1 MB


RUN_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


STUDY_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


# Permanent errors of MLflow.  All others may be temporary (a server that starts, a locked database,
# credentials).
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
    """Return True if the store responds but rejects the event itself."""
    if isinstance(error, ValueError) or TOO_LARGE.search(str(error)):
        return True
    return getattr(error, "error_code", "") in REFUSALS


def is_unreachable(error: Exception) -> bool:
    """Return True if the store caused the error and a later retry can succeed."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and not is_refusal(error)


class MlflowWriter:
    """Write the events of one study over one connection.

    The object is discarded when the store becomes unreachable.  Metrics are buffered until `flush`.

    Args:
        client: MLflow's client.
        state: state of the journal so far; contains the study.
        folder: folder of the journal, for relative paths.
        uri: URI of the store.
        start_times: of the runs in the whole journal.
        allow_code: networks may run code of their files while they are read.

    Attributes:
        experiment: MLflow's ID of the experiment.
        complete: whether the store has the study's run, and had no run twice; else events that were
            sent before may be missing.
    """

    def __init__(
        self,
        client: MlflowClient,
        state: JournalState,
        folder: Path,
        uri: str,
        start_times: Callable[[], StartTimes],
        *,
        allow_code: bool = False,
    ) -> None:
        assert state.study is not None
        self._client = client
        self._state = state
        self._folder = folder
        self._allow_code = allow_code
        self._study_id = state.study.id
        name = state.study.experiment or state.study.name
        experiment = open_experiment(client, name, uri)
        self.experiment = experiment.id
        runs = study_runs(client, experiment, self._study_id, start_times)
        self._runs = dict(runs.ids)
        self.complete = self._study_id in runs.ids and not runs.repeated
        self._with_model: set[str] = set()
        self._metrics: dict[str, list[Metric]] = {}
        self._dataset: str | None = None
        self._pages = ExperimentPages(client, self.experiment, state)

    def write(self, upload: Upload) -> None:
        """Write one event to the store.

        Args:
            upload: the event, from `JournalState.update`.

        Raises:
            ValueError: the event cannot be written because a file is missing.
            MlflowException: the store rejects it (`is_refusal`) or cannot be reached.
        """
        match upload.event:
            case RunStarted() as event:
                self._on_run(event)
            case EpochFinished() as event:
                self._measure(self._run(event.id), event, event.metrics, upload.step)
            case RunPaused() as event:
                self._set_status(event.id, "SCHEDULED", "paused")
            case RunPromoted() as event:
                self._set_status(event.id, "RUNNING", "running")
            case RunEnded() as event:
                self._on_end(event, upload.step)
            case Note() as event:
                run_id = self._run(event.id)
                self._measure(run_id, event, event.metrics, upload.step)
                self._tag(run_id, event.tags)
            case ModelSaved() as event:
                self._on_model(event)
            case ArtifactSaved() as event:
                self._on_artifact(event)
            case _:
                self._write_study(upload)

    def _write_study(self, upload: Upload) -> None:
        """Write an event of the study as a whole."""
        match upload.event:
            case StudyStarted() as event:
                self._on_study(event)
            case DataLoaded() as event:
                self._on_dataset(event)
            case StudyExtended():
                self._tag(self._run(None), {"extended": self._state.extensions})
            case ArmsPlanned():
                self._pages.write_views()
            case SummaryWritten() as event:
                self._tag(self._run(None), {NOTE: self._pages.write_summary(event)})
            case StudyEnded() as event:
                self._on_done(event, upload.open_runs)
            case _:
                pass

    @property
    def pages(self) -> dict[str, str]:
        """Return MLflow's IDs of the study's run (key "") and of the runs with a new model."""
        with_model = {id: self._runs.get(self._key(id), "") for id in self._with_model}
        return {"": self._runs.get(self._study_id, ""), **with_model}

    def flush(self, *, tolerant: bool = False) -> list[Exception]:
        """Upload the buffered metrics.

        Returns:
            Errors of rejected metrics, which are dropped, if `tolerant`.
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
        """Tag the run of a rejected event with the reason."""
        run_id = self._runs.get(self._key(run_of(event)))
        if run_id is not None:
            self._tag(run_id, {"raykd.tracking_problem": f"{event.kind}: {problem}"})

    # -- events -----------------------------------------------------------------------------

    def _on_study(self, event: StudyStarted) -> None:
        import yaml  # imported here: reading results does not need it

        run_id = self._run(None)
        self._client.update_run(run_id, status="RUNNING")
        self._tag(run_id, {**self._study_tags(event), "raykd.status": "running"})
        if event.text:
            self._client.log_text(run_id, event.text, "study/study.yaml")
        resolved = yaml.safe_dump(to_json(event.resolved), sort_keys=False)
        self._client.log_text(run_id, resolved, "study/resolved.yaml")
        names = ("argv", "file", "git", "seed", "versions")
        environment = {name: getattr(event, name) for name in names}
        self._client.log_dict(run_id, environment, "study/environment.json")
        self._pages.write_views()

    def _on_dataset(self, event: DataLoaded) -> None:
        tags = {"raykd.data_fingerprint": event.fingerprint}
        if event.warnings:
            tags["raykd.data_warnings"] = "\n".join(event.warnings)
        self._tag(self._run(None), tags)
        for run_id in self._runs.values():
            self._log_dataset(run_id)

    def _on_run(self, event: RunStarted) -> None:
        exists = self._key(event.id) in self._runs
        run_id = self._run(event.id)
        if exists:
            self._set_status(event.id, "RUNNING", "running")
        self._log_params(run_id, run_params(event))
        self._log_dataset(run_id)
        if event.role == "trial":
            self._pages.write_views()

    def _set_status(self, id: str, status: str, tag: str) -> None:
        """Set the status of a run that has not ended."""
        run_id = self._run(id)
        self._client.update_run(run_id, status=status)
        self._tag(run_id, {"raykd.status": tag})

    def _on_end(self, event: RunEnded, step: int) -> None:
        run_id = self._run(event.id)
        self._measure(run_id, event, event.metrics, step)
        self._flush(run_id)
        tags: dict[str, str] = {"raykd.status": event.status}
        if event.reason:
            tags["raykd.reason"] = event.reason
        self._tag(run_id, tags)
        self._client.set_terminated(run_id, RUN_STATUS.get(event.status, "KILLED"), event.at)

    def _on_model(self, event: ModelSaved) -> None:
        from mlflow.entities import Metric

        run_id = self._run(event.id)
        run = self._state.runs[event.id]
        uri = send_model(
            self._client,
            event,
            self._folder,
            experiment_id=self.experiment,
            run_id=run_id,
            params={key: cut(value, MAX_PARAM) for key, value in run_params(run.start).items()},
            tags=clean_tags({**run.start.tags, **self._id_tags(run.start)}),
            allow_code=self._allow_code,
        )
        tags = {"raykd.model": uri}
        if event.register:
            tags["raykd.registered"] = event.register
        if event.aliases:
            tags["raykd.aliases"] = ", ".join(event.aliases)
        self._tag(run_id, tags)
        self._with_model.add(event.id)
        finite, _ = split_finite(event.metrics)
        at, model_id = run.saved_at, uri.rpartition("/")[2]
        measured = [Metric(k, v, at, run.epoch, model_id=model_id) for k, v in finite.items()]
        self._client.log_batch(run_id, metrics=measured)

    def _on_artifact(self, event: ArtifactSaved) -> None:
        path, folder = file_in(self._folder, event.path), event.folder or None
        if path.is_dir():
            self._client.log_artifacts(self._run(event.id), str(path), folder)
        elif path.is_file():
            self._client.log_artifact(self._run(event.id), str(path), folder)
        else:
            raise ValueError(f"{path}: no such file")

    def _on_done(self, event: StudyEnded, open_runs: Iterable[str]) -> None:
        self.flush()
        for id in open_runs:
            run_id = self._run(id)
            self._tag(run_id, {"raykd.status": "interrupted"})
            self._client.set_terminated(run_id, "KILLED", event.at)
        run_id = self._run(None)
        self._tag(run_id, {"raykd.status": event.status})
        self._client.set_terminated(run_id, STUDY_STATUS.get(event.status, "KILLED"), event.at)
        # for `raykd report RUN` on another machine
        for name in ("journal.jsonl", "folder.json"):
            if (self._folder / name).is_file():
                self._client.log_artifact(run_id, str(self._folder / name), "study")

    # -- runs -------------------------------------------------------------------------------

    def _key(self, id: str | None) -> str:
        return self._study_id if id is None else f"{self._study_id}/{id}"

    def _run(self, id: str | None) -> str:
        """Return MLflow's ID of a run (None: the study's), and create the run if needed."""
        key = self._key(id)
        if key not in self._runs:
            self._runs[key] = self._create_study() if id is None else self._create(id)
        return self._runs[key]

    def _create_study(self) -> str:
        study = self._state.study
        assert study is not None
        tags = {**self._source_tags(), **self._study_tags(study), "raykd.status": "running"}
        run_id = self._start(study.name, study.at, tags)
        self._log_dataset(run_id)
        return run_id

    def _create(self, id: str) -> str:
        start = self._state.runs[id].start
        tags = {
            **start.tags,
            **self._source_tags(),
            **self._id_tags(start),
            "mlflow.parentRunId": self._run(start.parent),
            "raykd.status": "running",
        }
        return self._start(start.name or id, start.at, tags)

    def _start(self, name: str, at: int, tags: Mapping[str, Any]) -> str:
        run = self._client.create_run(
            self.experiment, start_time=at, tags=clean_tags(tags), run_name=name
        )
        return run.info.run_id

    def _id_tags(self, start: RunStarted) -> dict[str, str]:
        return {
            "raykd.id": self._key(start.id),
            "raykd.study": self._study_id,
            "raykd.role": start.role,
        }

    def _study_tags(self, study: StudyStarted) -> dict[str, str]:
        tags = {
            "raykd.id": self._study_id,
            "raykd.study": self._study_id,
            "raykd.role": "study",
            "raykd.seed": str(study.seed),
        }
        versions = study.versions.items()
        return tags | {f"raykd.version.{name}": version for name, version in versions}

    def _source_tags(self) -> dict[str, str]:
        study = self._state.study
        assert study is not None
        git = {"commit": study.git} if isinstance(study.git, str) else study.git or {}
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": study.file or " ".join(study.argv or ["raykd"]),
            "mlflow.source.git.commit": git.get("commit"),
            "mlflow.source.git.branch": git.get("branch"),
            "raykd.git_dirty": git.get("dirty"),
        }
        return {key: text(value) for key, value in tags.items() if value is not None}

    # -- contents of runs -------------------------------------------------------------------

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
            stored = self._client.get_run(run_id).data.params
            changed = {k: v for k, v in params.items() if stored.get(k, v) != v}
            if not is_refusal(error) or not changed:
                raise
            self._tag(run_id, {"raykd.changed_params": json.dumps(changed)})
            self._send_params(run_id, {k: v for k, v in params.items() if k not in changed})

    def _log_dataset(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = self._state.dataset
        if data is None:
            return
        sizes = data.sizes
        profile = {"num_rows": sum(sizes.values()), **sizes, "classes": data.classes}
        dataset = Dataset(
            name=data.name,
            digest=data.fingerprint[:DIGEST],
            source_type="local",
            source=json.dumps({"uri": data.origin}),
            schema=self._schema(data),
            profile=json.dumps(profile),
        )
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(run_id, [DatasetInput(dataset, [context])])

    def _schema(self, data: DataLoaded) -> str:
        """Return MLflow's schema of float32 samples of this shape, each with an integer class."""
        if self._dataset is None:
            import numpy as np
            from mlflow.data.schema import TensorDatasetSchema
            from mlflow.types import Schema, TensorSpec

            shape = (-1, *data.input_shape)
            features = Schema([TensorSpec(np.dtype("float32"), shape)])
            targets = Schema([TensorSpec(np.dtype("int64"), (-1,))])
            self._dataset = json.dumps(TensorDatasetSchema(features, targets).to_dict())
        return self._dataset

    def _measure(self, run_id: str, event: Event, metrics: Metrics, step: int) -> None:
        from mlflow.entities import Metric

        finite, non_finite = split_finite(metrics)
        waiting = self._metrics.setdefault(run_id, [])
        waiting += [Metric(key, value, event.at, step) for key, value in finite.items()]
        if non_finite:
            values = ", ".join(f"{key} = {value}" for key, value in non_finite.items())
            self._tag(run_id, {"raykd.not_finite": f"{values} at step {step}"})
        if len(waiting) >= METRICS_A_CALL:
            self._flush(run_id)

    def _flush(self, run_id: str) -> None:
        for part in _parts(self._metrics.pop(run_id, []), METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=part)


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without this user's name
        return "unknown"
