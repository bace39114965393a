"""Spaces: domains, nested branches, parameter names, sizes, corners, drawing by Optuna."""

from __future__ import annotations

import pickle
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from raykd.errors import Infeasible
from raykd.study.space.domains import Choice, labels_of, nodes_of, read_range
from raykd.study.space.pairing import read_pairing
from raykd.study.space.sampling import Seeded, every
from raykd.study.space.space import Space, read_space
from raykd.study.yaml_file import parse_document

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space_of(text: str) -> Space:
    space, problems, _ = read_space(parse_document(text, "study.yaml"))
    assert not problems, problems
    return space


def names(space: Space) -> list[str]:
    return [dimension.name for dimension in space.dimensions]


def draws(space: Space, count: int = 200) -> list[dict[str, Any]]:
    drawn = []
    for seed in range(count):
        try:
            drawn.append(space.draw(Seeded(seed)).data)
        except Infeasible:
            continue
    return drawn


def problem_of(text: str) -> str:
    _, problems, _ = read_space(parse_document(text, "study.yaml"))
    (problem,) = problems
    assert problem.file == "study.yaml"
    assert problem.line == 2
    return f"{problem.path}: {problem.message} -> {problem.fix}"


@pytest.mark.parametrize(
    ("domain", "values", "ends", "count"),
    [
        ("{choice: [8, 14]}", {8, 14}, {8, 14}, 2),
        ("{choice: [a, null, true]}", {"a", None, True}, {"a", None, True}, 3),
        ("{int: [4, 16], step: 4}", {4, 8, 12, 16}, {4, 16}, 4),
        ("{int: [4, 15], step: 4}", {4, 8, 12}, {4, 12}, 3),
        ("{int: [0, 2]}", {0, 1, 2}, {0, 2}, 3),
        ("{logint: [1, 4]}", {1, 2, 3, 4}, {1, 4}, 4),
        ("{uniform: [0, 1], step: 0.25}", {0, 0.25, 0.5, 0.75, 1}, {0, 1}, 5),
        ("{uniform: [0.1, 0.3], step: 0.1}", {0.1, 0.2, 0.1 + 2 * 0.1}, None, 3),
        ("{int: [3, 3]}", {3}, {3}, 1),
    ],
)
def test_finite_domains(domain: str, values: set[Any], ends: set[Any] | None, count: int) -> None:
    space = space_of(f"train:\n  epochs: {domain}\n")
    assert {data["train"]["epochs"] for data in draws(space)} == values
    assert [point.data["train"]["epochs"] for point in space.points()] == pytest.approx(
        sorted(values) if None not in values else ["a", None, True]
    )
    if ends is not None:
        assert {point.data["train"]["epochs"] for point in space.corners()} == ends
    assert space.size.points == count


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_continuous_domains(kind: str) -> None:
    space = space_of(f"train:\n  lr: {{{kind}: [0.01, 1]}}\n")
    drawn = sorted(data["train"]["lr"] for data in draws(space, 400))
    assert 0.01 <= drawn[0] < drawn[-1] <= 1
    middle = drawn[len(drawn) // 2]
    assert middle == pytest.approx(0.505 if kind == "uniform" else 0.1, rel=0.25)
    assert {point.data["train"]["lr"] for point in space.corners()} == {0.01, 1}
    assert (space.size.points, space.size.combinations, space.size.continuous) == (None, 1, 1)
    with pytest.raises(ValueError, match="continuous"):
        list(space.points())


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ("{choice: []}", "an empty choice"),
        ("{choice: 3}", "`choice` must be a list of options; got 3"),
        ("{choice: [8, 8]}", "option 8 appears twice"),
        (
            "{int: [16, 4]}",
            "reversed bounds [16, 4]; the lower bound must come first -> write {int: [4, 16]}",
        ),
        ("{int: [1, 2.5]}", "`int` must be whole numbers; got [1, 2.5] -> for other numbers write"),
        ("{int: [true, 2]}", "`int` must be two numbers"),
        ("{uniform: 3}", "`uniform` must be two numbers; got 3"),
        ("{uniform: ['1', 2]}", "`uniform` must be two numbers"),
        ("{loguniform: [0, 1]}", "bounds of `loguniform` must be > 0; got [0, 1]"),
        ("{logint: [-1, 4]}", "bounds of `logint` must be > 0"),
        ("{int: [4, 16], step: 20}", "`step` 20 is greater than the range 4 to 16"),
        ("{int: [4, 16], step: 0}", "`step` must be a number > 0; got 0"),
        ("{int: [4, 16], step: 0.5}", "`step` of `int` must be a whole number; got 0.5"),
        ("{loguniform: [1, 16], step: 2}", "`loguniform` has no `step`"),
        ("{choice: [1, 2], step: 1}", "`choice` has no `step`"),
        ("{choice: [1, 2], name: x}", "`choice` and `name` in one mapping"),
        ("{int: [1, 2], uniform: [1, 2]}", "`uniform` and `int` in one mapping"),
        ("{pairing: {max: 1}}", "`pairing` is not allowed here"),
    ],
)
def test_malformed_domains(domain: str, words: str) -> None:
    problem = problem_of(f"train:\n  epochs: {domain}\n")
    assert problem.startswith("train.epochs: ")
    assert words in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nname: {choice: [x, y]}\n", "name: `choice` is not allowed under `name`"),
        ("a: 1\nseed: {int: [0, 3]}\n", "seed: `int` is not allowed under `seed`"),
        (
            "search:\n  trials: {int: [1, 3]}\n",
            "search.trials: `int` is not allowed under `search`",
        ),
        ("data:\n  val: {uniform: [0.1, 0.2]}\n", "data.val: `uniform` is not allowed here"),
        ("teacher:\n  lr: {uniform: [0, 1]}\n", "teacher.lr: `uniform` is not allowed under"),
        ("knowledge:\n  - pairs: {pairing: {hints: a}}\n", "did you mean 'hint'?"),
        ("knowledge:\n  - pairs: {pairing: {hint: []}}\n", "`hint` is an empty list"),
        ("knowledge:\n  - pairs: {pairing: {hint: [a, a]}}\n", "`hint` names a layer twice"),
        ("knowledge:\n  - pairs: {pairing: {max: 0}}\n", "`max` must be a whole number >= 1"),
        (
            "knowledge:\n  - pairs: {pairing: {order: up}}\n",
            "`order` must be 'monotone', 'any' or 'reverse'",
        ),
        ("knowledge:\n  - pairs: {pairing: auto}\n", "`pairing` must be a mapping"),
    ],
)
def test_misplaced_domains_raise(text: str, words: str) -> None:
    assert words in problem_of(text)


