"""Content of a tracking store for the small study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.small_study import STUDY
from raykd.tracking.mlflow_client import Experiment, connect, study_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Run


class Store:
    """Content of a tracking store for the small study."""

    def __init__(self, uri: str) -> None:
        self.client: MlflowClient = connect(uri)
        experiment = self.client.get_experiment_by_name("distillation")
        assert experiment is not None
        self.experiment = experiment
        self.ids = study_runs(self.client, Experiment(experiment.experiment_id), STUDY).ids

    def run(self, id: str | None = None) -> Run:
        return self.client.get_run(self.ids[STUDY if id is None else f"{STUDY}/{id}"])

    def data(self, run: Run) -> list[Dataset]:
        assert run.inputs is not None
        return [used.dataset for used in run.inputs.dataset_inputs]

    def models(self, run: Run) -> list[str]:
        assert run.outputs is not None
        return [output.model_id for output in run.outputs.model_outputs]

    def history(self, id: str, key: str) -> list[tuple[int, float, int]]:
        points = self.client.get_metric_history(self.run(id).info.run_id, key)
        return [(metric.step, metric.value, metric.timestamp) for metric in points]

    def everything(self) -> dict:
        """Return all runs with their content in comparable form."""
        runs = self.client.search_runs([self.experiment.experiment_id], max_results=1000)
        return {
            run.info.run_id: (
                run.info.run_name,
                run.info.status,
                run.info.start_time,
                run.info.end_time,
                dict(run.data.params),
                dict(run.data.tags),
                {
                    key: [
                        (m.step, m.value, m.timestamp)
                        for m in self.client.get_metric_history(run.info.run_id, key)
                    ]
                    for key in run.data.metrics
                },
                [(data.name, data.digest) for data in self.data(run)],
                self.models(run),
            )
            for run in runs
        }
