"""Result of a layer study, read from its journal: finished or not, at any time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raykd.errors import Problem, StudyError
from raykd.html_card import Card
from raykd.layer_study.arm_record import NONE, Arm
from raykd.layer_study.statistics import (
    Contrast,
    Noise,
    RankCorrelation,
    Values,
    contrasts,
    noise_of,
    rank_correlation,
)
from raykd.tracking.events import ArmsPlanned, PredictorsComputed
from raykd.tuning.number_format import UNKNOWN, duration, interval, points
from raykd.tuning.records import Record, Records
from raykd.tuning.result import RunResult, by_seed, read_run
from raykd.tuning.statistics import Estimate, estimate, paired_gain

METRIC = "val_accuracy"
TEST_METRIC = "test_accuracy"

PREDICTORS: Mapping[str, str] = {
    "cka_start": "CKA of the two layers before any training",
    "cka_steps": "CKA after a few steps without hint",
    "gradient": "cosine of the pair's gradient and the labels' after these steps",
    "depth": "negative difference of the two layers' depths",
    "hint_depth": "depth of the hint layer",
    "guided_depth": "depth of the guided layer",
}
"""Cheap predictors of a pair's gain; higher should mean a larger gain."""


@dataclass(frozen=True)
class LayerInfo:
    """A layer: name, shape without the batch dimension, and depth from 0 to 1."""

    name: str
    shape: tuple[int, ...]
    depth: float

    @property
    def label(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Cell:
    """A pair of one hint layer and one guided layer.

    Attributes:
        contrast: with the baseline without hint; None if it was not trained (yet).
        why_not: reason why it is not trained; "" if it was or will be.
    """

    hint: str
    guided: str
    arm: str
    contrast: Contrast | None
    why_not: str
    predictors: Mapping[str, float]


@dataclass(frozen=True)
class Best:
    """Best set of pairs by validation accuracy, with its test accuracy under fresh seeds.

    Attributes:
        arm: with these pairs.
        contrast: on the validation split; biased upwards, because it is the best of many.
        tested, untaught: test accuracy with these pairs and without hint, over fresh seeds; None
            without fresh seeds.
        gain: their difference, paired by seed.
    """

    arm: Arm
    contrast: Contrast | None
    tested: Estimate | None
    untaught: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, repr=False)
