"""Wrong studies over `teacher.input` and `student.input` get one message before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykd.errors import StudyError
from raykd.input_forms import Text, TextForm
from raykd.models import Signature
from raykd.study.checks.load import check_shapes, load_study
from raykd.study.explain import explain
from raykd.study.open_study import OpenStudy
from raykd.tuning.study_input import CHECKS

STUDY = """\
name: inputs
data: {name: digits}
teacher: {model: {name: mlp, width: 8}, train: {epochs: 1}}
student: {model: {name: mlp, width: 4}, input: 4x4}
knowledge: [{loss: kd}]
train: {epochs: 1}
"""

TEACHER = "teacher: {model: {name: mlp, width: 8}, train: {epochs: 1}"
STUDENT = "student: {model: {name: mlp, width: 4}"
GROUPS = "data: {name: table, file: t.csv, target: y, inputs: {all: [a, b], few: [a]}}"
PHOTOS = "data: {name: table, file: t.csv, target: y, inputs: {all: [a], p: {images: b, size: 8}}}"
TEXTS = "data: {name: text, file: t.csv, tokenizer: t}"
LANGUAGES = "data: {name: text, file: t.csv, tokenizer: t, inputs: {en: {text: a}, de: {text: b}}}"
BERT = "{name: hf/bert, config: {hidden_size: 8, num_attention_heads: 2, num_hidden_layers: 1}}"
READER = f"teacher: {{model: {BERT}, train: {{epochs: 1}}"
LEARNER = f"student: {{model: {BERT}"


def inputs_of_texts(inputs: str, more: str = "") -> tuple[str, ...]:
    """Return the lines of a study whose texts have these inputs."""
    data = f"data: {{name: text, file: t.csv, tokenizer: t, inputs: {inputs}{more}}}"
    return (data, f"{READER}, input: en}}", f"{LEARNER}, input: de}}")


SIMKD = "knowledge: [{loss: simkd, pairs: [{hint: embedding, guided: embedding}]}]"
MSE = "knowledge: [{loss: logit_mse}]"


def loaded(folder: Path, *lines: str) -> OpenStudy:
    keys = [line.split(":")[0] for line in lines]
    rest = [line for line in STUDY.splitlines() if line.split(":")[0] not in keys]
    file = folder / "study.yaml"
    file.write_text("\n".join([*rest, *lines, ""]))
    return load_study(file)


WRONG = [
    ((f"{STUDENT}, input: 3x3}}",), "student.input", "8x8 pixels, which are no multiples of 3"),
    ((f"{STUDENT}, input: 16x16}}",), "student.input", "no multiples of 16 and 16"),
    ((f"{STUDENT}, input: gray}}",), "student.input", "needs images of 3 channels; these have 1"),
    ((f"{STUDENT}, input: small}}",), "student.input", "unknown input 'small'; inputs of images"),
    ((f"{STUDENT}, input: ''}}",), "student.input", "must be text that is not empty"),
    ((f"{STUDENT}, input: 4}}",), "student.input", "text"),
    ((f"{STUDENT}, inputs: 4x4}}",), "student", "unknown key `inputs`"),
    ((f"{TEACHER}, input: 5x5}}",), "teacher.input", "no multiples of 5 and 5"),
    ((f"{TEACHER}, input: {{choice: [4x4, 5x5]}}}}",), "teacher.input", "no multiples of 5"),
    ((f"{STUDENT}, input: {{choice: [4x4, 5x5]}}}}",), "student.input", "no multiples of 5"),
    (
        ("scheme: {name: multi_teacher, others: [{model: {name: mlp}, input: 7x7}]}",),
        "scheme.others[0].input",
        "no multiples of 7 and 7",
    ),
    (
        ("scheme: {name: assistant, chain: [{model: {name: mlp}, input: 7x7}]}",),
        "scheme.chain[0].input",
        "no multiples of 7 and 7",
    ),
    (("teacher: {outputs: o.csv, input: 4x4}",), "teacher.input", "takes no input"),
    ((GROUPS, MSE, f"{STUDENT}, input: fw}}"), "student.input", "unknown input 'fw' of data"),
    ((GROUPS, MSE, f"{STUDENT}, input: gray}}"), "student.input", "inputs: all, few"),
    ((TEXTS, f"{STUDENT}, input: few}}"), "student.input", "its samples have one input"),
    ((PHOTOS, MSE, f"{STUDENT}, input: all}}"), "teacher.input", "it is missing, and a sample"),
    (
        (PHOTOS, MSE, f"{TEACHER}, input: p}}", f"{STUDENT}}}"),
        "student.input",
        "has several: all, p",
    ),
    (
        ("data: {name: table, file: t.csv, target: y, inputs: {}}", MSE, f"{STUDENT}}}"),
        "data",
        "`inputs` is an empty mapping; name groups of columns",
    ),
    (
        ("data: {name: table, file: t.csv, target: y, inputs: {few: []}}", MSE, f"{STUDENT}}}"),
        "data",
        "`inputs.few` is []; it must be a list of columns, or",
    ),
    (
        ("data: {name: table, file: t.csv, target: y, inputs: {few: [y]}}", MSE, f"{STUDENT}}}"),
        "data",
        "column 'y' is listed twice",
    ),
    (
        ("data: {name: table, file: t.csv, target: y, inputs: {p: {images: b}}}", MSE),
        "data",
        "`inputs.p` is no column of images: ",
    ),
    ((LANGUAGES, f"{READER}}}", f"{LEARNER}, input: de}}"), "teacher.input", "several: en, de"),
    ((LANGUAGES, f"{READER}, input: en}}", f"{LEARNER}}}"), "student.input", "several: en, de"),
    (
        (LANGUAGES, f"{READER}, input: en}}", f"{LEARNER}, input: fr}}"),
        "student.input",
        "unknown input 'fr' of data 'text'; inputs: en, de",
    ),
    (
        (LANGUAGES, f"{READER}, input: en}}", f"{LEARNER}, input: {{choice: [de, fr]}}}}"),
        "student.input",
        "unknown input 'fr' of data 'text'; inputs: en, de",
    ),
    (
        (LANGUAGES, SIMKD, f"{READER}, input: en}}", f"{LEARNER}, input: de}}"),
        "knowledge[0].loss",
        "joins teacher and student to one network",
    ),
    (inputs_of_texts("{}"), "data.inputs", "got an empty mapping; must be at least one"),
    (inputs_of_texts("[a, b]"), "data.inputs", "got a list of 2; must be a mapping"),
    (inputs_of_texts("{en: a, de: {}}"), "data.inputs.en", "got 'a'; must be a mapping"),
    (inputs_of_texts("{en: null, de: {}}"), "data.inputs.en", "got null; must be a mapping"),
    (
        inputs_of_texts("{en: {txt: a}, de: {}}"),
        "data.inputs.en.txt",
        "unknown key `txt`; data.inputs.en has text, second, tokenizer, max_length",
    ),
    (
        inputs_of_texts("{en: {max_length: 1}, de: {}}"),
        "data.inputs.en.max_length",
        "got 1; must be >= 2",
    ),
    (
        inputs_of_texts("{en: {max_length: {choice: [4, 8]}}, de: {}}"),
        "data.inputs.en.max_length",
        "all trials of a study share one data set",
    ),
    (inputs_of_texts("{'': {text: a}, en: {}, de: {}}"), "data", "is no name of an input"),
    (
        inputs_of_texts("{en: {text: a}, de: {text: b}}", ", text: c"),
        "data",
        "`text: c` belongs to no input: each of `inputs` names its own; remove `text`",
    ),
    (
        inputs_of_texts("{en: {text: a}, de: {second: b}}", ", text: c, second: d"),
        "data",
        "`second: d` belongs to no input",
    ),
    (
        ("student: {model: {name: low_rank}, input: 4x4}",),
        "student.input",
        "begins with weights of the teacher",
    ),
    ((SIMKD,), "knowledge[0].loss", "joins teacher and student to one network"),
    (("search: {proxy: diswot}",), "search.proxy", "compares teacher and student on the same"),
    (
        (f"{STUDENT}, input: {{choice: [4x4, 2x2]}}}}", "search: {proxy: naswot}"),
        "student.input",
        "ranks networks on one batch",
    ),
    (
        (f"{TEACHER}, input: 2x2}}", "scheme: dml"),
        "teacher.input",
        "trains its networks on `student.input` alone",
    ),
]


@pytest.mark.parametrize(
    ("lines", "path", "message"), WRONG, ids=[f"{row[1]} {row[2]}"[:60] for row in WRONG]
)
def test_wrong_studies(tmp_path: Path, lines: tuple[str, ...], path: str, message: str) -> None:
    with pytest.raises(StudyError) as error:
        loaded(tmp_path, *lines)
    [problem] = error.value.problems
    assert path in problem.path or path in str(problem)
    assert message in str(problem)
    assert problem.line, "the message names the line"


def test_costs_are_those_of_the_input_of_the_student(tmp_path: Path) -> None:
    study = loaded(tmp_path, f"{STUDENT}, input: {{choice: [4x4, 2x2]}}}}")
    assert study.signature is not None
    bound = study.bind(study.signature)
    macs = {each.study.student.input: each.costs["macs"] for each in bound.corners()}
    small, large = macs["2x2"], macs["4x4"]
    assert large - small == (16 - 4) * 4
    for candidate in bound.corners():
        [teacher] = candidate.teacher_profiles
        assert teacher is not None and candidate.signature.input_shape[1:] in ((4, 4), (2, 2))
        assert teacher.params > candidate.student.params, "the teacher takes the whole digit"


def test_inputs_that_loaded_data_lack(tmp_path: Path) -> None:
    """The shape of some data is known only after they are loaded."""
    (tmp_path / "images").mkdir()
    study = loaded(
        tmp_path,
        f"data: {{name: mask_folder, root: '{tmp_path}'}}",
        "teacher: {model: {name: unet, width: 4}, input: gray, train: {epochs: 1}}",
        "student: {model: {name: unet, width: 4}, input: gray-4x4}",
    )
    with pytest.raises(StudyError) as error:
        check_shapes(study, Signature((3, 8, 8), 2, dense=True), checks=CHECKS)
    [problem] = error.value.problems
    assert "student.input" in str(problem) and "keep its size" in str(problem)


TOKENS = Text(20)
ENGLISH, GERMAN = (TextForm(name, 16, TOKENS) for name in ("en", "de"))
STAGES = "pairs: [{hint: stage1, guided: stage1}]"


def checked_texts(
    folder: Path, knowledge: str, student: str = "de", german: TextForm = GERMAN
) -> OpenStudy:
    """Return a study whose networks read two texts, checked with their layers."""
    study = loaded(
        folder,
        LANGUAGES,
        f"{READER}, input: en}}",
        f"{LEARNER}, input: {student}}}",
        f"knowledge: [{knowledge}]",
    )
    check_shapes(study, Signature((), 2, forms=(ENGLISH, german)))
    return study


@pytest.mark.parametrize("length", [16, 6])
@pytest.mark.parametrize("loss", ["hint", "vid", "ab", "semckd", "value_relation"])
def test_positions_of_different_texts_are_not_compared(
    loss: str, length: int, tmp_path: Path
) -> None:
    german = TextForm("de", length, TOKENS)
    with pytest.raises(StudyError) as error:
        checked_texts(tmp_path, f"{{loss: {loss}, {STAGES}}}", german=german)
    [problem] = error.value.problems
    assert problem.path == "knowledge[0].pairs" and problem.line
    assert f"{loss} compares its layers position by position" in str(problem)
    checked_texts(tmp_path, f"{{loss: {loss}, {STAGES}}}", student="en")


@pytest.mark.parametrize("loss", ["pkt", "rkd", "sp", "cka"])
def test_relations_between_samples_hold_for_different_texts(loss: str, tmp_path: Path) -> None:
    checked_texts(tmp_path, f"{{loss: {loss}, {STAGES}}}")
    checked_texts(tmp_path, f"{{loss: {loss}, {STAGES.replace('stage1', 'embedding')}}}")


def test_pairings_of_different_texts_leave_positions_out(tmp_path: Path) -> None:
    layers = "{hint: [stage1, embedding], guided: [stage1, embedding], max: 1}"
    study = checked_texts(tmp_path, f"{{loss: hint, pairs: {{pairing: {layers}}}}}")
    bound = study.bind(Signature((), 2, forms=(ENGLISH, GERMAN)))
    [line] = bound.filtered.lines
    assert "excludes stage1>stage1" in line and "position by position" in line


def test_validate_lists_the_inputs(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert study.signature is not None
    facts = explain(study.bind(study.signature)).facts
    assert ("inputs", "student: 4x4 (1x4x4)") in facts
    assert ("", "teacher: the whole sample (1x8x8)") in facts
    plain = loaded(tmp_path, f"{STUDENT}}}")
    assert not [each for each in explain(plain.bind(study.signature)).facts if each[0] == "inputs"]


def test_trials_of_other_inputs_have_other_values(tmp_path: Path) -> None:
    study = loaded(tmp_path, f"{STUDENT}, input: {{choice: [4x4, 2x2]}}}}")
    assert [dimension.path for dimension in study.dimensions] == ["student.input"]
    assert study.size.points == 2
