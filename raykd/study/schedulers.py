"""Schedulers: each decides after an epoch whether a trial continues.

Ray is not imported here: a scheduler of Ray Tune is described by a `TuneScheduler`, which
`raykd.runtime` builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from raykd import pareto
from raykd.registry import Registry, option
from raykd.study.promotion import Halving, Promotions

if TYPE_CHECKING:
    from raykd.tracking.events import Metrics

GraceEpochs = Annotated[int, Field(ge=1, description="Never stop a trial before this epoch")]
Reduction = Annotated[
    float,
    Field(
        gt=1,
        description="Reduction factor; the best 1/reduction of the trials continue at each rung",
    ),
]
MaxPaused = Annotated[
    int,
    Field(ge=0, description="Maximum number of paused trials; the worst beyond it are stopped"),
]
PausedGb = Annotated[
    float,
    Field(
        ge=0,
        description="Maximum size in GB of the states of paused trials; the worst beyond it are "
        "stopped",
    ),
]


class StoppingRule(Protocol):
    """Rule that decides after each epoch of a searched trial whether it continues."""

    def keeps(self, trial: object, metrics: Metrics) -> bool:
        """Return whether the trial continues.

        Args:
            trial: of Tune.
            metrics: of its last epoch, with costs and the number of the epoch as `epoch`.
        """
        ...


@dataclass(frozen=True)
class TuneScheduler:
    """Scheduler of Ray Tune.

    Attributes:
        name: class in `ray.tune.schedulers`.
        arguments: of its constructor.
    """

    name: str
    arguments: Mapping[str, Any]


@option
class Scheduler:
    """Base class of schedulers.

    Class attributes:
        paper: author, year, arXiv number or venue; empty if there is none.
        stops_early: whether it stops trials before their last epoch.
        several_objectives: whether it looks at all objectives, or only at the first.
        when: when to use it.
    """

    paper: ClassVar[str] = ""
    stops_early: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = False
    when: ClassVar[str]

    name: str

    def build(
        self, objectives: Mapping[str, str], epochs: int
    ) -> StoppingRule | TuneScheduler | Promotions | None:
        """Build the rule; None if every trial runs to its last epoch.

        `Promotions` pause trials, the other rules stop them.

        Args:
            objectives: metric name -> "max" or "min".
            epochs: full budget of a trial.
        """
        raise NotImplementedError

    def trained_fraction(self, epochs: int) -> float:
        """Return the expected part of its full training that a trial runs, 0 to 1."""
        return 1.0


@option
class Asha(Scheduler):
    """Asynchronous successive halving (Li 2020, arXiv:1810.05934).

    A trial that is not among the best of its rung pauses, and continues when it is.  Without
    `promote` it is stopped: with one objective by Ray Tune's own scheduler, with several by fronts.
    """

    paper = "Li 2020, arXiv:1810.05934; several objectives: Schmucker 2021, arXiv:2106.12639"
    several_objectives = True
    when = (
        "many trials whose first epochs predict the final result; if a term starts late or is "
        "pretrained, set `grace_epochs` to a later epoch"
    )

    name: Literal["asha"] = "asha"
    grace_epochs: GraceEpochs = 1
    reduction: Reduction = 3
    promote: Annotated[
        bool,
        Field(
            description="Pause trials that are not among the best of their rung, and continue "
            "them when they are; false: stop them"
        ),
    ] = True
    max_paused: MaxPaused = 1000
    paused_gb: PausedGb = 10.0

    def build(
        self, objectives: Mapping[str, str], epochs: int
    ) -> StoppingRule | TuneScheduler | Promotions:
        grace = min(self.grace_epochs, epochs)
        if self.promote:
            return Promotions(objectives, Halving(epochs, grace, self.reduction))
        if len(objectives) > 1:
            return ParetoAsha(objectives, epochs, grace, self.reduction)
        arguments = {
            "max_t": epochs,
            "grace_period": grace,
            "reduction_factor": self.reduction,
            "stop_last_trials": False,
        }
        return TuneScheduler("AsyncHyperBandScheduler", _metric(objectives) | arguments)

    def trained_fraction(self, epochs: int) -> float:
        return _halved_fraction(self.grace_epochs, self.reduction, epochs)


@option
class Hyperband(Scheduler):
    """Several brackets of `asha` with promotion, each with a later first rung (Li 2018, JMLR 18).

    Trials are divided among the brackets so that all brackets cost about the same.
    """

    paper = "Li 2018, JMLR 18; asynchronous: Li 2020, arXiv:1810.05934"
    several_objectives = True
    when = "as asha, if it is unknown whether the first epochs predict the final result"

    name: Literal["hyperband"] = "hyperband"
    grace_epochs: GraceEpochs = 1
    reduction: Reduction = 3
    brackets: Annotated[int, Field(ge=1, description="Maximum number of brackets")] = 3
    max_paused: MaxPaused = 1000
    paused_gb: PausedGb = 10.0

    def _halving(self, epochs: int) -> Halving:
        return Halving(epochs, min(self.grace_epochs, epochs), self.reduction, self.brackets)

    def build(self, objectives: Mapping[str, str], epochs: int) -> Promotions:
        return Promotions(objectives, self._halving(epochs))

    def trained_fraction(self, epochs: int) -> float:
        halving = self._halving(epochs)
        graces = [*halving.milestones, epochs]
        fractions = (_halved_fraction(grace, self.reduction, epochs) for grace in graces)
        return sum(s * f for s, f in zip(halving.shares.tolist(), fractions, strict=False))


@option
class Median(Scheduler):
    """Stop a trial if its result is worse than the median of the running means of other trials.

    It uses the first objective.
    """

    paper = "Golovin 2017, KDD"
    when = "one objective and too few trials for the rungs of asha"

    name: Literal["median"] = "median"
    grace_epochs: GraceEpochs = 1
    min_trials: Annotated[
        int, Field(ge=1, description="Minimum number of trials to compute a median")
    ] = 3

    def build(self, objectives: Mapping[str, str], epochs: int) -> TuneScheduler:
        arguments = {
            "grace_period": self.grace_epochs,
            "min_samples_required": self.min_trials,
            "hard_stop": True,
        }
        return TuneScheduler("MedianStoppingRule", _metric(objectives) | arguments)


@option
class Unscheduled(Scheduler):
    """Run every trial to the last epoch."""

    stops_early = False
    several_objectives = True
    when = "few trials, or comparison of all trials at the full budget"

    name: Literal["none"] = "none"

    def build(self, objectives: Mapping[str, str], epochs: int) -> None:
        return None


SCHEDULERS = Registry("scheduler", base=Scheduler, entry_points="raykd.schedulers")
SCHEDULERS.add(Asha, Hyperband, Median, Unscheduled)

AnyScheduler = Annotated[Scheduler, SCHEDULERS]
"""Type of a field that holds a scheduler."""


def _metric(objectives: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of Tune's schedulers that name the metric: the first objective."""
    metric, mode = next(iter(objectives.items()))
    return {"time_attr": "epoch", "metric": metric, "mode": mode}


