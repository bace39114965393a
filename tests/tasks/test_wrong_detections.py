"""Studies of a detection that cannot work are refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.box_files import write_coco
from raykd.errors import StudyError
from raykd.export.export import export_student
from raykd.losses import LOSSES
from raykd.study.checks.load import load_study
from raykd.study.config import Study
from raykd.tasks import TASKS
from raykd.tasks.base import is_exported

PAIRS = "pairs: [{hint: level1, guided: level1}]"
STUDY = {
    "name": "detection",
    "data": "{name: coco, root: ROOT}",
    "teacher": "{model: {name: retinanet, levels: 2}}",
    "student": "{model: {name: retinanet, levels: 2, width: 8}}",
    "knowledge": f"[{{loss: hint, {PAIRS}}}]",
    "train": "{epochs: 1}",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("boxes"))


def loaded(root: Path, **changed: str) -> Study:
    file = root / "study.yaml"
    lines = [f"{key}: {value}" for key, value in (STUDY | changed).items()]
    file.write_text("\n".join(lines).replace("ROOT", str(root)))
    return load_study(file).settings


WRONG: list[tuple[dict[str, str], str]] = [
    ({"student": "{model: resnet}"}, "model 'resnet' gives a response for each sample, and task"),
    ({"student": "{model: unet}"}, "gives a response for each position, and task 'detection'"),
    ({"student": "{model: {name: timm/resnet18}}"}, "use retinanet, torchvision/NAME"),
    ({"student": "{model: {name: torchvision/resnet18}}"}, "detection needs one for each anchor"),
    (
        {"student": "{model: {name: torchvision/fasterrcnn_resnet50_fpn}}"},
        "has two stages: its second one depends on the boxes of the labels",
    ),
    ({"student": "{model: {name: retinanet, levels: 5}}"}, "set `levels` to at most 4"),
    ({"student": "{model: {name: retinanet, channels: 20}}"}, "channels"),
    ({"knowledge": "[{loss: kd}]"}, "loss 'kd' does not fit task 'detection'"),
    ({"knowledge": "[{loss: kd}]"}, "the task gives boxes of classes in an image"),
    ({"knowledge": "[{loss: cwd}]"}, "loss 'cwd' does not fit task 'detection'"),
    ({"knowledge": "[{loss: logit_mse}]"}, "loss 'logit_mse' does not fit task"),
    ({"knowledge": "[{loss: dist}]"}, "use hint, at, "),
    ({"knowledge": "[{loss: crd}]"}, "does not fit task"),
    ({"knowledge": "[{loss: simkd}]"}, "does not fit task"),
    ({"knowledge": "[{loss: pkt}]"}, "embedding"),
    (
        {"knowledge": "[{loss: hint, pairs: [{hint: level9, guided: level1}]}]"},
        "there is no layer 'level9'",
    ),
    ({"scheme": "dml"}, "scheme 'dml' does not fit task 'detection'"),
    ({"task": "classification"}, "remove `task`, or write `task: detection`"),
    ({"task": "{name: detection, metrics: [accuracy]}"}, "map"),
    ({"search": "{objectives: {val_accuracy: max}}"}, "val_map, val_map_50, val_loss"),
    ({"search": "{objectives: {val_map: min}}"}, "val_map must be maximized"),
    ({"search": "{proxy: naswot}"}, "proxy 'naswot' does not fit task 'detection'"),
    ({"train": "{epochs: 1, label_smoothing: 0.1}"}, "task 'detection' has no label smoothing"),
    ({"train": "{epochs: 1, compile: graph}"}, "use `compile: none`"),
    ({"cache": "{use: always}"}, "outputs of detectors are not cached"),
    (
        {"data": "{name: coco, root: ROOT, augment: [rotation]}"},
        "'rotation' does not move boxes along with their images -> use random_crop, ",
    ),
    ({"data": "{name: coco, root: ROOT, labels_per_class: 2}"}, "labels_per_class"),
    ({"data": "{name: coco, root: ROOT, unlabeled: {folder: a}}"}, "needs the label of every"),
    ({"teacher": "{outputs: outputs.parquet}"}, "needs predictions at anchors"),
    ({"data": "digits"}, "gives a response for each anchor, and task"),
    ({"data": "digits", "task": "detection"}, "task 'detection' learns boxes of classes"),
]


@pytest.mark.parametrize(
    ("changed", "message"), WRONG, ids=[" ".join(row[0].values())[:60] for row in WRONG]
)
def test_wrong_studies(root: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        loaded(root, **changed)
    text = " ".join(str(caught.value).split())
    assert message in text
    assert "study.yaml" in text, "it names the file"


@pytest.mark.parametrize("name", [n for n in LOSSES.members if ":" not in n])
def test_every_loss_works_or_is_refused(root: Path, name: str) -> None:
    """Losses on layers fit; those that need the classifier's input name pairs."""
    loss = LOSSES[name]
    pairs = ", pairs: [{hint: level1, guided: level1}, {hint: level2, guided: level2}]"
    knowledge = f"[{{loss: {name}{pairs if loss.takes_pairs else ''}}}]"
    if "boxes" in loss.kinds:
        loaded(root, knowledge=knowledge)
        return
    with pytest.raises(StudyError, match="does not fit task 'detection'"):
        loaded(root, knowledge=knowledge)


def test_data_decide_the_task(root: Path) -> None:
    study = loaded(root)
    assert study.learning_task.name == "detection"
    assert study.search.objectives == {"val_map": "max"}
    loaded(root, student="{model: {name: torchvision/ssdlite320_mobilenet_v3_large}}")


def test_missing_package_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "raykd.study.checks.rules.is_installed", lambda name: name != "faster_coco_eval"
    )
    with pytest.raises(StudyError, match="needs the package faster_coco_eval, which is not"):
        loaded(root)


def test_detectors_are_not_exported(tmp_path: Path) -> None:
    student: Any = SimpleNamespace(name="trial-0001", study={"task": {"name": "detection"}})
    with pytest.raises(
        StudyError, match="trial-0001 is a network of task 'detection': its outputs"
    ):
        export_student(student, ("safetensors",), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_tasks_declare_whether_their_networks_are_exported() -> None:
    assert [name for name, cls in TASKS.members.items() if not cls.exports] == ["detection"]
    assert is_exported("") and is_exported("a task of an older version")
