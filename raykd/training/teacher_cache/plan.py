"""Plan of the teacher outputs that a study caches, made before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from raykd.data.unlabeled import ratio_of
from raykd.errors import Infeasible
from raykd.losses import Term
from raykd.losses.shapes import Shape
from raykd.losses.terms import layer_names
from raykd.models import Signature, profile_model
from raykd.models.introspection.layers import blank_inputs
from raykd.schemes import TeacherSpec
from raykd.study.checks.layer_pairs import resolve_pairs
from raykd.study.config import Cache, Search, Study
from raykd.study.open_study import OpenStudy
from raykd.study.space.sampling import Seeded
from raykd.train_config import Train
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache.spec import LOGITS, row_bytes

DRAWS = 64
"""Number of random points of the space that are checked for the outputs they read."""

FEWEST_VIEWS = 8
"""With `use: auto`, outputs are not cached if fewer views fit: augmentation would be lost."""

OVERHEAD = 1.25
"""Cost to compute and write a view, in forward passes of the teacher on the training split."""

GB = 1e9

Reading = tuple[TeacherSpec, tuple[Any, ...], str]
"""Everything that distinguishes outputs within a study: teacher, augmentation, precision."""


@dataclass(frozen=True)
class PlannedEntry:
    """Cache entry of one teacher, as planned for a study.

    Attributes:
        teacher: the teacher.
        views: number of views.
        epochs: of the longest training that reads the entry.
        layers: hint layers in the entry, with their shapes.
        live: hint layers that are too large to cache, and are computed in every step.
        row_bytes: bytes of one sample under one view.
        rows: samples of the training split; None: unknown.
        expected_epochs: estimated epochs of all trainings that read the entry.
        why_not: reason why nothing is cached; empty if the entry is used.
    """

    teacher: TeacherSpec
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
        """Size of the entry; None if the number of samples is unknown."""
        return None if self.rows is None else self.views * self.rows * self.row_bytes

    @property
    def break_even_epochs(self) -> float:
        """Number of student epochs from which the entry saves time."""
        return self.views * OVERHEAD

    @property
    def break_even_trials(self) -> float:
        """Number of full trainings from which the entry saves time."""
        return self.break_even_epochs / self.epochs


@dataclass
class _Usage:
    """Use of the outputs of one teacher by the points of the space that were checked.

    Attributes:
        points: number of points that use the teacher.
        epochs: of the longest training.
        layers: hint layers in use, with their shapes.
        counts: number of points that use each layer.
        share: largest share of the training samples that an epoch sees.
    """

    points: int = 0
    epochs: int = 0
    layers: dict[str, Shape] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    share: float = 0.0


class CachePlan:
    """Cache entries of a study: a pure function of the study and the size of its data.

    Args:
        study: with its search space.
        signature: inputs and classes of the models.
        rows: samples of the training split; None: unknown.
        search: search settings; None: those of the study.
        unlabeled: number of `rows` that are drawn at the ratio of `data.unlabeled`.
    """

    def __init__(
        self,
        study: OpenStudy,
        signature: Signature,
        rows: int | None,
        search: Search | None = None,
        unlabeled: int = 0,
    ) -> None:
        self._unlabeled = unlabeled
        self.study = study
        self.signature = signature
        self.rows = rows
        self.search = search or study.settings.search

    @property
    def settings(self) -> Cache:
        return self.study.settings.cache

    def entry_for(self, study: Study, teacher: TeacherSpec) -> PlannedEntry | None:
        """Return the planned entry of a teacher of a concrete study; None if there is none."""
        return self.all.get(_reading(study, teacher))

    def fixed(self, study: Study) -> Study:
        """Return a concrete study with the seed and number of views that all trials share."""
        cache = study.cache
        if cache.seed is None:
            cache = replace(cache, seed=self.study.settings.seed)
        if cache.views == "auto" and study.data.augment:
            entries = [self.entry_for(study, each) for each in self._shared_teachers(study)]
            views = [entry.views for entry in entries if entry is not None and not entry.why_not]
            if views and min(views) < study.train.epochs:
                cache = replace(cache, views=min(views))
        return replace(study, cache=cache)

    @cached_property
    def all(self) -> dict[Reading, PlannedEntry]:
        """Planned entries, also those that are not used, in the order of the space's points."""
        if self.settings.use == "never":
            return {}
        usages: dict[Reading, _Usage] = {}
        points = 0
        for study in self._points():
            points += 1
            self._count(study, usages)
        return {reading: self._plan(reading, usage, points) for reading, usage in usages.items()}

    def _points(self) -> Iterator[Study]:
        """Yield corners and random points of the space, as trials are drawn."""
        bound = self.study.bind(self.signature)
        for candidate in bound.corners():
            yield candidate.study
        for draw in range(DRAWS if self.study.dimensions else 0):
            try:
                yield bound.draw(Seeded(draw)).resolved
            except Infeasible:
                continue

    def _shared_teachers(self, study: Study) -> list[TeacherSpec]:
        teachers = study.teacher_specs(self.study.settings.seed)
        return [each for each in teachers if each.is_shared and each.outputs is None]

    def _count(self, study: Study, usages: dict[Reading, _Usage]) -> None:
        for teacher in self._shared_teachers(study):
            layers = hint_layers(study, teacher, self.signature)
            usage = usages.setdefault(_reading(study, teacher), _Usage())
            usage.points += 1
            usage.epochs = max(usage.epochs, study.train.epochs)
            usage.share = max(usage.share, self._share(ratio_of(study.data)))
            usage.layers |= layers
            for name in layers:
                usage.counts[name] = usage.counts.get(name, 0) + 1

    def _share(self, ratio: float) -> float:
        """Return the share of the training samples that an epoch sees."""
        if not self.rows or not self._unlabeled:
            return 1.0
        return min(1.0, (self.rows - self._unlabeled) * (1 + ratio) / self.rows)

    def _plan(self, reading: Reading, usage: _Usage, points: int) -> PlannedEntry:
        teacher, augment, _ = reading
        logits = {LOGITS: self.signature.response_shape}
        views = self._views(bool(augment), usage.epochs, row_bytes(logits, self.settings.dtype))
        layers, live = self._select_layers(usage, views)
        entry = PlannedEntry(
            teacher=teacher,
            views=views,
            epochs=usage.epochs,
            layers=layers,
            live=live,
            row_bytes=row_bytes({**logits, **layers}, self.settings.dtype),
            rows=self.rows,
            expected_epochs=usage.points / points * self._total_epochs(usage.epochs) * usage.share,
        )
        return replace(entry, why_not=self._objection(entry, bool(augment)))

    def _views(self, augmented: bool, epochs: int, logits_bytes: int) -> int:
        """Return the number of views; their logits must fit within the limit."""
        views = self.settings.views
        if not augmented:
            return 1
        if views != "auto":
            return min(views, epochs)
        if self.rows is None:
            return epochs
        return max(1, min(epochs, int(self._limit // (logits_bytes * self.rows))))

    def _select_layers(self, usage: _Usage, views: int) -> tuple[dict[str, Shape], tuple[str, ...]]:
        """Return the layers that fit, the most used per byte first, and the remaining ones."""
        budget = min(self.settings.features_gb * GB, self._limit / 2)
        sizes = {
            name: views * (self.rows or 0) * row_bytes({name: shape}, self.settings.dtype)
            for name, shape in usage.layers.items()
        }
        order = sorted(
            usage.layers, key=lambda name: (-usage.counts[name] / max(1, sizes[name]), name)
        )
        selected: dict[str, Shape] = {}
        for name in order:
            if sizes[name] <= budget:
                budget -= sizes[name]
                selected[name] = usage.layers[name]
        return selected, tuple(sorted(set(usage.layers) - set(selected)))

    def _objection(self, entry: PlannedEntry, augmented: bool) -> str:
        if self.signature.boxes:
            return "outputs of detectors are not cached"
        if self.settings.use == "always":
            return ""
        if entry.bytes is not None and entry.bytes > self._limit:
            limit = self.settings.limit_gb
            return f"{entry.bytes / GB:.1f} GB exceed cache.limit_gb ({limit:g})"
        few = self.settings.views == "auto" and entry.views < min(FEWEST_VIEWS, entry.epochs)
        if augmented and few:
            return f"only {entry.views} views would fit in {self.settings.limit_gb:g} GB"
        if entry.expected_epochs < entry.break_even_epochs:
            return (
                f"about {entry.expected_epochs:.0f} epochs would use them, and they break even "
                f"after {entry.break_even_epochs:.0f}"
            )
        return ""

    @property
    def _limit(self) -> float:
        return self.settings.limit_gb * GB

    def _total_epochs(self, epochs: int) -> float:
        """Estimate the epochs of all trials and replicates if all read the same outputs."""
        points = self.study.size.points
        trials = self.search.trials if points is None else min(self.search.trials, points)
        replicates = min(self.search.finalists, trials) * self.search.replicates * epochs
        return trials * epochs * self.search.scheduler.trained_fraction(epochs) + replicates


def hint_layers(study: Study, teacher: TeacherSpec, signature: Signature) -> dict[str, Shape]:
    """Return the hint layers of a teacher in a concrete study, with their shapes.

    They are empty if the layers of the teacher are unknown or do not fit.
    """
    if not study.scheme.takes_knowledge or teacher.model is None:
        return {}
    try:
        theirs = profile_model(teacher.model, signature.as_input(teacher.input))
        ours = profile_model(study.student.model, signature.as_input(study.student.input))
        terms: Iterable[Term] = resolve_pairs(study, ours, (theirs,), signature.classes).knowledge
        return {layer.name: layer.shape for layer in theirs.resolve(layer_names(terms, "hint"))}
    except ValueError:
        return {}


def layer_layouts(
    teacher: TeacherSpec, layers: Iterable[str], signature: Signature
) -> dict[str, str]:
    """Return the order of the axes of hint layers that are permuted; others are left out.

    It is part of the key of a cache entry: outputs of another layout must not be read.
    """
    if teacher.model is None:
        return {}
    return {
        layer.name: f"{layer.layout.parts} {layer.layout.order}"
        for layer in profile_model(teacher.model, signature.as_input(teacher.input)).resolve(layers)
        if layer.layout is not None
    }


def _reading(study: Study, teacher: TeacherSpec) -> Reading:
    if teacher.weights is not None:  # its training settings are not used
        loaded = TeacherSpec(teacher.model, teacher.weights, Train(), seed=0)
        teacher = replace(loaded, input=teacher.input)
    return teacher, tuple(study.data.augment), study.train.precision


PROBE_MACS = 2e9
"""Approximate multiply-accumulates of the timed forward pass, of at least one sample."""

FORWARDS = 4
"""Number of timed forward passes, of which the fastest counts."""

MAX_SAMPLES = 64
"""Maximum batch size of the timed forward pass."""


def estimate_build_time(
    entry: PlannedEntry, signature: Signature, device: torch.device | str = "cpu"
) -> float | None:
    """Estimate the seconds that one worker like this process needs to compute a cache entry.

    Times an untrained network in float32.

    Returns:
        None if the model or the number of samples is unknown.
    """
    if entry.teacher.model is None or entry.rows is None:
        return None
    device, model = torch.device(device), entry.teacher.model
    signature = signature.as_input(entry.teacher.input)
    macs = max(1, profile_model(model, signature).macs)
    samples = max(1, min(MAX_SAMPLES, int(PROBE_MACS / macs)))
    with torch.random.fork_rng(devices=[]):
        network = to_device(model.blueprint(signature), device).eval()
    inputs = blank_inputs(signature, samples, device)
    seconds = []
    with torch.inference_mode():
        for _ in range(FORWARDS):
            start = time.perf_counter()
            network(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds) / samples * entry.rows * entry.views * OVERHEAD
