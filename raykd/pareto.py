"""Non-dominated sorting of points with several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def losses(metrics: Sequence[Mapping[str, float]], objectives: Mapping[str, str]) -> np.ndarray:
    """Return the metrics as an array (N, objectives) in which less is better in every column."""
    signs = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
    values = np.array([[m[name] for name in objectives] for m in metrics], dtype=float)
    return values.reshape(len(metrics), len(objectives)) * signs


class Fronts:
    """Non-dominated fronts of points that are added one at a time (less is better).

    The front of a point is one more than the last front of the points that dominate it.  Points
    that a new point moves to the next front move other points in turn, front by front (Li et al.
    2017, "Efficient Nondomination Level Update Method", IEEE Transactions on Cybernetics 47(9);
    they store a list for each front, this class stores the rank of each point).

    Args:
        columns: number of objectives.
    """

    def __init__(self, columns: int) -> None:
        self.points = np.empty((0, columns))
        self.ranks = np.empty(0, dtype=int)
        """Front of each point, 0 for the non-dominated ones; shape (points,)."""

    def add(self, point: np.ndarray) -> None:
        """Add a point, shape (columns,)."""
        before = self.ranks[_dominate(self.points, point)]
        rank = int(before.max(initial=-1)) + 1
        moved = point[None]
        for front in range(rank, int(self.ranks.max(initial=-1)) + 1):
            members = np.flatnonzero(self.ranks == front)
            dominated = _dominate(moved[:, None], self.points[members]).any(0)
            # points that move here from the front before do not dominate one another
            self.ranks[members[dominated]] += 1
            moved = self.points[members[dominated]]
            if not len(moved):
                break
        self.points = np.vstack([self.points, point])
        self.ranks = np.append(self.ranks, rank)


def _dominate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return True where `first` is no worse in any column and better in some; broadcasts."""
    return np.logical_and((first <= second).all(-1), (first < second).any(-1))


def ranks(points: np.ndarray) -> np.ndarray:
    """Return the front of each point, 0 for the non-dominated ones (less is better)."""
    order = np.lexsort(points.T[::-1])  # a point comes after all that dominate it
    fronts = Fronts(points.shape[1])
    for point in points[order]:
        fronts.add(point)
    rank = np.empty(len(points), dtype=int)
    rank[order] = fronts.ranks
    return rank


def crowding(points: np.ndarray) -> np.ndarray:
    """Return the crowding distance of each point of a front; infinite at the ends.

    Deb 2002, NSGA-II, section III-B.
    """
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def pareto(points: np.ndarray) -> list[int]:
    """Return the indices of the non-dominated points; of equal points, that of the first."""
    if len(points) == 0:
        return []
    _, first = np.unique(points, axis=0, return_index=True)
    distinct = {int(i) for i in first}
    return [int(i) for i in np.flatnonzero(ranks(points) == 0) if int(i) in distinct]


def spread(points: np.ndarray, count: int) -> list[int]:
    """Return at most `count` indices of a front that are spread over it.

    The first point is the best in the first column.  Each further point is the one farthest from
    those selected before (columns scaled to [0, 1]).
    """
    if len(points) == 0:
        return []
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    selected = [int(np.lexsort(points.T[::-1])[0])]
    distance = np.full(len(points), np.inf)
    while len(selected) < min(count, len(points)):
        last = selected[-1]
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[last], axis=-1))
        distance[selected] = -1.0
        selected.append(int(distance.argmax()))
    return selected
