"""Costs of a network before it is trained: names, constraints, and how each is determined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Model, Task, profile_model
from raykd.models.introspection.latency import (
    Latency,
    Timing,
    device_name,
    torch_latency,
    unmet_conditions,
)
from raykd.study.checks.messages import Issue
from raykd.study.config import Bounds, Search
from raykd.study.deployment import DeployedModel, peak_memory_of
from raykd.study.objectives import COSTS, MEASURED, Cost


def required_costs(search: Search) -> tuple[Cost, ...]:
    """Parameters, MACs, and the further costs that the study names."""
    named = {"params", "macs", *search.objectives, *search.constraints, *search.measure}
    return tuple(cost for cost in COSTS if cost in named)


def measured_costs(search: Search) -> tuple[Cost, ...]:
    """The required costs that are measured."""
    return tuple(cost for cost in required_costs(search) if cost in MEASURED)


def measurement_summary(search: Search) -> str:
    """Names of the measured costs and the device, in a sentence; "" if nothing is measured."""
    costs = measured_costs(search)
    if not costs:
        return ""
    return f"{', '.join(costs)} on {conditions(search.latency)}, before a trial starts"


def conditions(settings: Latency) -> str:
    """Device, threads and batch sizes of latency measurements, in words."""
    device = settings.device
    place = f"{device}: {device_name(device)}" if not list(unmet_conditions(settings)) else device
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    return f"{place}, {threads}, batches of 1 and {settings.batch}, float32"


def check_costs(search: Search, costs: Mapping[Cost, float]) -> None:
    """Check costs against a study's constraints; costs that are not in `costs` are skipped.

    Raises:
        Infeasible: a constraint is broken.
    """
    for cost, bounds in search.constraints.items():
        broken = "" if cost not in costs else violation(cost, costs[cost], bounds)
        if broken:
            raise Infeasible(broken)


def violation(cost: Cost, value: float, bounds: Bounds) -> str:
    """The bound that a cost breaks, in words; "" if it is within its bounds."""
    if bounds.min is not None and value < bounds.min:
        return f"{cost} {format_cost(cost, value)} < {format_cost(cost, bounds.min)}"
    if bounds.max is not None and value > bounds.max:
        return f"{cost} {format_cost(cost, value)} > {format_cost(cost, bounds.max)}"
    return ""


def format_cost(cost: str, value: float) -> str:
    """A cost as text: 12,345; 0.4125 (milliseconds)."""
    return f"{value:.4g}" if cost in MEASURED else f"{value:,.0f}"


def costs_of(
    model: Model, task: Task, names: Iterable[Cost] = COSTS, settings: Latency | None = None
) -> dict[Cost, float]:
    """Costs of a model as it is built, by name, in the order of `COSTS`.

    Args:
        model: any.
        task: its input shape and classes.
        names: the costs to determine; a latency takes about a second, in ONNX Runtime several.
        settings: of latency measurements; None: one thread of the CPU.

    Raises:
        ValueError: the model cannot be built for such data, or not be measured so.
    """
    profile, settings = profile_model(model, task), settings or Latency()
    deployed, chosen = DeployedModel(model), frozenset(names)
    values: dict[Cost, Callable[[], float]] = {
        "params": lambda: float(profile.params),
        "macs": lambda: float(profile.macs),
        "memory": lambda: float(peak_memory_of(deployed, task)),
    }
    if chosen & {*MEASURED}:
        network = deployed.network(task)
        for cost in MEASURED:
            values[cost] = lambda cost=cost: measure(cost, network, task, settings).median
    return {cost: values[cost]() for cost in COSTS if cost in chosen}


def measure(cost: Cost, network: nn.Module, task: Task, settings: Latency) -> Timing:
    """Measure a latency of a network with weights.

    Raises:
        ValueError: it cannot be measured so.
    """
    batch = settings.batch if "batch" in cost else 1
    if not cost.startswith("onnx"):
        return torch_latency(network, task, batch, settings)
    from raykd.models.introspection.onnx_latency import onnx_latency

    return onnx_latency(network, task, batch, settings)


def latency_issues(search: Search) -> Iterator[Issue]:
    """Yield problems of the latency settings that are independent of this machine."""
    kind, _, number = search.latency.device.partition(":")
    cuda = kind == "cuda" and (number.isdigit() or search.latency.device == "cuda")
    if search.latency.device != "cpu" and not cuda:
        message = f"unknown device '{search.latency.device}'; must be cpu, cuda, cuda:0, cuda:1 ..."
        yield Issue(("search", "latency", "device"), message, "write one of these")


def check_conditions(search: Search) -> None:
    """Check that this machine can measure the costs that a study asks for.

    Raises:
        StudyError: it cannot; names what is missing and how to get it.
    """
    costs = measured_costs(search)
    missing = list(unmet_conditions(search.latency)) if costs else []
    if not missing and any(cost.startswith("onnx") for cost in costs):
        from raykd.models.introspection.onnx_latency import unmet_onnx_conditions

        missing = list(unmet_onnx_conditions(search.latency))
    if missing:
        raise StudyError(
            [
                Problem(
                    message,
                    path=f"search.latency.{field}" if field else path_of_cost(search),
                    fix=fix,
                )
                for field, message, fix in missing
            ]
        )


def path_of_cost(search: Search, costs: Iterable[Cost] = ()) -> str:
    """The path in the study that asks for the first of `costs`, or for the last measured cost."""
    cost = next(iter(costs), measured_costs(search)[-1])
    if cost in search.constraints:
        return f"search.constraints.{cost}"
    return f"search.objectives.{cost}" if cost in search.objectives else "search.measure"
