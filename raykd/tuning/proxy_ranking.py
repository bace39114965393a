"""A cheap screen before the first trial: architectures are ranked, the best of them go first.

Feasible points are drawn at random, their distinct students scored without training, and the best
are handed to Optuna as its next trials, by the parameters of the student alone: all else is drawn
by the sampler, as ever.  Done once for a study; what was found stands in Optuna's storage, so that
a search that is resumed does not rank again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import optuna
import torch

from raykd.data import BatchLoader, Dataset, Placement
from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Model, Task, model_profile
from raykd.models.base import written
from raykd.models.proxies import Measured, ProxyContext, Ranking
from raykd.models.proxies.base import derive_seed
from raykd.study.checks.rules import bin_cost, number_kept, teacher_model
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded

MARK = "raykd.screen"
"""Optuna's user attribute: of the study all that was kept, of a trial its rank, from 1."""

SCORE = "screen_score"
"""The metric under which a trial has its score."""

ATTEMPTS = 10
"""So many draws for each feasible point wanted, at most; and so many trials for each kept one."""

STUDENT = "student."
"""The parameters that say what the student is."""


@dataclass(frozen=True)
class Candidate:
    """One architecture.

    Attributes:
        params: the sampler's parameters that lead to it.
        model: the student's.
        cost: what it is compared at; 0 where all are compared with all.
        score: more is better.
    """

    params: Mapping[str, Any]
    model: Model
    cost: int = 0
    score: float = math.nan

    def plain(self) -> dict[str, Any]:
        """As the journal and Optuna's storage hold it."""
        return {"student": written(self.model), "score": self.score, "params": dict(self.params)}


def screen(
    study: OpenStudy,
    task: Task,
    data: Dataset,
    drawn: optuna.Study,
    search: Search,
    tell: Callable[..., None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Rank architectures, if the study asks for it and it was not done before; the best go first.

    Args:
        study: with its domains open.
        task: what its students take and give.
        data: a batch of the training split is looked at.
        drawn: Optuna's study, fresh, or of an interrupted search.
        search: how to search.
        tell: the journal's `write`.
        clock: seconds.

    Raises:
        StudyError: the screen cannot look at these networks.
    """
    how = search.proxy
    if not isinstance(how, Ranking) or not search.trials:
        return
    best = drawn.user_attrs.get(MARK)
    if best is None:
        begun = clock()
        found = candidates(study, task, how, search)
        ranked = _scored(study, task, data, how, found)
        best = [one.plain() for one in chosen(ranked, number_kept(how, search.trials), how.bins)]
        _tell(tell, how, ranked, best, clock() - begun)
        drawn.set_user_attr(MARK, best)
    known = {trial.user_attrs.get(MARK) for trial in drawn.get_trials(deepcopy=False)}
    for rank in range(1, len(best) + 1):
        if rank not in known:
            _enqueue(drawn, best, rank)


def candidates(study: OpenStudy, task: Task, how: Ranking, search: Search) -> list[Candidate]:
    """The distinct architectures of `how.candidates` feasible points drawn at random."""
    found: dict[Model, Candidate] = {}
    cost = bin_cost(how, search.objectives)
    wanted = how.candidates
    for number in range(ATTEMPTS * wanted):
        drawer = Seeded(derive_seed(study.settings.seed, "point", number))
        try:
            model = study.bind(task).draw(drawer).study.student.model
        except Infeasible:
            continue
        own = {name: value for name, value in drawer.params.items() if name.startswith(STUDENT)}
        size = getattr(model_profile(model, task), cost) if cost else 0
        found.setdefault(model, Candidate(own, model, size))
        wanted -= 1
        if not wanted:
            break
    return list(found.values())


def chosen(ranked: Sequence[Candidate], keep: int, bins: int) -> list[Candidate]:
    """The best `keep`, the best first.

    Where candidates differ in `cost`, they are parted into bins of (nearly) equal number by it,
    and each bin gives its best, then each its second, and so on, the cheapest bin first.
    """
    by_cost = sorted((one for one in ranked if math.isfinite(one.score)), key=lambda one: one.cost)
    count = min(bins, keep) if len({one.cost for one in by_cost}) > 1 else 1
    ends = [number * len(by_cost) // count for number in range(count + 1)]
    parts = [
        sorted(by_cost[start:end], key=lambda one: -one.score) for start, end in pairwise(ends)
    ]
    deepest = max((len(part) for part in parts), default=0)
    in_turn = [part[depth] for depth in range(deepest) for part in parts if depth < len(part)]
    return in_turn[:keep]


def again(drawn: optuna.Study, infeasible: optuna.Trial) -> None:
    """Have an architecture that was kept tried again, whose other values made no feasible trial."""
    rank = infeasible.user_attrs.get(MARK)
    if rank is None:
        return
    trials = drawn.get_trials(deepcopy=False)
    if sum(trial.user_attrs.get(MARK) == rank for trial in trials) < ATTEMPTS:
        _enqueue(drawn, drawn.user_attrs[MARK], rank)


def score_of(drawn: optuna.Trial) -> dict[str, float]:
    """A drawn trial's score as a metric; empty where it was not ranked."""
    score = drawn.user_attrs.get(SCORE)
    return {} if score is None else {SCORE: float(score)}


def _enqueue(drawn: optuna.Study, best: Sequence[Mapping[str, Any]], rank: int) -> None:
    one = best[rank - 1]
    drawn.enqueue_trial(one["params"], user_attrs={MARK: rank, SCORE: one["score"]})


def _scored(
    study: OpenStudy, task: Task, data: Dataset, how: Ranking, found: Sequence[Candidate]
) -> list[Candidate]:
    """The candidates with their scores.

    Raises:
        StudyError: the screen cannot look at one of them.
    """
    batch = how.batch if isinstance(how, Measured) else 2
    inputs, targets = training_batch(data, batch, study.settings.seed)
    about = ProxyContext(task, inputs, targets, teacher_model(study), study.settings.seed)
    try:
        score = how.scorer(about)
        return [replace(one, score=score(one.model)) for one in found]
    except (ValueError, RuntimeError) as error:  # a forward that fails raises RuntimeError
        raise StudyError(Problem(str(error), path="search.proxy")) from error


def training_batch(data: Dataset, size: int, seed: int) -> tuple[Any, torch.Tensor]:
    """The first samples of the training split in an order drawn by the seed, not augmented."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = BatchLoader(
        data.train, data, batch_size=size, shuffle_seed=seed, placement=Placement(device)
    )
    batch = next(loader.epoch(0, steps=1))
    return batch.inputs, batch.targets


def _tell(
    tell: Callable[..., None],
    how: Ranking,
    ranked: Sequence[Candidate],
    best: Sequence[Mapping[str, Any]],
    seconds: float,
) -> None:
    tell(
        "screen",
        name=how.name,
        candidates=len(ranked),
        unranked=sum(not math.isfinite(one.score) for one in ranked),
        seconds=seconds,
        kept=[dict(one) for one in best],
    )
    tell(
        "note",
        id=None,
        tags={"screen": how.name},
        metrics={"screen_candidates": len(ranked), "screen_seconds": seconds},
        step=0,
    )
