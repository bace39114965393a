"""Every sampler draws from a conditional study by ask and tell, reproducibly."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import optuna
import pytest
from optuna.study import StudyDirection
from pydantic import TypeAdapter

from helpers.search_cases import POINTS, SMALL, TASK, build_sampler, opened
from raykd.compat.optuna_gp import make_gp
from raykd.compat.optuna_grid import GridSampler
from raykd.compat.packages import is_installed
from raykd.errors import StudyError
from raykd.registry import option
from raykd.study.checks.load import open_study
from raykd.study.config import Search, plain
from raykd.study.open_study import OpenStudy
from raykd.study.samplers import SAMPLERS, Sampler
from raykd.study.yaml_file import parse_document

TEMPERATURE = "knowledge[0].loss.temperature"

NAMES = [n for n, kind in SAMPLERS.members.items() if is_installed(kind.package or "optuna")]


@pytest.fixture(scope="module")
def study() -> OpenStudy:
    return opened()


def directions(count: int) -> list[StudyDirection]:
    return [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][:count]


def drawn_by(
    name: str,
    study: OpenStudy,
    *,
    draws: int = 10,
    seed: int = 3,
    objectives: int = 2,
    slots: int = 1,
) -> list[dict[str, Any]]:
    """Draw by ask and tell, with an infeasible and a failed trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = build_sampler(SAMPLERS[name](), seed, slots)
        optuna_study = optuna.create_study(directions=directions(objectives), sampler=sampler)
        for number in range(draws):
            trial = optuna_study.ask()
            concrete = study.bind(TASK).draw(trial).resolved
            assert concrete.student.model.name == "mlp"
            if number == 2:
                trial.set_constraint("feasible", 1.0)
                optuna_study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif number == 3:
                optuna_study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                trial.set_constraint("feasible", 0.0)
                width: Any = trial.params["student.model.width"]
                optuna_study.tell(trial, [width / 100, width][:objectives])
    return [trial.params for trial in optuna_study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_draws_from_conditional_space(name: str, objectives: int, study: OpenStudy) -> None:
    if objectives > 1 and not SAMPLERS[name].several_objectives:
        with pytest.raises(StudyError, match="supports one objective; got 2"):
            opened(f"search.sampler={name}")
        return
    draws = drawn_by(name, study, objectives=objectives)
    assert len(draws) == 10
    for params in draws:
        assert params["student.model.width"] in (8, 16, 24)
        # The temperature depends on the loss.
        assert (TEMPERATURE in params) is (params["knowledge[0].loss"] == "kd")
    assert len({params["knowledge[0].loss"] for params in draws}) == 2, "both branches are drawn"


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_draws(name: str, study: OpenStudy) -> None:
    objectives = 2 if SAMPLERS[name].several_objectives else 1
    draws = drawn_by(name, study, objectives=objectives)
    assert draws == drawn_by(name, study, objectives=objectives)
    if name != "gp":
        assert draws != drawn_by(name, study, seed=4, objectives=objectives)


@pytest.mark.parametrize("name", NAMES)
def test_draws_for_several_slots(name: str, study: OpenStudy) -> None:
    """Several trials are drawn before any result is reported."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objectives = 2 if SAMPLERS[name].several_objectives else 1
    sampler = build_sampler(SAMPLERS[name](), 1, slots=3)
    optuna_study = optuna.create_study(directions=directions(objectives), sampler=sampler)
    for _ in range(3):
        trials = [optuna_study.ask() for _ in range(3)]
        for trial in trials:
            study.bind(TASK).draw(trial)
        for trial in trials:
            optuna_study.tell(trial, [0.5, 1.0][:objectives])
    assert len(optuna_study.trials) == 9


@pytest.mark.parametrize("slots", [1, 4])
def test_grid_visits_every_point_once(slots: int, study: OpenStudy) -> None:
    sampler = build_sampler(SAMPLERS["grid"](), 0, slots)
    assert isinstance(sampler, GridSampler)
    optuna_study = optuna.create_study(directions=directions(2), sampler=sampler)
    visited: list[frozenset[tuple[str, Any]]] = []
    while not sampler.exhausted:
        assert len(visited) < POINTS, "more draws than points"
        trials = [optuna_study.ask() for _ in range(min(slots, POINTS - len(visited)))]
        for trial in trials:
            study.bind(TASK).draw(trial)
            visited.append(frozenset(trial.params.items()))
        for trial in trials:
            optuna_study.tell(trial, [0.5, 1.0])
    assert len(visited) == len(set(visited)) == POINTS == study.size.points


def test_tpe_prefers_better_regions(study: OpenStudy) -> None:
    """Width is rewarded: after its random trials TPE draws wide students in more than a third."""
    draws = drawn_by("tpe", study, draws=40, objectives=1)
    wide = [params["student.model.width"] == 24 for params in draws[10:]]
    assert sum(wide) > len(wide) * 0.5


@pytest.mark.parametrize("name", [n for n, kind in SAMPLERS.members.items() if kind.package])
def test_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SAMPLERS[name].package
    installed = "raykd.study.checks.rules.is_installed"
    monkeypatch.setattr(installed, lambda module: module != package)
    with pytest.raises(StudyError, match=f"needs the package {package}, which is not installed"):
        opened(f"search.sampler={name}", "search.objectives={val_accuracy: max}")
    monkeypatch.setattr(installed, lambda module: True)
    opened(f"search.sampler={name}", "search.objectives={val_accuracy: max}")


def test_sampler_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load_module(name: str) -> SimpleNamespace:
        loaded.append(name)
        return SimpleNamespace(AutoSampler=optuna.samplers.TPESampler)

    monkeypatch.setitem(sys.modules, "optunahub", SimpleNamespace(load_module=load_module))
    sampler = SAMPLERS["auto"]().build(seed=0, startup_trials=4, slots=1)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert loaded == ["samplers/auto_sampler"]
    document = parse_document(SMALL, "study.yaml").with_overrides(["search.sampler=auto"])
    with pytest.raises(StudyError, match="'auto' would run code from outside raykd"):
        open_study(document)


def test_numbers_without_branches_are_required() -> None:
    cmaes = ["search.sampler=cmaes", "search.objectives={val_accuracy: max}"]
    with pytest.raises(StudyError, match="learns only numbers that all trials have"):
        opened(*cmaes, "student.model.width=8")


def test_gp_learns_infeasible_points() -> None:
    """The best region is infeasible: Optuna's own sampler would draw there for ever."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def rejected(sampler: optuna.samplers.BaseSampler) -> int:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        count, complete = 0, 0
        while complete < 9:
            trial = study.ask()
            value = trial.suggest_int("width", 0, 100) / 100
            trial.suggest_float("weight", 0.0, 1.0)
            if value > 0.6:
                trial.set_constraint("feasible", 1.0)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                count += complete >= 5
                if count == 20:
                    break
            else:
                trial.set_constraint("feasible", 0.0)
                study.tell(trial, value)
                complete += 1
        return count

    arguments: dict[str, Any] = {"seed": 0, "n_startup_trials": 5}
    assert rejected(make_gp(**arguments)) < rejected(optuna.samplers.GPSampler(**arguments)) / 2


def test_cmaes_moves_towards_better_values() -> None:
    pytest.importorskip("cmaes")
    sampler = build_sampler(SAMPLERS["cmaes"](), 0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(120):
        trial = study.ask()
        trial.set_constraint("feasible", 0.0)
        places = [trial.suggest_float(name, 0.0, 1.0) for name in "abc"]
        study.tell(trial, -sum((place - 0.8) ** 2 for place in places))
    values = [trial.value or 0.0 for trial in study.get_trials(deepcopy=False)]
    assert sum(values[-20:]) > sum(values[:20]) / 2


def test_sampler_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    @option
    class Annealing(Sampler):
        """Sampler of a test package."""

        learns = True
        when = "never"

        name: Literal["annealing"] = "annealing"

    monkeypatch.setitem(vars(SAMPLERS), "_entries", {"annealing": (Annealing, "odd 1.0")})
    annealing = {"search": {"sampler": {"name": "annealing"}}}
    read = TypeAdapter(Annotated[Sampler, SAMPLERS]).validate_python({"name": "annealing"})
    assert read == Annealing() and Search(sampler=read).sampler is read
    assert annealing["search"]["sampler"] == plain(Search(sampler=read))["sampler"]
