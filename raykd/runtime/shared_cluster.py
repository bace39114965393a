"""Slots of a study on a joined cluster, whose nodes and other studies come and go.

Every study writes the part of the cluster that it can use to Ray's key-value store.  The studies
whose drivers live share the cluster equally; what one cannot use goes to the others.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from raykd.compat import ray_patches
from raykd.errors import StudyError
from raykd.runtime.cluster import Resources, living_nodes, plan_slots
from raykd.study.config import Cluster
from raykd.tracking.events import SlotPlan

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


START_S = 5.0
"""Seconds in which Tune reserves the resources of new slots."""

UNUSED_S = 60.0
"""Seconds without requests after one was placed although no node has joined."""


@dataclass(frozen=True)
class Demand:
    """Demand of a study.

    Attributes:
        kind: resource for which studies compete.  Studies on GPUs need few CPUs.
        fraction: part of the cluster that it can use, up to 1.
    """

    kind: Literal["GPU", "CPU"]
    fraction: float


def count_slots(cluster: Cluster, plan: SlotPlan, nodes: Sequence[Resources]) -> int:
    """Return how many slots of a plan fit on all nodes; 0: not even one, for now."""
    growing = replace(cluster, slots="auto", max_slots=None, gpus_per_worker=plan.gpus)
    with suppress(StudyError):
        return plan_slots(growing, nodes).slots
    return 0


def share_slots(study: str, demands: Mapping[str, Demand], slots: int) -> int:
    """Return the slots of one study if several share a cluster equally, at least 1.

    Args:
        study: one of the keys of `demands`.
        demands: of all studies.
        slots: number of slots of this study's size on the whole cluster.
    """
    kind = demands[study].kind
    fractions = {name: demand.fraction for name, demand in demands.items() if demand.kind == kind}
    # equal parts; what one study cannot use goes to the others
    parts, left = {}, 1.0
    for number, name in enumerate(sorted(fractions, key=lambda name: (fractions[name], name))):
        parts[name] = min(fractions[name], left / (len(fractions) - number))
        left -= parts[name]
    # rounding the sums leaves no slot over if the slots of all studies have the same size
    before = sum(part for name, part in parts.items() if name < study)
    end = before + parts[study]
    return max(1, math.floor(end * slots + 1e-9) - math.floor(before * slots + 1e-9))


def read_demands() -> dict[str, Demand]:
    """Return the demands of the studies whose drivers live, by the ids of their jobs."""
    demands = {}
    for job in ray_patches.living_jobs():
        with suppress(ValueError, TypeError):  # none, or of another version of raykd
            kind, fraction = json.loads(ray_patches.read_shared_value(job) or "null")
            demands[job] = Demand(kind, min(1.0, max(0.0, float(fraction))))
    return demands


class ClusterShare:
    """Share of a study in a joined cluster.

    Args:
        cluster: settings of the study.
        plan: resources of a slot.
    """

    def __init__(self, cluster: Cluster, plan: SlotPlan) -> None:
        self._cluster = cluster
        self._plan = plan
        self._requests = SlotRequests(plan)

    def slots(self) -> int:
        """Return how many slots the study may use now, at least 1.

        Also publishes what the study can use, and asks the autoscaler for slots that are missing.
        """
        cluster = self._cluster
        fitting = count_slots(cluster, self._plan, living_nodes())
        target = cluster.max_slots or fitting if cluster.slots == "auto" else cluster.slots
        if cluster.max_slots is not None:
            self._requests.update(target, fitting)
        usable = min(target, fitting)
        fraction = usable / fitting if fitting else 1.0
        demand = Demand("GPU" if self._plan.gpus else "CPU", fraction)
        study = ray_patches.own_job()
        ray_patches.write_shared_value(study, json.dumps([demand.kind, demand.fraction]))
        share = share_slots(study, {**read_demands(), study: demand}, fitting)
        return max(1, min(usable, share))

    def close(self) -> None:
        """Leave the cluster to other studies, and withdraw the requests."""
        self._requests.withdraw()
        ray_patches.delete_shared_value(ray_patches.own_job())


class SlotRequests:
    """Requests for slots that a cluster has no room for: pending placement groups.

    The autoscaler starts nodes for pending groups.  Pending trials do not suffice: Tune keeps one
    at a time.  `ray.autoscaler.sdk.request_resources` is no remedy: each call replaces that of
    another study, and it stays when the driver is killed.  Ray removes the groups of a driver that
    is gone.

    A group that is placed holds resources that the slots need, so all groups are removed then, and
    requested again when the slots have had time to start.

    Args:
        plan: resources of a slot.
    """

    def __init__(self, plan: SlotPlan) -> None:
        self._plan = plan
        self._groups: list[PlacementGroup] = []
        self._fitting = 0
        self._next = time.monotonic() + START_S

    def update(self, target: int, fitting: int) -> None:
        """Request the slots that are missing.

        Args:
            target: number of slots of the study.
            fitting: number of slots for which the cluster has room.
        """
        from ray.util import placement_group

        now = time.monotonic()
        if any(group.wait(timeout_seconds=0) for group in self._groups):
            # the cluster has grown, or the study leaves room unused
            self._next = now + (START_S if fitting > self._fitting else UNUSED_S)
            self.withdraw()
        self._fitting = fitting
        missing = max(0, target - fitting)
        if now < self._next or len(self._groups) == missing:
            return
        self.withdraw()
        worker = {"CPU": self._plan.cpus} | ({"GPU": self._plan.gpus} if self._plan.gpus else {})
        self._groups = [placement_group([worker] * self._plan.workers) for _ in range(missing)]

    def withdraw(self) -> None:
        """Remove all requests."""
        from ray.util import remove_placement_group

        for group in self._groups:
            remove_placement_group(group)
        self._groups = []
