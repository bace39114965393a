"""Loading studies: errors with place and fix, and valid studies."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import FixedTrial
from pydantic import ValidationError

from helpers.study_files import BASE, SHIPPED, changed, opened
from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Signature, Text, profile_model
from raykd.report.space import render_explanation
from raykd.study.checks.load import check_data, check_shapes, load_study, open_study
from raykd.study.config import Study, plain, read_study
from raykd.study.explain import explain
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded
from raykd.study.yaml_file import parse_document

DIGITS = Signature((1, 8, 8), 10)

HINT = "    weight: 0.5\n  - loss: {name: hint}\n    pairs: PAIRS"


def with_pairs(pairs: str, loss: str = "hint") -> str:
    return changed(
        ("    weight: 0.5", HINT.replace("PAIRS", pairs).replace("hint}", f"{loss}}}", 1))
    )


def problems_of(text: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(StudyError) as caught:
        opened(text, *overrides)
    return caught.value.problems


WRONG = [
    # common mistakes, except those that depend on the cluster and on files
    (
        changed(("temperature: 4", "temprature: 4")),
        "study.yaml:15: knowledge[0].loss.temprature: unknown key `temprature`; loss 'kd' has "
        "name, temperature\n    -> did you mean 'temperature'?",
    ),
    (
        changed(("depth: 8", "depth: eight")),
        "study.yaml:9: student.model.depth: got 'eight'; must be a whole number",
    ),
    (
        changed(("name: kd", "name: kdd")),
        "study.yaml:14: knowledge[0].loss.name: unknown loss 'kdd'; must be one of ",
    ),
    (
        with_pairs("[{hint: stage2, guided: stag2}]"),
        "study.yaml:18: knowledge[1].pairs[0].guided: student: there is no layer 'stag2'; did you "
        "mean 'stage2'",
    ),
    (
        with_pairs("[{hint: stage2, guided: embedding}]"),
        "study.yaml:18: knowledge[1].pairs: guided layer 'embedding' (16,) cannot be carried to "
        "hint layer 'stage2' (16, 4, 4)",
    ),
    (
        BASE + "cluster:\n  slots: -1\n",
        "study.yaml:19: cluster.slots: got -1; must be >= 1 or 'auto'",
    ),
    (
        changed(("depth: 8", "depth: {choice: []}")),
        "study.yaml:9: student.model.depth: an empty choice\n    -> list at least one option",
    ),
    (
        changed(("width: 4", "width: {int: [16, 4]}")),
        "study.yaml:10: student.model.width: reversed bounds [16, 4]; the lower bound "
        "must come first\n"
        "    -> write {int: [4, 16]}",
    ),
    (
        changed(("name: base", "name: no")),
        "study.yaml:1: name: got false; must be text\n"
        '    -> `no` is read as true or false; text needs quotes: "no"',
    ),
    (
        changed(("depth: 8", "depth: 010")),
        "study.yaml:9: student.model.depth: got '010'; must be a whole number\n"
        "    -> write it without leading zeros",
    ),
    (
        changed(("depth: 8", "depth: '8'")),
        "study.yaml:9: student.model.depth: got '8'; must be a whole number\n"
        "    -> write it without quotes",
    ),
    (
        changed(("temperature: 4", "temperature: 0,5")),
        "study.yaml:15: knowledge[0].loss.temperature: got '0,5'; must be a number\n"
        "    -> write it with a decimal point: 0.5",
    ),
    (
        changed(("temperature: 4", "temperature: \u22124")),
        "study.yaml:15: knowledge[0].loss.temperature: got '\u22124'; must be a number\n"
        "    -> write plain digits: remove U+2212",
    ),
    # keys and types
    (
        changed(("knowledge:", "knowlege:")),
        "study.yaml:12: knowlege: unknown key `knowlege`; a study has name, seed",
    ),
    (
        changed(("name: base", "nam: base")),
        "study.yaml:1: nam: unknown key `nam`; a study has name, seed, data, task, teacher, "
        "student, scheme, knowledge, train, search, cluster, cache, tracking\n    "
        "-> did you mean 'name'?",
    ),
    (changed(("data: {name: digits}\n", "")), "study.yaml:1: `data` is missing"),
    (
        changed(("depth: 8", "depth: [8, 14]")),
        "study.yaml:9: student.model.depth: got a list of 2; must be a whole number\n"
        "    -> for several values, write {choice: [...]}",
    ),
    (
        changed(("depth: 8", "depth: {chioce: [8, 14]}")),
        "study.yaml:9: student.model.depth: got a mapping of chioce; must be a whole number\n"
        "    -> did you mean 'choice'?",
    ),
    (
        changed(("width: 4", "width: '4'")),
        "study.yaml:10: student.model.width: got '4'; must be a whole number\n"
        "    -> write it without quotes",
    ),
    (
        changed(("width: 4", "width: 4.0")),
        "study.yaml:10: student.model.width: got 4.0; must be a whole number",
    ),
    (
        changed(("width: 4", "width: true")),
        "study.yaml:10: student.model.width: got true; must be a whole number",
    ),
    (
        changed(("temperature: 4", "temperature: -3")),
        "study.yaml:15: knowledge[0].loss.temperature: got -3; must be > 0",
    ),
    (
        changed(("width: 4", "width: {int: [0, 4]}")),
        "study.yaml:10: student.model.width: got 0; must be >= 1 (an end of {int: [0, 4]})",
    ),
    (
        changed(("depth: 8", "depth: {choice: [8, 9]}")),
        "study.yaml:9: student.model.depth: a resnet's depth",
    ),
    (
        changed(("name: base", "name: my study")),
        "study.yaml:1: name: got 'my study'; must be letters, digits",
    ),
    (
        changed(("      name: kd\n", "")),
        "study.yaml:13: knowledge[0].loss: `name` is missing; `name` must be one of ",
    ),
    (
        changed(("{name: offline}", "{choice: [{name: offline}, {name: ofline}]}")),
        "study.yaml:11: scheme.name: unknown scheme 'ofline'; must be one of ",
    ),
    (changed(("{name: offline}", "3")), "study.yaml:11: scheme: got 3; `name` must be one of "),
    (
        BASE + "search:\n  sampler: tpee\n",
        "study.yaml:19: search.sampler.name: unknown sampler 'tpee'; must be one of auto, cmaes, "
        "gp, grid, nsga2, nsga3, qmc, random, tpe\n    -> did you mean 'tpe'?",
    ),
    (
        BASE + "search:\n  constraints: {parms: {max: 3}}\n",
        "study.yaml:19: search.constraints.parms: unknown key `parms`; search.constraints has "
        "params, macs, memory, latency, batch_latency, onnx_latency, onnx_batch_latency\n"
        "    -> did you mean 'params'?",
    ),
    # rules
    (
        BASE + "search:\n  objectives: {val_acuracy: max}\n",
        "study.yaml:19: search.objectives.val_acuracy: unknown objective; must be one of val_acc",
    ),
    (
        BASE + "search:\n  objectives: {params: max}\n",
        "study.yaml:19: search.objectives.params: got 'max'; params must be minimized\n"
        "    -> write `params: min`",
    ),
    (
        BASE + "search:\n  objectives: {test_accuracy: max}\n",
        "study.yaml:19: search.objectives.test_accuracy: test metrics cannot be objectives",
    ),
    (
        BASE + "search:\n  constraints: {params: {min: 9, max: 3}}\n",
        "study.yaml:19: search.constraints.params: reversed bounds: min 9 is greater than max 3",
    ),
    (
        BASE + "search:\n  constraints: {macs: {}}\n",
        "study.yaml:19: search.constraints.macs: neither min nor max is given",
    ),
    (
        BASE + "search:\n  constraints: {params: {max: 100}}\n",
        "study.yaml:19: search.constraints.params: no architecture of this space has params <= "
        "100; the smallest found has 5,142",
    ),
    (
        BASE + "search:\n  constraints: {params: {min: 1_000_000}}\n",
        "study.yaml:19: search.constraints.params: no architecture of this space has params >= "
        "1,000,000; the largest found has 5,142",
    ),
    (
        changed(
            ("teacher:\n  model: {name: resnet, depth: 14, width: 8}\n  train: {epochs: 2}\n", "")
        ),
        "study.yaml:1: `teacher` is missing; scheme 'offline' needs one",
    ),
    (
        changed(
            ("  train: {epochs: 2}\nstudent", "  train: null\nstudent"),
            ("  model: {name: resnet, depth: 14, width: 8}\n", ""),
        ),
        "study.yaml:3: teacher: `model`, `weights` and `outputs` are missing",
    ),
    (
        changed(
            (
                "  train: {epochs: 2}\nstudent",
                "  train: {epochs: 2}\n  weights: x.safetensors\nstudent",
            )
        ),
        "study.yaml:5: teacher.train: a teacher loaded from `weights` is not trained",
    ),
    (
        changed(
            (
                "  model: {name: resnet, depth: 14, width: 8}\n  train: {epochs: 2}\n",
                "  weights: x.safetensors\n",
            )
        ),
        "study.yaml:3: teacher: `weights` without `model`",
    ),
    (
        changed(("{name: offline}", "alone")),
        "study.yaml:12: knowledge: scheme 'alone' uses no `knowledge`",
    ),
    (
        BASE.partition("knowledge:")[0] + "knowledge: []\n",
        "study.yaml:12: knowledge: `knowledge` is missing; scheme 'offline' needs it",
    ),
    (
        changed(
            ("    weight: 0.5", "    weight: 0.5\n    pairs: [{hint: stage1, guided: stage1}]")
        ),
        "study.yaml:17: knowledge[0].pairs: loss 'kd' works on logits and takes no pairs",
    ),
    (with_pairs("[]"), "study.yaml:18: knowledge[1].pairs: an empty list of pairs"),
    (
        with_pairs("[{hint: stage1, guided: stage1}, {hint: stage1, guided: stage1}]"),
        "study.yaml:18: knowledge[1].pairs[1]: stage1 -> stage1 is listed twice",
    ),
    (
        with_pairs("{pairing: {hint: [stage2, stage9]}}"),
        "study.yaml:18: knowledge[1].pairs.pairing.hint[1]: teacher: there is no layer 'stage9'",
    ),
    (
        changed(("weight: 0.5", "weight: {uniform: [0, 1]}")) + "search: {sampler: grid}\n",
        "study.yaml:18: search.sampler: 'grid' cannot list continuous values: knowledge[0].weight",
    ),
    (
        changed(
            ("  train: {epochs: 2}\nstudent", "student"),
            ("\ntrain: {epochs: 2}", "\ntrain: {epochs: {int: [1, 4]}}"),
        ),
        "study.yaml:3: teacher: without `teacher.train`",
    ),
    (
        changed(("width: 8}", "width: {int: [1, 40]}}")),
        "study.yaml:3: teacher: 40 different teachers; a study trains at most 16",
    ),
    # networks that a scheme names
    (
        changed(
            ("{name: offline}", "{name: assistant, chain: [{model: {name: resnet, depth: 9}}]}")
        ),
        "study.yaml:11: scheme.chain[0].model.depth: a resnet's depth",
    ),
    (
        changed(("{name: offline}", "{name: assistant, chain: []}")),
        "study.yaml:11: scheme.chain: got an empty list; must be at least one",
    ),
    (
        changed(
            ("{name: offline}", "{name: multi_teacher, others: [{model: mlp}], weights: [1, 2]}")
        ),
        "study.yaml:11: scheme: combine is mean and weights are (1.0, 2.0); set `weights`",
    ),
    (
        changed(
            ("{name: offline}", "{name: born_again, first: teacher}"),
            ("teacher:\n  model: {name: resnet, depth: 14, width: 8}\n  train: {epochs: 2}\n", ""),
        ),
        "study.yaml:1: `teacher` is missing; scheme 'born_again' needs one",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_invalid_studies_raise_one_error(text: str, message: str) -> None:
    (problem,) = problems_of(text)
    assert str(problem).startswith(message)


def test_all_problems_are_listed_in_order_of_lines() -> None:
    text = changed(
        ("temperature: 4", "temprature: 4"),
        ("depth: 8", "depth: eight"),
        ("width: 4", "width: {int: [16, 4]}"),
        ("weight: 0.5", "weight: -1"),
    )
    text += "search:\n  objectives: {val_acuracy: max}\n"
    assert [problem.line for problem in problems_of(text)] == [9, 10, 15, 16, 19]


def test_problem_in_one_branch_is_listed_once() -> None:
    text = changed(
        ("{name: offline}", "{choice: [{name: offline}, {name: alone}]}"),
        (
            "    weight: 0.5",
            "    weight: {uniform: [0, 1]}\n"
            "  - loss:\n"
            "      choice:\n"
            "        - null\n"
            "        - {name: hint, strength: 3}\n"
            "        - {name: at}",
        ),
    )
    (problem,) = problems_of(text)
    assert (problem.line, problem.path) == (20, "knowledge[1].loss.strength")


def test_long_lists_of_problems_are_truncated() -> None:
    text = BASE + "".join(f"strange{i}: 1\n" for i in range(50))
    problems = problems_of(text)
    assert len(problems) == 21
    assert problems[-1].message == "and 30 more problems"


def test_problems_of_overrides_name_command_line() -> None:
    (problem,) = problems_of(BASE, "student.model.width=wide")
    assert str(problem) == "--set: student.model.width: got 'wide'; must be a whole number"


def test_incompatible_pairs_are_excluded_before_drawing() -> None:
    text = with_pairs("{pairing: {hint: [stage1, embedding], guided: [stage2, embedding]}}")
    study = opened(text)
    drawn = [
        study.bind(DIGITS).draw(Seeded(seed)).resolved.knowledge[1].pairs or ()
        for seed in range(30)
    ]
    assert {f"{pair.hint}>{pair.guided}" for pairs in drawn for pair in pairs} == {
        "stage1>stage2",
        "embedding>stage2",
        "embedding>embedding",
    }
    (line,) = study.bind(DIGITS).filtered.lines
    assert line.startswith(
        "knowledge[1].pairs excludes stage1>embedding under hint: guided layer 'embedding' (16,)"
    )


def test_pairs_incompatible_for_some_draws_are_allowed() -> None:
    """One student without feature maps among others with them."""
    text = with_pairs("{pairing: {hint: [stage1], guided: [stage1, embedding], max: 1}}")
    study = opened(
        text,
        "student.model={choice: [{name: resnet, depth: 8, width: 4}, {name: mlp, width: 8}]}",
    )
    reasons = set()
    for seed in range(30):
        try:
            study.bind(DIGITS).draw(Seeded(seed))
        except Infeasible as error:
            reasons.add(str(error).partition(" cannot")[0])
    assert reasons == {"knowledge[1].pairs: guided layer 'stage1' (8,)"}


def test_space_without_compatible_pairs_raises() -> None:
    text = with_pairs("{pairing: {hint: [stage1], guided: [embedding]}}")
    (problem,) = problems_of(text)
    assert problem.message.startswith("none of its pairs can be compared: guided layer 'embedding'")
    assert (problem.path, problem.line) == ("knowledge[1].pairs", 18)


def test_unknown_teacher_model_requires_layers() -> None:
    text = with_pairs("{pairing: {guided: auto}}").replace(
        "  model: {name: resnet, depth: 14, width: 8}\n  train: {epochs: 2}\n",
        "  weights: models:/teacher@best\n",
    )
    (problem,) = problems_of(text)
    assert "`hint: auto` needs the teacher's `model`" in problem.message
    listed = opened(text.replace("{guided: auto}", "{hint: [stage2], guided: auto}"))
    drawn = listed.bind(DIGITS).draw(Seeded(0)).resolved
    assert drawn.knowledge[1].pairs is not None


def test_checks_get_line_and_report_once() -> None:
    tasks: list[Signature | None] = []

    def never_happy(study: Study, signature: Signature | None) -> Iterator[Problem | str]:
        tasks.append(signature)
        yield Problem("no such file", path="teacher.model", fix="copy it")
        yield "and one of the whole study"

    text = changed(("width: 4", "width: {int: [4, 8], step: 4}"))
    with pytest.raises(StudyError) as caught:
        open_study(parse_document(text, "study.yaml"), [never_happy])
    assert [str(problem) for problem in caught.value.problems] == [
        "and one of the whole study",
        "study.yaml:4: teacher.model: no such file\n    -> copy it",
    ]
    assert tasks == [DIGITS, DIGITS]


def test_missing_data_is_reported_by_its_check(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    folder = tmp_path / "nowhere"
    path.write_text(changed(("{name: digits}", f"{{name: image_folder, root: {folder}, size: 8}}")))
    with pytest.raises(StudyError) as caught:
        load_study(path, checks=[check_data])
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (2, "data")
    assert str(folder) in problem.message


def test_shapes_are_checked_if_data_are_known(tmp_path: Path) -> None:
    text = with_pairs("[{hint: stage2, guided: stag2}]").replace(
        "{name: digits}", f"{{name: image_folder, root: {tmp_path}, size: 8}}"
    )
    study = opened(text)
    assert study.signature is None
    with pytest.raises(StudyError, match="there is no layer 'stag2'"):
        check_shapes(study, Signature((3, 8, 8), 5))


TEXTS = Signature((32,), 10, Text(30522))


@pytest.fixture(params=SHIPPED, ids=lambda path: path.stem)
def shipped(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[OpenStudy, Signature]:
    """Shipped study and the signature of its data."""
    path: Path = request.param
    if path.stem == "text":  # it starts from an encoder that another command fetches
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
        config.save_pretrained(tmp_path / "data" / "minilm")
        monkeypatch.chdir(tmp_path)
    study = load_study(path)
    return study, study.signature or TEXTS


def test_shipped_studies_load(shipped: tuple[OpenStudy, Signature]) -> None:
    study, signature = shipped
    assert not study.is_concrete
    sampled = study.bind(signature).sample(0).resolved
    assert read_study(plain(sampled)) == sampled


def test_random_draws_of_shipped_studies_are_valid(shipped: tuple[OpenStudy, Signature]) -> None:
    study, signature = shipped
    feasible, reasons = 0, set()
    for seed in range(100):
        drawer = Seeded(seed)
        try:
            drawn = study.bind(signature).draw(drawer).resolved
        except Infeasible as error:
            reasons.add(re.sub(r"[0-9,]+", "N", str(error)))
            continue
        feasible += 1
        assert read_study(plain(drawn)) == drawn
        assert study.bind(signature).draw(FixedTrial(drawer.params)).resolved == drawn
        for cost, bounds in study.settings.search.constraints.items():
            if cost in ("params", "macs"):
                value = getattr(profile_model(drawn.student.model, signature), cost)
                assert bounds.max is None or value <= bounds.max
        for term in drawn.knowledge:
            if term.loss is not None and term.loss.takes_pairs and term.active:
                assert term.pairs
    assert feasible > 20
    double = "knowledge[N].pairs: the same pair was drawn twice"
    assert reasons <= {"params N > N", "macs N > N", double}


def quickstart() -> OpenStudy:
    return load_study(next(path for path in SHIPPED if path.stem == "quickstart"))


def test_size_of_quickstart() -> None:
    study = quickstart()
    assert study.settings.search.trials >= 16
    assert [dimension.name for dimension in study.dimensions] == [
        "student.model.depth",
        "student.model.width",
        "knowledge[0].loss.temperature",
        "knowledge[0].weight",
        "knowledge[1].loss",
        "knowledge[1].pairs.count",
        "knowledge[1].pairs[0].hint",
        "knowledge[1].pairs[0].guided",
        "knowledge[1].pairs[1].hint",
        "knowledge[1].pairs[1].guided",
        "knowledge[1].weight",
    ]
    # 8 students; no second loss, or one of two with 9 single pairs and 27 chains of two
    assert study.size.combinations == 8 * (1 + 2 * (9 + 27))
    (teacher,) = study.teachers()
    assert teacher.train is not None
    assert teacher.train.epochs == 15


def test_study_can_be_pickled() -> None:
    study = pickle.loads(pickle.dumps(quickstart()))
    first, second = (each.bind(DIGITS).sample(0) for each in (study, quickstart()))
    assert first.resolved == second.resolved


def test_concrete_or_not() -> None:
    assert opened(BASE).concrete() == opened(BASE).settings
    text = changed(("width: 4", "width: {int: [4, 8]}"))
    text = text.replace(
        "{name: offline}", "{choice: [{name: offline, task_weight: {uniform: [0, 1]}}, alone]}"
    )
    with pytest.raises(StudyError) as caught:
        opened(text).concrete()
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (10, "student.model.width"),
        (11, "scheme"),
        (11, "scheme.task_weight"),
    ]
    fixed = opened(text, "student.model.width=8", "scheme={name: offline}")
    assert fixed.concrete().student.model.width == 8  # type: ignore[attr-defined]


def test_teachers_are_listed() -> None:
    text = changed(
        ("depth: 14, width: 8", "depth: {choice: [8, 14]}, width: {int: [4, 8], step: 4}")
    )
    models = [teacher.model for teacher in opened(text).teachers()]
    assert [(model.depth, model.width) for model in models] == [  # type: ignore[union-attr]
        (8, 4),
        (8, 8),
        (14, 4),
        (14, 8),
    ]
    assert opened("name: x\ndata: digits\nstudent: {model: mlp}\nscheme: alone\n").teachers() == ()


def test_flat_parameters_use_samplers_names() -> None:
    study = quickstart()
    drawer = Seeded(2)
    flat = study.flat(study.bind(DIGITS).draw(drawer).resolved)
    for name, value in drawer.params.items():
        if ".pairs" not in name:
            assert flat[name] == value
    assert flat["data"] == "digits"
    assert flat["name"] == "quickstart"
    assert flat["scheme"] == "offline"
    assert flat["teacher.weights"] == "none"
    assert flat["knowledge[1].pairs[0].hint"] == "stage1"
    assert not any(path.startswith("tracking") for path in flat)
    assert all(not isinstance(value, dict | list | tuple) for value in flat.values())


def test_resolved_has_defaults_and_domains() -> None:
    study = quickstart()
    resolved = study.resolved()
    assert resolved["student"]["model"]["width"] == {"int": [4, 16], "step": 4}
    assert resolved["train"]["optimizer"]["momentum"] == 0.9
    assert resolved["search"]["max_hours"] is None
    assert resolved["teacher"]["weights"] is None


def test_bare_names_are_options() -> None:
    text = "name: x\ndata: digits\nteacher: {model: mlp}\nstudent: {model: mlp}\nscheme: offline\n"
    text += "knowledge: [{loss: {choice: [kd, rkd, null]}}]\nsearch: {scheduler: asha}\n"
    study = opened(text)
    samples = [study.bind(DIGITS).sample(seed).study for seed in range(9)]
    losses = [term.loss for sample in samples for term in sample.knowledge]
    assert {None if loss is None else loss.name for loss in losses} == {"kd", "rkd", None}
    assert study.settings.search.scheduler.name == "asha"


def test_infeasible_draws_have_reason() -> None:
    text = (
        changed(("width: 4", "width: {choice: [4, 64]}"))
        + "search: {constraints: {params: {max: 9000}}}\n"
    )
    with pytest.raises(Infeasible, match=r"params .* > 9,000"):
        opened(text).bind(DIGITS).draw(FixedTrial({"student.model.width": 64}))


def test_invalid_interior_point_is_infeasible() -> None:
    study = opened(changed(("depth: 8", "depth: {int: [8, 14]}")))
    with pytest.raises(Infeasible, match="a resnet's depth"):
        study.bind(DIGITS).draw(FixedTrial({"student.model.depth": 9}))


def test_explanation() -> None:
    explanation = explain(quickstart().bind(DIGITS), seed=0, train_size=1000)
    assert explanation.branches["knowledge[1].loss"] == ("none", "hint", "at")
    assert explanation.params == (5142, 174970)
    assert 0.7 < explanation.feasible / explanation.drawn < 0.95
    assert explanation.reasons[0][0] == "params 174,970 > 100,000"
    assert explanation.sample is not None
    depth = explanation.sample.student.model.depth  # type: ignore[attr-defined]
    assert explanation.sample_values["student.model.depth"] == depth
    assert (explanation.trials, explanation.teachers) == (16, 1)
    # 16 trials and 3 x 3 replicates with and without the teacher, 8 epochs each
    assert explanation.student_passes == 1000 * 8 * (16 + 2 * 9)
    assert explanation.teacher_passes == 1000 * (8 * (16 + 9) + 15)
    assert explain(quickstart().bind(DIGITS), seed=0, train_size=1000) == explanation


def test_explanation_prints() -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_explanation(explain(quickstart().bind(DIGITS))))
    text = console.export_text()
    assert "knowledge[1].pairs.count" in text
    assert "584 combinations x 3 continuous parameters" in text
    concrete = Console(width=120, record=True, file=io.StringIO())
    concrete.print(render_explanation(explain(opened(BASE).bind(DIGITS))))
    assert "no open parameters" in concrete.export_text()


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_non_finite_numbers_from_python_raise(rate: float) -> None:
    data = plain(opened(BASE).settings)
    data["train"]["optimizer"]["lr"] = rate
    with pytest.raises(ValidationError, match="finite number"):
        read_study(data)
