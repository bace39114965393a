"""Draw the test metric of a study's finalists with and without their teacher, and the teacher's.

uv run python docs/images/gains.py studies/fashion-pairs-DATE-TIME docs/images/several-labels.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import raykd
from raykd.metrics import facts_of
from raykd.tuning.estimates import estimate
from raykd.tuning.result import StudyResult

OURS, GRAY = "#0b559f", "#7a7a7a"
STEP = 0.4
"""Distance between the two rows of a finalist."""


def main(folder: Path, target: Path) -> None:
    """Read the study and draw `target`."""
    result = raykd.read_result(folder)
    metric = result.finalists[0].metric
    rows = rows_of(result, metric)
    figure = Figure(figsize=(7.5, 1.1 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (_, color, values) in rows.items():
        mean = estimate(values)
        axes.errorbar(mean.mean, place, xerr=mean.half_width, fmt="o", color=color, capsize=4)
        axes.plot(values, [place + 0.14] * len(values), "|", color=color)
    for teacher in result.teachers:
        axes.axvline(teacher.metrics[metric], color="0.5", linestyle=":")
        axes.annotate(
            "teacher",
            (teacher.metrics[metric], 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            color="0.4",
        )
    axes.set_yticks([*rows], [name for name, _, _ in rows.values()])
    axes.margins(x=0.08, y=0.25)
    name = metric.replace("_", " ")
    axes.set_xlabel(f"{name} (mean and 95% interval; one line per seed)")
    if facts_of(metric).is_share:
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(target, dpi=130)
    print(target)


def rows_of(result: StudyResult, metric: str) -> dict[float, tuple[str, str, list[float]]]:
    """Return name, color and values of each row by its height, the best finalist at the top."""
    rows: dict[float, tuple[str, str, list[float]]] = {}
    for number, finalist in enumerate(result.finalists):
        names = finalist.trial.job.names
        arms = {
            "replicate": (f"{names['student']}, {names['learns_from']}", OURS),
            "alone": ("without a teacher", GRAY),
        }
        for row, (role, (name, color)) in enumerate(arms.items()):
            records = result.records.children(finalist.trial.id, role)  # type: ignore[arg-type]
            values = [r.metrics[metric] for r in records if r.status == "finished"]
            if values:
                rows[-number - row * STEP] = name, color, values
    return rows


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
