"""Every sampler draws from a conditional study by ask and tell, the same for the same seed."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import optuna
import pytest
from optuna.study import StudyDirection
from pydantic import TypeAdapter

from helpers.search_cases import POINTS, TASK, build_sampler, opened
from raykd.compat.optuna_grid import GridSampler
from raykd.registry import option
from raykd.study.config import Search, plain
from raykd.study.open_study import OpenStudy
from raykd.study.samplers import SAMPLERS, Sampler

TEMPERATURE = "knowledge[0].loss.temperature"


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
    """What a sampler draws by ask and tell, an infeasible and a failed one among them."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = build_sampler(SAMPLERS[name](), seed, slots)
        asked = optuna.create_study(directions=directions(objectives), sampler=sampler)
        for number in range(draws):
            trial = asked.ask()
            concrete = study.bind(TASK).draw(trial).resolved
            assert concrete.student.model.name == "mlp"
            if number == 2:
                trial.set_constraint("feasible", 1.0)
                asked.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif number == 3:
                asked.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                trial.set_constraint("feasible", 0.0)
                width: Any = trial.params["student.model.width"]
                asked.tell(trial, [width / 100, width][:objectives])
    return [trial.params for trial in asked.get_trials(deepcopy=False)]


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", SAMPLERS.members)
def test_draws_from_a_conditional_space(name: str, objectives: int, study: OpenStudy) -> None:
    draws = drawn_by(name, study, objectives=objectives)
    assert len(draws) == 10
    for params in draws:
        assert params["student.model.width"] in (8, 16, 24)
        # The temperature hangs on the loss.
        assert (TEMPERATURE in params) is (params["knowledge[0].loss"] == "kd")
    assert len({params["knowledge[0].loss"] for params in draws}) == 2, "both branches are drawn"


@pytest.mark.parametrize("name", SAMPLERS.members)
def test_the_same_seed_draws_the_same(name: str, study: OpenStudy) -> None:
    assert drawn_by(name, study) == drawn_by(name, study)
    if name != "gp":
        assert drawn_by(name, study) != drawn_by(name, study, seed=4)


@pytest.mark.parametrize("name", SAMPLERS.members)
def test_draws_for_several_slots(name: str, study: OpenStudy) -> None:
    """Several trials are asked for before any is told."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = build_sampler(SAMPLERS[name](), 1, slots=3)
    asked = optuna.create_study(directions=directions(2), sampler=sampler)
    for _ in range(3):
        trials = [asked.ask() for _ in range(3)]
        for trial in trials:
            study.bind(TASK).draw(trial)
        for trial in trials:
            asked.tell(trial, [0.5, 1.0])
    assert len(asked.trials) == 9


@pytest.mark.parametrize("slots", [1, 4])
def test_grid_visits_every_point_once(slots: int, study: OpenStudy) -> None:
    sampler = build_sampler(SAMPLERS["grid"](), 0, slots)
    assert isinstance(sampler, GridSampler)
    asked = optuna.create_study(directions=directions(2), sampler=sampler)
    visited: list[frozenset[tuple[str, Any]]] = []
    while not sampler.exhausted:
        assert len(visited) < POINTS, "more draws than points"
        trials = [asked.ask() for _ in range(min(slots, POINTS - len(visited)))]
        for trial in trials:
            study.bind(TASK).draw(trial)
            visited.append(frozenset(trial.params.items()))
        for trial in trials:
            asked.tell(trial, [0.5, 1.0])
    assert len(visited) == len(set(visited)) == POINTS == study.size.points


def test_tpe_goes_where_it_is_better(study: OpenStudy) -> None:
    """Width is rewarded: after its start TPE draws wide students more often than one in three."""
    draws = drawn_by("tpe", study, draws=40, objectives=1)
    wide = [params["student.model.width"] == 24 for params in draws[10:]]
    assert sum(wide) > len(wide) * 0.5


def test_a_sampler_of_another_package_is_named_in_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    @option
    class Annealing(Sampler):
        """Accept worse points less and less often."""

        learns = True
        when = "never"

        name: Literal["annealing"] = "annealing"

    monkeypatch.setitem(vars(SAMPLERS), "_entries", {"annealing": (Annealing, "odd 1.0")})
    annealing = {"search": {"sampler": {"name": "annealing"}}}
    read = TypeAdapter(Annotated[Sampler, SAMPLERS]).validate_python({"name": "annealing"})
    assert read == Annealing() and Search(sampler=read).sampler is read
    assert annealing["search"]["sampler"] == plain(Search(sampler=read))["sampler"]
