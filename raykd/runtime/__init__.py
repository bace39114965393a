"""Runtime: jobs, the workers that run them, and the Ray cluster; the only room that imports Ray.

`jobs` and `channel` define what planner, slots and workers exchange; `worker` runs jobs, in a slot
of Ray or in the driver's own process.
"""
