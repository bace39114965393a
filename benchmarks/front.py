"""Fronts of the quickstart with and without early stopping, over seeds.

    python benchmarks/front.py [--repeats 10] [--folder front] [--json FILE]

Each seed is searched twice: as the quickstart says (asha), and with `scheduler: none`; both in one
slot of this process, with the teacher of seed 0.  Searches in FOLDER that are complete are not
repeated, so that an interrupted run continues.

A point of a front is reached by another front if that has a network of at most as many parameters
whose validation accuracy is at most the noise lower.  The noise is the 95% limit of the difference
between two trainings of one student, from the replicates of the first seed's searches.  Each search
draws its own trials, so two searches without early stopping do not reach all of each other's points
either: the control compares `none` with `none` of the next seed.  `asha, its own trials` shows what
early stopping alone costs: the trials that asha stopped are trained whole, and the front of all
trials is compared with the one that the search reports.

The hypervolume lies between the front and the point with accuracy 0.8 and 100,000 parameters
(logarithmic), as a share of the whole between there, accuracy 1 and 1,000 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measuring import Findings, arguments, searched_once

from raykd.compat.optuna_hypervolume import hypervolume
from raykd.pareto import pareto
from raykd.tuning.estimates import Estimate, estimate
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.records import Record
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import search as search_study
from raykd.tuning.single_run import SingleRun
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import study_of_trial

STUDY = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
SCHEDULERS = {"asha": (), "none": ("search.scheduler=none",)}
QUICK = ("data.limit=64", "train.epochs=3", "teacher.train.epochs=1", "search.trials=4")
FLOOR, SMALLEST, LARGEST = 0.8, 1_000.0, 100_000.0


@dataclass(frozen=True)
class Front:
    """Front of a search.

    Attributes:
        points: validation accuracy and parameters of its networks, the largest first.
        epochs: that the search trained its trials for.
        seconds: of the search.
    """

    points: Sequence[tuple[float, float]]
    epochs: int
    seconds: float

    @property
    def volume(self) -> float:
        """Share of the volume between the best and the worst values that it dominates."""
        scaled = [
            (
                (1 - accuracy) / (1 - FLOOR),
                math.log(params / SMALLEST) / math.log(LARGEST / SMALLEST),
            )
            for accuracy, params in self.points
            if accuracy > FLOOR and params < LARGEST
        ]
        return hypervolume(np.array(scaled).reshape(-1, 2), np.ones(2))

    def unreached(self, points: Sequence[tuple[float, float]], noise: float) -> int:
        """Return the number of points that this front does not reach."""
        return sum(
            not any(a >= accuracy - noise and p <= params for a, p in self.points)
            for accuracy, params in points
        )


def search(folder: Path, scheduler: str, seed: int, *, quick: bool) -> StudyResult:
    """Search the quickstart, unless this was done before."""
    name = f"{scheduler}-{seed}"
    settings = [
        f"name={name}",
        f"seed={seed}",
        "teacher.seed=0",
        f"search.replicates={0 if seed or quick else 5}",
        "search.finalists=1",
        f"cluster.storage={folder}",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        *(QUICK if quick else ()),
        *SCHEDULERS[scheduler],
    ]
    executor = LocalExecutor(threads=1)
    return searched_once(
        folder, name, lambda: search_study(STUDY, overrides=settings, executor=executor)
    )


def front(result: StudyResult) -> Front:
    """Return the front of a search's result."""
    points = {(r.metrics["val_accuracy"], r.metrics["params"]) for r in result.pareto}
    epochs = sum(len(record.epochs) for record in result.records.of("trial"))
    return Front(sorted(points, reverse=True), epochs, result.seconds)


