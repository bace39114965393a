"""Cheap predictors of a pair's gain: CKA, gradients and depths of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raykd.layer_study.plan import LayerInfo, StudyLayers
from raykd.layer_study.rank_correlation import RankCorrelation, rank_correlation
from raykd.tracking.events import PredictorsComputed

PREDICTORS: Mapping[str, str] = {
    "cka_start": "CKA of the two layers before any training",
    "cka_steps": "CKA after a few steps without hint",
    "gradient": "cosine of the pair's gradient and the labels' after these steps",
    "depth": "negative difference of the two layers' depths",
    "hint_depth": "depth of the hint layer",
    "guided_depth": "depth of the guided layer",
}
"""Description of each predictor by name; higher values should mean a larger gain."""

CkaTime = Literal["start", "steps", "trained"]
"""Training state of the student in a CKA map: untrained, after a few steps, trained; no hint."""

CKA_TIMES: tuple[CkaTime, ...] = ("start", "steps", "trained")

Gains = Mapping[tuple[str, str], Mapping[int, float]]
"""(hint layer, guided layer) -> seed -> gain."""


@dataclass(frozen=True)
class Predictors:
    """Predictors of every pair under every seed.

    Attributes:
        layers: layers of the study.
        seeds: seeds of the study.
        by_seed: computed CKA and gradients of each seed that has them.
    """

    layers: StudyLayers
    seeds: tuple[int, ...]
    by_seed: Mapping[int, PredictorsComputed]

    @property
    def steps(self) -> int:
        """Number of steps without hint before the predictors were computed again."""
        return max((event.steps for event in self.by_seed.values()), default=0)

    def values(self, name: str, hint: str, guided: str) -> list[float]:
        """Return a predictor of a pair, one value per seed; NaN before it is computed."""
        hint_depth = self.layers.hints[_index(self.layers.hints, hint)].depth
        guided_depth = self.layers.guided[_index(self.layers.guided, guided)].depth
        depths = {
            "depth": -abs(hint_depth - guided_depth),
            "hint_depth": hint_depth,
            "guided_depth": guided_depth,
        }
        if name in depths:
            return [depths[name]] * len(self.seeds)
        return [self._computed(name, hint, guided, seed) for seed in self.seeds]

    def means(self, hint: str, guided: str) -> dict[str, float]:
        """Return each predictor of a pair, its mean over the seeds; NaN if there is none."""
        return {name: _mean(self.values(name, hint, guided)) for name in PREDICTORS}

    def cka_map(self, when: CkaTime) -> np.ndarray | None:
        """Return the CKA of teacher and student layers, mean over seeds; None without values.

        Returns:
            (CKA hints, CKA guided).
        """
        maps = [event.cka[when] for event in self.by_seed.values() if when in event.cka]
        return np.array(maps, dtype=float).mean(axis=0) if maps else None

    def rank_correlations(self, gains: Gains) -> dict[str, RankCorrelation]:
        """Return the rank correlation of each predictor with the gains of trained pairs."""
        shape = len(gains), len(self.seeds)
        by_pair = [[of.get(seed, math.nan) for seed in self.seeds] for of in gains.values()]
        observed = np.array(by_pair).reshape(shape)
        correlations: dict[str, RankCorrelation] = {}
        for name in PREDICTORS:
            predicted = [self.values(name, hint, guided) for hint, guided in gains]
            correlations[name] = rank_correlation(np.array(predicted).reshape(shape), observed)
        return correlations

    def _computed(self, name: str, hint: str, guided: str, seed: int) -> float:
        event = self.by_seed.get(seed)
        if event is None:
            return math.nan
        layers = self.layers
        if name == "gradient":
            return event.gradient[_index(layers.hints, hint)][_index(layers.guided, guided)]
        row, column = _index(layers.cka_hints, hint), _index(layers.cka_guided, guided)
        return event.cka[name.removeprefix("cka_")][row][column]


def _index(layers: Sequence[LayerInfo], name: str) -> int:
    return [layer.name for layer in layers].index(name)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
