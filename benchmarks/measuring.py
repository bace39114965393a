"""Shared parts of the benchmarks: arms in turn, medians and ranges, machine, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykd.tuning.result import StudyResult

PACKAGES = ("raykd", "torch", "torchvision", "ray", "optuna", "mlflow", "torchdistill")


@dataclass
class Times:
    """Seconds of each repeat of an arm.

    Processor time (of all threads of this process) is less disturbed by other work on the machine
    than wall time.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def over(self, other: Times, clock: str = "wall") -> float:
        """Return the median, over repeats, of the ratio of this arm's time to that of the other."""
        return statistics.median(self.ratios(other, clock))

    def ratios(self, other: Times, clock: str = "wall") -> list[float]:
        """Return the ratio of this arm's time to that of the other, per repeat."""
        pairs = zip(getattr(self, clock), getattr(other, clock), strict=True)
        return [mine / rest for mine, rest in pairs]


def in_turn(
    arms: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    between: Callable[[], object] | None = None,
) -> dict[str, Times]:
    """Time every arm `repeats` times: forwards and backwards in turn, so that none always comes
    first or last, and what changes on the machine meanwhile meets all of them alike.

    Args:
        arms: by name.
        repeats: of each.
        warm_up: rounds before, not timed.
        between: called before each, not timed.
    """
    for _ in range(warm_up):
        for run in arms.values():
            run()
    times = {name: Times() for name in arms}
    for repeat in range(repeats):
        for name in [*arms] if repeat % 2 == 0 else [*arms][::-1]:
            if between is not None:
                between()
            wall, processor = time.perf_counter(), time.process_time()
            arms[name]()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].processor.append(time.process_time() - processor)
        tell(f"repeat {repeat + 1} of {repeats} done")
    return times


def searched_once(folder: Path, name: str, search: Callable[[], object]) -> StudyResult:
    """Return the result of a study in `folder`, which `search` trains unless that was done before.

    Args:
        folder: of the benchmark, and storage of the study.
        name: of the study.
        search: trains it; what an interrupted call has left is removed first.
    """
    from raykd.tuning.result import read_result

    done = folder / f"{name}.done"
    if not done.exists():
        for unfinished in folder.glob(f"{name}-2*"):
            shutil.rmtree(unfinished)
        search()
        done.touch()
        tell(f"{name}: done")
    (journal,) = folder.glob(f"{name}-2*/journal.jsonl")
    return read_result(journal.parent)


def tell(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Demand:
    """Limit on a measured value.

    Attributes:
        claim: compared values.
        limit: the value it may have at most, or must have at least.
        value: that was found; None: not measured in this run.
        at_least: whether the limit is a lower one.
        unit: of both.
    """

    claim: str
    limit: float
    value: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        formatted = {True: "yes", False: "NO", None: "not measured"}[self.met]
        return [
            self.claim,
            f"{sign} {self.limit:g}{self.unit}",
            "" if self.value is None else f"{self.value:.3g}{self.unit}",
            formatted,
        ]


@dataclass
class Findings:
    """Results of a benchmark, printed and written to a JSON file on request.

    Attributes:
        name: of the benchmark.
        settings: options of the run.
        rows: the table, one mapping of columns a row.
        demands: limits on measured values.
        raw: every single figure.
        notes: lines below the table.
    """

    name: str
    settings: Mapping[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tell(self, file: Path | None = None) -> None:
        """Print the tables; write everything to `file`, where one is named."""
        about = machine()
        print(f"{self.name}: {' '.join(f'{k}={v}' for k, v in self.settings.items())}")
        print(f"{about['processor']}, {about['cores']} cores, {about['gpu'] or 'no GPU'}, ", end="")
        print(f"load {about['load']}, torch {about['packages'].get('torch')}\n")
        if self.rows:
            head = list(dict.fromkeys(column for row in self.rows for column in row))
            print(
                table(head, [[formatted(row.get(column)) for column in head] for row in self.rows])
            )
        if self.demands:
            print()
            lines = [demand.line() for demand in self.demands]
            print(table(["it must show", "limit", "found", "met"], lines))
        for note in self.notes:
            print(note)
        if file is not None:
            file.write_text(
                json.dumps(self._plain(about), indent=1, default=lambda number: number.item())
            )

    def _plain(self, about: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "command": " ".join(sys.argv),
            "machine": about,
            "settings": {name: str(value) for name, value in self.settings.items()},
            "rows": self.rows,
            "must_show": [{**asdict(demand), "met": demand.met} for demand in self.demands],
            "raw": self.raw,
            "notes": self.notes,
        }


def spread(values: Sequence[float], unit: str = "s", scale: float = 1.0) -> dict[str, Any]:
    """Columns of a table: median, least, most and how many."""
    scaled = [value * scale for value in values]
    return {
        f"median {unit}": statistics.median(scaled),
        f"min {unit}": min(scaled),
        f"max {unit}": max(scaled),
        "n": len(scaled),
    }


def formatted(value: Any) -> str:
    """Format a value for a table."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns, the first one to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    output = []
    for line in (head, *lines):
        first, *rest = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        output.append("  ".join([first, *rest]).rstrip())
    return "\n".join(output)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of packages."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": _versions(),
    }


def arguments(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """Build a parser with the options of all benchmarks: --repeats, --quick, --json."""
    lines = (doc or "").strip().splitlines()
    parser = argparse.ArgumentParser(description=lines[0] if lines else "")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"of each arm ({repeats})")
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see it run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _gpu() -> str:
    if "torch" not in sys.modules:
        return ""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    results = {}
    for name in PACKAGES:
        try:
            results[name] = version(name)
        except PackageNotFoundError:
            continue
    return results