def _halved_fraction(grace: int, reduction: float, epochs: int) -> float:
    """Return the expected part of its full training that a trial runs with successive halving."""
    rung, survivors = float(min(grace, epochs)), 1.0
    trained = rung
    while rung < epochs:
        survivors /= reduction
        next_rung = min(epochs, rung * reduction)
        trained += survivors * (next_rung - rung)
        rung = next_rung
    return trained / epochs


class ParetoAsha:
    """Asynchronous successive halving over several objectives (MO-ASHA: Schmucker 2021,
    arXiv:2106.12639, Algorithm 1, with crowding distance where it has an epsilon-net).

    The rungs are at `grace * reduction**k` epochs, as in ASHA (Li 2020, arXiv:1810.05934,
    Algorithm 2).  A trial that reaches a rung continues if it is among the best 1/`reduction` of
    those that have reached it.  Trials are ordered by their non-dominated front and, in the front
    that is only partly kept, by crowding distance (Deb 2002).  The whole first front of a rung with
    fewer than `reduction` trials continues, so that a first arrival is never stopped.

    Args:
        objectives: metric name -> "max" or "min".
        epochs: the full budget; no rung at or above it.
        grace: the first rung, in epochs.
        reduction: the best 1/`reduction` of the trials of a rung continue.
    """

    def __init__(
        self, objectives: Mapping[str, str], epochs: int, grace: int, reduction: float
    ) -> None:
        self._objectives = dict(objectives)
        self._reduction = reduction
        self._rungs: dict[int, _Rung] = {}
        rung = float(grace)
        while round(rung) < epochs:
            self._rungs[round(rung)] = _Rung({}, pareto.Fronts(len(self._objectives)))
            rung *= reduction

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs of the rungs."""
        return tuple(self._rungs)

    def keeps(self, trial: object, metrics: Metrics) -> bool:
        rung = self._rungs.get(int(metrics["epoch"]))
        if rung is None:
            return True
        point = pareto.losses([metrics], self._objectives)[0]
        if not np.isfinite(point).all():
            return False
        return self._is_among_best(rung, rung.index(str(getattr(trial, "trial_id", trial)), point))

    def _is_among_best(self, rung: _Rung, index: int) -> bool:
        """Return whether the trial of that index continues."""
        points, rank = rung.fronts.points, rung.fronts.ranks
        capacity = max(1, int(len(points) / self._reduction))
        better = int((rank < rank[index]).sum())
        front = np.flatnonzero(rank == rank[index])
        if better >= capacity:
            return False
        if better + len(front) <= capacity or (rank[index] == 0 and len(points) < self._reduction):
            return True
        # This front is only partly kept: its least crowded points continue.
        order = front[np.argsort(-pareto.crowding(points[front]), kind="stable")]
        return index in order[: capacity - better]


@dataclass
class _Rung:
    """Trials that reached a rung, and their objectives there.

    Attributes:
        indices: index of each trial's point.
        fronts: the points.
    """

    indices: dict[str, int]
    fronts: pareto.Fronts

    def index(self, trial: str, point: np.ndarray) -> int:
        """Return the index of the trial's point; a second point of a trial replaces its first."""
        index = self.indices.setdefault(trial, len(self.indices))
        if index == len(self.fronts.points):
            self.fronts.add(point)
        elif (self.fronts.points[index] != point).any():
            points = self.fronts.points
            points[index] = point
            self.fronts = pareto.Fronts(points.shape[1])
            for each in points:
                self.fronts.add(each)
        return index