def test_study_itself_cannot_be_domain() -> None:
    space, problems, _ = read_space(parse_document("name: x\ndata: {augment: {choice: [a, b]}}\n"))
    assert not problems
    assert names(space) == ["data.augment"]


NESTED = """\
student:
  model:
    choice:
      - name: resnet
        depth: {choice: [8, 14]}
        width: {int: [4, 8], step: 4}
      - name: mlp
        depth: {choice: [2, 3]}
        width: {int: [4, 8], step: 4}
        act:
          choice:
            - {name: relu, slope: {uniform: [0, 1]}}
            - {name: gelu, slope: {uniform: [0, 2]}}
            - none
"""


def test_nested_branches_name_their_parameters() -> None:
    space = space_of(NESTED)
    assert [(d.name, d.when) for d in space.dimensions] == [
        ("student.model", ""),
        ("student.model.resnet.depth", "student.model = resnet"),
        ("student.model.width", "student.model = resnet or student.model = mlp"),
        ("student.model.mlp.depth", "student.model = mlp"),
        ("student.model.act", "student.model = mlp"),
        (
            "student.model.act.relu.slope",
            "student.model = mlp and student.model.act = relu",
        ),
        (
            "student.model.act.gelu.slope",
            "student.model = mlp and student.model.act = gelu",
        ),
    ]
    assert space.size.combinations == 2 * 2 + 2 * 2 * 3
    assert space.size.continuous == 2
    for data in draws(space):
        model = data["student"]["model"]
        assert model["depth"] in ((8, 14) if model["name"] == "resnet" else (2, 3))


def test_domain_as_option_does_not_clash_with_its_choice() -> None:
    space = space_of("train:\n  clip: {choice: [null, {uniform: [1, 5]}, {choice: [7, 8]}]}\n")
    assert names(space) == ["train.clip", "train.clip.uniform", "train.clip.choice"]
    drawn = {data["train"]["clip"] for data in draws(space)}
    assert {None, 7, 8} < drawn


