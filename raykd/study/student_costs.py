"""Costs of a study's students; each network is measured once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykd.errors import Infeasible, Problem, StudyError
from raykd.models import Task
from raykd.models.introspection.latency import Timing
from raykd.study.candidate import Candidate
from raykd.study.config import Search, plain
from raykd.study.costs import check_costs, conditions, measure, measured_costs
from raykd.study.deployment import DeployedModel
from raykd.study.objectives import Cost

_Measurement = Timing | str
"""A latency, or the reason why it cannot be measured."""


class StudentCosts:
    """Costs of students, counted or measured; measurements are remembered by network.

    Args:
        search: names the costs, their bounds, and the latency settings.
        task: input shape and classes of the models.
    """

    def __init__(self, search: Search, task: Task) -> None:
        self._search = search
        self._task = task
        self._measurements: dict[str, dict[Cost, _Measurement]] = {}
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Store measurements in this file, too, and begin with those it contains.

        Raises:
            StudyError: the file's measurements were made on another device or machine.
        """
        if not measured_costs(self._search):
            return
        here = conditions(self._search.latency)
        if file.exists():
            stored = json.loads(file.read_text())
            if stored["on"] != here:
                raise StudyError(
                    Problem(
                        f"this search measured latencies on {stored['on']}; latencies measured on "
                        f"{here} are not comparable",
                        path="search.latency",
                        fix="resume it on the original machine, or start a new search",
                    )
                )
            for network, costs in stored["networks"].items():
                self._measurements[network] = {
                    cost: _from_plain(measurement) for cost, measurement in costs.items()
                }
        self._file = file
        self._save()

    def of(self, candidate: Candidate) -> dict[str, float]:
        """The required costs of a candidate's student, without those that cannot be measured."""
        costs: dict[str, float] = {**candidate.costs}
        for cost, measurement in self._measured(candidate).items():
            if isinstance(measurement, Timing):
                costs[cost] = measurement.median
        return costs

    def tags(self, candidate: Candidate) -> dict[str, str]:
        """The same as text: measured costs with their spread, and the device they hold for."""
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
        """The required costs that cannot be measured of a student, each with its reason."""
        measurements = self._measured(candidate).items()
        return {cost: reason for cost, reason in measurements if isinstance(reason, str)}

    def _measured(self, candidate: Candidate) -> dict[Cost, _Measurement]:
        costs = measured_costs(self._search)
        if not costs:
            return {}
        key = json.dumps(plain(candidate.deployed), sort_keys=True)
        if key not in self._measurements:
            self._measurements[key] = self._measure(candidate.deployed, costs)
            self._save()
        return {cost: self._measurements[key][cost] for cost in costs}

    def _measure(self, deployed: DeployedModel, costs: Iterable[Cost]) -> dict[Cost, _Measurement]:
        measurements: dict[Cost, _Measurement] = {}
        settings = self._search.latency
        for cost in costs:
            try:
                network = deployed.network(self._task)
                measurements[cost] = measure(cost, network, self._task, settings)
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


def _from_plain(data: dict[str, Any]) -> _Measurement:
    return data["reason"] if "reason" in data else Timing(**data)
