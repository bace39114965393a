"""What the students of a study cost before they are trained: counted, rehearsed or measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from torch import nn

from raykd.architecture import Anatomy, Model, Task, anatomy
from raykd.architecture.latency import (
    Latency,
    Timing,
    device_name,
    lacking,
    torch_latency,
)
from raykd.architecture.memory import peak_memory
from raykd.problems import Infeasible, Problem, StudyError
from raykd.study.complaints import Finding
from raykd.study.deployed import Deployed, deployed, what_is_deployed
from raykd.study.schema import Bounds, Cost, Search, Study, plain

_Told = dict[str, Any]
"""A `Timing` as plain data, or the "reason" why there is none."""

COSTS: tuple[Cost, ...] = get_args(Cost)
MEASURED: tuple[Cost, ...] = ("latency", "batch_latency", "onnx_latency", "onnx_batch_latency")
"""Costs that are measured; the others follow from the architecture alone."""


def asked(search: Search) -> tuple[Cost, ...]:
    """The costs to know: parameters, MACs, and those that the study names."""
    named = {"params", "macs", *search.objectives, *search.constraints, *search.measure}
    return tuple(cost for cost in COSTS if cost in named)


def measured(search: Search) -> tuple[Cost, ...]:
    """Those of the costs asked for that are measured."""
    return tuple(cost for cost in asked(search) if cost in MEASURED)


def described(search: Search) -> str:
    """Which costs are measured and on what; "" for none."""
    costs = measured(search)
    if not costs:
        return ""
    return f"{', '.join(costs)} on {conditions(search.latency)}, before a trial starts"


def conditions(how: Latency) -> str:
    """What latencies are measured on, in words."""
    place = f"{how.device}: {device_name(how.device)}" if not list(lacking(how)) else how.device
    threads = "1 thread" if how.threads == 1 else f"{how.threads} threads"
    return f"{place}, {threads}, batches of 1 and {how.batch}, float32"


# What follows from the architecture


def counted(study: Study, student: Anatomy, task: Task) -> dict[Cost, float]:
    """The asked costs of what is deployed of a concrete study, those that need no measurement.

    Args:
        study: concrete, its pairs resolved.
        student: what its model is made of.
        task: what the models take and give.

    Raises:
        ValueError: as `deployed`.
    """
    kept = deployed(study, student, task)
    found: dict[Cost, float] = {"params": float(kept.params), "macs": float(kept.macs)}
    if "memory" in asked(study.search):
        found["memory"] = float(_memory(what_is_deployed(study), task))
    return found


def check_costs(search: Search, costs: Mapping[Cost, float]) -> None:
    """See that costs keep a study's constraints; those not given are not looked at.

    Raises:
        Infeasible: they do not.
    """
    for cost, bounds in search.constraints.items():
        broken = "" if cost not in costs else breaks(cost, costs[cost], bounds)
        if broken:
            raise Infeasible(broken)


def breaks(cost: Cost, value: float, bounds: Bounds) -> str:
    """How a cost breaks its bounds; "" where it keeps them."""
    if bounds.min is not None and value < bounds.min:
        return f"{cost} {figure(cost, value)} < {figure(cost, bounds.min)}"
    if bounds.max is not None and value > bounds.max:
        return f"{cost} {figure(cost, value)} > {figure(cost, bounds.max)}"
    return ""


def figure(cost: str, value: float) -> str:
    """A cost to be read: 12,345; 0.4125 (milliseconds)."""
    return f"{value:.4g}" if cost in MEASURED else f"{value:,.0f}"


def costs_of(
    model: Model, task: Task, wanted: Iterable[Cost] = COSTS, how: Latency | None = None
) -> dict[Cost, float]:
    """Costs of a model as it is built, by name, in the order of `COSTS`.

    Args:
        model: any.
        task: what it takes and gives.
        wanted: which; latencies take a second or so each, in ONNX Runtime several.
        how: latencies are measured; None: on one thread of the CPU.

    Raises:
        ValueError: the model cannot be built for such data, or not be measured so.
    """
    made, how = anatomy(model, task), how or Latency()
    kept, costs = Deployed(model), frozenset(wanted)
    known: dict[Cost, Callable[[], float]] = {
        "params": lambda: float(made.params),
        "macs": lambda: float(made.macs),
        "memory": lambda: float(_memory(kept, task)),
    }
    if costs & {*MEASURED}:
        network = kept.network(task)
        for cost in MEASURED:
            known[cost] = lambda cost=cost: timing(cost, network, task, how).median
    return {cost: known[cost]() for cost in COSTS if cost in costs}


@lru_cache(maxsize=4096)
def _memory(kept: Deployed, task: Task) -> int:
    network = kept.network(task) if kept.is_converted else kept.blank(task)
    return peak_memory(network, task)


# What is measured


def timing(cost: Cost, network: nn.Module, task: Task, how: Latency) -> Timing:
    """A measured cost of a network, filled with weights.

    Raises:
        ValueError: it cannot be measured so.
    """
    batch = how.batch if "batch" in cost else 1
    if not cost.startswith("onnx"):
        return torch_latency(network, task, batch, how)
    from raykd.architecture.onnx_runtime import onnx_latency

    return onnx_latency(network, task, batch, how)


def latency_findings(search: Search) -> Iterator[Finding]:
    """What is wrong with how latencies are to be measured, wherever that is done."""
    kind, _, number = search.latency.device.partition(":")
    cuda = kind == "cuda" and (number.isdigit() or search.latency.device == "cuda")
    if search.latency.device != "cpu" and not cuda:
        what = f"unknown device '{search.latency.device}'; there are cpu, cuda, cuda:0, cuda:1 ..."
        yield Finding(("search", "latency", "device"), what, "write one of these")


def check_conditions(search: Search) -> None:
    """See that this machine can measure what a study asks for.

    Raises:
        StudyError: it cannot; says what is missing and how to mend it.
    """
    costs = measured(search)
    found = list(lacking(search.latency)) if costs else []
    if not found and any(cost.startswith("onnx") for cost in costs):
        from raykd.architecture.onnx_runtime import lacking_onnx

        found = list(lacking_onnx(search.latency))
    if found:
        raise StudyError(
            [
                Problem(what, path=f"search.latency.{field}" if field else who_asks(search), mend=m)
                for field, what, m in found
            ]
        )


def who_asks(search: Search, costs: Iterable[Cost] = ()) -> str:
    """The place of the study that asks for a measured cost, the last of those that can."""
    cost = next(iter(costs), measured(search)[-1])
    if cost in search.constraints:
        return f"search.constraints.{cost}"
    return f"search.objectives.{cost}" if cost in search.objectives else "search.measure"


class Costs:
    """The costs of students; each network is measured once, and that remembered.

    Args:
        search: says which costs are asked for, how they are measured, and their bounds.
        task: what the models take and give.
    """

    def __init__(self, search: Search, task: Task) -> None:
        self._search = search
        self._task = task
        self._known: dict[str, dict[Cost, _Told]] = {}
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Remember measurements in this file, too, and begin with those that stand there.

        Raises:
            StudyError: those were made on something else than is measured on here.
        """
        if not measured(self._search):
            return
        here = conditions(self._search.latency)
        if file.exists():
            told = json.loads(file.read_text())
            if told["on"] != here:
                raise StudyError(
                    Problem(
                        f"this search measured latencies on {told['on']}; latencies measured on "
                        f"{here} are not comparable",
                        path="search.latency",
                        mend="resume it on the original machine, or start a new search",
                    )
                )
            self._known |= told["networks"]
        self._file = file
        self._save()

    def of(self, study: Study) -> dict[str, float]:
        """The asked costs of a concrete study's student; one that cannot be had is left out."""
        found: dict[str, float] = {**self._counted(study)}
        for cost, told in self._measured(study).items():
            if "median" in told:
                found[cost] = told["median"]
        return found

    def tags(self, study: Study) -> dict[str, str]:
        """The same as text: measured ones with their spread, and on what they were measured."""
        said: dict[str, str] = {
            cost: f"{value:.0f}" for cost, value in self._counted(study).items()
        }
        told = self._measured(study)
        for cost, one in told.items():
            said[cost] = str(Timing(**one)) if "median" in one else one["reason"]
        if told:
            said["latency_on"] = conditions(self._search.latency)
        return said

    def check(self, study: Study) -> None:
        """See that a student can be measured and keeps the constraints on measured costs.

        Raises:
            Infeasible: it does not.
        """
        for cost, reason in self.reasons(study).items():
            raise Infeasible(f"{cost} cannot be measured: {reason}")
        told = self._measured(study)
        check_costs(self._search, {cost: one["median"] for cost, one in told.items()})

    def reasons(self, study: Study) -> dict[Cost, str]:
        """Why costs of a student that are asked for cannot be measured; empty: all can."""
        told = self._measured(study).items()
        return {cost: one["reason"] for cost, one in told if "reason" in one}

    def _counted(self, study: Study) -> dict[Cost, float]:
        return counted(study, anatomy(study.student.model, self._task), self._task)

    def _measured(self, study: Study) -> dict[Cost, _Told]:
        costs = measured(self._search)
        if not costs:
            return {}
        kept = what_is_deployed(study)
        key = json.dumps(plain(kept), sort_keys=True)
        if key not in self._known:
            self._known[key] = self._measure(kept, costs)
            self._save()
        return {cost: self._known[key][cost] for cost in costs}

    def _measure(self, kept: Deployed, costs: Iterable[Cost]) -> dict[Cost, _Told]:
        found: dict[Cost, _Told] = {}
        how = self._search.latency
        for cost in costs:
            try:
                network = kept.network(self._task)
                found[cost] = asdict(timing(cost, network, self._task, how))
            except (ValueError, RuntimeError) as error:
                found[cost] = {"reason": (str(error) or type(error).__name__).splitlines()[0]}
        return found

    def _save(self) -> None:
        if self._file is None:
            return
        content = {"on": conditions(self._search.latency), "networks": self._known}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=1))
        fresh.replace(self._file)  # whole, or as it was
