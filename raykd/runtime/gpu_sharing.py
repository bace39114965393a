"""How many slots share a GPU: tried for a few seconds, for `cluster.slots: auto`.

A small student leaves most of a large GPU idle, and how much depends on the student, the GPU and
the processor beside it.  So trainings like the study's own are run side by side, one, two and four
on one GPU, and what gives the most images a second is taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.errors import Infeasible
from raykd.models import Task
from raykd.runtime.cluster import Resources
from raykd.schemes import Alone
from raykd.study.config import Cluster, Study
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded

if TYPE_CHECKING:
    from raykd.data import Dataset

TRIED = (1, 2, 4)
"""So many trainings on one GPU."""

SECONDS = 3.0
"""How long each number of them is looked at."""

WORTH_IT = 1.05
"""More trainings on a GPU, each with its own memory, must give so many times the images."""

READY_S = 180.0
"""How long the trainings may take to be ready; a cluster that has no room for them now is left."""

STEPS = 20
"""Steps between two looks at the clock."""


def packed(
    study: OpenStudy, task: Task, data: Dataset, nodes: Sequence[Resources]
) -> tuple[Cluster, dict[int, float]]:
    """The study's wishes with the part of a GPU that a trial gets, and what was measured.

    Nothing is measured, and the wishes come back as they are, where the study decides itself
    (`slots` or `gpus_per_worker` are numbers), where trials take several workers, where no node
    has a GPU, or where its CPUs are too few for more than one trial a GPU.

    Returns:
        the wishes, and images a second of all trainings together by how many shared a GPU.
    """
    cluster = study.settings.cluster
    most = room(cluster, nodes)
    example = typical(study, task) if most > 1 else None
    if example is None:
        return cluster, {}
    share = {"num_cpus": cluster.cpus_per_worker, "num_gpus": 1 / most}
    rates = side_by_side(example, data, [count for count in TRIED if count <= most], share)
    return replace(cluster, gpus_per_worker=1 / best(rates)), rates


def room(cluster: Cluster, nodes: Sequence[Resources]) -> int:
    """How many trials may share a GPU by the CPUs of the GPUs' nodes; 1: nothing to find out."""
    asked = cluster.slots != "auto" or cluster.gpus_per_worker != "auto"
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if asked or cluster.workers_per_trial > 1 or not gpus:
        return 1
    each = min(node.get("CPU", 0) / cluster.cpus_per_worker / node["GPU"] for node in gpus)
    return max(count for count in TRIED if count <= max(1, int(each + 1e-9)))


def best(rates: Mapping[int, float]) -> int:
    """How many trainings share a GPU: more only where they give clearly more images."""
    chosen = min(rates, default=1)
    for count in sorted(rates):
        if rates[count] > WORTH_IT * rates[chosen]:
            chosen = count
    return chosen


def remember(file: Path, nodes: Sequence[Resources], rates: Mapping[int, float]) -> None:
    """Keep what was measured, so that a search that goes on need not measure again."""
    file.write_text(json.dumps({"gpus": _gpus(nodes), "images_per_second": rates}))


def remembered(file: Path, nodes: Sequence[Resources]) -> dict[int, float]:
    """What `remember` kept; nothing where there are other nodes now."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    if kept["gpus"] != _gpus(nodes):
        return {}
    return {int(count): rate for count, rate in kept["images_per_second"].items()}


def _gpus(nodes: Sequence[Resources]) -> list[list[float]]:
    return sorted([node.get("CPU", 0.0), node["GPU"]] for node in nodes if node.get("GPU", 0))


def typical(study: OpenStudy, task: Task) -> Study | None:
    """A training as trials of the study are: its student alone, as where outputs are cached."""
    for seed in range(16):
        try:
            drawn = study.bind(task).draw(Seeded(seed)).resolved
        except Infeasible:
            continue
        student = drawn.student.model
        if student.origin is None:  # else it would want a trained teacher
            return replace(drawn, scheme=Alone(), knowledge=())
    return None


def side_by_side(
    study: Study, data: Dataset, counts: Sequence[int], share: Mapping[str, float]
) -> dict[int, float]:
    """Images a second of so many trainings at a time, all on one GPU (or on one node's CPUs).

    Args:
        study: concrete, without a teacher.
        data: of the trainings.
        counts: how many to try, ascending; those for which memory does not suffice are left out.
        share: what Ray gives each of them: `num_cpus`, `num_gpus`.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    most = max(counts)
    bundle = {"CPU": share["num_cpus"] * most} | ({"GPU": 1.0} if share["num_gpus"] else {})
    group = ray.util.placement_group([bundle])
    placed = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    trainee = ray.remote(_Trainee).options(**share, scheduling_strategy=placed)
    try:
        if not group.wait(READY_S):
            return {}
        held = ray.put(data.arrays())
        trainees = [trainee.remote(study, [held], share) for _ in range(most)]
        rates: dict[int, float] = {}
        for count in counts:
            found = _rate(trainees[:count])
            if found is None:
                break
            rates[count] = found
        return rates
    finally:
        ray.util.remove_placement_group(group)  # and what runs in it


def _rate(trainees: Sequence[Any]) -> float | None:
    """Of all together; None where one of them could not train."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get([one.ready.remote() for one in trainees], timeout=READY_S)
        return sum(ray.get([one.train.remote(SECONDS) for one in trainees], timeout=READY_S))
    except (RayError, TimeoutError):
        return None


class _Trainee:
    """One training, in a process of its own."""

    def __init__(self, study: Study, data: Sequence[Any], share: Mapping[str, float]) -> None:
        import ray
        import torch

        from raykd.data import Dataset, Placement
        from raykd.training.trainer import Training

        device = torch.device("cuda" if share["num_gpus"] else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(share["num_cpus"])))
        held = Dataset.from_arrays(ray.get(data[0])).to(device)
        longer = replace(study, train=replace(study.train, epochs=1_000_000))
        self._images = study.train.batch_size
        self._training = Training(longer, held, seed=0, placement=Placement(device))
        self._steps = min(STEPS, max(1, -(-len(held.train) // self._images) - 1))

    def ready(self) -> None:
        """What is chosen or made in the first steps is."""
        self._run()

    def train(self, seconds: float) -> float:
        """Train for so long; images a second."""
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            steps += self._run()
        return steps * self._images / (time.perf_counter() - began)

    def _run(self) -> int:
        import torch

        done = self._training.run_steps(self._steps)
        if self._training.device.type == "cuda":
            torch.cuda.synchronize()
        return done
