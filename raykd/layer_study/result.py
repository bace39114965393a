"""Result of a layer study, read from its journal, finished or not."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.layer_study.plan import NONE, Arm, LayerStudyPlan, format_pairs
from raykd.layer_study.predictors import Predictors
from raykd.layer_study.rank_correlation import RankCorrelation
from raykd.layer_study.significance import (
    Accuracies,
    Contrast,
    Noise,
    compare_arms,
    estimate_noise,
)
from raykd.metrics import facts_of
from raykd.tracking.events import ArmsPlanned, Event, PredictorsComputed
from raykd.tuning.estimates import Estimate, estimate_metric, paired_gain
from raykd.tuning.number_format import UNKNOWN, duration, interval, points, words
from raykd.tuning.records import Record, Records
from raykd.tuning.result import RunResult, by_seed, read_run


@dataclass(frozen=True)
class Cell:
    """A pair of one hint layer and one guided layer.

    Attributes:
        hint, guided: names of the layers.
        arm: id of the arm with this pair.
        contrast: comparison with the baseline without hint; None if it was not trained (yet).
        skip_reason: reason why it is not trained; "" if it was or will be.
        predictors: mean of each predictor over the seeds.
    """

    hint: str
    guided: str
    arm: str
    contrast: Contrast | None
    skip_reason: str
    predictors: Mapping[str, float]


@dataclass(frozen=True)
class BestPairs:
    """Best set of pairs by the leading metric on validation data, tested under new seeds.

    Attributes:
        arm: the arm with these pairs.
        contrast: comparison on the validation split; biased upwards, because it is the best of
            many.
        test_accuracy, baseline_accuracy: the metric on test data with these pairs and without
            hint, over new seeds; None without new seeds.
        gain: their difference, paired by seed.
    """

    arm: Arm
    contrast: Contrast | None
    test_accuracy: Estimate | None
    baseline_accuracy: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, repr=False)
class LayerStudyResult(RunResult):
    """Result of a layer study; see `RunResult` for the other attributes.

    Attributes:
        plan: arms, layers and seeds.
        predictors: cheap predictors of the pairs' gains.
    """

    plan: LayerStudyPlan
    predictors: Predictors

    def __repr__(self) -> str:
        arms = len(self.plan.trained_arms)
        best = f", best {self.best.arm.id}" if self.best is not None else ""
        return f"LayerStudyResult({self.name!r}, {arms} arms{best}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return the result as a card for notebooks."""
        return layer_study_card(self).html()

    @functools.cached_property
    def accuracies(self) -> Accuracies:
        """Leading metric on validation data, such as the accuracy, by arm and seed."""
        return accuracies_by_arm(self.records, self.val_metric)

    @functools.cached_property
    def noise(self) -> Noise:
        """Noise of one training, from all arms."""
        return estimate_noise(self.accuracies)

    @functools.cached_property
    def contrasts(self) -> Mapping[str, Contrast]:
        """Comparison of every trained arm with the baseline without hint."""
        return compare_arms(self.accuracies, NONE, facts_of(self.lead))

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All pairs of a hint layer and a guided layer, ordered by hint layer."""
        return tuple(self._cell(arm) for arm in self.plan.arms if arm.kind == "pair")

    def cell(self, hint: str, guided: str) -> Cell:
        return next(each for each in self.cells if (each.hint, each.guided) == (hint, guided))

    @functools.cached_property
    def best(self) -> BestPairs | None:
        """Best set of pairs; None before every set is trained under every seed."""
        arm = find_best_arm(self.plan.arms, self.accuracies, len(self.plan.seeds))
        if arm is None:
            return None
        taught, untaught = self._test_accuracies(arm.id), self._test_accuracies(NONE)
        facts = facts_of(self.lead)
        return BestPairs(
            arm,
            self.contrasts.get(arm.id),
            estimate_metric([*taught.values()], facts) if taught else None,
            estimate_metric([*untaught.values()], facts) if untaught else None,
            paired_gain(taught, untaught, facts),
        )

    @functools.cached_property
    def rank_correlations(self) -> Mapping[str, RankCorrelation]:
        """Rank correlation of each predictor with the cells' gains."""
        return self.predictors.rank_correlations(
            {
                (cell.hint, cell.guided): cell.contrast.by_seed
                for cell in self.cells
                if cell.contrast is not None
            }
        )

    @property
    def failed(self) -> list[Record]:
        """Records of the failed trainings and probes."""
        roles = self.records.of("trial", "replicate", "probe")
        return [record for record in roles if record.status == "failed"]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the study's MLflow run."""
        correlations = self.rank_correlations
        metrics = {f"tau_{name}": correlation.tau for name, correlation in correlations.items()}
        if not math.isnan(self.noise.deviation):
            metrics["noise"] = self.noise.deviation
        best = self.best
        if best is not None:
            if best.contrast is not None:
                metrics["best_val_gain"] = best.contrast.gain.mean
            if best.test_accuracy is not None:
                metrics |= best.test_accuracy.metrics(self.test_metric)
            if best.baseline_accuracy is not None:
                metrics |= best.baseline_accuracy.metrics(f"alone_{self.test_metric}")
            if best.gain is not None:
                metrics |= best.gain.metrics("gain")
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def tags(self) -> dict[str, str]:
        """Return the tags of the study's MLflow run."""
        tags = {"verb": "pairs", "loss": str(self.plan.loss["name"])}
        if self.best is not None:
            arm = self.best.arm
            tags |= {"best": arm.id, "best_pairs": format_pairs(arm.pairs[0])}
        return tags

    def _cell(self, arm: Arm) -> Cell:
        [pair] = arm.pairs[0]
        return Cell(
            pair.hint,
            pair.guided,
            arm.id,
            self.contrasts.get(arm.id),
            arm.skip_reason or self._failure(arm.id),
            self.predictors.means(pair.hint, pair.guided),
        )

    def _failure(self, arm: str) -> str:
        """Return the error of an arm that failed under every seed, else ""."""
        trials = [r for r in self.records.of("trial") if r.job.tags.get("arm") == arm]
        reasons = [r.reason for r in trials if r.status == "failed"]
        return reasons[0] if reasons and len(reasons) == len(self.plan.seeds) else ""

    def _test_accuracies(self, arm: str) -> dict[int, float]:
        """Return the metric on test data by new seed.

        After an extension with more seeds, an earlier new seed may be one of the study's.
        """
        seeds = self.plan.seeds
        replicates = (r for r in self.records.of("replicate") if r.job.seed not in seeds)
        return by_seed((r for r in replicates if r.job.tags.get("arm") == arm), self.test_metric)


