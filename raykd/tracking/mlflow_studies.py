"""Studies in MLflow, read from another machine: their runs and their journals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from raykd.compat.packages import launcher
from raykd.tracking.cursor import Cursor, Sent
from raykd.tracking.mlflow_client import connect, quoted, run_page, search_study_runs
from raykd.tracking.store_check import check_store
from raykd.tracking.store_uri import absolute, database_file, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

RUN_ID = re.compile(r"[0-9a-f]{32}")
JOURNAL, DESCRIPTION, STUDY_FILE = "journal.jsonl", "folder.json", "study.yaml"
STUDY_ARTIFACTS = "study"
"""Folder of the study's files among the artifacts of its run."""

PAGE_SIZE = 1000


@dataclass(frozen=True)
class StoredTraining:
    """Run of a study in MLflow.

    Attributes:
        id: ID in the journal, such as `trial-0007`.
        role: "teacher", "trial", "replicate", "alone" or "probe".
        status: "running", "finished", "stopped", "failed" or "interrupted".
        tags: its tags (`student`, `losses`, `pairs`, ...).
        params: its params.
        metrics: last value of each metric.
        epochs: number of finished epochs; None: not asked for.
        last_at: time of the last epoch in ms since 1970; 0 if unknown.
    """

    id: str
    role: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    epochs: int | None = None
    last_at: int = 0


@dataclass(frozen=True)
class StudyRun:
    """Run of a whole study in MLflow.

    Attributes:
        uri: URI of the store.
        run_id, experiment_id: MLflow's IDs.
        study_id: ID of the study.
        name: name of the study.
        folder: name of the study's folder on the machine that ran it.
        status: "running", "finished", "failed" or "interrupted".
        started, ended: time in ms since 1970; `ended` is 0 while it runs.
        tags: its tags.
        metrics: its metrics.
    """

    uri: str
    run_id: str
    experiment_id: str
    study_id: str
    name: str
    folder: str
    status: str
    started: int
    ended: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def page(self) -> str:
        """Address of the run's page in MLflow's UI."""
        return run_page(self.uri, self.experiment_id, self.run_id)