def front_of_all(result: StudyResult, folder: Path) -> Front:
    """Return the front of a search's trials, those that it stopped trained whole."""
    points = set[tuple[float, float]]()
    for record in result.records.of("trial"):
        whole = record
        if record.status == "stopped":
            name = f"whole-{result.folder.name}-{record.id}"
            train = partial(train_whole, f"{result.folder}:{record.id}", name, folder)
            [whole] = searched_once(folder, name, train).records.of("trial")
        points.add((whole.metrics["val_accuracy"], whole.metrics["params"]))
    drawn = sorted(points)
    best = [drawn[row] for row in pareto(np.array([(-accuracy, size) for accuracy, size in drawn]))]
    return Front(sorted(best, reverse=True), 0, 0.0)


def train_whole(trial: str, name: str, folder: Path) -> None:
    """Train a trial of a search again, to the last epoch."""
    overrides = [f"name={name}", f"cluster.storage={folder}", "search.replicates=0"]
    with study_of_trial(trial, overrides) as (source, values):
        SingleRun(load_or_use(source, values)).run(LocalExecutor(threads=1))


def limit_of_noise(results: Sequence[StudyResult]) -> float:
    """Return the 95% limit of the difference between two trainings of one student."""
    variances: list[float] = []
    for result in results:
        replicates: list[Record] = result.records.of("replicate")
        values = [record.metrics["val_accuracy"] for record in replicates if record.metrics]
        if len(values) > 1:
            variances.append(float(np.var(values, ddof=1)))
    return 1.96 * math.sqrt(2 * float(np.mean(variances))) if variances else 0.0


def compared(
    fronts: dict[str, list[Front]], whole: list[Front], noise: float
) -> list[dict[str, object]]:
    """Return a row for each comparison of a search with `none`, or with its own trials."""
    asha, none = fronts["asha"], fronts["none"]
    pairs = {
        "asha, same seed": list(zip(asha, none, strict=True)),
        "asha, next seed": list(zip(asha, none[1:] + none[:1], strict=True)),
        "none, next seed": list(zip(none, none[1:] + none[:1], strict=True)),
        "asha, its own trials": list(zip(asha, whole, strict=True)),
    }
    rows = []
    for name, both in pairs.items():
        total = sum(len(reference.points) for _, reference in both)
        holes = sum(mine.unreached(reference.points, noise) for mine, reference in both)
        strict = sum(mine.unreached(reference.points, 0.0) for mine, reference in both)
        ratios = [mine.volume / reference.volume for mine, reference in both if reference.volume]
        rows.append(
            {
                "front": name,
                "points": total,
                "reached": f"{total - holes} ({(total - holes) / total:.0%})",
                "exactly": f"{total - strict} ({(total - strict) / total:.0%})",
                "volume ratio": interval(estimate(ratios, 0.0, math.inf)) if ratios else "",
            }
        )
    return rows


def interval(value: Estimate) -> str:
    """Return a mean with its 95% interval."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def main() -> None:
    parser = arguments(__doc__, repeats=10)
    parser.add_argument(
        "--folder", type=Path, default=Path("front"), help="of the searches (front)"
    )
    options = parser.parse_args()
    results: dict[str, list[StudyResult]] = {name: [] for name in SCHEDULERS}
    for seed in range(options.repeats):
        for name, done in results.items():
            done.append(search(options.folder.absolute(), name, seed, quick=options.quick))
    fronts = {name: [front(result) for result in done] for name, done in results.items()}
    noise = limit_of_noise([done[0] for done in results.values()])
    findings = Findings("front", {"seeds": options.repeats, "noise": round(noise, 4)})
    whole = [front_of_all(result, options.folder.absolute()) for result in results["asha"]]
    findings.rows = compared(fronts, whole, noise)
    for name, each in fronts.items():
        mean_points = np.mean([len(item.points) for item in each])
        mean_epochs = np.mean([item.epochs for item in each])
        findings.notes.append(
            f"{name}: {mean_points:.1f} points, {mean_epochs:.0f} epochs a search"
        )
        findings.raw[name] = [
            {"points": item.points, "epochs": item.epochs, "seconds": item.seconds} for item in each
        ]
    findings.tell(options.json)


if __name__ == "__main__":
    main()
