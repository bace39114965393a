"""Wrong studies over `data.unlabeled` are refused before anything starts, with one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.study.checks.load import check_data, load_study

STUDY = """\
name: mixed
data: {name: digits, unlabeled: UNLABELED}
teacher: {model: {name: mlp, width: 8}}
student: {model: {name: mlp, width: 4}}
train: {epochs: 1}
"""

DIGITS = "{data: {name: digits}}"
KD = "knowledge: [{loss: kd}]"
TABLE = "data: {name: table, file: t.csv, target: price, unlabeled: {data: {name: digits}}}"


def loaded(folder: Path, unlabeled: str, *lines: str) -> None:
    keys = [line.split(":")[0] for line in lines]
    text = STUDY.replace("UNLABELED", unlabeled).splitlines()
    rest = [line for line in text if line.split(":")[0] not in keys]
    file = folder / "study.yaml"
    file.write_text("\n".join([*rest, *lines, ""]))
    load_study(file, checks=(check_data,))


WRONG = [
    ("{}", (KD,), "it is missing, and so is `folder`"),
    ("3", (KD,), "data.unlabeled"),
    ("{data: {name: digits}, folder: images}", (KD,), "give one of them"),
    ("{data: {name: digit}}", (KD,), "did you mean 'digits'"),
    ("{data: {name: fashion_mnist}}", (KD,), "have shape (1, 28, 28), those of the data (1, 8, 8)"),
    ("{folder: nowhere}", (KD,), "there is no folder"),
    ("{folder: .}", (KD,), "has no image"),
    ("{data: {name: digits}, ratio: 0}", (KD,), "must be > 0"),
    ("{data: {name: digits}, ratio: -1}", (KD,), "must be > 0"),
    ("{data: {name: digits}, ratio: many}", (KD,), "data.unlabeled.ratio"),
    ("{data: {name: digits}, ratio: {uniform: [0, 2]}}", (KD,), "data.unlabeled.ratio"),
    ("{data: {name: digits}, rate: 2}", (KD,), "unknown key `rate`"),
    ("{data: {name: digits}, limit: 0}", (KD,), "data.unlabeled.limit"),
    ("{data: {choice: [digits, fashion_mnist]}}", (KD,), "only data.augment and data.unlabeled.ra"),
    ("{data: {name: digits, labels_per_class: 1}}", (KD,), "no effect on samples without labels"),
    ("{data: {name: digits, augment: [random_crop]}}", (KD,), "holds for all samples"),
    ("{data: {name: digits, unlabeled: {folder: x}}}", (KD,), "unlabeled.data.unlabeled"),
    (DIGITS, ("knowledge: [{loss: dkd}]",), "samples of data.unlabeled have none"),
    (DIGITS, ("knowledge: [{loss: {choice: [kd, crd]}}]",), "loss 'crd' needs the label"),
    (DIGITS, (KD, "scheme: dml"), "use offline"),
    (DIGITS, (KD, "scheme: {choice: [offline, kdcl]}"), "scheme 'kdcl' needs the label"),
    (DIGITS, (KD, "task: {name: classification, sampling: balanced}"), "remove `sampling`"),
    (DIGITS, (KD, "task: {name: classification, class_weights: balanced}"), "class_weights"),
    (DIGITS, (KD, "search: {proxy: diswot}"), "proxy 'diswot' needs the label"),
    (DIGITS, ("knowledge: [{loss: logit_mse}]", TABLE), "are encoded by the training split"),
    ("{data: {name: table, file: t.csv, target: a}}", (KD,), "cannot be mixed with others"),
]


@pytest.mark.parametrize(
    ("unlabeled", "lines", "message"), WRONG, ids=[f"{row[0]} {row[1][0]}"[:70] for row in WRONG]
)
def test_wrong_studies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlabeled: str,
    lines: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as caught:
        loaded(tmp_path, unlabeled, *lines)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1, "one message"
    assert "study.yaml:" in str(caught.value), "file and line"


RIGHT = [
    (DIGITS, (KD,)),
    (DIGITS, ("scheme: alone",)),
    (DIGITS, ("scheme: born_again",)),
    ("{data: {name: digits}, ratio: {choice: [1, 3, 7]}}", (KD,)),
    ("{data: {name: digits}, ratio: {loguniform: [0.5, 8]}}", (KD,)),
]


@pytest.mark.parametrize(("unlabeled", "lines"), RIGHT)
def test_right_studies(tmp_path: Path, unlabeled: str, lines: tuple[str, ...]) -> None:
    loaded(tmp_path, unlabeled, *lines)
