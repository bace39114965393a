"""Non-dominated sorting: what "better" means when there are several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def losses(metrics: Sequence[Mapping[str, float]], objectives: Mapping[str, str]) -> np.ndarray:
    """(N, objectives) array in which less is better throughout."""
    signs = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
    values = np.array([[m[name] for name in objectives] for m in metrics], dtype=float)
    return values.reshape(len(metrics), len(objectives)) * signs


class Fronts:
    """Points in their non-dominated fronts, which take one more at a time (less is better).

    A point lies one front behind the last of those that dominate it.  What a new one pushes back
    pushes others back in turn, front by front (Li et al. 2017, "Efficient Nondomination Level
    Update Method", IEEE Transactions on Cybernetics 47(9); they keep a list for each front, this
    keeps each point's rank).

    Args:
        columns: how many objectives.
    """

    def __init__(self, columns: int) -> None:
        self.points = np.empty((0, columns))
        self.ranks = np.empty(0, dtype=int)
        """Each point's front, 0 for the non-dominated ones; shape (points,)."""

    def add(self, point: np.ndarray) -> None:
        """Take one more point, shape (columns,)."""
        before = self.ranks[_dominate(self.points, point)]
        rank = int(before.max(initial=-1)) + 1
        pushing = point[None]
        for front in range(rank, int(self.ranks.max(initial=-1)) + 1):
            members = np.flatnonzero(self.ranks == front)
            hit = _dominate(pushing[:, None], self.points[members]).any(0)
            # Those pushed here from the front before are no match for one another.
            self.ranks[members[hit]] += 1
            pushing = self.points[members[hit]]
            if not len(pushing):
                break
        self.points = np.vstack([self.points, point])
        self.ranks = np.append(self.ranks, rank)


def _dominate(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Whether one is no worse in any column and better in some; either may be many."""
    return np.logical_and((these <= those).all(-1), (these < those).any(-1))


def ranks(points: np.ndarray) -> np.ndarray:
    """Each point's front, 0 for the non-dominated ones (less is better in every column)."""
    order = np.lexsort(points.T[::-1])  # whatever dominates a point comes before it
    fronts = Fronts(points.shape[1])
    for point in points[order]:
        fronts.add(point)
    rank = np.empty(len(points), dtype=int)
    rank[order] = fronts.ranks
    return rank


def crowding(points: np.ndarray) -> np.ndarray:
    """How much room each point of one front has (Deb 2002, NSGA-II, section III-B); ends: inf."""
    room = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        room[order[[0, -1]]] = np.inf
        if span > 0:
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return room


def pareto(points: np.ndarray) -> list[int]:
    """Indices of the non-dominated points; of equal points the first alone."""
    if len(points) == 0:
        return []
    _, first = np.unique(points, axis=0, return_index=True)
    distinct = {int(i) for i in first}
    return [int(i) for i in np.flatnonzero(ranks(points) == 0) if int(i) in distinct]


def spread(points: np.ndarray, count: int) -> list[int]:
    """At most `count` indices of a front: the best in the first column, then ever the point
    farthest from those taken (columns scaled to [0, 1])."""
    if len(points) == 0:
        return []
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    taken = [int(np.lexsort(points.T[::-1])[0])]
    while len(taken) < min(count, len(points)):
        distance = np.linalg.norm(scaled[:, None] - scaled[None, taken], axis=-1).min(1)
        distance[taken] = -1.0
        taken.append(int(distance.argmax()))
    return taken
