"""What a layer study found: read back from its journal, so that it can be asked at any time."""

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
from raykd.study.space.pairing import LayerPair
from raykd.tracking.journal import events
from raykd.tuning.number_format import UNKNOWN, duration, interval, points
from raykd.tuning.records import Record, Records
from raykd.tuning.statistics import Estimate, estimate, paired_gain
from raykd.tuning.study_dir import open_folder

METRIC = "val_accuracy"
TESTED = "test_accuracy"

PREDICTORS: Mapping[str, str] = {
    "cka_start": "CKA of the two layers before any training",
    "cka_steps": "CKA after a few steps without hint",
    "gradient": "cosine of the pair's gradient and the labels' after these steps",
    "depth": "how little the two layers' depths differ",
    "hint_depth": "how deep the hint layer lies",
    "guided_depth": "how deep the guided layer lies",
}
"""Cheap predictors of a pair's gain; more is meant to be better of each."""


@dataclass(frozen=True)
class LayerInfo:
    """A layer: its name, shape without the batch, and depth from 0 to 1."""

    name: str
    shape: tuple[int, ...]
    depth: float

    @property
    def label(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Cell:
    """One hint layer with one guided layer.

    Attributes:
        contrast: against no hint; None where it was not (or not yet) trained.
        why_not: why there is none; empty where it is still to come.
    """

    hint: str
    guided: str
    arm: str
    contrast: Contrast | None
    why_not: str
    predictors: Mapping[str, float]


@dataclass(frozen=True)
class Best:
    """The best set of pairs by validation accuracy, then tested under fresh seeds.

    Attributes:
        arm: which.
        contrast: on the validation split, by which it was chosen: too high, as the best of many.
        tested, untaught: test accuracy with these pairs and without hint, over fresh seeds; None
            where there are none.
        gain: their difference, paired by seed.
    """

    arm: Arm
    contrast: Contrast | None
    tested: Estimate | None
    untaught: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, repr=False)
