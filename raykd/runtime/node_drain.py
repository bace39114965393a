"""Notice that a node is drained: `ray drain-node`, a preempted spot instance, an autoscaler."""

from __future__ import annotations

import time

from raykd.compat.ray_patches import draining_nodes

DRAIN_CHECK_S = 1.0
"""Least seconds between two questions to Ray."""


class NodeDrained(Exception):
    """The node of this process is drained."""


class NodeDrain:
    """Check between epochs whether the node of this process is drained."""

    def __init__(self) -> None:
        self._next = 0.0

    def check(self) -> None:
        """Ask Ray, at most once in `DRAIN_CHECK_S`.

        Raises:
            NodeDrained: it is.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + DRAIN_CHECK_S
        import ray

        if ray.get_runtime_context().get_node_id() in draining_nodes():
            raise NodeDrained("its node is drained")