class MlflowStudies:
    """Studies of one tracking store.

    Args:
        uri: URI of the store.

    Raises:
        ValueError: the store does not exist or does not respond.
    """

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)
        self._place = masked(self.uri)
        file = database_file(self.uri)
        if file is not None and not file.is_file():  # connecting would create it
            raise ValueError(
                f"MLflow: there is no {file}; name the store with --uri or MLFLOW_TRACKING_URI"
            )
        check = check_store(self.uri)
        if not check.ok:
            raise ValueError(f"MLflow at {check.message}" + (f"; {check.fix}" if check.fix else ""))
        with self._errors():
            self._client: MlflowClient = connect(self.uri)

    def all(self) -> Iterator[StudyRun]:
        """Yield every study of the store, the latest first."""
        with self._errors():
            experiments = [each.experiment_id for each in self._client.search_experiments()]
            for run in self._search(experiments, "tags.`raykd.role` = 'study'"):
                yield self._study(run)

    def find(self, reference: str) -> StudyRun:
        """Return a study by a run ID, the name of its folder, or its own name.

        The run may be one of its trainings.  Of several studies of a name it is the latest.

        Raises:
            ValueError: the store has no such study.
        """
        run = self._by_id(reference) if RUN_ID.fullmatch(reference) else None
        name = PurePath(reference).name
        if run is None and name:
            path = f"tags.`mlflow.source.name` LIKE {quoted(f'%{name}/{STUDY_FILE}')}"
            of_name = f"attributes.run_name = {quoted(name)}"
            with self._errors():
                experiments = [each.experiment_id for each in self._client.search_experiments()]
                runs = self._search(experiments, f"tags.`raykd.role` = 'study' and {path}")
                run = next((each for each in runs if self._study(each).folder == name), None)
                if run is None and name == reference:
                    named = self._search(experiments, f"tags.`raykd.role` = 'study' and {of_name}")
                    run = next(named, None)
        if run is None:
            raise ValueError(f"MLflow at {self._place} has no study or run {reference!r} of raykd")
        return self._study(run)

    def trainings(self, study: StudyRun) -> list[StoredTraining]:
        """Return all runs of a study, with the epochs of those in progress."""
        with self._errors():
            runs = list(search_study_runs(self._client, study.experiment_id, study.study_id))
            return [self._training(run) for run in runs if run.info.run_id != study.run_id]

    def text(self, study: StudyRun, name: str) -> str:
        """Return a file of the study, or an empty string if MLflow does not have it."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            file = self._download(study, name, Path(folder))
            return "" if file is None else file.read_text(encoding="utf-8")

    def download(self, study: StudyRun, folder: Path) -> None:
        """Download the journal of a study into an empty folder.

        Raises:
            ValueError: MLflow does not have it; says why, and what to do.
        """
        for name in (STUDY_FILE, DESCRIPTION, JOURNAL):
            file = self._download(study, name, folder)
            if file is None:
                raise ValueError(self._missing(study, name))
            file.replace(folder / name)
        with self._errors():
            runs = search_study_runs(self._client, study.experiment_id, study.study_id)
            ids = {
                run.data.tags["raykd.id"].partition("/")[2]: run.info.run_id
                for run in runs
                if "raykd.model" in run.data.tags or run.info.run_id == study.run_id
            }
        journal = folder / JOURNAL
        sent = Sent(journal.stat().st_size, study.experiment_id, ids)
        Cursor(journal, self._place).save(sent)

    def _missing(self, study: StudyRun, name: str) -> str:
        head = f"MLflow at {self._place} has no {STUDY_ARTIFACTS}/{name} of study {study.name}"
        if study.status == "running":
            return (
                f"{head}: it is uploaded when the study ends; "
                f"until then use {launcher()}raykd status {study.run_id}"
            )
        return (
            f"{head}: it was uploaded by an older raykd, or not completely; on the machine with "
            f"the study's folder ({study.folder}) run raykd sync {study.folder} --from-start"
        )

    def _download(self, study: StudyRun, name: str, folder: Path) -> Path | None:
        from mlflow.artifacts import download_artifacts

        try:
            path = download_artifacts(
                run_id=study.run_id,
                artifact_path=f"{STUDY_ARTIFACTS}/{name}",
                dst_path=str(folder / "files"),
                tracking_uri=self.uri,
            )
        except Exception:  # noqa: BLE001 - artifact stores raise different errors
            return None
        return Path(path)

    def _by_id(self, run_id: str) -> Run | None:
        """Return the run of the study that a run belongs to."""
        from mlflow.exceptions import MlflowException

        with self._errors():
            try:
                run = self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            study = run.data.tags.get("raykd.study")
            if study is None or run.data.tags.get("raykd.id") == study:
                return run if study else None
            runs = self._search([run.info.experiment_id], f"tags.`raykd.id` = {quoted(study)}")
            return next(runs, None)

    def _search(self, experiments: list[str], filter_: str) -> Iterator[Run]:
        token: str | None = None
        while experiments:
            page: PagedList[Run] = self._client.search_runs(
                experiments,
                filter_,
                max_results=PAGE_SIZE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _study(self, run: Run) -> StudyRun:
        tags = run.data.tags
        return StudyRun(
            uri=self.uri,
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            study_id=tags["raykd.id"],
            name=run.info.run_name or tags["raykd.id"],
            folder=PurePath(tags.get("mlflow.source.name", "")).parent.name,
            status=tags.get("raykd.status", "running"),
            started=run.info.start_time or 0,
            ended=run.info.end_time or 0,
            tags=tags,
            metrics=run.data.metrics,
        )

    def _training(self, run: Run) -> StoredTraining:
        tags, status = run.data.tags, run.data.tags.get("raykd.status", "running")
        epochs, last_at = None, run.info.end_time or run.info.start_time or 0
        if status == "running":
            points = self._client.get_metric_history(run.info.run_id, "train_loss")
            epochs = max((point.step for point in points), default=0)
            last_at = max((point.timestamp for point in points), default=last_at)
        return StoredTraining(
            id=tags.get("raykd.id", "").partition("/")[2],
            role=tags.get("raykd.role", ""),
            status=status,
            tags=tags,
            params=run.data.params,
            metrics=run.data.metrics,
            epochs=epochs,
            last_at=last_at,
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert errors of MLflow to one message that names the store."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise ValueError(f"MLflow at {self._place}: {masked(str(error))}") from error
