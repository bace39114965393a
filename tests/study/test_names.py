"""Short names of students."""

from __future__ import annotations

from raykd.losses import Hint
from raykd.models import Cnn, Model, Resnet, Vit
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import Group
from raykd.study.config import plain
from raykd.study.short_names import model_name, training_names


def _named(model: Model) -> str:
    return model_name(plain(model))


def test_names_contain_sizes_and_non_default_fields() -> None:
    assert _named(Resnet()) == "resnet d20 w16"
    assert _named(Resnet(depth=8, stem=4)) == "resnet d8 w16 stem=4"
    assert _named(Vit(mlp_ratio=0.123456)) == "vit d6 w128 mlp_ratio=0.123"
    assert model_name({"name": "resnet8x4"}) == "resnet8x4"
    assert model_name(None) == "a stored model"


def test_names_contain_sizes_and_blocks_of_stages() -> None:
    stages = (CnnStage(width=8), CnnStage(width=16, depth=2, block=Group(groups=2)))
    assert _named(Cnn(stages=stages)) == "cnn stages=[d1 w8 plain, d2 w16 group]"


def test_training_name_has_student_losses_and_pairs() -> None:
    term = {"loss": {"name": "kd", "temperature": 4.0}, "weight": 0.5}
    pair = {"hint": "stage2", "guided": "stage1", "weight": 1.0, "loss": None}
    hint = {"loss": plain(Hint()), "weight": 12.0, "pairs": [pair]}
    study = {"student": {"model": plain(Resnet(depth=8))}, "knowledge": [term, hint]}
    assert training_names(study) == {
        "student": "resnet d8 w16",
        "learns_from": "0.5 kd T=4 + 12 hint",
        "pairs": "s2>s1",
    }
    assert training_names({**study, "knowledge": []})["learns_from"] == "labels"
    nouns = {"multi_label": "labels", "regression": "targets", "embedding": "targets"}
    for task, noun in nouns.items():
        untaught = {**study, "knowledge": [], "task": {"name": task}}
        assert training_names(untaught)["learns_from"] == noun
