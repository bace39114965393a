"""Draw a search over accuracy and size: its trials, its Pareto front, its finalists.

uv run python docs/images/front.py studies/architecture-DATE-TIME docs/images/architecture.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import raykd
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult

WHOLE, STOPPED, ALONE = "#0b559f", "#b0b0b0", "#c2570c"


def main(folder: Path, target: Path) -> None:
    """Read the search in `folder` and draw `target`."""
    result = raykd.read_result(folder)
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, width_ratios=(3, 2))
    searched(left, result)
    tested(right, result)
    figure.savefig(target, dpi=120)
    print(target)


def searched(axes: Axes, result: StudyResult) -> None:
    """All trials by size and accuracy on the validation split."""
    trials = [record for record in result.records.of("trial") if "val_accuracy" in record.metrics]
    for status, color, legend in (
        ("stopped", STOPPED, "stopped early"),
        ("finished", WHOLE, "whole"),
    ):
        points(axes, [one for one in trials if one.status == status], color, legend)
    front = sorted(result.pareto, key=lambda record: record.metrics["params"])
    axes.plot(*spread(front), color=WHOLE, lw=1, label="front")
    for record in result.teachers:
        axes.axhline(
            100 * record.metrics["val_accuracy"], color="0.4", lw=1, ls=":", label="teacher"
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="validation accuracy (%)", title="Trials")
    axes.legend(fontsize=8, loc="lower right")


def tested(axes: Axes, result: StudyResult) -> None:
    """Plot the finalists on the test split, distilled and alone, with 95% intervals."""
    for legend, color in (("distilled", WHOLE), ("alone", ALONE)):
        for finalist in result.finalists:
            accuracy = getattr(finalist, legend)
            if accuracy is None:
                continue
            label = legend if finalist is result.finalists[0] else None
            axes.errorbar(
                finalist.trial.metrics["params"],
                100 * accuracy.mean,
                yerr=100 * accuracy.half_width,
                fmt="o",
                color=color,
                capsize=3,
                label=label,
            )
    axes.set(xlabel="parameters", ylabel="test accuracy (%)", title="Finalists")
    axes.legend(fontsize=8, loc="lower right")


def points(axes: Axes, records: Iterable[Record], color: str, legend: str) -> None:
    """Draw a dot for each trial."""
    axes.plot(*spread(records), "o", color=color, ms=5, label=legend)


def spread(records: Iterable[Record]) -> tuple[list[float], list[float]]:
    """Return the parameters and the accuracies, in percent."""
    points = [
        (record.metrics["params"], 100 * record.metrics["val_accuracy"]) for record in records
    ]
    return [size for size, _ in points], [accuracy for _, accuracy in points]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
