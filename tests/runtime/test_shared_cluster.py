"""Shares of several studies in a cluster, without Ray."""

from __future__ import annotations

import itertools

import pytest

from raykd.errors import StudyError
from raykd.runtime import shared_cluster
from raykd.runtime.cluster import plan_slots
from raykd.runtime.shared_cluster import (
    START_S,
    UNUSED_S,
    Demand,
    SlotRequests,
    count_slots,
    share_slots,
)
from raykd.study.config import Cluster
from raykd.tracking.events import SlotPlan

NODES = [{"CPU": 4.0}, {"CPU": 4.0}]


@pytest.mark.parametrize(
    ("fractions", "slots", "shares"),
    [
        ([1], 8, [8]),
        ([1, 1], 8, [4, 4]),
        ([1, 1, 1], 8, [2, 3, 3]),
        ([1, 1, 1], 2, [1, 1, 1]),  # each study may run one trial; one of them waits
        ([0.25, 1], 8, [2, 6]),  # the rest goes to the study that can use it
        ([1, 0.25, 1], 8, [3, 2, 3]),
        ([0.25, 0.25], 8, [2, 2]),
        ([0.0, 1], 8, [1, 8]),
    ],
)
def test_studies_share_cluster_equally(
    fractions: list[float], slots: int, shares: list[int]
) -> None:
    demands = {f"{job:02d}": Demand("CPU", part) for job, part in enumerate(fractions, start=1)}
    assert [share_slots(job, demands, slots) for job in demands] == shares


def test_shares_of_equal_slots_use_all_slots() -> None:
    for studies, slots in itertools.product(range(1, 6), range(5, 30)):
        demands = {str(job): Demand("GPU", 1.0) for job in range(studies)}
        shares = [share_slots(job, demands, slots) for job in demands]
        assert sum(shares) == slots and max(shares) - min(shares) <= 1


def test_studies_of_another_kind_do_not_count() -> None:
    demands = {"1": Demand("GPU", 1.0), "2": Demand("CPU", 1.0)}
    assert [share_slots(job, demands, 4) for job in demands] == [4, 4]


def test_slots_are_limited() -> None:
    assert plan_slots(Cluster(max_slots=3), NODES).slots == 3
    assert plan_slots(Cluster(max_slots=30), NODES).slots == 8
    with pytest.raises(StudyError, match=r"cluster\.max_slots: 3 is set together with slots: 2"):
        plan_slots(Cluster(slots=2, max_slots=3), NODES)


def test_cluster_that_grows_may_start_without_room() -> None:
    wide = Cluster(cpus_per_worker=16, max_slots=4)
    with pytest.raises(StudyError, match="cpus_per_worker"):
        plan_slots(wide, NODES)
    plan = plan_slots(wide, NODES, grows=True)
    assert (plan.slots, plan.cpus) == (1, 16)
    assert count_slots(wide, plan, NODES) == 0
    assert count_slots(wide, plan, [*NODES, {"CPU": 32.0}]) == 2


class Groups:
    """Ray's placement groups: those that exist, and whether they are placed."""

    def __init__(self) -> None:
        self.alive: list[Group] = []

    def create(self, bundles: list[dict[str, float]]) -> Group:
        self.alive.append(Group(bundles))
        return self.alive[-1]

    def remove(self, group: Group) -> None:
        self.alive.remove(group)


class Group:
    def __init__(self, bundles: list[dict[str, float]]) -> None:
        self.bundles = bundles
        self.placed = False

    def wait(self, timeout_seconds: float) -> bool:
        return self.placed


def test_missing_slots_are_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, now = Groups(), [0.0]
    monkeypatch.setattr("ray.util.placement_group", groups.create)
    monkeypatch.setattr("ray.util.remove_placement_group", groups.remove)
    monkeypatch.setattr(shared_cluster.time, "monotonic", lambda: now[0])
    requests = SlotRequests(SlotPlan(1, 2, 4.0, 0.5))

    def update(seconds: float, fitting: int) -> int:
        now[0] += seconds
        requests.update(4, fitting)
        return len(groups.alive)

    assert update(0, 1) == 0, "the first slot must be able to start"
    assert update(START_S, 1) == 3
    assert groups.alive[0].bundles == [{"CPU": 4.0, "GPU": 0.5}] * 2
    assert update(1, 1) == 3, "they are pending"
    groups.alive[0].placed = True  # on a node that joined
    assert update(1, 2) == 0, "the second slot must be able to start"
    assert update(START_S, 2) == 2
    groups.alive[0].placed = True  # in room that the study does not use
    assert update(1, 2) == 0
    assert update(START_S, 2) == 0
    assert update(UNUSED_S, 2) == 2
    assert update(1, 1) == 3, "a node is lost"
    assert update(1, 4) == 0, "all slots fit"
    update(1, 3)
    requests.withdraw()
    assert not groups.alive
