"""Draw the README's picture of why raykd is fast, from results of the benchmarks.

uv run python docs/images/fast.py benchmarks/results docs/images/fast.png

It reads step.json and turnaround.json in that folder, as benchmarks/step.py and
benchmarks/turnaround.py write them with `--json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

EPOCHS = {
    "kd, torchdistill": "torchdistill",
    "kd, plain": "by hand, teacher run each step",
    "kd, raykd, live": "raykd, teacher run each step",
    "kd, raykd, cached": "raykd, teacher computed once",
    "alone, plain": "student alone, by hand",
}
"""The arms of step.py that are drawn, top down."""

OURS, GRAY = "#0b559f", "#b0b0b0"


def main(folder: Path, target: Path) -> None:
    """Read the figures in `folder` and draw `target`."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    epochs(left, json.loads((folder / "step.json").read_text()))
    turnarounds(right, json.loads((folder / "turnaround.json").read_text()))
    figure.savefig(target, dpi=130)
    print(target)


def epochs(axes: Axes, results: dict[str, Any]) -> None:
    """Draw the duration of an epoch of distillation by kd, in epochs of the student alone."""
    ratio = {row["epoch"]: row["x plain alone"] for row in results["rows"]}
    bars(axes, {label: ratio[arm] for arm, label in EPOCHS.items() if arm in ratio}, "{:.2f}")
    axes.set_xlabel("time of an epoch (student alone, by hand = 1)")


def turnarounds(axes: Axes, results: dict[str, Any]) -> None:
    """Draw the idle time of a slot between two trials, in seconds."""
    nested, warm = sorted((row["median s"] for row in results["rows"]), reverse=True)
    bars(axes, {"a TorchTrainer for each trial": nested, "raykd, warm slot": warm}, "{:.2g} s")
    axes.set_xscale("log")
    axes.set_xlabel("seconds between two trials (log)")


def bars(axes: Axes, values: dict[str, float], form: str) -> None:
    """Draw a bar for each name, raykd's in color."""
    names = [*values][::-1]
    colors = [OURS if name.startswith("raykd") else GRAY for name in names]
    drawn = axes.barh(names, [values[name] for name in names], color=colors)
    axes.bar_label(drawn, labels=[form.format(values[name]) for name in names], padding=3)
    axes.margins(x=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