class LayerStudyResult(RunResult):
    """Result of a layer study; see `RunResult` for the other attributes.

    Attributes:
        arms: all arms, including those that were not trained.
        hints, guided: paired layers, shallow to deep.
        cka_hints, cka_guided: layers of the CKA maps.
        seeds: of the arms.
        term: index of the term in the study's knowledge whose pairs are compared.
        loss, weight: of that term, the loss as plain data.
        computed: predictors by seed.
    """

    arms: tuple[Arm, ...]
    hints: tuple[LayerInfo, ...]
    guided: tuple[LayerInfo, ...]
    cka_hints: tuple[LayerInfo, ...]
    cka_guided: tuple[LayerInfo, ...]
    seeds: tuple[int, ...]
    term: int
    loss: Mapping[str, Any]
    weight: float
    computed: Mapping[int, PredictorsComputed]

    def __repr__(self) -> str:
        trained = sum(not arm.why_not for arm in self.arms)
        best = f", best {self.best.arm.id}" if self.best is not None else ""
        folder = str(self.folder)
        return f"LayerStudyResult({self.name!r}, {trained} arms{best}, folder={folder!r})"

    def _repr_html_(self) -> str:
        """Return the result as a card for notebooks."""
        return layer_study_card(self).html()

    @functools.cached_property
    def values(self) -> Values:
        """Validation accuracy by arm and seed."""
        return values_by_seed(self.records)

    @functools.cached_property
    def noise(self) -> Noise:
        """Noise of one training, from all arms."""
        return noise_of(self.values)

    @functools.cached_property
    def contrasts(self) -> Mapping[str, Contrast]:
        """Every trained arm compared with the baseline without hint."""
        return contrasts(self.values, NONE)

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All pairs of a hint layer and a guided layer, ordered by hint layer."""
        return tuple(self._cell(arm) for arm in self.arms if arm.kind == "pair")

    def cell(self, hint: str, guided: str) -> Cell:
        return next(each for each in self.cells if (each.hint, each.guided) == (hint, guided))

    @functools.cached_property
    def best(self) -> Best | None:
        """Best set of pairs; None before every set is trained under every seed."""
        arm = best_of(self.arms, self.values, len(self.seeds))
        if arm is None:
            return None
        tested, untaught = self._test_accuracies(arm.id), self._test_accuracies(NONE)
        return Best(
            arm,
            self.contrasts.get(arm.id),
            estimate(list(tested.values())) if tested else None,
            estimate(list(untaught.values())) if untaught else None,
            paired_gain(tested, untaught),
        )

    @functools.cached_property
    def rankings(self) -> Mapping[str, RankCorrelation]:
        """Rank correlation of each predictor with the cells' gains."""
        trained = [cell for cell in self.cells if cell.contrast is not None]
        gains = np.array([self._gains(cell) for cell in trained]).reshape(len(trained), -1)
        correlations: dict[str, RankCorrelation] = {}
        for name in PREDICTORS:
            predicted = [self._predicted(name, cell.hint, cell.guided) for cell in trained]
            correlations[name] = rank_correlation(
                np.array(predicted).reshape(len(trained), -1), gains
            )
        return correlations

    def cka(self, when: str) -> np.ndarray | None:
        """Return the CKA map of teacher and student, (CKA hints, CKA guided), mean over seeds.

        Args:
            when: "start", "steps" (after a few steps without hint), or "trained" (without hint).
        """
        maps = [event.cka[when] for event in self.computed.values() if when in event.cka]
        if not maps:
            return None
        return np.array(maps, dtype=float).mean(axis=0)

    @property
    def steps(self) -> int:
        """Number of steps without hint before the predictors were computed again."""
        return max((event.steps for event in self.computed.values()), default=0)

    @property
    def failed(self) -> list[Record]:
        roles = self.records.of("trial", "replicate", "probe")
        return [record for record in roles if record.status == "failed"]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the study's MLflow run."""
        metrics = {f"tau_{name}": each.tau for name, each in self.rankings.items()}
        if not math.isnan(self.noise.deviation):
            metrics["noise"] = self.noise.deviation
        best = self.best
        if best is not None:
            if best.contrast is not None:
                metrics["best_val_gain"] = best.contrast.gain.mean
            if best.gain is not None:
                metrics["best_test_gain"] = best.gain.mean
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def tags(self) -> dict[str, str]:
        """Return the tags of the study's MLflow run."""
        best = self.best
        tags = {"verb": "pairs", "loss": str(self.loss["name"])}
        if best is not None:
            tags["best"] = best.arm.id
            pairs = best.arm.pairs[0]
            tags["best_pairs"] = " ".join(f"{pair.hint}>{pair.guided}" for pair in pairs)
        return tags

    def _cell(self, arm: Arm) -> Cell:
        [pair] = arm.pairs[0]
        means = {name: _mean(self._predicted(name, pair.hint, pair.guided)) for name in PREDICTORS}
        return Cell(
            pair.hint,
            pair.guided,
            arm.id,
            self.contrasts.get(arm.id),
            arm.why_not or self._failure(arm.id),
            means,
        )

    def _failure(self, arm: str) -> str:
        trials = [r for r in self.records.of("trial") if r.job.tags.get("arm") == arm]
        reasons = [r.reason for r in trials if r.status == "failed"]
        return reasons[0] if reasons and len(reasons) == len(self.seeds) else ""

    def _gains(self, cell: Cell) -> list[float]:
        by_seed = cell.contrast.by_seed if cell.contrast is not None else {}
        return [by_seed.get(seed, math.nan) for seed in self.seeds]

    def _predicted(self, name: str, hint: str, guided: str) -> list[float]:
        """Return a predictor's value of a cell, by seed."""
        hint_layer = next(layer for layer in self.hints if layer.name == hint)
        guided_layer = next(layer for layer in self.guided if layer.name == guided)
        depths = {
            "depth": -abs(hint_layer.depth - guided_layer.depth),
            "hint_depth": hint_layer.depth,
            "guided_depth": guided_layer.depth,
        }
        if name in depths:
            return [depths[name]] * len(self.seeds)
        return [self._measured(name, hint, guided, seed) for seed in self.seeds]

    def _measured(self, name: str, hint: str, guided: str, seed: int) -> float:
        computed = self.computed.get(seed)
        if computed is None:
            return math.nan
        if name == "gradient":
            row, column = _index(self.hints, hint), _index(self.guided, guided)
            return computed.gradient[row][column]
        when = name.removeprefix("cka_")
        row, column = _index(self.cka_hints, hint), _index(self.cka_guided, guided)
        return computed.cka[when][row][column]

    def _test_accuracies(self, arm: str) -> dict[int, float]:
        replicates = self.records.of("replicate")
        return by_seed((r for r in replicates if r.job.tags.get("arm") == arm), TEST_METRIC)


