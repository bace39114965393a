"""Studies of a segmentation that cannot work are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.mask_files import write_mask_folder
from raykd.errors import StudyError
from raykd.losses import LOSSES
from raykd.study.checks.load import load_study
from raykd.study.config import Study

STUDY = {
    "name": "segmentation",
    "data": "{name: mask_folder, root: ROOT}",
    "teacher": "{model: {name: unet, depth: 2, width: 4}}",
    "student": "{model: {name: unet, depth: 2, width: 2}}",
    "knowledge": "[{loss: kd}]",
    "train": "{epochs: 1}",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask_folder(tmp_path_factory.mktemp("masks"))


def loaded(root: Path, **changed: str) -> Study:
    file = root / "study.yaml"
    lines = [f"{key}: {value}" for key, value in (STUDY | changed).items()]
    file.write_text("\n".join(lines).replace("ROOT", str(root)))
    return load_study(file).settings


WRONG: list[tuple[dict[str, str], str]] = [
    ({"student": "{model: resnet}"}, "model 'resnet' gives a response for each sample, and task"),
    ({"student": "{model: {name: timm/resnet18}}"}, "use unet, torchvision/NAME, "),
    ({"student": "{model: {name: torchvision/resnet18}}"}, "fcn_resnet50"),
    ({"student": "{model: {name: low_rank}}"}, "model 'low_rank' gives a response for each sample"),
    ({"teacher": "{model: {name: vit}}"}, "teacher.model.name"),
    ({"knowledge": "[{loss: dkd}]"}, "use kd, logit_mse, dist, logit_std, cwd"),
    ({"knowledge": "[{loss: crd}]"}, "loss 'crd' does not fit task 'segmentation'"),
    ({"knowledge": "[{loss: simkd}]"}, "the task gives one class a position"),
    ({"knowledge": "[{loss: irg}]"}, "loss 'irg' does not fit task 'segmentation'"),
    ({"knowledge": "[{loss: {name: logit_std, loss: dkd}}]"}, "loss 'dkd' does not fit task"),
    ({"knowledge": "[{loss: {choice: [kd, nkd]}}]"}, "loss 'nkd' does not fit task"),
    ({"scheme": "dml"}, "scheme 'dml' does not fit task 'segmentation'"),
    ({"task": "classification"}, "remove `task`, or write `task: segmentation`"),
    ({"task": "{name: segmentation, metrics: [accuracy]}"}, "mean_iou"),
    ({"search": "{objectives: {val_accuracy: max}}"}, "val_mean_iou, val_pixel_accuracy, val_loss"),
    ({"search": "{objectives: {val_mean_iou: min}}"}, "val_mean_iou must be maximized"),
    ({"search": "{proxy: naswot}"}, "proxy 'naswot' does not fit task 'segmentation'"),
    (
        {"data": "{name: mask_folder, root: ROOT, augment: [rand_augment]}"},
        "'rand_augment' does not move masks along with their images",
    ),
    ({"data": "{name: mask_folder, root: ROOT, labels_per_class: 2}"}, "labels_per_class"),
    ({"data": "{name: mask_folder, root: ROOT, channels: 2}"}, "channels"),
    ({"teacher": "{outputs: outputs.parquet}"}, "needs maps of scores"),
    ({"student": "{model: {name: unet, depth: 5}}"}, "`depth` to at most 3"),
    ({"student": "{model: {name: unet, depth: 0}}"}, "depth"),
    (
        {"knowledge": "[{loss: cwd_feature, pairs: [{hint: stage9, guided: stage1}]}]"},
        "there is no layer 'stage9'",
    ),
    ({"knowledge": "[{loss: pkt}]"}, "embedding"),
    ({"data": "digits"}, "model 'unet' gives a response for each position, and task"),
    ({"data": "digits", "task": "segmentation"}, "task 'segmentation' learns one class a position"),
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
    """Losses that need the classifier's input, which these networks do not have, name pairs."""
    pairs = ", pairs: [{hint: stage3, guided: stage3}, {hint: stage4, guided: stage4}]"
    loss = LOSSES[name]
    pairs = pairs if loss.takes_pairs and loss.default_pairs == "embedding" else ""
    knowledge = f"[{{loss: {name}{pairs}}}]"
    if "dense" in loss.kinds:
        loaded(root, knowledge=knowledge)
        return
    with pytest.raises(StudyError, match="does not fit task 'segmentation'"):
        loaded(root, knowledge=knowledge)


def test_data_decide_the_task(root: Path) -> None:
    study = loaded(root)
    assert study.learning_task.name == "segmentation"
    assert study.search.objectives == {"val_mean_iou": "max"}
    loaded(root, student="{model: {name: torchvision/lraspp_mobilenet_v3_large}}")
