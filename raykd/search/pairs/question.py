"""What a layer study asks: which term's pairs, between which layers; and what it cannot ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from raykd.architecture import Anatomy, Task
from raykd.architecture.layers import Layer, resolve, stage_aliases
from raykd.knowledge import Term
from raykd.problems import StudyError
from raykd.schemes import Alone, Offline
from raykd.study.candidate import Candidate
from raykd.study.nodes import Pairing
from raykd.study.opened import OpenStudy
from raykd.study.pairing import PairError, stages_of
from raykd.study.pairings import LayerPair, Order
from raykd.study.place import Place, dotted, parse_place
from raykd.study.schema import Study

NOT_ASKED = "not among the study's pairs"


@dataclass(frozen=True)
class Question:
    """A layer study, concrete but for the pairs of one term.

    Attributes:
        study: what every arm is trained with, but for that term's pairs.
        term: the number of the term in `knowledge`.
        hints, guided: the layers of teacher and student that are paired, shallow to deep.
        order: that sampled sets keep.
        least, most: how many pairs a sampled set may have.
        asked: the pairs that the study names, where it names them one by one; else None: all.
        teacher, student: the models' anatomies.
        task: what they take and give.
    """

    study: Study
    term: int
    hints: tuple[Layer, ...]
    guided: tuple[Layer, ...]
    order: Order
    least: int
    most: int
    asked: frozenset[tuple[str, str]] | None
    teacher: Anatomy
    student: Anatomy
    task: Task

    @property
    def loss(self) -> Term:
        """The term itself, without pairs."""
        return replace(self.study.knowledge[self.term], pairs=None)

    @property
    def crossed(self) -> tuple[LayerPair, ...]:
        """Every hint layer with every guided layer."""
        return tuple(
            LayerPair(hint.name, guided.name) for hint in self.hints for guided in self.guided
        )

    def with_term(self, term: Term) -> Study:
        """The study with another term in the place of the one that is studied."""
        knowledge = list(self.study.knowledge)
        knowledge[self.term] = term
        return replace(self.study, knowledge=tuple(knowledge))

    @property
    def without(self) -> Study:
        """The study without the term: the arm without hint.

        Where nothing of the knowledge is left and the scheme adds nothing of its own, the student
        learns from the labels alone, and no teacher need be run for it.
        """
        knowledge = self.study.knowledge[: self.term] + self.study.knowledge[self.term + 1 :]
        idle = not any(term.active for term in knowledge) and self.study.scheme == Offline()
        scheme = Alone() if idle else self.study.scheme
        return replace(self.study, scheme=scheme, knowledge=() if idle else knowledge)

    def why_not(self, term: Term) -> str:
        """Why the study cannot be trained with a term; empty where it can."""
        try:
            _ = Candidate(self.with_term(term), self.task, self.study.seed).resolved
        except PairError as error:
            return error.what
        return ""

    def shown(self, side: str) -> tuple[Layer, ...]:
        """The layers of the CKA map: those that are paired, and all stages, shallow to deep."""
        model = self.teacher if side == "hint" else self.student
        paired = self.hints if side == "hint" else self.guided
        known = {layer.name: layer for layer in (*stage_aliases(model.found).values(), *paired)}
        return tuple(sorted(known.values(), key=lambda layer: (layer.depth, layer.macs)))


def question_of(study: OpenStudy, task: Task) -> Question:
    """What a layer study of `study` asks.

    Raises:
        StudyError: a value is left open beside the pairs, no term or several take pairs, the
            scheme has not one teacher, or there are fewer than two pairs to compare.
    """
    number, pairing = _term(study, task)
    _refuse_open(study, number)
    settings = study.settings
    student, teacher = _models(study, task)
    hints, guided, asked = _layers(study, number, pairing, teacher, student)
    named = pairing.domain if pairing is not None else None
    most = max(2, named.most if named is not None else len(settings.knowledge[number].pairs or ()))
    found = Question(
        study=settings,
        term=number,
        hints=_resolved(study, number, teacher, hints, "hint"),
        guided=_resolved(study, number, student, guided, "guided"),
        order=named.order if named is not None else "any",
        least=max(2, named.least if named is not None else 2),
        most=most,
        asked=asked,
        teacher=teacher,
        student=student,
        task=task,
    )
    if len(found.hints) * len(found.guided) < 2:
        raise _problem(
            study,
            ("knowledge", number, "pairs"),
            f"there is one pair alone, {hints[0]}>{guided[0]}, so there is nothing to compare",
            "name more layers: `pairs: {pairing: {hint: auto, guided: auto}}`",
        )
    return found


def _term(study: OpenStudy, task: Task) -> tuple[int, Pairing | None]:
    """The number of the term whose pairs are studied, and its pairing, where it has one."""
    terms = study.settings.knowledge
    taking = [
        i for i, term in enumerate(terms) if term.active and term.loss and term.loss.takes_pairs
    ]
    places: dict[Place, int] = {("knowledge", i, "pairs"): i for i in taking}
    open_ = {
        places[node.source]: node
        for node in study.bind(task).space.pairings
        if node.source in places
    }
    if not taking:
        raise _problem(
            study,
            ("knowledge",),
            "no term of `knowledge` takes layer pairs, so there is nothing to study",
            "add one: `- loss: {name: hint}` with `pairs: {pairing: {hint: auto, guided: auto}}`",
        )
    chosen = list(open_) if len(taking) > 1 else taking
    if len(chosen) != 1:
        names = " and ".join(f"knowledge[{i}] ({terms[i].loss.name})" for i in taking)  # type: ignore[union-attr]
        raise _problem(
            study,
            ("knowledge",),
            f"{names} take layer pairs; one term is studied at a time",
            "leave the pairs of one of them open (`pairs: {pairing: ...}`) and name those of the "
            "others, or remove the others",
        )
    return chosen[0], open_.get(chosen[0])


def _refuse_open(study: OpenStudy, number: int) -> None:
    """See that nothing but the pairs of the term is left open."""
    pairs = f"knowledge[{number}].pairs"
    left = [found for found in study.dimensions if not found.path.startswith(pairs)]
    if not left:
        return
    said = "arms of a layer study differ in their pairs alone"
    problems = {
        path: study.document.problem(
            parse_place(path), f"left open; {said}", f"give one value: --set '{path}=...'", path
        )
        for path in dict.fromkeys(dimension.path for dimension in left)
    }
    raise StudyError(list(problems.values()))


def _models(study: OpenStudy, task: Task) -> tuple[Anatomy, Anatomy]:
    scheme = study.settings.scheme
    candidate = study.bind(task).candidate(study.settings)
    if not scheme.takes_knowledge or len(candidate.teachers) != 1:
        raise _problem(
            study,
            ("scheme",),
            f"scheme '{scheme.name}' has not one trained teacher whose layers could teach",
            "take `scheme: {name: offline}`",
        )
    student, (teacher,) = candidate.student, candidate.teacher_profiles
    if teacher is None:
        raise _problem(
            study,
            ("teacher",),
            "nothing says which layers the teacher has",
            "name its `model` beside its weights",
        )
    return student, teacher


def _layers(
    study: OpenStudy, number: int, pairing: Pairing | None, teacher: Anatomy, student: Anatomy
) -> tuple[Sequence[str], Sequence[str], frozenset[tuple[str, str]] | None]:
    """The names of the hint and guided layers, and the pairs that are asked for (None: all)."""
    if pairing is not None:
        domain = pairing.domain
        if pairing.own or any(pair.own for pair in domain.named):
            raise _owned(study, number)
        hints = tuple(dict.fromkeys(pair.hint for pair in domain.named))
        guided = tuple(dict.fromkeys(pair.guided for pair in domain.named))
        one_by_one = domain.pairs is not None or domain.sets is not None
        pairs = frozenset((pair.hint, pair.guided) for pair in domain.named)
        return hints, guided, pairs if one_by_one else None
    written = study.settings.knowledge[number].pairs
    if written is None:
        return stages_of(teacher), stages_of(student), None
    if not all(pair.is_alike for pair in written):
        raise _owned(study, number)
    return (
        tuple(dict.fromkeys(pair.hint for pair in written)),
        tuple(dict.fromkeys(pair.guided for pair in written)),
        None,
    )


def _owned(study: OpenStudy, number: int) -> StudyError:
    return _problem(
        study,
        ("knowledge", number, "pairs"),
        "pairs with weights or losses of their own cannot be compared with one another",
        "remove `weight` and `loss` from the pairs",
    )


def _resolved(
    study: OpenStudy, number: int, model: Anatomy, names: Iterable[str], side: str
) -> tuple[Layer, ...]:
    try:
        found = [resolve(model.found, name) for name in names]
    except ValueError as error:
        raise _problem(study, ("knowledge", number, "pairs"), f"{side}: {error}") from None
    if not found:
        whose = "teacher" if side == "hint" else "student"
        raise _problem(
            study,
            ("knowledge", number, "pairs"),
            f"no stages were found in the {whose}",
            f"list its layers: `{side}: [...]` (`raykd layers` shows them)",
        )
    return tuple(sorted(found, key=lambda layer: (layer.depth, layer.macs)))


def _problem(study: OpenStudy, place: Place, what: str, mend: str = "") -> StudyError:
    return StudyError(study.document.problem(place, what, mend, dotted(place)))
