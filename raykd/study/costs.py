"""Costs of networks before they are trained: names, constraints, and how each is determined."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Model, Signature, profile_model
from raykd.models.introspection.latency import (
    Latency,
    Timing,
    device_name,
    torch_latency,
    unmet_conditions,
)
from raykd.study.checks.messages import Issue
from raykd.study.config import Bounds, Search, plain
from raykd.study.deployment import DeployedModel, peak_memory_of
from raykd.study.objectives import COSTS, MEASURED, Cost

if TYPE_CHECKING:
    from raykd.study.candidate import Candidate


def required_costs(search: Search) -> tuple[Cost, ...]:
    """Parameters, MACs, and the further costs that the study names."""
    named = {"params", "macs", *search.objectives, *search.constraints, *search.measure}
    return tuple(cost for cost in COSTS if cost in named)


def measured_costs(search: Search) -> tuple[Cost, ...]:
    """Return the required costs that are measured."""
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
    """Return the bound that a cost breaks, in words; "" if it is within its bounds."""
    if bounds.min is not None and value < bounds.min:
        return f"{cost} {format_cost(cost, value)} < {format_cost(cost, bounds.min)}"
    if bounds.max is not None and value > bounds.max:
        return f"{cost} {format_cost(cost, value)} > {format_cost(cost, bounds.max)}"
    return ""


def format_cost(cost: str, value: float) -> str:
    """Return a cost as text: 12,345; 0.4125 (milliseconds)."""
    return f"{value:.4g}" if cost in MEASURED else f"{value:,.0f}"


def costs_of(
    model: Model,
    signature: Signature,
    names: Iterable[Cost] = COSTS,
    settings: Latency | None = None,
) -> dict[Cost, float]:
    """Costs of a model as it is built, by name, in the order of `COSTS`.

    Args:
        model: any.
        signature: its input shape and classes.
        names: the costs to determine; a latency takes about a second, in ONNX Runtime several.
        settings: of latency measurements; None: one thread of the CPU.

    Raises:
        ValueError: the model cannot be built for such data, or not be measured so.
    """
    profile, settings = profile_model(model, signature), settings or Latency()
    deployed, chosen = DeployedModel(model), frozenset(names)
    values: dict[Cost, Callable[[], float]] = {
        "params": lambda: float(profile.params),
        "macs": lambda: float(profile.macs),
        "memory": lambda: float(peak_memory_of(deployed, signature)),
    }
    if chosen & {*MEASURED}:
        network = deployed.network(signature)
        for cost in MEASURED:
            values[cost] = lambda cost=cost: measure(cost, network, signature, settings).median
    return {cost: values[cost]() for cost in COSTS if cost in chosen}


def measure(cost: Cost, network: nn.Module, signature: Signature, settings: Latency) -> Timing:
    """Measure a latency of a network with weights.

    Raises:
        ValueError: it cannot be measured so.
    """
    batch = settings.batch if "batch" in cost else 1
    if not cost.startswith("onnx"):
        return torch_latency(network, signature, batch, settings)
    from raykd.models.introspection.onnx_latency import onnx_latency

    return onnx_latency(network, signature, batch, settings)


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
    """Return the path in the study that requires the first of `costs`, or a measured cost."""
    cost = next(iter(costs), measured_costs(search)[-1])
    if cost in search.constraints:
        return f"search.constraints.{cost}"
    return f"search.objectives.{cost}" if cost in search.objectives else "search.measure"


_Measurement = Timing | str
"""A latency, or the reason why it cannot be measured."""


class StudentCosts:
    """Costs of students, counted or measured; measurements are remembered by network.

    Args:
        search: names the costs, their bounds, and the latency settings.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._measurements: dict[str, dict[Cost, _Measurement]] = {}
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Store measurements in this file, too, and begin with those it contains.

        Raises:
            StudyError: the file is damaged, or its measurements were made on another device or
                machine.
        """
        if not measured_costs(self._search):
            return
        here = conditions(self._search.latency)
        if file.exists():
            device, measurements = _read_measurements(file)
            if device != here:
                raise StudyError(
                    Problem(
                        f"this search measured latencies on {device}; latencies measured on "
                        f"{here} are not comparable",
                        path="search.latency",
                        fix="resume it on the original machine, or start a new search",
                    )
                )
            self._measurements.update(measurements)
        self._file = file
        self._save()

    def of(self, candidate: Candidate) -> dict[str, float]:
        """Return the required costs of a candidate's student, if they can be measured."""
        costs: dict[str, float] = {**candidate.costs}
        for cost, measurement in self._measured(candidate).items():
            if isinstance(measurement, Timing):
                costs[cost] = measurement.median
        return costs

    def tags(self, candidate: Candidate) -> dict[str, str]:
        """Return the costs as text: measured ones with their spread and device."""
        tags: dict[str, str] = {cost: f"{value:.0f}" for cost, value in candidate.costs.items()}
        measurements = self._measured(candidate)
        for cost, measurement in measurements.items():
            tags[cost] = str(measurement)
        if measurements:
            tags["latency_on"] = conditions(self._search.latency)
        return tags

    def check(self, candidate: Candidate) -> None:
        """Check the constraints on measured costs.

        Raises:
            Infeasible: a cost cannot be measured, or breaks its bounds.
        """
        for cost, reason in self.reasons(candidate).items():
            raise Infeasible(f"{cost} cannot be measured: {reason}")
        check_costs(
            self._search,
            {
                cost: measurement.median
                for cost, measurement in self._measured(candidate).items()
                if isinstance(measurement, Timing)
            },
        )

    def reasons(self, candidate: Candidate) -> dict[Cost, str]:
        """Return the required costs that cannot be measured of a student, each with its reason."""
        measurements = self._measured(candidate).items()
        return {cost: reason for cost, reason in measurements if isinstance(reason, str)}

    def _measured(self, candidate: Candidate) -> dict[Cost, _Measurement]:
        costs = measured_costs(self._search)
        if not costs:
            return {}
        key = json.dumps(plain(candidate.deployed), sort_keys=True)
        if candidate.study.student.input is not None:
            key += f" on {candidate.study.student.input}"
        if key not in self._measurements:
            self._measurements[key] = self._measure(candidate, costs)
            self._save()
        return {cost: self._measurements[key][cost] for cost in costs}

    def _measure(self, candidate: Candidate, costs: Iterable[Cost]) -> dict[Cost, _Measurement]:
        measurements: dict[Cost, _Measurement] = {}
        settings, signature = self._search.latency, candidate.signature
        for cost in costs:
            try:
                network = candidate.deployed.network(signature)
                measurements[cost] = measure(cost, network, signature, settings)
            except (ValueError, RuntimeError) as error:
                measurements[cost] = (str(error) or type(error).__name__).splitlines()[0]
        return measurements

    def _save(self) -> None:
        if self._file is None:
            return
        networks = {
            network: {cost: _plain(measurement) for cost, measurement in costs.items()}
            for network, costs in self._measurements.items()
        }
        content = {"on": conditions(self._search.latency), "networks": networks}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=1))
        fresh.replace(self._file)  # atomic


def _plain(measurement: _Measurement) -> dict[str, Any]:
    return {"reason": measurement} if isinstance(measurement, str) else asdict(measurement)


def _read_measurements(file: Path) -> tuple[str, dict[str, dict[Cost, _Measurement]]]:
    """Return the device of stored measurements, and the measurements of each network by cost.

    Raises:
        StudyError: the file is damaged.
    """
    try:
        stored = json.loads(file.read_bytes())
        networks = {
            network: {cost: _from_plain(measurement) for cost, measurement in costs.items()}
            for network, costs in stored["networks"].items()
        }
        return stored["on"], networks
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fix = "restore it from a copy, or remove it: latencies are then measured again"
        raise StudyError(
            Problem("not the latencies that raykd wrote", "", fix, str(file))
        ) from None


def _from_plain(data: dict[str, Any]) -> _Measurement:
    return data["reason"] if "reason" in data else Timing(**data)
