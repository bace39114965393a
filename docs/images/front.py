"""Draw a search over accuracy and size: its trials, its front, its chosen students.

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
    for status, colour, said in (
        ("stopped", STOPPED, "stopped early"),
        ("finished", WHOLE, "whole"),
    ):
        points(axes, [one for one in trials if one.status == status], colour, said)
    front = sorted(result.pareto, key=lambda record: record.metrics["params"])
    axes.plot(*spread(front), color=WHOLE, lw=1, label="front")
    for record in result.teachers:
        axes.axhline(
            100 * record.metrics["val_accuracy"], color="0.4", lw=1, ls=":", label="teacher"
        )
    axes.set(xscale="log", xlabel="parameters", ylabel="validation accuracy (%)", title="Trials")
    axes.legend(fontsize=8, loc="lower right")


def tested(axes: Axes, result: StudyResult) -> None:
    """The chosen students on the test split, distilled and alone, with 95% intervals."""
    for said, colour in (("distilled", WHOLE), ("alone", ALONE)):
        for finalist in result.finalists:
            found = getattr(finalist, said)
            if found is None:
                continue
            label = said if finalist is result.finalists[0] else None
            axes.errorbar(
                finalist.trial.metrics["params"],
                100 * found.mean,
                yerr=100 * found.half_width,
                fmt="o",
                color=colour,
                capsize=3,
                label=label,
            )
    axes.set(xlabel="parameters", ylabel="test accuracy (%)", title="Chosen students")
    axes.legend(fontsize=8, loc="lower right")


def points(axes: Axes, records: Iterable[Record], colour: str, said: str) -> None:
    """A dot for each trial."""
    axes.plot(*spread(records), "o", color=colour, ms=5, label=said)


def spread(records: Iterable[Record]) -> tuple[list[float], list[float]]:
    """Parameters and accuracies, in per cent."""
    found = [(one.metrics["params"], 100 * one.metrics["val_accuracy"]) for one in records]
    return [size for size, _ in found], [accuracy for _, accuracy in found]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
