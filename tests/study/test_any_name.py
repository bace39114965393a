"""Options that answer to many names, in studies: read, drawn, checked, completed by editors."""

from __future__ import annotations

from typing import Annotated, Any

import jsonschema
import pytest

from helpers.study_files import BASE, changed
from raykd.errors import StudyError
from raykd.models import MODELS, Model
from raykd.models.adapters import Imported, Stored, Timm
from raykd.registry import Registry, option_name
from raykd.study.checks.load import open_study
from raykd.study.json_schema import json_schema
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded
from raykd.study.yaml_file import parse_document

VALIDATOR = jsonschema.Draft202012Validator(json_schema())

STUDENT = """\
  model:
    name: resnet
    depth: 8
    width: 4
"""


def _with_model(model: str) -> str:
    return changed((STUDENT, f"  model: {model}\n"))


def _opened(model: str, **more: Any) -> OpenStudy:
    return open_study(parse_document(_with_model(model), "study.yaml"), **more)


def _refused(model: str, **more: Any) -> str:
    with pytest.raises(StudyError) as error:
        _opened(model, **more)
    return str(error.value)


CHOICE = (
    "{choice: [resnet8, timm/mobilenetv3_small_050, "
    "{name: timm/resnet18, args: {channels: {choice: [[4, 4, 8, 8], [8, 8, 8, 8]]}}}]}"
)


def test_a_branch_bears_the_full_name() -> None:
    model, channels = _opened(CHOICE).dimensions
    assert model.values == ("resnet8", "timm/mobilenetv3_small_050", "timm/resnet18")
    assert (channels.name, channels.when) == (
        "student.model.args.channels",
        "student.model = timm/resnet18",
    )


def test_every_branch_is_drawn() -> None:
    study = _opened(CHOICE)
    assert study.task is not None
    drawn = [study.bind(study.task).draw(Seeded(seed)).study.student.model for seed in range(20)]
    assert {model.name for model in drawn} == {
        "resnet8",
        "timm/mobilenetv3_small_050",
        "timm/resnet18",
    }
    held = {model.args for model in drawn if isinstance(model, Timm)}
    assert {"channels": (4, 4, 8, 8)} in [dict(args) for args in held]


def test_a_bare_name_stands_for_an_option() -> None:
    study = _opened("timm/resnet18").settings
    assert study.student.model == Timm(name="timm/resnet18")
    assert _opened("timm/resnet18").flat(study)["student.model"] == "timm/resnet18"


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        ("timm/resnet18", True),
        ("{name: torchvision/resnet18, stem: small}", True),
        ("{name: hf/vit, config: {hidden_size: {int: [16, 32], step: 16}}}", True),
        (CHOICE, True),
        ("'models:/student@champion'", True),
        ("{name: 'my.models:build', args: {width: 8}}", True),
        ("{name: timm/resnet18, stem: tiny}", False),
        ("{name: timm/resnet18, config: {}}", False),
        ("timmy/resnet18", False),
    ],
)
def test_what_editors_allow(model: str, fits: bool) -> None:
    assert VALIDATOR.is_valid(parse_document(_with_model(model)).data) is fits


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("timm/resnt18", "study.yaml:7: student.model: timm has no model 'resnt18'; did you mean"),
        ("timmy/resnet18", "unknown model 'timmy/resnet18'; must be one of"),
        ("3", "student.model: got 3; `name` must be one of"),
        ("{depth: 8}", "student.model: `name` is missing"),
        ("{name: timm/resnet18, sten: small}", "student.model.sten: unknown key `sten`; model"),
        ("{name: timm/resnet18, stem: tiny}", "student.model.stem: got 'tiny'; must be 'own' or"),
        ("{name: hf/bert}", "no classifier of images with architecture 'bert'"),
        ("{choice: [resnet8, {name: timm/resnet18, args: 3}]}", "student.model.args: got 3; must"),
    ],
)
def test_mistakes(model: str, told: str) -> None:
    assert told in _refused(model)


def test_mistakes_are_told_where_pairs_hang_on_the_stages() -> None:
    text = changed(
        (STUDENT, "  model: timm/resnt18\n"),
        ("knowledge:\n", "knowledge:\n  - {loss: hint, pairs: {pairing: {max: 2}}}\n"),
    )
    with pytest.raises(StudyError, match="timm has no model 'resnt18'"):
        open_study(parse_document(text))


class TestCode:
    @pytest.mark.parametrize("model", ["my.models:build", "models:/m@champion", "runs:/1a/model"])
    def test_is_refused_before_it_is_looked_at(self, model: str) -> None:
        said = _refused(f"{{choice: [resnet8, {{name: '{model}'}}]}}")
        assert f"student.model.name: '{model}' would run code from outside raykd" in said
        assert "--allow-import" in said

    def test_in_a_teacher_too(self) -> None:
        text = BASE.replace("model: {name: resnet, depth: 14, width: 8}", "model: 'my.m:build'")
        with pytest.raises(StudyError, match=r"teacher\.model\.name: 'my\.m:build' would run code"):
            open_study(parse_document(text))

    def test_runs_where_it_is_allowed(self) -> None:
        assert "No module named 'no_such_package'" in _refused(
            "'no_such_package.models:build'", allow_import=True
        )


class TestFamily:
    def test_options_of_many_names_stand_apart(self) -> None:
        assert set(MODELS.forms) >= {"timm/NAME", "torchvision/NAME", "hf/NAME"}
        assert not set(MODELS.forms) & set(MODELS.members)
        assert MODELS["timm/anything"] is MODELS.find("timm/x.y_z") is Timm
        assert MODELS["my_package.models:build"] is Imported
        assert MODELS["models:/name@alias"] is MODELS["runs:/1a/model"] is Stored
        assert MODELS.find("timm/") is None is MODELS.find("nothing")
        assert option_name(Timm) == "timm/NAME"

    def test_one_option_of_many_names_alone(self) -> None:
        from pydantic import TypeAdapter

        models = Registry("model", base=Model, entry_points="raykd.none")
        models.add(Timm)
        adapter = TypeAdapter(Annotated[Model, models])
        assert adapter.validate_python({"name": "timm/a"}) == Timm(name="timm/a")
        with pytest.raises(ValueError, match="name"):
            adapter.validate_python({"name": "other/a"})
