"""Successive halving with promotion: metrics of epochs in, decisions out.

Nothing here knows trials' trainings, clocks, Ray or files, so that a simulation decides exactly as
a search does.  A driver with any number of slots works as follows:

- after each epoch of a trial but its last: `keeps(trial, metrics)`; if False, the trial leaves its
  slot, and `pause(trial)` says that its state is kept;
- when a slot is free: `candidate`; if there is one, `promote` it and train it further; only
  otherwise start a new trial;
- when no trial is left to start, to promote or to run: `finish(epochs)`, within the epochs that may
  be spent; the trials that it returns are trained further, as after a promotion;
- when a paused trial cannot continue: `drop` it; if there are too many: `worst` is the one to drop.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raykd import pareto
from raykd.tracking.events import Metrics


@dataclass
class Rung:
    """Trials that reached an epoch at which trials are compared, and their objectives there.

    Attributes:
        fronts: the trials' points, less is better.
        indices: index of each trial's point.
        trials: the trials by index.
    """

    fronts: pareto.Fronts
    indices: dict[str, int] = field(default_factory=dict)
    trials: list[str] = field(default_factory=list)

    def add(self, trial: str, point: np.ndarray) -> None:
        """Add a trial's point; later points of the same trial are ignored."""
        if trial not in self.indices:
            self.indices[trial] = len(self.trials)
            self.trials.append(trial)
            self.fronts.add(point)

    def best(self, members: np.ndarray, count: int) -> list[int]:
        """Return the indices of the best `count` members, the best first.

        Trials are ordered by their non-dominated front; in the front that is only partly kept, by
        an epsilon-net (Schmucker 2021), which begins with the ends of the front.

        Args:
            members: indices of the trials to compare.
            count: number of trials to return.
        """
        points, ranks = self.fronts.points, self.fronts.ranks[members]
        if points.shape[1] == 1:
            order = np.argsort(points[members, 0], kind="stable")
            return members[order[:count]].tolist()
        selected: list[int] = []
        for rank in np.unique(ranks):
            front = members[ranks == rank]
            if len(selected) + len(front) > count:
                front = front[pareto.spread(points[front], count - len(selected))]
            selected += front.tolist()
            if len(selected) >= count:
                break
        return selected

    def ends(self, members: np.ndarray) -> set[int]:
        """Return the indices of the best members in each objective."""
        points = self.fronts.points[members]
        orders = (np.lexsort((points.sum(1), column)) for column in points.T)
        return {int(members[order[0]]) for order in orders}

    def is_on_front(self, trial: str) -> bool:
        """Return whether no other trial dominates this one here."""
        if self.fronts.points.shape[1] == 1:
            points = self.fronts.points[:, 0]
            return bool(points[self.indices[trial]] <= points.min())
        return self.fronts.ranks[self.indices[trial]] == 0


