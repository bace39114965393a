"""Which outputs of teachers are worth keeping, worked out before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from raykd.errors import Infeasible
from raykd.losses import Term
from raykd.losses.shapes import Shape
from raykd.losses.terms import layer_names
from raykd.models import Model, Task, model_profile
from raykd.models.introspection.layers import blank_inputs
from raykd.schemes import TeacherSpec
from raykd.study.checks.layer_pairs import resolve_pairs
from raykd.study.config import Asha, Cache, Search, Study
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded
from raykd.study.teachers import teachers_of
from raykd.train_config import Train
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache.spec import LOGITS, row_bytes

DRAWS = 64
"""Random points of the space that are asked what they read."""

FEWEST_VIEWS = 8
"""Where fewer views than this fit, `auto` keeps none: augmentation would be lost."""

OVERHEAD = 1.25
"""What computing and writing a view costs, in forwards of the teacher over the training split."""

GB = 1e9

Reading = tuple[TeacherSpec, tuple[Any, ...], str]
"""What makes outputs different within a study: the teacher, the augmentation, the precision."""


@dataclass(frozen=True)
class Kept:
    """One teacher's outputs as a study would keep them.

    Attributes:
        prepared: the teacher.
        views: how many.
        epochs: of the longest training that reads them.
        layers: the hint layers that are kept, with their shapes.
        live: hint layers that are too large, and are computed in every step.
        row_bytes: of one sample under one view.
        rows: samples of the training split; None: not known.
        expected_epochs: epochs of trainings that will read them, about.
        why_not: why they are not kept; empty where they are.
    """

    prepared: TeacherSpec
    views: int
    epochs: int
    layers: Mapping[str, Shape]
    live: tuple[str, ...]
    row_bytes: int
    rows: int | None
    expected_epochs: float
    why_not: str = ""

    @property
    def bytes(self) -> int | None:
        """Of all of them; None where the number of samples is not known."""
        return None if self.rows is None else self.views * self.rows * self.row_bytes

    @property
    def break_even_epochs(self) -> float:
        """From so many epochs of students on they save time."""
        return self.views * OVERHEAD

    @property
    def break_even_trials(self) -> float:
        """The same in trainings of the full length."""
        return self.break_even_epochs / self.epochs


@dataclass
class _Use:
    """How often, and for what, a teacher's outputs are read by the points looked at."""

    points: float = 0
    epochs: int = 0
    layers: dict[str, Shape] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)


