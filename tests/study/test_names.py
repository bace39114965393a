"""Short names of students."""

from __future__ import annotations

from raykd.losses import Hint
from raykd.models import Cnn, Model, Resnet, Vit
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import Group
from raykd.study.config import plain
from raykd.study.short_names import model_name, names_of


def _named(model: Model) -> str:
    return model_name(plain(model))


def test_sizes_are_always_shown_and_the_rest_where_it_differs() -> None:
    assert _named(Resnet()) == "resnet d20 w16"
    assert _named(Resnet(depth=8, stem=4)) == "resnet d8 w16 stem=4"
    assert _named(Vit(mlp_ratio=0.123456)) == "vit d6 w128 mlp_ratio=0.123"
    assert model_name({"name": "resnet8x4"}) == "resnet8x4"
    assert model_name(None) == "a stored model"


def test_stages_are_shown_by_their_sizes_and_blocks() -> None:
    stages = (CnnStage(width=8), CnnStage(width=16, depth=2, block=Group(groups=2)))
    assert _named(Cnn(stages=stages)) == "cnn stages=[d1 w8 plain, d2 w16 group]"


def test_a_training_is_named_by_its_student_its_losses_and_its_pairs() -> None:
    term = {"loss": {"name": "kd", "temperature": 4.0}, "weight": 0.5}
    pair = {"hint": "stage2", "guided": "stage1", "weight": 1.0, "loss": None}
    hint = {"loss": plain(Hint()), "weight": 12.0, "pairs": [pair]}
    study = {"student": {"model": plain(Resnet(depth=8))}, "knowledge": [term, hint]}
    assert names_of(study) == {
        "student": "resnet d8 w16",
        "learns_from": "0.5 kd T=4 + 12 hint",
        "pairs": "s2>s1",
    }
    assert names_of({**study, "knowledge": []})["learns_from"] == "labels"
