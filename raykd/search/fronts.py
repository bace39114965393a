"""Non-dominated sorting: what "better" means when there are several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def losses(metrics: Sequence[Mapping[str, float]], objectives: Mapping[str, str]) -> np.ndarray:
    """(N, objectives) array in which less is better throughout."""
    signs = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
    values = np.array([[m[name] for name in objectives] for m in metrics], dtype=float)
    return values.reshape(len(metrics), len(objectives)) * signs


def ranks(points: np.ndarray) -> np.ndarray:
    """Each point's front, 0 for the non-dominated ones (less is better in every column)."""
    no_worse = (points[:, None, :] <= points[None, :, :]).all(-1)
    better = (points[:, None, :] < points[None, :, :]).any(-1)
    dominates = no_worse & better
    rank = np.full(len(points), -1)
    front = 0
    while (rank < 0).any():
        left = rank < 0
        dominated = (dominates & left[:, None]).any(0)
        rank[left & ~dominated] = front
        front += 1
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
