"""Changes of a study between two of its runs: those that only add, and all others.

A search may get more trials, replicates, finalists or hours, a layer study more seeds, sets of
pairs or replicates (`GROWING`), and the space of a search may grow: its old points stay valid.
Parts that do not affect results may change in any way (`FREE`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raykd.study.config import plain
from raykd.study.json_schema import study_outline
from raykd.study.open_study import OpenStudy, filled
from raykd.study.space.growth import lost_values
from raykd.study.space.space import CLOSED, read_space
from raykd.study.yaml_file import Document, Place, dotted, parse_document, value_at
from raykd.tracking.events import StudyExtended, StudyStarted
from raykd.tuning.study_dir import Verb

FREE = (
    "tracking",
    "cluster.slots",
    "cluster.max_slots",
    "cluster.gpus_per_worker",
    "cluster.cpus_per_worker",
    "cluster.max_failures",
    "cluster.hang_timeout_s",
    "cluster.split_batches",
    "cluster.storage",
    "cache.folder",
)
"""Parts of a study that may change before a resume."""

GROWING: Mapping[Verb, tuple[str, ...]] = {
    "search": ("search.trials", "search.replicates", "search.finalists", "search.max_hours"),
    "pairs": ("search.replicates", "search.pairs.seeds", "search.pairs.sets"),
}
"""Numbers that may grow, by the command that created the study."""

RETRAINED = ("search.replicates", "search.finalists")
"""Numbers that only affect how many finalists are trained again, and how often."""


@dataclass(frozen=True)
class StudyChanges:
    """Changes of a study.

    Attributes:
        grown: place -> `old -> new`, of the changes that only add.
        other: all other changes: `place: old -> new`.
    """

    grown: Mapping[str, str] = field(default_factory=dict)
    other: Sequence[str] = ()

    def extension(self) -> StudyExtended | None:
        """Return the event of the growth; None if there is none."""
        if not self.grown:
            return None
        return StudyExtended(
            self.grown,
            draws=any(place not in RETRAINED for place in self.grown),
            space=any(_is_of_space(place) for place in self.grown),
        )


def changes_of_study(
    start: StudyStarted, study: OpenStudy, verb: Verb, *, space_may_grow: bool
) -> StudyChanges:
    """Compare a study with the last run of it.

    Args:
        start: event of the last run.
        study: as it is now.
        verb: command that created the study.
        space_may_grow: True: changes of a space without lost points are growth; False: they are
            changes like others.
    """
    overrides = study.overrides if start.overrides is None else start.overrides
    before = parse_document(start.text).with_overrides(overrides)
    written = dict(_differences(before.data, study.document.data, ()))
    grown = {place for place in written if _has_grown(start, study, place, verb)}
    of_space = {place for place in written if space_may_grow and _is_of_space(place)}
    lost = [*_lost_points(start, before, study)] if of_space else []
    grown |= set() if lost else of_space
    changed = [place for place in written if place not in grown | of_space]
    other = [*(f"{place}: {written[place]}" for place in changed), *lost]
    return StudyChanges(
        {place: text for place, text in written.items() if place in grown},
        other or [*_changed_defaults(start, study, grown)],
    )


def _is_of_space(place: str) -> bool:
    return place.partition(".")[0].partition("[")[0] not in CLOSED


def _has_grown(start: StudyStarted, study: OpenStudy, place: str, verb: Verb) -> bool:
    """Return True for a number that may grow and is larger than in the last run."""
    if place not in GROWING.get(verb, ()):
        return False
    steps = tuple(place.split("."))
    old, new = (value_at(of, steps) for of in (start.resolved, plain(study.settings)))
    old, new = (math.inf if value is None else value for value in (old, new))
    return isinstance(old, int | float) and new > old


def _lost_points(start: StudyStarted, before: Document, study: OpenStudy) -> Iterator[str]:
    """Yield the places whose values the space of the study has lost since its last run."""
    outline = study_outline()
    written = filled(outline.expanded(before.data), start.resolved)
    old, _, _ = read_space(replace(before, data=written))
    new, _, _ = read_space(replace(study.document, data=study.resolved()))
    for key, node in old.root.items.items():
        if key not in CLOSED and key in new.root.items:
            yield from lost_values(node, new.root.items[key], (key,))


def _changed_defaults(
    start: StudyStarted, study: OpenStudy, grown: Collection[str]
) -> Iterator[str]:
    """Yield the values that another version of raykd fills in differently."""
    space_has_grown = any(map(_is_of_space, grown))
    for place, text in _differences(start.resolved, plain(study.settings), (), common=True):
        if place not in grown and not (space_has_grown and _is_of_space(place)):
            yield f"{place}: {text}"


def _differences(
    old: Any, new: Any, place: Place, common: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield each place at which two plain values differ, with `old -> new`.

    Args:
        old, new: plain data.
        place: of both.
        common: compare only keys that both have (other versions of raykd have other options).
    """
    name = dotted(place)
    if any(name == free or name.startswith(f"{free}.") for free in FREE):
        return
    if old != new and all(value is None or isinstance(value, Mapping) for value in (old, new)):
        old, new = old or {}, new or {}
        for key in [*old, *(key for key in new if key not in old)]:
            if not common or (key in old and key in new):
                yield from _differences(old.get(key), new.get(key), (*place, key), common)
    elif _is_list(old) and _is_list(new) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*place, number), common)
    elif _comparable(old) != _comparable(new):
        yield name, f"{_text(old)} -> {_text(new)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _comparable(value: Any) -> Any:
    """Return a value as it is read from the journal's JSON."""
    if _is_list(value):
        return [_comparable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _comparable(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _text(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
