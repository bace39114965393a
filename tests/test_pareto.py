"""Non-dominated sorting against points whose order is plain to see, and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from raykd.pareto import Fronts, crowding, losses, pareto, ranks, spread


def test_losses_are_less_better() -> None:
    found = losses(
        [{"accuracy": 0.9, "params": 10, "x": 1}, {"accuracy": 0.8, "params": 5}],
        {"accuracy": "max", "params": "min"},
    )
    assert found.tolist() == [[-0.9, 10], [-0.8, 5]]
    assert losses([], {"accuracy": "max", "params": "min"}).shape == (0, 2)


def test_ranks_of_known_picture() -> None:
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [5, 5], [2, 5]], dtype=float)
    assert ranks(points).tolist() == [0, 0, 0, 1, 2, 1]
    assert ranks(points[:, :1]).tolist() == [0, 1, 3, 2, 4, 1]
    assert ranks(points[:0]).tolist() == []


def test_equal_points_share_front() -> None:
    points = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
    assert ranks(points).tolist() == [0, 0, 1]


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_by_peeling(columns: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 5, (25, columns)).astype(float)
    left, front = set(range(25)), 0
    expected = np.full(25, -1)
    while left:
        best = {
            i
            for i in left
            if not any(
                (points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left
            )
        }
        expected[list(best)] = front
        left -= best
        front += 1
    assert ranks(points).tolist() == expected.tolist()
    one_by_one = Fronts(columns)  # in any order: later ones push back earlier ones
    for point in points:
        one_by_one.add(point)
    assert one_by_one.ranks.tolist() == expected.tolist()
    assert one_by_one.points.tolist() == points.tolist()


def test_of_equal_points_first_alone_is_on_front() -> None:
    points = np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    assert pareto(points) == [1, 2]
    assert pareto(points[:0]) == []
    assert pareto(np.array([[2.0], [1.0], [1.0]])) == [1]


def test_crowding_by_hand() -> None:
    points = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]])
    room = crowding(points)
    assert room[0] == room[3] == np.inf
    # Deb 2002: over the columns, the gap between both neighbours by the column's span.
    assert room[1] == pytest.approx(4 / 10 + 5 / 10)
    assert room[2] == pytest.approx(9 / 10 + 6 / 10)


def test_crowding_without_any_span() -> None:
    assert crowding(np.ones((3, 2)))[1] == 0
    assert crowding(np.ones((1, 2))).tolist() == [np.inf]


def test_spread_takes_best_then_farthest() -> None:
    points = np.array([[0.5, 5.0], [0.0, 10.0], [0.1, 9.0], [1.0, 0.0]])
    assert spread(points, 1) == [1]
    assert spread(points, 2) == [1, 3]
    assert spread(points, 3) == [1, 3, 0]
    assert sorted(spread(points, 9)) == [0, 1, 2, 3]
    assert spread(points[:0], 3) == []


def test_spread_breaks_ties_in_first_column_by_others() -> None:
    assert spread(np.array([[1.0, 7.0], [1.0, 3.0], [2.0, 0.0]]), 1) == [1]


def test_spread_does_not_care_for_units() -> None:
    points = np.array([[0.0, 10.0], [0.4, 6.0], [0.5, 5.0], [1.0, 0.0]])
    assert spread(points, 3) == spread(points * [1.0, 1e6], 3) == [0, 3, 2]
