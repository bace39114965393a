"""`raykd layers`: of a model, of a study file; in a terminal, in a pipe, for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raykd.cli.commands import app
from raykd.errors import StudyError
from raykd.models import MODELS, Signature, profile_model
from raykd.report.layers import ModelInputs, list_layers
from raykd.report.terminal.layers import layer_lines, layer_tables

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
DIGITS = ModelInputs(data="digits")


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["layers", *words])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["layers", *words])
    assert result.exit_code == 2, result.output
    return result.output


def test_every_layer_of_model_is_listed() -> None:
    found = json.loads(run("resnet8x4", "--classes", "100", "--json"))
    (model,) = found["models"]
    known = profile_model(MODELS["resnet8x4"](), Signature((3, 32, 32), 100))
    assert (model["params"], model["macs"]) == (known.params, known.macs)
    assert [layer["module"] for layer in model["layers"]] == [
        one.module for one in known.ordered_layers
    ]
    by_stage = {layer["stage"]: layer for layer in model["layers"] if layer["stage"]}
    assert {*by_stage} == {"stage1", "stage2", "stage3", "embedding"}
    assert by_stage["stage3"]["shape"] == [256, 8, 8]
    assert by_stage["embedding"]["shape"] == [256]
    depths = [layer["depth"] for layer in model["layers"] if layer["stage"]]
    assert depths == sorted(depths)
    costs = [layer["macs"] for layer in model["layers"] if layer["side"] == "output"]
    assert costs == sorted(costs)
    assert costs[-1] == known.macs


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (("{name: resnet, depth: 8, width: 6}", "--data", "digits"), "6x8x8"),
        (("resnet", "--set", "depth=8", "--set", "width=6", "--data", "digits"), "6x8x8"),
        (("resnet", "--set", "depth=8", "--set", "width=6", "--input", "1,28,28"), "6x28x28"),
        (("{name: torchvision/resnet18}", "--input", "3,64,64"), "64x16x16"),
        (
            (
                "{name: hf/bert, config: {num_hidden_layers: 2, hidden_size: 16, "
                "num_attention_heads: 2, intermediate_size: 16}}",
                "--text",
                "12,30",
            ),
            "12x16",
        ),
    ],
)
def test_model_is_named_in_several_ways(words: tuple[str, ...], shape: str) -> None:
    lines = run(*words, "--stages").splitlines()
    (first,) = [line for line in lines if line.startswith("stage1 ")]
    assert shape in first.split()


def test_pipe_has_line_per_layer_and_terminal_whole_table() -> None:
    found = list_layers("shufflenet_v2", ["depths=[1, 1, 1]", "width=8", "head=16"], DIGITS)
    (model,) = found.models
    plain = list(layer_lines(found, stages=False))
    names = [layer.module for layer in model.profile.ordered_layers]
    assert len(plain) == len(names) + 3
    assert all(line == line.rstrip() for line in plain)
    for width in (40, 80, 160):
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=True, color_system=None)
        console.print(layer_tables(found, stages=False), crop=False)
        shown = text.getvalue()
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown, "folded, not cut"
        assert max(names, key=len) in shown or width < 160


def test_study_shows_teacher_and_students_side_by_side() -> None:
    content = json.loads(run(str(QUICKSTART), "--json", "--stages"))
    roles = [model["role"] for model in content["models"]]
    assert roles == ["teacher", "student", "student", "student"]
    sizes = [model["params"] for model in content["models"][1:]]
    assert sizes == sorted(sizes)
    assert content["pairings"]["knowledge[1].pairs"] == {
        "reading": ["auto", "auto"],
        "hint": ["stage1", "stage2", "stage3"],
        "guided": ["stage1", "stage2", "stage3"],
    }
    plain = run(str(QUICKSTART), "--stages").splitlines()
    assert plain[0].split()[:2] == ["stage", "teacher"]
    assert plain[1].startswith("stage1")
    assert "knowledge[1].pairs samples hint from auto: stage1, stage2, stage3" in plain


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnett",), "did you mean 'resnet'?"),
        (("resnet", "--set", "depth=21"), "depth: a resnet's depth, with 3 stages of basic blocks"),
        (("resnet", "--set", "depht=8"), "did you mean 'depth'?"),
        (("resnet", "--set", "depth={choice: [8, 14]}"), "left open: 8 | 14"),
        (("resnet", "--input", "3x32x32"), "--input takes 3,32,32; got '3x32x32'"),
        (("torchvision/resnet81",), "did you mean torchvision/resnet18"),
        (("my_models:build",), "--allow-import"),
        (("resnet", "--data", "digitz"), "did you mean 'digits'?"),
        (
            (str(QUICKSTART), "--data", "digits"),
            "a study file already defines the inputs of its models",
        ),
        (("{name: resnet",), "MODEL is not YAML"),
        (("nowhere.yaml",), "nowhere.yaml"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str) -> None:
    assert message in refused(*words)


def test_model_without_input_shape_explains_option() -> None:
    with pytest.raises(StudyError, match="--input"):
        list_layers("torchvision/inception_v3", [], ModelInputs())
