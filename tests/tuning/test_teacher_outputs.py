"""Teachers from MLflow: class order, and outputs that are not logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.pytorch import log_model
from torch import Tensor, nn

from raykd.data import BatchLoader, Dataset
from raykd.models import Mlp
from raykd.report.summary import summarize
from raykd.tracking.events import Note, RunStarted
from raykd.tracking.journal import events
from raykd.training.build import signature_of
from raykd.training.stored_networks import with_preprocessing
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

TEXT = """\
name: whole
data: {name: digits}
teacher: {weights: 'URI'}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: kd}]
train: {epochs: 1}
search: {trials: 1, replicates: 0, finalists: 1}
"""
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


@cache
def data() -> Dataset:
    from raykd.data.digits import Digits

    return Digits().load()


@cache
def trained_classifier() -> nn.Module:
    """Classifier of digits, trained briefly."""
    torch.manual_seed(0)
    network = Mlp(depth=1, width=32).build(signature_of(data()))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    split = data().train
    batches = BatchLoader(split, data(), batch_size=len(split), shuffle_seed=None)
    [batch] = batches.epoch(0)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.inputs), batch.targets).backward()
        optimizer.step()
    return network.eval()


class Ending(nn.Module):
    """Network with an operation after its logits."""

    def __init__(self, network: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.network, self.last = network, last

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.network(inputs))


class Spoiled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.where(logits < logits.amax(), torch.nan)


def stored(network: nn.Module, folder: Path) -> str:
    """Log a network to MLflow and return its URI."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with mlflow.start_run():
        return log_model(
            network, name="teacher", serialization_format="pickle", pip_requirements=["torch"]
        ).model_uri


def searched(uri: str, folder: Path, name: str = "whole") -> StudyResult:
    file = folder / f"{name}.yaml"
    text = TEXT.replace("URI", uri).replace("name: whole", f"name: {name}")
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\n"
    file.write_text(f"{text}cluster: {{storage: '{folder}/studies'}}\n{tracking}")
    return SearchRun(load_or_use(file, allow_import=True)).run(LocalExecutor())


def notes(result: StudyResult) -> str:
    recorded = events(result.folder / "journal.jsonl")
    return "\n".join(str(event.tags) for event in recorded if isinstance(event, Note))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Softmax(1), "returns probabilities: each row sums to 1"),
        (nn.Sigmoid(), "returns only values from 0 to 1"),
        (nn.LogSoftmax(1), ""),
    ],
)
def test_probabilities_warn_before_students_train(
    tmp_path: Path, last: nn.Module, message: str
) -> None:
    result = searched(stored(Ending(trained_classifier(), last), tmp_path), tmp_path)
    warnings = summarize(result).warnings
    assert len(warnings) == bool(message)
    assert all(message in warning for warning in warnings)
    recorded = events(result.folder / "journal.jsonl")
    key = "warning_outputs_teacher_0"
    places = [n for n, e in enumerate(recorded) if isinstance(e, Note) and key in e.tags]
    students = [
        n for n, e in enumerate(recorded) if isinstance(e, RunStarted) and e.role == "trial"
    ]
    assert all(place < students[0] for place in places) and len(places) == bool(message)


def test_non_finite_outputs_end_study(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="NaN or infinite for 1 of") as caught:
        searched(stored(Ending(trained_classifier(), Spoiled()), tmp_path), tmp_path)
    assert "the teacher could not be prepared" in str(caught.value)


def reordered() -> nn.Module:
    """Trained classifier with its outputs in the order of `ORDER`."""
    import copy

    network = copy.deepcopy(trained_classifier())
    with torch.no_grad():
        for parameter in [*network.parameters()][-2:]:
            parameter.copy_(parameter[ORDER])
    return network


def as_delivered(network: nn.Module) -> nn.Module:
    whole = with_preprocessing(network, data())
    whole.class_names = tuple(map(str, ORDER))
    return whole


def with_names(network: nn.Module) -> nn.Module:
    named: Any = network
    named.class_names = [str(digit) for digit in ORDER]
    return network


@pytest.mark.parametrize("wrap", [as_delivered, with_names])
def test_other_class_order_is_noted(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    [expected] = searched(stored(trained_classifier(), tmp_path), tmp_path, "plain").teachers
    assert expected.metrics["val_accuracy"] > 0.6
    uri = stored(wrap(reordered()), tmp_path)
    for name in ("first", "second"):  # the second reads what the first fetched
        result = searched(uri, tmp_path, name)
        [teacher] = result.teachers
        assert teacher.metrics["val_accuracy"] == expected.metrics["val_accuracy"]
        assert "reordered by name: 3, 1, 4" in notes(result)
        assert any("reordered by name: 3, 1, 4" in note for note in summarize(result).notes)