@dataclass(frozen=True)
class Halving:
    """Settings of successive halving.

    Attributes:
        epochs: full budget of a trial; there is no rung at or above it.
        grace: epoch of the first rung.
        reduction: the best 1/`reduction` of the trials of a rung continue.
        brackets: number of brackets; the first rung of bracket b is rung b of the first bracket.
    """

    epochs: int
    grace: int
    reduction: float
    brackets: int = 1

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs of the rungs of the first bracket."""
        epochs: list[int] = []
        rung = float(self.grace)
        while round(rung) < self.epochs:
            epochs.append(round(rung))
            rung *= self.reduction
        return tuple(dict.fromkeys(epochs))

    @property
    def shares(self) -> np.ndarray:
        """Share of the trials in each bracket, shape (brackets,).

        A bracket with s halvings gets trials in proportion to reduction^s / (s + 1), so that all
        brackets cost about the same (Li 2018, JMLR 18, Algorithm 1).
        """
        count = min(self.brackets, len(self.milestones) + 1)
        halvings = len(self.milestones) - np.arange(count)
        weights = self.reduction**halvings / (halvings + 1)
        return weights / weights.sum()


class Promotions:
    """Asynchronous successive halving in which trials pause and are promoted (Li 2020).

    A trial that reaches a rung continues at once if it is among the best 1/`reduction` of those
    that have reached it, and pauses otherwise.  A paused trial is promoted as soon as it belongs to
    the best 1/`reduction`.  With several objectives the best of each objective always belongs to
    them, once as many as `reduction` trials have reached the rung.  Rungs of all brackets at the
    same epoch share their trials for the order; each bracket counts its own.

    Args:
        objectives: metric name -> "max" or "min".
        halving: rungs and brackets.
    """

    def __init__(self, objectives: Mapping[str, str], halving: Halving) -> None:
        self._objectives = dict(objectives)
        self._halving = halving
        self._limits = np.cumsum(halving.shares)
        columns = len(self._objectives)
        self._rungs = {epoch: Rung(pareto.Fronts(columns)) for epoch in halving.milestones}
        self._paused: dict[str, int] = {}  # epoch of the rung at which each trial waits
        self._finishing: set[str] = set()
        self._best: dict[tuple[int, int], frozenset[str]] = {}  # by bracket and epoch

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs of the rungs of the first bracket."""
        return tuple(self._rungs)

    @property
    def paused(self) -> Mapping[str, int]:
        """Paused trials, and the epoch after which each waits."""
        return self._paused

    def bracket(self, trial: str) -> int:
        """Return the number of a trial's bracket, which only depends on its name."""
        if len(self._limits) == 1:
            return 0
        place = zlib.crc32(trial.encode()) / 2**32
        return min(int(np.searchsorted(self._limits, place, side="right")), len(self._limits) - 1)

    def record(self, trial: str, metrics: Metrics) -> bool:
        """Enter a trial's metrics after an epoch; return whether the epoch has a rung for it.

        Args:
            trial: name of the trial.
            metrics: of the epoch, with costs and the number of the epoch as `epoch`.
        """
        epoch = int(metrics["epoch"])
        rung = self._rungs.get(epoch)
        if rung is None:
            return False
        point = pareto.losses([metrics], self._objectives)[0]
        if np.isfinite(point).all():
            rung.add(trial, point)
            self._best = {key: best for key, best in self._best.items() if key[1] != epoch}
        return self.milestones.index(epoch) >= self.bracket(trial)

    def keeps(self, trial: str, metrics: Metrics) -> bool:
        """Return whether a trial trains another epoch; if not, it is to pause.

        Args:
            trial: name of the trial.
            metrics: of its last epoch, with costs and the number of the epoch as `epoch`.
        """
        if not self.record(trial, metrics):
            return True
        epoch = int(metrics["epoch"])
        if trial not in self._rungs[epoch].indices:
            return False  # an objective is not finite
        if trial in self._finishing:
            return self._rungs[epoch].is_on_front(trial)
        return trial in self._best_of(self.bracket(trial), epoch)

    def pause(self, trial: str, epoch: int) -> bool:
        """Enter that a trial waits after an epoch; return whether it may be promoted at all."""
        rung = self._rungs.get(epoch)
        if rung is None or trial not in rung.indices:
            return False
        self._paused[trial] = epoch
        return True

    @property
    def candidate(self) -> str | None:
        """The paused trial to promote next, of the highest rung first; None if there is none."""
        for bracket in range(len(self._limits)):
            for epoch in reversed(self.milestones):
                waiting = self._best_of(bracket, epoch) & self._paused.keys()
                waiting = {t for t in waiting if self._paused[t] == epoch} - self._finishing
                if waiting:
                    return min(waiting, key=self._rungs[epoch].indices.__getitem__)
        return None

    def promote(self, trial: str) -> int:
        """Take a trial from the paused ones; return the epoch after which it continues."""
        return self._paused.pop(trial)

    def drop(self, trial: str) -> None:
        """Forget a paused trial that cannot continue; it still counts at its rungs."""
        self._paused.pop(trial, None)

    def worst(self) -> str | None:
        """Return the paused trial that is least likely to be promoted: of the lowest rung."""
        if not self._paused:
            return None
        epoch = min(self._paused.values())
        rung = self._rungs[epoch]
        waiting = [rung.indices[t] for t, at in self._paused.items() if at == epoch]
        return rung.trials[rung.best(np.array(waiting), len(waiting))[-1]]

    @property
    def on_front(self) -> list[str]:
        """Paused trials that no other trial dominates at the rung that they reached.

        The highest rung comes first, and within a rung an epsilon-net.
        """
        trials: list[str] = []
        for epoch in reversed(self.milestones):
            rung = self._rungs[epoch]
            waiting = [t for t, at in self._paused.items() if at == epoch and rung.is_on_front(t)]
            if waiting:
                members = np.array([rung.indices[trial] for trial in waiting])
                trials += [rung.trials[i] for i in rung.best(members, len(members))]
        return trials

    def finish(self, epochs: float, count: int) -> list[str]:
        """Select trials of the fronts of their rungs to be trained to the full budget.

        Such a trial trains on while it stays on the front of each rung that it reaches.

        Args:
            epochs: epochs that may be spent.
            count: maximum number of trials.

        Returns:
            Trials to `promote`.
        """
        selected: list[str] = []
        for trial in self.on_front:
            cost = self._halving.epochs - self._paused[trial]
            if len(selected) < count and cost <= epochs:
                selected.append(trial)
                epochs -= cost
        self._finishing.update(selected)
        return selected

    def resume_finishing(self, trials: Sequence[str]) -> None:
        """Enter that trials were selected by `finish` before a driver was interrupted."""
        self._finishing.update(trials)

    def _best_of(self, bracket: int, epoch: int) -> frozenset[str]:
        """Return the trials of a bracket that belong to the best at an epoch."""
        key = bracket, epoch
        if key not in self._best:
            rung = self._rungs[epoch]
            in_bracket = (i for i, t in enumerate(rung.trials) if self.bracket(t) == bracket)
            members = np.fromiter(in_bracket, dtype=int)
            count = int(len(members) / self._halving.reduction)
            is_above = self.milestones.index(epoch) >= bracket
            best = set(rung.best(members, count)) if is_above and count else set()
            if best and len(self._objectives) > 1:
                best |= rung.ends(members)
            self._best[key] = frozenset(rung.trials[i] for i in best)
        return self._best[key]
