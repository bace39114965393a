"""Studies with few labels or none whose options need more are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.layer_study.design import design_layer_study
from raykd.models import Signature
from raykd.study.checks.load import load_study

STUDY = """\
name: few-labels
data: {name: digits, labels_per_class: COUNT}
teacher: {model: {name: mlp, width: 8}, weights: teacher.safetensors}
student: {model: {name: mlp, width: 4}}
train: {epochs: 1}
"""

FEW = STUDY.replace("COUNT", "10")
NONE = STUDY.replace("COUNT", "0")
KD = "knowledge: [{loss: kd}]"


def refusal(folder: Path, text: str, *lines: str) -> str:
    file = folder / "study.yaml"
    file.write_text(text + "".join(f"{line}\n" for line in lines))
    with pytest.raises(StudyError) as caught:
        load_study(file)
    return str(caught.value)


WRONG = [
    (STUDY.replace("COUNT", "-1"), (KD,), "data.labels_per_class"),
    (STUDY.replace("COUNT", "2.5"), (KD,), "data.labels_per_class"),
    (STUDY.replace("COUNT", "ten"), (KD,), "data.labels_per_class"),
    (STUDY.replace("COUNT", "{choice: [10, 20]}"), (KD,), "data.labels_per_class"),
    (STUDY.replace("labels_per_class: COUNT", "labels_a_class: 3"), (KD,), "labels_per_class"),
    (FEW, ("knowledge: [{loss: dkd}]",), "loss 'dkd' needs the label of every training sample"),
    (FEW, ("knowledge: [{loss: nkd}]",), "use kd, logit_mse, dist, logit_std"),
    (FEW, ("knowledge: [{loss: crd}]",), "knowledge[0].loss"),
    (FEW, ("knowledge: [{loss: {name: logit_std, loss: dkd}}]",), "knowledge[0].loss.loss"),
    (FEW, ("knowledge: [{loss: {choice: [kd, nkd]}}]",), "loss 'nkd' needs the label"),
    (
        FEW,
        (
            "knowledge: [{loss: kd}]",
            "scheme: {name: assistant, chain: [{model: {name: mlp, width: 6}}], "
            "knowledge: [{loss: dkd}]}",
        ),
        "scheme.knowledge[0].loss",
    ),
    (FEW, (KD, "scheme: dml"), "use offline"),
    (FEW, ("scheme: cs_kd",), "scheme 'cs_kd' needs the label of every training sample"),
    (FEW, (KD, "scheme: {choice: [offline, kdcl]}"), "scheme 'kdcl' needs the label"),
    (
        FEW,
        (KD, "task: {name: classification, sampling: balanced}"),
        "every class has equally many labels",
    ),
    (
        FEW,
        (KD, "task: {name: classification, class_weights: balanced}"),
        "remove `class_weights`",
    ),
    (
        FEW,
        (KD, "search: {proxy: diswot, objectives: {val_accuracy: max}}"),
        "proxy 'diswot' needs the label of every training sample",
    ),
    (
        FEW.replace("name: digits", "name: table, file: t.csv, target: price"),
        ("knowledge: [{loss: logit_mse}]",),
        "task 'regression' has none",
    ),
    (NONE, ("scheme: alone",), "learns from labels alone, and data.labels_per_class is 0"),
    (NONE.replace(", weights: teacher.safetensors", ""), (KD,), "train a teacher on labels"),
    (NONE, ("scheme: born_again",), "train a teacher on labels"),
    (NONE, (KD, "search: {objectives: {train_accuracy: max}}"), "use val_accuracy"),
]


@pytest.mark.parametrize(("text", "lines", "message"), WRONG)
def test_wrong_studies(tmp_path: Path, text: str, lines: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, text, *lines)


RIGHT = [
    (FEW, (KD,)),
    (FEW, ("scheme: alone",)),
    (FEW, ("scheme: born_again",)),
    (FEW, ("knowledge: [{loss: {choice: [kd, logit_mse, hint]}}]",)),
    (NONE, (KD, "search: {objectives: {val_accuracy: max}}")),
]


@pytest.mark.parametrize(("text", "lines"), RIGHT)
def test_right_studies(tmp_path: Path, text: str, lines: tuple[str, ...]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text + "".join(f"{line}\n" for line in lines))
    load_study(file)


def test_layer_study_without_labels_needs_another_term(tmp_path: Path) -> None:
    """Its arm without hint would have nothing to learn from."""
    hint = "{loss: hint, pairs: {pairing: {hint: [stage1, stage2], guided: [stage1]}}}"
    signature = Signature(input_shape=(1, 8, 8), classes=10)
    file = tmp_path / "study.yaml"
    text = NONE.replace("train: {epochs: 1}\n", f"knowledge: [{hint}]\n")
    file.write_text(text)
    with pytest.raises(StudyError, match="the arm without hint learns from labels alone"):
        design_layer_study(load_study(file), signature)
    file.write_text(text.replace("knowledge: [", "knowledge: [{loss: kd}, "))
    assert design_layer_study(load_study(file), signature).baseline.teacher is not None
