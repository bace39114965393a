"""Measurement of how many trials should share a GPU, for `cluster.slots: auto`.

A small student leaves most of a large GPU idle; how much depends on the student, the GPU and the
CPU.  So trainings like the study's own run at the same time on one GPU: first one, then two and
four of them, for a few seconds each.  The number with the most images a second is used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.errors import Infeasible
from raykd.models import Signature
from raykd.runtime.cluster import Resources
from raykd.schemes import Alone
from raykd.study.config import Cluster, Study
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded

if TYPE_CHECKING:
    from raykd.data import Dataset

COUNTS = (1, 2, 4)
"""Numbers of trainings on one GPU that are measured."""

MEASURE_S = 3.0
"""Seconds of each measurement."""

MIN_SPEEDUP = 1.05
"""Ratio of images a second that more trainings on a GPU must reach."""

READY_S = 180.0
"""Seconds in which the trainings must be ready; nothing is measured on a busy cluster."""

STEPS = 20
"""Training steps between two readings of the clock."""


def measure_sharing(
    study: OpenStudy, signature: Signature, data: Dataset, nodes: Sequence[Resources]
) -> tuple[Cluster, dict[int, float]]:
    """Measure how many trials should share a GPU.

    Nothing is measured, and the settings stay as they are, if `slots` or `gpus_per_worker` are
    numbers, if trials take several workers, if no node has a GPU, or if its CPUs are too few for
    more than one trial on each GPU.

    Returns:
        the cluster settings with the share of a GPU for each trial, and images a second of all
        trainings together by the number of trainings on a GPU.
    """
    cluster = study.settings.cluster
    most = max_trials_per_gpu(cluster, nodes)
    example = example_training(study, signature) if most > 1 else None
    if example is None:
        return cluster, {}
    share = {"num_cpus": cluster.cpus_per_worker, "num_gpus": 1 / most}
    rates = measure_rates(example, data, [count for count in COUNTS if count <= most], share)
    return replace(cluster, gpus_per_worker=1 / best_count(rates)), rates


def max_trials_per_gpu(cluster: Cluster, nodes: Sequence[Resources]) -> int:
    """Return how many trials may share a GPU by the CPUs of its node; 1: nothing to measure."""
    is_set = cluster.slots != "auto" or cluster.gpus_per_worker != "auto"
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if is_set or cluster.workers_per_trial > 1 or not gpus:
        return 1
    each = min(node.get("CPU", 0) / cluster.cpus_per_worker / node["GPU"] for node in gpus)
    return max(count for count in COUNTS if count <= max(1, int(each + 1e-9)))


def best_count(rates: Mapping[int, float]) -> int:
    """Return the best number of trainings on a GPU; more only if they are clearly faster."""
    best = min(rates, default=1)
    for count in sorted(rates):
        if rates[count] > MIN_SPEEDUP * rates[best]:
            best = count
    return best


def save_rates(file: Path, nodes: Sequence[Resources], rates: Mapping[int, float]) -> None:
    """Save the measured rates, so that a resumed search need not measure again."""
    file.write_text(json.dumps({"gpus": _gpus(nodes), "images_per_second": rates}))


def load_rates(file: Path, nodes: Sequence[Resources]) -> dict[int, float]:
    """Load rates that `save_rates` saved; empty if there are none of these nodes, or damaged."""
    try:
        saved = json.loads(file.read_bytes())
        if saved["gpus"] != _gpus(nodes):
            return {}
        return {int(count): float(rate) for count, rate in saved["images_per_second"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _gpus(nodes: Sequence[Resources]) -> list[list[float]]:
    return sorted([node.get("CPU", 0.0), node["GPU"]] for node in nodes if node.get("GPU", 0))


def example_training(study: OpenStudy, signature: Signature) -> Study | None:
    """Draw a training like the study's trials: the student alone, as with cached outputs."""
    for seed in range(16):
        try:
            drawn = study.bind(signature).draw(Seeded(seed)).resolved
        except Infeasible:
            continue
        student = drawn.student.model
        if student.origin is None:  # else it needs a trained teacher
            data = replace(drawn.data, labels_per_class=None)  # the labels do not matter here
            return replace(drawn, data=data, scheme=Alone(), knowledge=())
    return None


def measure_rates(
    study: Study, data: Dataset, counts: Sequence[int], share: Mapping[str, float]
) -> dict[int, float]:
    """Measure images a second of several trainings on one GPU, or on the CPUs of one node.

    Args:
        study: concrete, without a teacher.
        data: of the trainings.
        counts: numbers of trainings, ascending; a number that the memory does not allow ends the
            measurement.
        share: resources of each training: `num_cpus`, `num_gpus`.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    most = max(counts)
    bundle = {"CPU": share["num_cpus"] * most} | ({"GPU": 1.0} if share["num_gpus"] else {})
    group = ray.util.placement_group([bundle])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    actor = ray.remote(_Trainee).options(**share, scheduling_strategy=strategy)
    try:
        if not group.wait(READY_S):
            return {}
        arrays = ray.put(data.arrays())
        trainees = [actor.remote(study, [arrays], share) for _ in range(most)]
        rates: dict[int, float] = {}
        for count in counts:
            rate = _rate(trainees[:count])
            if rate is None:
                break
            rates[count] = rate
        return rates
    finally:
        ray.util.remove_placement_group(group)  # and what runs in it


def _rate(trainees: Sequence[Any]) -> float | None:
    """Return images a second of all trainings; None if one of them could not train."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get([trainee.ready.remote() for trainee in trainees], timeout=READY_S)
        rates = [trainee.train.remote(MEASURE_S) for trainee in trainees]
        return sum(ray.get(rates, timeout=READY_S))
    except (RayError, TimeoutError):
        return None


class _Trainee:
    """Actor that trains in its own process."""

    def __init__(self, study: Study, data: Sequence[Any], share: Mapping[str, float]) -> None:
        import ray
        import torch

        from raykd.data import Dataset, Placement
        from raykd.training.trainer import Training

        device = torch.device("cuda" if share["num_gpus"] else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(share["num_cpus"])))
        dataset = Dataset.from_arrays(ray.get(data[0])).to(device)
        longer = replace(study, train=replace(study.train, epochs=1_000_000))
        self._images = study.train.batch_size
        self._training = Training(longer, dataset, seed=0, placement=Placement(device))
        self._steps = min(STEPS, max(1, -(-len(dataset.train) // self._images) - 1))

    def ready(self) -> None:
        """Run the first steps, which allocate memory and choose kernels."""
        self._run()

    def train(self, seconds: float) -> float:
        """Train for some seconds, and return images a second."""
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            steps += self._run()
        return steps * self._images / (time.perf_counter() - start)

    def _run(self) -> int:
        import torch

        steps = self._training.run_steps(self._steps)
        if self._training.device.type == "cuda":
            torch.cuda.synchronize()
        return steps