def test_labels_are_unique() -> None:
    assert labels_of([None, True, 1, 1.0, "none"]) == ("none", True, "1", "1.0", "none#5")
    assert labels_of([{"name": "a", "t": 1}, {"name": "a", "t": 2}, "a"]) == (
        "a(t=1)",
        "a(t=2)",
        "a",
    )
    assert labels_of([[1, 2], {"x": 1}, {"uniform": [0, 1]}]) == ("[1, 2]", "x=1", "uniform")


PAIRED = """\
knowledge:
  - loss: {choice: [null, {name: kd}, {name: hint}, {name: at}]}
    pairs: {pairing: {hint: [a, b, c], guided: [x, y], max: 3, order: ORDER}}
    weight: {loguniform: [1, 10]}
"""


@pytest.mark.parametrize("order", ["monotone", "any", "reverse"])
def test_pairings_are_drawn_only_if_used(order: str) -> None:
    space = space_of(PAIRED.replace("ORDER", order))
    names_: set[Any] = set()
    for data in draws(space, 4000):
        (term,) = data["knowledge"]
        name = (term["loss"] or {}).get("name")
        assert ("pairs" in term) == (name in ("hint", "at"))
        assert ("weight" in term) == (name is not None)
        pairs = [("abc".index(p["hint"]), "xy".index(p["guided"])) for p in term.get("pairs", ())]
        assert len(set(pairs)) == len(pairs)
        assert [h for h, _ in pairs] == sorted(h for h, _ in pairs)
        guided = [g for _, g in pairs]
        assert order == "any" or guided == sorted(guided, reverse=order == "reverse")
        names_.add((name, tuple(pairs)))
    assert len(names_) == space.size.combinations
    pairings = sum(1 for name, _ in names_ if name == "hint")
    assert (
        pairings
        == read_pairing(
            {"hint": ["a", "b", "c"], "guided": ["x", "y"], "max": 3} | {"order": order}
        ).count
    )


def test_parameters_of_pairing() -> None:
    space = space_of(PAIRED.replace("ORDER", "monotone"))
    assert names(space) == [
        "knowledge[0].loss",
        "knowledge[0].pairs.count",
        *(f"knowledge[0].pairs[{i}].{side}" for i in range(3) for side in ("hint", "guided")),
        "knowledge[0].weight",
    ]
    assert space.dimensions[1].when == "knowledge[0].loss = hint | at"
    drawn = space.draw(
        FixedTrial(
            {
                "knowledge[0].loss": "hint",
                "knowledge[0].pairs.count": 2,
                "knowledge[0].pairs[0].hint": "c",
                "knowledge[0].pairs[0].guided": "x",
                "knowledge[0].pairs[1].hint": "a",
                "knowledge[0].pairs[1].guided": "y",
                "knowledge[0].weight": 2.0,
            }
        )
    )
    assert drawn.data["knowledge"][0]["pairs"] == [
        {"hint": "a", "guided": "x"},
        {"hint": "c", "guided": "y"},
    ]


def test_repeated_pair_is_infeasible() -> None:
    space = space_of(PAIRED.replace("ORDER", "any"))
    params = {
        f"knowledge[0].pairs[{i}].{side}": layer
        for i in (0, 1)
        for side, layer in (("hint", "a"), ("guided", "x"))
    }
    params |= {"knowledge[0].loss": "at", "knowledge[0].pairs.count": 2}
    with pytest.raises(Infeasible, match="drawn twice"):
        space.draw(FixedTrial(params))


def test_single_pair_has_no_count_parameter() -> None:
    text = "knowledge:\n  - loss: {name: hint}\n    pairs: {pairing: {hint: [a], guided: [x, y]}}\n"
    assert names(space_of(text)) == ["knowledge[0].pairs[0].guided"]


def test_auto_stages_are_resolved_later() -> None:
    space = space_of("knowledge:\n  - loss: {name: at}\n    pairs: {pairing: {max: 9}}\n")
    with pytest.raises(Infeasible, match="no stages"):
        space.draw(Seeded(0))
    stages = ("stage1", "stage2", "stage3")
    staged = space.with_layers({"auto": stages[:2]}, {"auto": stages})
    assert names(staged)[0] == "knowledge[0].pairs.count"
    assert staged.dimensions[0].values == (1, 4)  # the longest chain in a 2 x 3 grid


