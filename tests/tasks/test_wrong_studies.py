"""Studies whose options do not fit their task are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.losses import LOSSES
from raykd.registry import Registry
from raykd.schemes import SCHEMES
from raykd.study.checks.load import load_study
from raykd.study.config import Search, Study, plain
from raykd.tasks import ALL_KINDS

STUDY = """\
name: tasks
data: {name: digits}
teacher: {model: {name: mlp, width: 8}}
student: {model: {name: mlp, width: 4}}
knowledge: [{loss: kd}]
train: {epochs: 1}
"""


def loaded(folder: Path, *lines: str, text: str = STUDY) -> Study:
    file = folder / "study.yaml"
    file.write_text(text + "".join(f"{line}\n" for line in lines))
    return load_study(file).settings


def refusal(folder: Path, *lines: str, text: str = STUDY) -> str:
    with pytest.raises(StudyError) as caught:
        loaded(folder, *lines, text=text)
    return str(caught.value)


WRONG = [
    (("task: {name: classify}",), "classification"),
    (("task: {name: classification, metrics: []}",), "metrics"),
    (("task: {name: classification, metrics: [acuracy]}",), "accuracy"),
    (("task: {name: classification, metrics: [accuracy, accuracy]}",), "listed twice"),
    (("task: {name: classification, metrics: {choice: [[accuracy], [auroc]]}}",), "task"),
    (("task: {name: classification, class_weights: heavy}",), "balanced"),
    (("task: {name: classification, class_weights: [1, -1]}",), "class_weights"),
    (("task: {name: classification, sampling: twice}",), "balanced"),
    (("task: {name: classification, weights: balanced}",), "class_weights"),
    (("search: {objectives: {val_macro_f1: max}}",), "add it: `task: {name: ..., metrics: [m"),
    (("search: {objectives: {test_accuracy: max}}",), "use val_accuracy or val_loss"),
    (
        (
            "task: {name: classification, metrics: [calibration_error]}",
            "search: {objectives: {val_calibration_error: max}}",
        ),
        "must be minimized",
    ),
    (
        (
            "task: {name: classification, metrics: [macro_f1]}",
            "search: {objectives: {val_accuracy: max}}",
        ),
        "must be one of val_macro_f1, val_loss, train_accuracy",
    ),
]


@pytest.mark.parametrize(("lines", "message"), WRONG, ids=[" ".join(row[0])[:60] for row in WRONG])
def test_wrong_studies(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, *lines)


def test_first_metric_is_default_objective(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert study.learning_task.name == "classification"
    assert study.search.objectives == {"val_accuracy": "max"}
    calibrated = loaded(tmp_path, "task: {name: classification, metrics: [calibration_error]}")
    assert calibrated.search.objectives == {"val_calibration_error": "min"}
    assert plain(calibrated)["search"]["objectives"] == {"val_calibration_error": "min"}
    assert not Search().objectives, "only a study knows its task"


TABLE = STUDY.replace("{name: digits}", "{name: table, file: t.csv, target: price}").replace(
    "loss: kd", "loss: logit_mse"
)
"""A study of a regression; its table is not read before the run."""

LABELS = TABLE.replace("target: price", "target: [price, size], kind: labels")

WRONG_ON_TABLES = [
    (TABLE, ("knowledge: [{loss: kd}]",), "use logit_mse, bounded_regression, cosine_response"),
    (TABLE, ("knowledge: [{loss: dkd}]",), "the task gives real values"),
    (TABLE, ("knowledge: [{loss: crd}]",), "loss 'crd' does not fit task 'regression'"),
    (TABLE, ("scheme: dml",), "scheme 'dml' does not fit task 'regression'"),
    (TABLE, ("task: {name: classification}",), "remove `task`, or write `task: regression, embed"),
    (TABLE, ("task: {name: regression, metrics: [accuracy]}",), "task.metrics"),
    (TABLE, ("task: {name: regression, loss: hinge}",), "huber"),
    (TABLE, ("task: {name: regression, loss: huber, delta: 0}",), "delta"),
    (TABLE, ("task: {name: regression, class_weights: balanced}",), "class_weights"),
    (TABLE, ("search: {objectives: {val_accuracy: max}}",), "val_r2, val_mae, val_loss"),
    (TABLE, ("search: {objectives: {val_mae: max}}",), "val_mae must be minimized"),
    (TABLE, ("search: {objectives: {val_rmse: min}}",), "metrics: [rmse]"),
    (TABLE, ("train: {epochs: 1, label_smoothing: 0.1}",), "task 'regression' has no label smooth"),
    (TABLE, ("data: {name: table, target: price}",), "file"),
    (TABLE, ("data: {name: table, file: t.csv}",), "target"),
    (TABLE, ("data: {name: table, file: t.csv, target: a, kind: real}",), "number"),
    (TABLE, ("data: {name: table, file: t.csv, target: [a, b], kind: class}",), "one target"),
    (TABLE, ("data: {name: table, file: t.csv, target: a, ignore: [a]}",), "listed twice"),
    (TABLE, ("data: {name: table, file: t.csv, target: a, delimiter: ab}",), "one character"),
    (LABELS, ("knowledge: [{loss: bounded_regression}]",), "use kd, logit_mse"),
    (LABELS, ("knowledge: [{loss: nkd}]",), "the task gives several labels a sample"),
    (LABELS, ("task: {name: multi_label, positive_weights: [0, 1]}",), "positive_weights"),
    (LABELS, ("scheme: born_again",), "scheme 'born_again' does not fit task 'multi_label'"),
    (STUDY, ("knowledge: [{loss: cosine_response}]",), "the task gives one class a sample"),
]


@pytest.mark.parametrize(
    ("text", "lines", "message"), WRONG_ON_TABLES, ids=[row[1][0][:60] for row in WRONG_ON_TABLES]
)
def test_wrong_studies_of_tables(
    tmp_path: Path, text: str, lines: tuple[str, ...], message: str
) -> None:
    keys = [line.split(":")[0] for line in lines]
    kept = [line for line in text.splitlines() if line.split(":")[0] not in keys]
    refused = refusal(tmp_path, *lines, text="\n".join([*kept, ""]))
    assert message in refused
    assert len(refused.splitlines()) <= 6, "one message"


def test_data_decide_the_task(tmp_path: Path) -> None:
    assert loaded(tmp_path, text=TABLE).search.objectives == {"val_r2": "max"}
    assert loaded(tmp_path, text=LABELS).learning_task.name == "multi_label"


@pytest.mark.parametrize("registry", [LOSSES, SCHEMES], ids=["losses", "schemes"])
def test_every_kind_has_options(registry: Registry) -> None:
    for kind in ALL_KINDS:
        assert any(kind in getattr(option, "kinds", ()) for option in registry)
