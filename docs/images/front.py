"""Draw a search over a metric and size: its trials, its Pareto front, its finalists.

uv run python docs/images/front.py studies/architecture-DATE-TIME docs/images/architecture.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import raykd
from raykd.metrics import facts_of
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult

WHOLE, STOPPED, ALONE = "#0b559f", "#b0b0b0", "#c2570c"


def main(folder: Path, target: Path) -> None:
    """Read the search in `folder` and draw `target`."""
    result = raykd.read_result(folder)
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, width_ratios=(3, 2))
    metric = next(iter(result.objectives))
    searched(left, result, metric)
    tested(right, result)
    for axes, name in ((left, metric), (right, result.finalists[0].metric)):
        axes.set(xlabel="parameters", ylabel=name.replace("_", " "))
        if facts_of(name).is_share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(target, dpi=120)
    print(target)


def searched(axes: Axes, result: StudyResult, metric: str) -> None:
    """All trials by size and metric on the validation split."""
    trials = [record for record in result.records.of("trial") if metric in record.metrics]
    for status, color, legend in (
        ("stopped", STOPPED, "stopped early"),
        ("finished", WHOLE, "whole"),
    ):
        chosen = [trial for trial in trials if trial.status == status]
        if chosen:
            axes.plot(*spread(chosen, metric), "o", color=color, ms=5, label=legend)
    front = sorted(result.pareto, key=lambda record: record.metrics["params"])
    axes.plot(*spread(front, metric), color=WHOLE, lw=1, label="front")
    for record in result.teachers:
        axes.axhline(record.metrics[metric], color="0.4", lw=1, ls=":", label="teacher")
    sizes = [trial.metrics["params"] for trial in trials]
    axes.set(xscale="log" if max(sizes) > 4 * min(sizes) else "linear", title="Trials")


def tested(axes: Axes, result: StudyResult) -> None:
    """Plot the finalists on the test split, distilled and alone, with 95% intervals."""
    for legend, color in (("distilled", WHOLE), ("alone", ALONE)):
        for finalist in result.finalists:
            value = getattr(finalist, legend)
            if value is None:
                continue
            label = legend if finalist is result.finalists[0] else None
            axes.errorbar(
                finalist.trial.metrics["params"],
                value.mean,
                yerr=value.half_width,
                fmt="o",
                color=color,
                capsize=3,
                label=label,
            )
    axes.set(title="Finalists")


def spread(records: Iterable[Record], metric: str) -> tuple[list[float], list[float]]:
    """Return the parameters and the values of a metric."""
    points = [(record.metrics["params"], record.metrics[metric]) for record in records]
    return [size for size, _ in points], [value for _, value in points]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