def test_disabled_term_draws_nothing() -> None:
    term = "  - {loss: LOSS, weight: {uniform: [0, 1]}, pairs: {pairing: {hint: [a, b]}}}\n"
    assert names(space_of("knowledge:\n" + term.replace("LOSS", "null"))) == []
    kd = space_of("knowledge:\n" + term.replace("LOSS", "{name: kd}"))
    assert names(kd) == ["knowledge[0].weight"]
    hint = space_of("knowledge:\n" + term.replace("LOSS", "hint"))
    assert "knowledge[0].pairs[0].hint" in names(hint)


def test_scheme_without_knowledge_draws_no_terms() -> None:
    space = space_of(
        "scheme: {choice: [{name: offline}, alone]}\n"
        "knowledge:\n  - {loss: {name: kd}, weight: {choice: [1, 2, 3]}}\n"
    )
    drawn = list(space.points())
    assert len(drawn) == space.size.points == 4
    assert [("knowledge" in point.data) for point in drawn] == [True, True, True, False]
    assert space.dimensions[1].when == "scheme = offline"


def covered(space: Space) -> None:
    origins = {origin for point in space.corners() for origin in point.origins.values()}
    expected = {
        (*node.source, "choice", i) for node in _choices(space) for i in range(len(node.options))
    }
    assert expected <= origins


def _choices(space: Space) -> list[Any]:
    return [node for node in nodes_of(space.root) if isinstance(node, Choice)]


DEEP = "a:\n  choice:\n" + "".join(
    f"    - {{name: o{i}, x: {{int: [0, {i + 1}]}}, y: {{choice: [{{name: p, z: {{uniform: "
    f"[0, {j + 1}]}}}}, q]}}}}\n"
    for i, j in zip(range(6), range(6), strict=True)
)


@pytest.mark.parametrize("text", [NESTED, DEEP, PAIRED.replace("ORDER", "any")])
def test_corners_cover_every_branch_and_bound(text: str) -> None:
    space = space_of(text)
    covered(space)
    values: dict[str, set[Any]] = {}
    for point in space.corners():
        for place, origin in point.origins.items():
            value: Any = point.data
            for step in place:
                value = value[step]
            if isinstance(value, int | float):
                values.setdefault(str(origin), set()).add(value)
    for dimension in space.dimensions:
        if dimension.kind in ("uniform", "int", "loguniform"):
            assert any(set(dimension.values) <= options for options in values.values()), dimension


def test_number_of_corners_is_additive() -> None:
    lines = [f"  p{i}: {{choice: [1, 2, 3]}}\n  q{i}: {{uniform: [0, 1]}}\n" for i in range(20)]
    space = space_of("train:\n" + "".join(lines))
    assert len(space.corners()) <= 20 * 5


def test_every_gives_each_point_once() -> None:
    space = space_of(PAIRED.replace("ORDER", "any").replace("{loguniform: [1, 10]}", "1"))
    params = [tuple(sorted(params.items())) for params, _ in every(space.draw)]
    assert len(set(params)) == len(params)


@pytest.mark.parametrize("text", [NESTED, PAIRED.replace("ORDER", "monotone")])
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_optuna_draws(text: str, sampler: str) -> None:
    points = {
        "tpe": optuna.samplers.TPESampler(seed=0, n_startup_trials=5),
        "random": optuna.samplers.RandomSampler(seed=0),
        "nsga2": optuna.samplers.NSGAIISampler(seed=0, population_size=4),
    }
    study = optuna.create_study(sampler=points[sampler])
    space = space_of(text)
    dimensions = {dimension.name for dimension in space.dimensions}
    for _ in range(20):
        trial = study.ask()
        try:
            point = space.draw(trial)
        except Infeasible:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        assert trial.params.keys() <= dimensions
        assert space.draw(FixedTrial(trial.params)).data == point.data
        study.tell(trial, float(len(str(point.data))))


def test_space_can_be_pickled() -> None:
    space = space_of(PAIRED.replace("ORDER", "any"))
    copy = pickle.loads(pickle.dumps(space))
    assert copy.draw(Seeded(3)).data == space.draw(Seeded(3)).data


def test_seeded_draws_repeat() -> None:
    space = space_of(NESTED)
    assert space.draw(Seeded(5)) == space.draw(Seeded(5))


def test_ranges_print() -> None:
    assert str(read_range("int", [4, 17], 4)) == "4 to 16, step 4"
    assert str(read_range("loguniform", [0.01, 1])) == "0.01 to 1, log"