class LayerStudyResult:
    """The outcome of one layer study.

    Attributes:
        folder: the study's folder.
        name: the study's name.
        study_id: its id in MLflow (tag `raykd.id` of the parent run).
        tracking_uri: where MLflow keeps the runs.
        experiment: its MLflow experiment.
        records: every training.
        arms: all of them, those that were not trained included.
        hints, guided: the layers that were paired, shallow to deep.
        shown_hints, shown_guided: those of the CKA maps.
        seeds: of the arms.
        term: the number of the term in the study's knowledge whose pairs were studied.
        loss, weight: that term's, the loss as plain data.
        found: the predictors as they were computed, by seed.
        seconds: from the first event to the last.
    """

    folder: Path
    name: str
    study_id: str
    tracking_uri: str
    experiment: str
    records: Records
    arms: tuple[Arm, ...]
    hints: tuple[LayerInfo, ...]
    guided: tuple[LayerInfo, ...]
    shown_hints: tuple[LayerInfo, ...]
    shown_guided: tuple[LayerInfo, ...]
    seeds: tuple[int, ...]
    term: int
    loss: Mapping[str, Any]
    weight: float
    found: Mapping[int, Mapping[str, Any]]
    seconds: float

    def __repr__(self) -> str:
        trained = sum(not arm.why_not for arm in self.arms)
        best = f", best {self.best.arm.id}" if self.best is not None else ""
        folder = str(self.folder)
        return f"LayerStudyResult({self.name!r}, {trained} arms{best}, folder={folder!r})"

    def _repr_html_(self) -> str:
        """The result as a card, for notebooks."""
        return layer_study_card(self).html()

    @functools.cached_property
    def values(self) -> Values:
        """Validation accuracy by arm and seed."""
        return values_by_seed(self.records)

    @functools.cached_property
    def noise(self) -> Noise:
        """Of one training, over all arms."""
        return noise_of(self.values)

    @functools.cached_property
    def contrasts(self) -> Mapping[str, Contrast]:
        """Every trained arm against no hint."""
        return contrasts(self.values, NONE)

    @property
    def teachers(self) -> list[Record]:
        """The study's own."""
        return self.records.teachers

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every hint layer with every guided layer, hint layers first."""
        return tuple(self._cell(arm) for arm in self.arms if arm.kind == "pair")

    def cell(self, hint: str, guided: str) -> Cell:
        return next(one for one in self.cells if (one.hint, one.guided) == (hint, guided))

    @functools.cached_property
    def best(self) -> Best | None:
        """None before every arm that could win is trained under every seed."""
        arm = best_of(self.arms, self.values, len(self.seeds))
        if arm is None:
            return None
        tested, untaught = self._tested(arm.id), self._tested(NONE)
        return Best(
            arm,
            self.contrasts.get(arm.id),
            estimate(list(tested.values())) if tested else None,
            estimate(list(untaught.values())) if untaught else None,
            paired_gain(tested, untaught),
        )

    @functools.cached_property
    def rankings(self) -> Mapping[str, RankCorrelation]:
        """How well each predictor ranks the cells' gains."""
        trained = [cell for cell in self.cells if cell.contrast is not None]
        gains = np.array([self._gains(cell) for cell in trained]).reshape(len(trained), -1)
        found: dict[str, RankCorrelation] = {}
        for name in PREDICTORS:
            predicted = [self._predicted(name, cell.hint, cell.guided) for cell in trained]
            found[name] = rank_correlation(np.array(predicted).reshape(len(trained), -1), gains)
        return found

    def cka(self, when: str) -> np.ndarray | None:
        """(shown hints, shown guided): teacher against student, mean over seeds.

        Args:
            when: "start", "steps" (after a few steps without hint), or "trained" (without hint).
        """
        maps = [one["cka"][when] for one in self.found.values() if when in one["cka"]]
        if not maps:
            return None
        return np.array(_floats(maps), dtype=float).mean(axis=0)

    @property
    def steps(self) -> int:
        """After how many steps without hint predictors looked again."""
        return max((int(one["steps"]) for one in self.found.values()), default=0)

    @property
    def failed(self) -> list[Record]:
        roles = self.records.of("trial", "replicate", "probe")
        return [record for record in roles if record.status == "failed"]

    def figures(self) -> dict[str, float]:
        """The study's figures, for its parent run."""
        found = {f"tau_{name}": one.tau for name, one in self.rankings.items()}
        if not math.isnan(self.noise.deviation):
            found["noise"] = self.noise.deviation
        best = self.best
        if best is not None:
            if best.contrast is not None:
                found["best_val_gain"] = best.contrast.gain.mean
            if best.gain is not None:
                found["best_test_gain"] = best.gain.mean
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def tags(self) -> dict[str, str]:
        """The study's findings, for its parent run."""
        best = self.best
        found = {"verb": "pairs", "loss": str(self.loss["name"])}
        if best is not None:
            found["best"] = best.arm.id
            pairs = best.arm.pairs[0]
            found["best_pairs"] = " ".join(f"{one.hint}>{one.guided}" for one in pairs)
        return found

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
        of = [r for r in self.records.of("trial") if r.job.tags.get("arm") == arm]
        failed = [r.reason for r in of if r.status == "failed"]
        return failed[0] if failed and len(failed) == len(self.seeds) else ""

    def _gains(self, cell: Cell) -> list[float]:
        by_seed = cell.contrast.by_seed if cell.contrast is not None else {}
        return [by_seed.get(seed, math.nan) for seed in self.seeds]

    def _predicted(self, name: str, hint: str, guided: str) -> list[float]:
        """A predictor's value of a cell, by seed."""
        theirs = next(one for one in self.hints if one.name == hint)
        ours = next(one for one in self.guided if one.name == guided)
        known = {
            "depth": -abs(theirs.depth - ours.depth),
            "hint_depth": theirs.depth,
            "guided_depth": ours.depth,
        }
        if name in known:
            return [known[name]] * len(self.seeds)
        return [self._measured(name, hint, guided, seed) for seed in self.seeds]

    def _measured(self, name: str, hint: str, guided: str, seed: int) -> float:
        found = self.found.get(seed)
        if found is None:
            return math.nan
        if name == "gradient":
            row, column = _index(self.hints, hint), _index(self.guided, guided)
            return float(found["gradient"][row][column])
        when = name.removeprefix("cka_")
        row, column = _index(self.shown_hints, hint), _index(self.shown_guided, guided)
        return float(found["cka"][when][row][column])

    def _tested(self, arm: str) -> dict[int, float]:
        return {
            record.job.seed: record.metrics[TESTED]
            for record in self.records.of("replicate")
            if record.job.tags.get("arm") == arm
            and record.status == "finished"
            and math.isfinite(record.metrics.get(TESTED, math.nan))
        }