def layer_study_card(result: LayerStudyResult) -> Card:
    """Return a layer study as a card: gain of each pair over no hint, and the best set."""
    card = Card(
        result.name, f"layer study, {len(result.seeds)} seeds in {duration(result.seconds)}"
    )
    card.facts(
        [
            ("loss", f"{result.loss['name']}, weight {result.weight:g}"),
            ("best pairs", _best_text(result.best)),
            ("folder", str(result.folder)),
            ("MLflow", f"experiment {result.experiment}"),
        ]
    )
    card.table(
        "Gain over no hint (validation accuracy in points)",
        ("hint \\ guided", *(guided.label for guided in result.guided)),
        [
            (hint.label, *(_gain_text(result.cell(hint.name, each.name)) for each in result.guided))
            for hint in reversed(result.hints)
        ],
    )
    card.sentence("* differs from no hint at 5% after Holm's correction over all arms")
    return card


def _best_text(best: Best | None) -> str:
    if best is None:
        return ""
    pairs = " ".join(f"{pair.hint}>{pair.guided}" for pair in best.arm.pairs[0])
    return f"{pairs}; test accuracy {interval(best.tested)}, gain {points(best.gain)}"


def _gain_text(cell: Cell) -> str:
    if cell.contrast is None:
        return UNKNOWN
    return points(cell.contrast.gain) + (" *" if cell.contrast.is_clear else "")


def read_layer_study(folder: str | Path) -> LayerStudyResult:
    """Read the result of the layer study in a folder, finished or not.

    Raises:
        StudyError: this is not a layer study's folder, or it has not started yet.
    """
    run, opened, history = read_run(folder)
    planned = [event for event in history if isinstance(event, ArmsPlanned)]
    if not planned:
        state = (
            "that has not started yet" if opened.verb == "pairs" else f"of `raykd {opened.verb}`"
        )
        message = f"{folder} has no arms of a layer study: it is a folder {state}"
        raise StudyError(Problem(message, fix="name a folder that `raykd pairs` printed"))
    arms = planned[-1]
    layers = {side: _layers(each) for side, each in arms.layers.items()}
    return LayerStudyResult(
        **vars(run),
        arms=tuple(Arm.from_plain(each) for each in arms.arms),
        hints=layers["hints"],
        guided=layers["guided"],
        cka_hints=layers["shown_hint"],
        cka_guided=layers["shown_guided"],
        seeds=tuple(arms.seeds),
        term=arms.term,
        loss=arms.loss,
        weight=float(arms.weight),
        computed={event.seed: event for event in history if isinstance(event, PredictorsComputed)},
    )


def values_by_seed(records: Records) -> dict[str, dict[int, float]]:
    """Return validation accuracy by arm and seed, of the trainings that have finished."""
    trials: dict[str, list[Record]] = {}
    for record in records.of("trial"):
        trials.setdefault(record.job.tags["arm"], []).append(record)
    values = {arm: by_seed(of_arm, METRIC) for arm, of_arm in trials.items()}
    return {arm: accuracies for arm, accuracies in values.items() if accuracies}


def best_of(arms: Iterable[Arm], values: Values, seeds: int) -> Arm | None:
    """Return the set of pairs with the highest mean validation accuracy; the first of equals.

    Only arms that are trained under every seed count.
    """
    complete = [arm for arm in arms if arm.is_one_set and len(values.get(arm.id, {})) == seeds]
    return max(
        complete, key=lambda arm: round(math.fsum(values[arm.id].values()), 12), default=None
    )


def pairs_of(arm: Arm) -> list[dict[str, str]]:
    """Return an arm's pairs as a study file writes them."""
    return [{"hint": pair.hint, "guided": pair.guided} for pair in arm.pairs[0]]


def _layers(plain: Iterable[Mapping[str, Any]]) -> tuple[LayerInfo, ...]:
    return tuple(LayerInfo(each["name"], tuple(each["shape"]), each["depth"]) for each in plain)


def _index(layers: Sequence[LayerInfo], name: str) -> int:
    return [layer.name for layer in layers].index(name)


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