def layer_study_card(result: LayerStudyResult) -> Card:
    """Return a layer study as a card: gain of each pair over no hint, and the best set."""
    plan, layers, best = result.plan, result.plan.layers, result.best
    best_text = ""
    if best is not None:
        accuracy = (
            f"{words(result.test_metric)} {interval(best.test_accuracy)}, gain {points(best.gain)}"
        )
        best_text = f"{format_pairs(best.arm.pairs[0])}; {accuracy}"
    card = Card(result.name, f"layer study, {len(plan.seeds)} seeds in {duration(result.seconds)}")
    card.facts(
        [
            ("loss", f"{plan.loss['name']}, weight {plan.weight:g}"),
            ("best pairs", best_text),
            ("folder", str(result.folder)),
            ("MLflow", f"experiment {result.experiment}"),
        ]
    )
    card.table(
        f"Gain over no hint ({words(result.val_metric)}{unit_text(result)})",
        ("hint \\ guided", *(f"{layer.name} {layer.shape_text}" for layer in layers.guided)),
        [
            (
                f"{hint.name} {hint.shape_text}",
                *(_gain_text(result.cell(hint.name, guided.name)) for guided in layers.guided),
            )
            for hint in reversed(layers.hints)
        ],
    )
    card.sentence("* differs from no hint at 5% after Holm's correction over all arms")
    return card


def unit_text(result: LayerStudyResult) -> str:
    """Return the unit of gains, to follow a name; "" for plain numbers."""
    return ", points" if facts_of(result.lead).is_share else ""


def gain_heading(result: LayerStudyResult) -> str:
    """Return the heading of a column of gains, with their unit."""
    return "gain (points)" if unit_text(result) else "gain"


def _gain_text(cell: Cell) -> str:
    if cell.contrast is None:
        return UNKNOWN
    return points(cell.contrast.gain) + (" *" if cell.contrast.is_significant else "")


def read_layer_study(folder: str | Path) -> LayerStudyResult:
    """Read the result of the layer study in a folder, finished or not.

    Raises:
        StudyError: this is not a layer study's folder, or it has not started yet.
    """
    return read_with_events(folder)[0]


def read_with_events(folder: str | Path) -> tuple[LayerStudyResult, list[Event]]:
    """Read a layer study as `read_layer_study` does, and the events of its journal."""
    run, opened, history = read_run(folder)
    planned = [event for event in history if isinstance(event, ArmsPlanned)]
    if not planned:
        state = (
            "that has not started yet" if opened.verb == "pairs" else f"of `raykd {opened.verb}`"
        )
        message = f"{folder} has no arms of a layer study: it is a folder {state}"
        raise StudyError(Problem(message, fix="name a folder that `raykd pairs` printed"))
    plan = LayerStudyPlan.from_event(planned[-1])
    computed = {event.seed: event for event in history if isinstance(event, PredictorsComputed)}
    predictors = Predictors(plan.layers, plan.seeds, computed)
    return LayerStudyResult(**vars(run), plan=plan, predictors=predictors), history


def accuracies_by_arm(records: Records, metric: str) -> dict[str, dict[int, float]]:
    """Return a validation metric by arm and seed, of the trainings that have finished."""
    trials: dict[str, list[Record]] = {}
    for record in records.of("trial"):
        trials.setdefault(record.job.tags["arm"], []).append(record)
    accuracies = {arm: by_seed(of_arm, metric) for arm, of_arm in trials.items()}
    return {arm: of_arm for arm, of_arm in accuracies.items() if of_arm}


def find_best_arm(arms: Iterable[Arm], accuracies: Accuracies, seeds: int) -> Arm | None:
    """Return the set of pairs with the highest mean on validation data; the first of equals.

    Only arms that are trained under every seed count.
    """
    complete = [arm for arm in arms if arm.can_be_best and len(accuracies.get(arm.id, {})) == seeds]
    return max(
        complete, key=lambda arm: round(math.fsum(accuracies[arm.id].values()), 12), default=None
    )
