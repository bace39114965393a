"""Figures of a layer study: gains of all pairings, the best pairs, and their predictors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raykd.layer_study.files import plain_result
from raykd.layer_study.plan import NONE, Arm, format_pairs
from raykd.layer_study.predictors import PREDICTORS
from raykd.layer_study.rank_correlation import RankCorrelation
from raykd.layer_study.result import LayerStudyResult
from raykd.layer_study.significance import Contrast
from raykd.report.commands import layer_study_commands
from raykd.report.summary.base import RunSummary, summarize_run
from raykd.tracking.events import Event


@dataclass(frozen=True)
class ArmFigures:
    """Figures of an arm that is not a single pair.

    Attributes:
        name: its id in words.
        pairs: its pairs in short.
        accuracy: mean validation accuracy over seeds; None if it was not trained (yet).
        contrast: comparison with the baseline without hint; None if it was not trained (yet).
    """

    name: str
    pairs: str
    accuracy: float | None
    contrast: Contrast | None


@dataclass(frozen=True)
class PredictorFigures:
    """Figures of a cheap predictor of the gains.

    Attributes:
        description: the predictor in words.
        correlation: its rank correlation with the gains.
    """

    description: str
    correlation: RankCorrelation

    @property
    def is_significant(self) -> bool:
        """True if the interval of the correlation excludes zero."""
        low, high = self.correlation.low, self.correlation.high
        return not math.isnan(low) and not low <= 0 <= high


@dataclass(frozen=True)
class LayerStudySummary(RunSummary[LayerStudyResult]):
    """Summary of a layer study, finished or not; see `RunSummary` for the other attributes.

    Attributes:
        baseline_accuracy: mean validation accuracy without hint; None before it is trained.
        other_arms: arms that are not single pairs, in the order of the plan.
        predictors: predictors that could be ranked, the most correlated first.
        skipped: reason of each arm that is not trained, by id.
    """

    baseline_accuracy: float | None
    other_arms: tuple[ArmFigures, ...]
    predictors: tuple[PredictorFigures, ...]
    skipped: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        return {**plain_result(self.result), **super().plain()}


def summarize_layer_study(result: LayerStudyResult, history: Sequence[Event]) -> LayerStudySummary:
    """Compute the summary of a layer study, finished or not.

    Args:
        result: result of the study.
        history: events of its journal.
    """
    run = summarize_run(result, history, result.failed, layer_study_commands(result, history))
    arms = [arm for arm in result.plan.arms if arm.kind not in (NONE, "pair")]
    return LayerStudySummary(
        **vars(run),
        baseline_accuracy=_mean_accuracy(result, NONE),
        other_arms=tuple(_arm_figures(result, arm) for arm in arms),
        predictors=_ranked_predictors(result),
        skipped={arm.id: arm.skip_reason for arm in result.plan.arms if arm.skip_reason},
    )


def _arm_figures(result: LayerStudyResult, arm: Arm) -> ArmFigures:
    descriptions = {
        "random": "differ by seed",
        "semckd": "learned attention over all pairs",
    }
    return ArmFigures(
        name=arm.id.replace("_", " "),
        pairs=descriptions.get(arm.kind) or format_pairs(arm.pairs[0]),
        accuracy=_mean_accuracy(result, arm.id),
        contrast=result.contrasts.get(arm.id),
    )


def _ranked_predictors(result: LayerStudyResult) -> tuple[PredictorFigures, ...]:
    steps = f"{result.predictors.steps} steps"
    figures = [
        PredictorFigures(
            PREDICTORS[name].replace("a few steps", steps).replace("these steps", steps),
            correlation,
        )
        for name, correlation in result.rank_correlations.items()
        if not math.isnan(correlation.tau)
    ]
    return tuple(sorted(figures, key=lambda predictor: -predictor.correlation.tau))


def _mean_accuracy(result: LayerStudyResult, arm: str) -> float | None:
    accuracies = result.accuracies.get(arm)
    return math.fsum(accuracies.values()) / len(accuracies) if accuracies else None