class CachePlan:
    """Which outputs a study keeps: a pure function of the study and of its data's size.

    Args:
        study: with its domains open.
        task: what models must take and give.
        rows: samples of the training split; None: not known.
        search: how it is searched; None: as the study says.
    """

    def __init__(
        self, study: OpenStudy, task: Task, rows: int | None, search: Search | None = None
    ) -> None:
        self.study = study
        self.task = task
        self.rows = rows
        self.search = search or study.settings.search

    @property
    def settings(self) -> Cache:
        return self.study.settings.cache

    def kept(self, study: Study, prepared: TeacherSpec) -> Kept | None:
        """What is kept of a teacher for a concrete study; None where its scheme has no other
        pupils, or the study was not foreseen."""
        return self.all.get(_reading(study, prepared))

    def fixed(self, study: Study) -> Study:
        """A concrete study whose views are settled: shared by all trials, as many as are kept."""
        cache = study.cache
        if cache.seed is None:
            cache = replace(cache, seed=self.study.settings.seed)
        if cache.views == "auto" and study.data.augment:
            kept = [self.kept(study, one) for one in self._shared_teachers(study)]
            views = [one.views for one in kept if one is not None and not one.why_not]
            if views and min(views) < study.train.epochs:
                cache = replace(cache, views=min(views))
        return replace(study, cache=cache)

    @cached_property
    def all(self) -> dict[Reading, Kept]:
        """What is, or is not, kept, in the order in which the space's points ask for it."""
        if self.settings.use == "never":
            return {}
        seen: dict[Reading, _Use] = {}
        points = 0
        for study in self._points():
            points += 1
            self._look(study, seen)
        return {reading: self._kept(reading, use, points) for reading, use in seen.items()}

    def _points(self) -> Iterator[Study]:
        """Corners and random points, as trials would be drawn."""
        bound = self.study.bind(self.task)
        for candidate in bound.corners():
            yield candidate.study
        for draw in range(DRAWS if self.study.dimensions else 0):
            try:
                yield bound.draw(Seeded(draw)).resolved
            except Infeasible:
                continue

    def _shared_teachers(self, study: Study) -> list[TeacherSpec]:
        teachers = teachers_of(study, self.study.settings.seed)
        return [one for one in teachers if one.is_shared]

    def _look(self, study: Study, seen: dict[Reading, _Use]) -> None:
        for prepared in self._shared_teachers(study):
            layers = hint_layers(study, prepared, self.task)
            use = seen.setdefault(_reading(study, prepared), _Use())
            use.points += 1
            use.epochs = max(use.epochs, study.train.epochs)
            use.layers |= layers
            for name in layers:
                use.asked[name] = use.asked.get(name, 0) + 1

    def _kept(self, reading: Reading, use: _Use, points: int) -> Kept:
        prepared, augment, _ = reading
        logits = {LOGITS: (self.task.classes,)}
        views = self._views(bool(augment), use.epochs, row_bytes(logits, self.settings.dtype))
        layers, live = self._chosen(use, views)
        found = Kept(
            prepared=prepared,
            views=views,
            epochs=use.epochs,
            layers=layers,
            live=live,
            row_bytes=row_bytes({**logits, **layers}, self.settings.dtype),
            rows=self.rows,
            expected_epochs=use.points / points * self._trainings(use.epochs),
        )
        return replace(found, why_not=self._objection(found, bool(augment)))

    def _views(self, augmented: bool, epochs: int, logits_bytes: int) -> int:
        """How many views are shown: of the logits alone so many must fit."""
        asked = self.settings.views
        if not augmented:
            return 1
        if asked != "auto":
            return min(asked, epochs)
        if self.rows is None:
            return epochs
        return max(1, min(epochs, int(self._limit // (logits_bytes * self.rows))))

    def _chosen(self, use: _Use, views: int) -> tuple[dict[str, Shape], tuple[str, ...]]:
        """The layers that fit, those first that are asked for most per byte; and the others."""
        budget = min(self.settings.features_gb * GB, self._limit / 2)
        each = {
            name: views * (self.rows or 0) * row_bytes({name: shape}, self.settings.dtype)
            for name, shape in use.layers.items()
        }
        order = sorted(use.layers, key=lambda name: (-use.asked[name] / max(1, each[name]), name))
        chosen: dict[str, Shape] = {}
        for name in order:
            if each[name] <= budget:
                budget -= each[name]
                chosen[name] = use.layers[name]
        return chosen, tuple(sorted(set(use.layers) - set(chosen)))

    def _objection(self, found: Kept, augmented: bool) -> str:
        if self.settings.use == "always":
            return ""
        if found.bytes is not None and found.bytes > self._limit:
            limit = self.settings.limit_gb
            return f"{found.bytes / GB:.1f} GB exceed cache.limit_gb ({limit:g})"
        few = self.settings.views == "auto" and found.views < min(FEWEST_VIEWS, found.epochs)
        if augmented and few:
            return f"only {found.views} views would fit in {self.settings.limit_gb:g} GB"
        if found.expected_epochs < found.break_even_epochs:
            return (
                f"about {found.expected_epochs:.0f} epochs would use them, and they break even "
                f"after {found.break_even_epochs:.0f}"
            )
        return ""

    @property
    def _limit(self) -> float:
        return self.settings.limit_gb * GB

    def _trainings(self, epochs: int) -> float:
        """Epochs of all trials and replicates, about, if all read the same outputs."""
        points = self.study.size.points
        trials = self.search.trials if points is None else min(self.search.trials, points)
        again = min(self.search.finalists, trials) * self.search.replicates * epochs
        return trials * epochs * _share_trained(self.search, epochs) + again


def hint_layers(study: Study, prepared: TeacherSpec, task: Task) -> dict[str, Shape]:
    """The layers of a teacher that a concrete study's terms look at, with their shapes.

    None where nothing is known of the teacher's layers, or they do not fit.
    """
    if not study.scheme.takes_knowledge or prepared.model is None:
        return {}
    try:
        theirs = model_profile(prepared.model, task)
        ours = model_profile(study.student.model, task)
        terms: Iterable[Term] = resolve_pairs(study, ours, (theirs,), task.classes).knowledge
        return {layer.name: layer.shape for layer in theirs.resolve(layer_names(terms, "hint"))}
    except ValueError:
        return {}


def layer_layouts(prepared: TeacherSpec, layers: Iterable[str], task: Task) -> dict[str, str]:
    """How the axes of those hint layers are moved, by layer; layers left as they are do not appear.

    Part of the address of kept outputs: those of another layout must not be read.
    """
    if prepared.model is None:
        return {}
    found = model_profile(prepared.model, task).resolve(layers)
    return {
        layer.name: f"{layer.layout.parts} {layer.layout.order}"
        for layer in found
        if layer.layout is not None
    }


def _reading(study: Study, prepared: TeacherSpec) -> Reading:
    if prepared.weights is not None:  # how it would be trained plays no part
        prepared = TeacherSpec(prepared.model, prepared.weights, Train(), seed=0)
    return prepared, tuple(study.data.augment), study.train.precision


def _share_trained(search: Search, epochs: int) -> float:
    """Which part of a full training a trial goes through on average, under its scheduler."""
    rule = search.scheduler
    if not isinstance(rule, Asha):
        return 1.0
    trained, at, alive = 0.0, min(rule.grace_epochs, epochs), 1.0
    trained += at
    while at < epochs:
        alive /= rule.reduction
        following = min(epochs, at * rule.reduction)
        trained += alive * (following - at)
        at = following
    return trained / epochs


PROBE_MACS = 2e9
"""Multiply-accumulates of the forward that is timed, about; one sample's where that has more."""

FORWARDS = 4

MOST = 64
"""Samples of that forward."""


def estimate_build_time(kept: Kept, task: Task, device: torch.device | str = "cpu") -> float | None:
    """Seconds one worker like this process takes, about; None where too little is known."""
    if kept.prepared.model is None or kept.rows is None:
        return None
    forward = seconds_a_sample(kept.prepared.model, task, torch.device(device))
    return forward * kept.rows * kept.views * OVERHEAD


def seconds_a_sample(model: Model, task: Task, device: torch.device) -> float:
    """Of an untrained network's forward, in float32: the quickest of a few of a small batch."""
    macs = max(1, model_profile(model, task).macs)
    samples = max(1, min(MOST, int(PROBE_MACS / macs)))
    with torch.random.fork_rng(devices=[]):
        network = to_device(model.blueprint(task), device).eval()
    inputs = blank_inputs(task, samples, device)
    taken = []
    with torch.inference_mode():
        for _ in range(FORWARDS):
            began = time.perf_counter()
            network(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
    return min(taken) / samples
