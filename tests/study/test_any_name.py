"""Options with many names in studies: read, drawn, checked, completed by editors."""

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


def _error_of(model: str, **more: Any) -> str:
    with pytest.raises(StudyError) as error:
        _opened(model, **more)
    return str(error.value)


CHOICE = (
    "{choice: [resnet8, timm/mobilenetv3_small_050, "
    "{name: timm/resnet18, args: {channels: {choice: [[4, 4, 8, 8], [8, 8, 8, 8]]}}}]}"
)


def test_branch_has_full_name() -> None:
    model, channels = _opened(CHOICE).dimensions
    assert model.values == ("resnet8", "timm/mobilenetv3_small_050", "timm/resnet18")
    assert (channels.name, channels.when) == (
        "student.model.args.channels",
        "student.model = timm/resnet18",
    )


def test_every_branch_is_drawn() -> None:
    study = _opened(CHOICE)
    assert study.signature is not None
    drawn = [
        study.bind(study.signature).draw(Seeded(seed)).study.student.model for seed in range(20)
    ]
    assert {model.name for model in drawn} == {
        "resnet8",
        "timm/mobilenetv3_small_050",
        "timm/resnet18",
    }
    arguments = {model.args for model in drawn if isinstance(model, Timm)}
    assert {"channels": (4, 4, 8, 8)} in [dict(args) for args in arguments]


def test_bare_name_is_option() -> None:
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
def test_schema_allows_names(model: str, fits: bool) -> None:
    assert VALIDATOR.is_valid(parse_document(_with_model(model)).data) is fits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("timm/resnt18", "study.yaml:7: student.model: timm has no model 'resnt18'; did you mean"),
        ("timmy/resnet18", "unknown model 'timmy/resnet18'; must be one of"),
        ("resnet50", "write ResNet50 or torchvision/resnet50 or timm/resnet50"),
        ("distilbert", "write hf/distilbert"),
        ("resnet65", "did you mean 'resnet56'?"),
        ("3", "student.model: got 3; `name` must be one of"),
        ("{depth: 8}", "student.model: `name` is missing"),
        ("{name: timm/resnet18, sten: small}", "student.model.sten: unknown key `sten`; model"),
        ("{name: timm/resnet18, stem: tiny}", "student.model.stem: got 'tiny'; must be 'own' or"),
        ("{name: hf/bert}", "no classifier of images with architecture 'bert'"),
        ("{choice: [resnet8, {name: timm/resnet18, args: 3}]}", "student.model.args: got 3; must"),
    ],
)
def test_errors(model: str, message: str) -> None:
    assert message in _error_of(model)


def test_errors_for_pairs_that_depend_on_stages() -> None:
    text = changed(
        (STUDENT, "  model: timm/resnt18\n"),
        ("knowledge:\n", "knowledge:\n  - {loss: hint, pairs: {pairing: {max: 2}}}\n"),
    )
    with pytest.raises(StudyError, match="timm has no model 'resnt18'"):
        open_study(parse_document(text))


class TestCode:
    @pytest.mark.parametrize("model", ["my.models:build", "models:/m@champion", "runs:/1a/model"])
    def test_code_is_rejected_before_import(self, model: str) -> None:
        message = _error_of(f"{{choice: [resnet8, {{name: '{model}'}}]}}")
        assert f"student.model.name: '{model}' would run code from outside raykd" in message
        assert "--allow-import" in message

    def test_code_of_teacher(self) -> None:
        text = BASE.replace("model: {name: resnet, depth: 14, width: 8}", "model: 'my.m:build'")
        with pytest.raises(StudyError, match=r"teacher\.model\.name: 'my\.m:build' would run code"):
            open_study(parse_document(text))

    def test_allowed_code_runs(self) -> None:
        assert "No module named 'no_such_package'" in _error_of(
            "'no_such_package.models:build'", allow_import=True
        )


class TestFamily:
    def test_options_of_many_names_are_separate(self) -> None:
        assert set(MODELS.forms) >= {"timm/NAME", "torchvision/NAME", "hf/NAME"}
        assert not set(MODELS.forms) & set(MODELS.members)
        assert MODELS["timm/anything"] is MODELS.find("timm/x.y_z") is Timm
        assert MODELS["my_package.models:build"] is Imported
        assert MODELS["models:/name@alias"] is MODELS["runs:/1a/model"] is Stored
        assert MODELS.find("timm/") is None is MODELS.find("nothing")
        assert option_name(Timm) == "timm/NAME"

    def test_single_option_of_many_names(self) -> None:
        from pydantic import TypeAdapter

        models = Registry("model", base=Model, entry_points="raykd.none")
        models.add(Timm)
        adapter = TypeAdapter(Annotated[Model, models])
        assert adapter.validate_python({"name": "timm/a"}) == Timm(name="timm/a")
        with pytest.raises(ValueError, match="name"):
            adapter.validate_python({"name": "other/a"})
