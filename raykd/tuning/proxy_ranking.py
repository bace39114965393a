"""Ranking of student architectures by a zero-cost proxy before the first trial.

Feasible points are drawn at random, their distinct students scored without training, and the best
are enqueued as Optuna's first trials, with the student's parameters only: the sampler draws the
rest.  This is done once per study; Optuna's storage keeps the result for a resumed search.
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
from raykd.models import Model, Signature, profile_model
from raykd.models.base import format_option
from raykd.models.proxies import NetworkProxy, ProxyContext, RankingProxy
from raykd.models.proxies.base import derive_seed
from raykd.study.checks.rules import bin_cost, number_kept, teacher_model
from raykd.study.config import Search
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded
from raykd.tracking.events import ArchitecturesRanked, Note
from raykd.tracking.journal import Listener

MARK = "raykd.screen"
"""Optuna's user attribute: for a study the best architectures, for a trial its rank from 1."""

SCORE = "screen_score"
"""Metric with a trial's score."""

ATTEMPTS = 10
"""Maximum draws per requested feasible point, and maximum trials per enqueued architecture."""

STUDENT = "student."
"""Prefix of the parameters of the student."""


@dataclass(frozen=True)
class RankedStudent:
    """An architecture of the space with its score.

    Attributes:
        params: values of the sampler's parameters.
        model: of the student.
        cost: by which architectures are divided into bins; 0: there is one bin.
        score: higher is better.
    """

    params: Mapping[str, Any]
    model: Model
    cost: int = 0
    score: float = math.nan

    def plain(self) -> dict[str, Any]:
        """Return the architecture as the journal and Optuna's storage keep it."""
        return {
            "student": format_option(self.model),
            "score": self.score,
            "params": dict(self.params),
        }


def rank_students(
    study: OpenStudy,
    signature: Signature,
    data: Dataset,
    drawn: optuna.Study,
    search: Search,
    publish: Listener,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Rank architectures by the study's proxy and enqueue the best, unless that was done before.

    Args:
        study: with its domains open.
        signature: inputs and classes of its students.
        data: source of the batch that the proxy uses.
        drawn: Optuna's study, new or of an interrupted search.
        search: search settings.
        publish: called with each event.
        clock: seconds.

    Raises:
        StudyError: the proxy does not support these networks.
    """
    proxy = search.proxy
    if not isinstance(proxy, RankingProxy) or not search.trials:
        return
    best = drawn.user_attrs.get(MARK)
    if best is None:
        start = clock()
        ranked = _scored(
            study, signature, data, proxy, draw_students(study, signature, proxy, search)
        )
        selected = best_of_bins(ranked, number_kept(proxy, search.trials), proxy.bins)
        best = [student.plain() for student in selected]
        _announce(publish, proxy, ranked, best, clock() - start)
        drawn.set_user_attr(MARK, best)
    ranks = {trial.user_attrs.get(MARK) for trial in drawn.get_trials(deepcopy=False)}
    for rank in range(1, len(best) + 1):
        if rank not in ranks:
            _enqueue(drawn, best, rank)


def draw_students(
    study: OpenStudy, signature: Signature, proxy: RankingProxy, search: Search
) -> list[RankedStudent]:
    """Return the distinct architectures of `proxy.candidates` feasible random points."""
    by_model: dict[Model, RankedStudent] = {}
    cost = bin_cost(proxy, search.objectives)
    missing = proxy.candidates
    for number in range(ATTEMPTS * missing):
        drawer = Seeded(derive_seed(study.settings.seed, "point", number))
        try:
            model = study.bind(signature).draw(drawer).study.student.model
        except Infeasible:
            continue
        params = {key: value for key, value in drawer.params.items() if key.startswith(STUDENT)}
        ours = signature.as_input(study.settings.student.input)
        size = getattr(profile_model(model, ours), cost) if cost else 0
        by_model.setdefault(model, RankedStudent(params, model, size))
        missing -= 1
        if not missing:
            break
    return list(by_model.values())


def best_of_bins(ranked: Sequence[RankedStudent], keep: int, bins: int) -> list[RankedStudent]:
    """Return the best `keep` architectures, the best first.

    Architectures of different `cost` are divided by it into bins of (nearly) equal size.  Each bin
    gives its best, then each its second best, and so on, the cheapest bin first.
    """
    finite = (each for each in ranked if math.isfinite(each.score))
    by_cost = sorted(finite, key=lambda student: student.cost)
    count = min(bins, keep) if len({student.cost for student in by_cost}) > 1 else 1
    ends = [number * len(by_cost) // count for number in range(count + 1)]
    parts = [
        sorted(by_cost[start:end], key=lambda student: -student.score)
        for start, end in pairwise(ends)
    ]
    deepest = max((len(part) for part in parts), default=0)
    in_turn = [part[depth] for depth in range(deepest) for part in parts if depth < len(part)]
    return in_turn[:keep]


def enqueue_again(drawn: optuna.Study, infeasible: optuna.Trial) -> None:
    """Enqueue an architecture again whose trial was infeasible because of its other values."""
    rank = infeasible.user_attrs.get(MARK)
    if rank is None:
        return
    trials = drawn.get_trials(deepcopy=False)
    if sum(trial.user_attrs.get(MARK) == rank for trial in trials) < ATTEMPTS:
        _enqueue(drawn, drawn.user_attrs[MARK], rank)


def _enqueue(drawn: optuna.Study, best: Sequence[Mapping[str, Any]], rank: int) -> None:
    student = best[rank - 1]
    attributes = {MARK: rank, SCORE: student["score"]}
    drawn.enqueue_trial(student["params"], user_attrs=attributes)


def _scored(
    study: OpenStudy,
    signature: Signature,
    data: Dataset,
    proxy: RankingProxy,
    unscored: Sequence[RankedStudent],
) -> list[RankedStudent]:
    """Return the architectures with their scores.

    Raises:
        StudyError: the proxy does not support one of them.
    """
    input_name = study.settings.student.input  # the checks refuse students of several inputs
    batch = proxy.batch if isinstance(proxy, NetworkProxy) else 2
    inputs, targets = training_batch(data.as_input(input_name), batch, study.settings.seed)
    signature = signature.as_input(input_name)
    about = ProxyContext(signature, inputs, targets, teacher_model(study), study.settings.seed)
    try:
        score = proxy.scorer(about)
        return [replace(each, score=score(each.model)) for each in unscored]
    except (ValueError, RuntimeError) as error:  # a forward that fails raises RuntimeError
        raise StudyError(Problem(str(error), path="search.proxy")) from error


def training_batch(data: Dataset, size: int, seed: int) -> tuple[Any, torch.Tensor]:
    """Return a random batch of the training split, drawn by the seed and not augmented."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = BatchLoader(
        data.train, data, batch_size=size, shuffle_seed=seed, placement=Placement(device)
    )
    batch = next(loader.epoch(0, steps=1))
    return batch.inputs, batch.targets


def _announce(
    publish: Listener,
    proxy: RankingProxy,
    ranked: Sequence[RankedStudent],
    best: Sequence[Mapping[str, Any]],
    seconds: float,
) -> None:
    unranked = sum(not math.isfinite(student.score) for student in ranked)
    publish(ArchitecturesRanked(proxy.name, len(ranked), unranked, seconds, [*map(dict, best)]))
    metrics = {"screen_candidates": len(ranked), "screen_seconds": seconds}
    publish(Note(None, {"screen": proxy.name}, metrics))
