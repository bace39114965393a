"""Draw the test accuracy of students with few labels or none, from the folders of two studies.

uv run python docs/images/few_labels.py studies/ten-labels-DATE-TIME studies/no-labels-DATE-TIME \
    docs/images/few-labels.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import raykd
from raykd.tuning.estimates import estimate

OURS, GRAY = "#0b559f", "#7a7a7a"


def main(few: Path, none: Path, target: Path) -> None:
    """Read the studies and draw `target`."""
    arms = {
        "without a teacher, 100 labels": accuracies(few, "alone"),
        "taught, no labels": accuracies(none, "replicate"),
        "taught, 100 labels": accuracies(few, "replicate"),
    }
    [teacher] = accuracies(few, "teacher")
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (name, values) in enumerate(arms.items()):
        color = GRAY if "without" in name else OURS
        mean = estimate(values)
        axes.errorbar(mean.mean, place, xerr=mean.half_width, fmt="o", color=color, capsize=4)
        axes.plot(values, [place + 0.18] * len(values), "|", color=color)
    axes.axvline(teacher, color="0.5", linestyle=":")
    axes.text(teacher, len(arms) - 0.45, "teacher", ha="center", color="0.4")
    axes.set_yticks(range(len(arms)), [*arms])
    axes.set_ylim(-0.5, len(arms) - 0.2)
    axes.set_xlabel("test accuracy (mean and 95% interval; one line per seed)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(target, dpi=130)
    print(target)


def accuracies(folder: Path, role: str) -> list[float]:
    """Return the test accuracy of every finished training of a role."""
    records = raykd.read_result(folder).records.of(role)  # type: ignore[arg-type]
    return [record.metrics["test_accuracy"] for record in records if record.status == "finished"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
