"""What must hold of a concrete study beyond its types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raykd.knowledge import LOSSES, Loss, Pair
from raykd.schemes import BornAgain, Teacher
from raykd.study.complaints import Finding
from raykd.study.costs import latency_findings
from raykd.study.domains import near
from raykd.study.models import derived_findings
from raykd.study.place import Place
from raykd.study.schema import Direction, Search, Study
from raykd.study.screens import screen_findings, teacher_findings

OBJECTIVES: dict[str, Direction] = {
    "val_accuracy": "max",
    "val_loss": "min",
    "train_accuracy": "max",
    "train_loss": "min",
    "params": "min",
    "macs": "min",
    "memory": "min",
    "latency": "min",
    "batch_latency": "min",
    "onnx_latency": "min",
    "onnx_batch_latency": "min",
    "epoch_seconds": "min",
    "images_per_second": "max",
}
"""What a search may optimise, and in which direction that is better."""


def study_findings(study: Study) -> Iterator[Finding]:
    """What is wrong with a study whose values are all of the right type."""
    yield from search_findings(study.search)
    if study.teacher is not None:
        yield from _teacher_findings(study.teacher)
    yield from _scheme_findings(study)
    yield from derived_findings(study)
    yield from teacher_findings(study)
    yield from _term_findings(study)


def search_findings(search: Search) -> Iterator[Finding]:
    for name, direction in search.objectives.items():
        place = ("search", "objectives", name)
        if name.startswith("test_"):
            mend = "take val_accuracy or val_loss; the chosen students are tested at the end"
            yield Finding(place, "test data choose nothing in a study", mend)
        elif name not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            yield Finding(place, f"unknown objective; there are {known}", near(name, [*OBJECTIVES]))
        elif direction != OBJECTIVES[name]:
            better = "more" if OBJECTIVES[name] == "max" else "less"
            mend = f"write `{name}: {OBJECTIVES[name]}`"
            yield Finding(place, f"got '{direction}'; {better} is better of {name}", mend)
    yield from latency_findings(search)
    for cost, bounds in search.constraints.items():
        place = ("search", "constraints", cost)
        if bounds.min is None and bounds.max is None:
            yield Finding(place, "bounds nothing", "write {max: 100_000}, or remove it")
        elif bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            what = f"reversed bounds: min {bounds.min:,.9g} is greater than max {bounds.max:,.9g}"
            yield Finding(place, what, "exchange them")
    yield from screen_findings(search)


def _teacher_findings(teacher: Teacher) -> Iterator[Finding]:
    place = ("teacher",)
    if teacher.weights is None:
        if teacher.model is None:
            mend = "give `model` and let the study train it, or give `weights` as well"
            yield Finding(place, "neither `model` nor `weights` is given", mend)
        return
    if teacher.train is not None:
        mend = "remove `train`, or remove `weights` and let the study train the teacher"
        yield Finding((*place, "train"), "a teacher loaded from `weights` is not trained", mend)
    if teacher.model is None and not teacher.is_mlflow:
        mend = "give the `model` whose weights the file holds"
        yield Finding(place, "`model` is missing beside `weights`", mend)


def _scheme_findings(study: Study) -> Iterator[Finding]:
    scheme = study.scheme
    asks = scheme.needs_teacher or (isinstance(scheme, BornAgain) and scheme.first == "teacher")
    if asks and study.teacher is None:
        mend = "add `teacher: {model: ...}`, or take `scheme: {name: alone}`"
        yield Finding((), f"`teacher` is missing; scheme '{scheme.name}' needs one", mend)
    if study.knowledge and not scheme.takes_knowledge:
        mend = "remove `knowledge`, or take another scheme"
        yield Finding(("knowledge",), f"scheme '{scheme.name}' takes no knowledge", mend)
    if scheme.needs_teacher and scheme.takes_knowledge and not study.knowledge:
        mend = "add `knowledge: [{loss: {name: kd}}]`, or take `scheme: {name: alone}`"
        what = f"there is no `knowledge` for scheme '{scheme.name}' to transfer"
        yield Finding(("knowledge",), what, mend)


def _term_findings(study: Study) -> Iterator[Finding]:
    for number, term in enumerate(study.knowledge):
        place = ("knowledge", number, "pairs")
        if term.loss is not None and term.pairs and not term.loss.takes_pairs:
            what = f"loss '{term.loss.name}' works on logits and takes no pairs"
            yield Finding(place, what, "remove `pairs`")
        if term.loss is None or not term.loss.takes_pairs:
            continue
        if term.pairs == () and term.loss.default_pairs != "none":
            yield Finding(place, "an empty list of pairs", "name pairs, or leave `pairs` out")
        unknown = study.teacher is not None and study.teacher.model is None
        if term.pairs is None and study.scheme.needs_teacher and unknown:
            mend = "name the `pairs`, or the teacher's `model`"
            what = (
                "the layers of a teacher given by `weights` alone are known only when it is loaded"
            )
            yield Finding(("knowledge", number), what, mend)
        yield from _pair_findings(term.loss, term.pairs or (), place)


def _pair_findings(loss: Loss, pairs: Sequence[Pair], place: Place) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    for i, pair in enumerate(pairs):
        if (pair.hint, pair.guided) in seen:
            what = f"{pair.hint} -> {pair.guided} stands twice"
            yield Finding((*place, i), what, "remove one of them")
        seen.add((pair.hint, pair.guided))
        if not pair.is_alike:
            yield from _own_findings(loss, pair, (*place, i))


def _own_findings(loss: Loss, pair: Pair, place: Place) -> Iterator[Finding]:
    """What is wrong with a pair that has a weight or a loss of its own."""
    key = "loss" if pair.loss is not None else "weight"
    if pair.loss is not None and not pair.loss.pairs_apart:
        what = f"loss '{pair.loss.name}' {_compares(pair.loss)}, so it cannot be one pair's own"
        mend = f"take one that compares pairs one by one: {', '.join(_apart())}"
        yield Finding((*place, key), what, mend)
    elif not loss.pairs_apart:
        what = f"loss '{loss.name}' {_compares(loss)}, so no pair can have a {key} of its own"
        mend = f"remove the pair's `{key}`"
        mend += ", or weigh the term as a whole" if key == "weight" else ""
        yield Finding((*place, key), what, mend)


def _compares(loss: Loss) -> str:
    return "compares all its pairs together" if loss.takes_pairs else "works on logits"


def _apart() -> list[str]:
    return [name for name, cls in LOSSES.members.items() if cls().pairs_apart]