def layer_study_card(result: LayerStudyResult) -> Card:
    """A layer study for notebooks: the gain of each pair over no hint, and the best set."""
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
    """The result of the layer study in `folder`, finished or not.

    Raises:
        StudyError: it is no layer study's folder.
    """
    opened, _ = open_folder(folder)
    told = events(opened.journal)
    study = next((event for event in reversed(told) if event["event"] == "study"), None)
    arms = next((event for event in reversed(told) if event["event"] == "arms"), None)
    if study is None or arms is None:
        raise StudyError(
            Problem(
                f"{folder} holds no layer study"
                + (" that has begun" if opened.verb == "pairs" else f" but a {opened.verb}"),
                fix="name a folder that `raykd pairs` printed",
            )
        )
    layers = {side: _layers(found) for side, found in arms["layers"].items()}
    return LayerStudyResult(
        folder=opened.path,
        name=study["name"],
        study_id=study["id"],
        tracking_uri=study["resolved"]["tracking"]["uri"],
        experiment=study["experiment"],
        records=Records.from_events(told),
        arms=tuple(Arm.from_plain(one) for one in arms["arms"]),
        hints=layers["hints"],
        guided=layers["guided"],
        shown_hints=layers["shown_hint"],
        shown_guided=layers["shown_guided"],
        seeds=tuple(arms["seeds"]),
        term=arms["term"],
        loss=arms["loss"],
        weight=float(arms["weight"]),
        found={one["seed"]: one for one in told if one["event"] == "predictors"},
        seconds=(told[-1]["at"] - study["at"]) / 1000,
    )


def values_by_seed(records: Records) -> dict[str, dict[int, float]]:
    """Validation accuracy of the arms' whole trainings."""
    found: dict[str, dict[int, float]] = {}
    for record in records.of("trial"):
        if record.status == "finished" and math.isfinite(record.metrics.get(METRIC, math.nan)):
            arm = record.job.tags["arm"]
            found.setdefault(arm, {})[record.job.seed] = record.metrics[METRIC]
    return found


def best_of(arms: Iterable[Arm], values: Values, seeds: int) -> Arm | None:
    """The set of pairs with the highest mean validation accuracy, of those trained under every
    seed; the first of equals."""
    whole = [arm for arm in arms if arm.is_one_set and len(values.get(arm.id, {})) == seeds]
    return max(whole, key=lambda arm: round(math.fsum(values[arm.id].values()), 12), default=None)


def pairs_of(arm: Arm) -> list[dict[str, str]]:
    """An arm's pairs as a study file writes them."""
    return [_written(pair) for pair in arm.pairs[0]]


def _written(pair: LayerPair) -> dict[str, str]:
    return {"hint": pair.hint, "guided": pair.guided}


def _layers(told: Iterable[Mapping[str, Any]]) -> tuple[LayerInfo, ...]:
    return tuple(LayerInfo(one["name"], tuple(one["shape"]), one["depth"]) for one in told)


def _index(layers: Sequence[LayerInfo], name: str) -> int:
    return [layer.name for layer in layers].index(name)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _floats(value: Any) -> Any:
    """Nested lists of numbers, of which a journal writes NaN as text."""
    return [_floats(one) for one in value] if isinstance(value, list) else float(value)
