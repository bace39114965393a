"""Design of a layer study: the term whose pairs are compared, and the layers to pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from raykd.errors import StudyError
from raykd.losses import Term
from raykd.models import ModelProfile, Signature
from raykd.models.introspection.layers import Layer, resolve, stage_aliases
from raykd.schemes import Alone, Offline
from raykd.study.candidate import Candidate
from raykd.study.checks.layer_pairs import PairError, stages_of
from raykd.study.config import Study
from raykd.study.open_study import OpenStudy
from raykd.study.space.domains import Pairing
from raykd.study.space.pairing import LayerPair, Order
from raykd.study.yaml_file import Place, dotted, parse_place

NOT_NAMED = "not among the study's pairs"


@dataclass(frozen=True)
class LayerStudyDesign:
    """A layer study: a concrete study with the pairs of one term left open.

    Attributes:
        study: training of every arm, except for the pairs of the term.
        term: index of the term in `knowledge`.
        hints, guided: layers of teacher and student to pair, shallow to deep.
        order: order that sampled sets of pairs keep.
        min_pairs, max_pairs: number of pairs of a sampled set.
        named_pairs: pairs, if the study names them one by one; None: all.
        teacher, student: profiles of the models.
        signature: inputs and classes of the data.
    """

    study: Study
    term: int
    hints: tuple[Layer, ...]
    guided: tuple[Layer, ...]
    order: Order
    min_pairs: int
    max_pairs: int
    named_pairs: frozenset[tuple[str, str]] | None
    teacher: ModelProfile
    student: ModelProfile
    signature: Signature

    @property
    def loss(self) -> Term:
        """The term, without pairs."""
        return replace(self.study.knowledge[self.term], pairs=None)

    @property
    def all_pairs(self) -> tuple[LayerPair, ...]:
        """Every hint layer with every guided layer."""
        return tuple(
            LayerPair(hint.name, guided.name) for hint in self.hints for guided in self.guided
        )

    def with_term(self, term: Term) -> Study:
        """Return the study with another term instead of the open one."""
        knowledge = list(self.study.knowledge)
        knowledge[self.term] = term
        return replace(self.study, knowledge=tuple(knowledge))

    @property
    def baseline(self) -> Study:
        """The study without the term: the arm without hint.

        If no other knowledge is left and the scheme adds nothing itself, the student learns from
        the labels alone and needs no teacher.
        """
        knowledge = self.study.knowledge[: self.term] + self.study.knowledge[self.term + 1 :]
        idle = not any(term.active for term in knowledge) and self.study.scheme == Offline()
        scheme = Alone() if idle else self.study.scheme
        return replace(self.study, scheme=scheme, knowledge=() if idle else knowledge)

    def objection(self, term: Term) -> str:
        """Return the reason why the study cannot be trained with a term; "" if it can."""
        try:
            _ = Candidate(self.with_term(term), self.signature, self.study.seed).resolved
        except PairError as error:
            return error.message
        return ""

    def cka_layers(self, side: str) -> tuple[Layer, ...]:
        """Return the layers of the CKA map, shallow to deep: the paired ones and all stages.

        Args:
            side: "hint" (the teacher's) or "guided" (the student's).
        """
        model = self.teacher if side == "hint" else self.student
        paired = self.hints if side == "hint" else self.guided
        stages = stage_aliases(model.ordered_layers).values()
        layers = {layer.name: layer for layer in (*stages, *paired)}
        return tuple(sorted(layers.values(), key=lambda layer: (layer.depth, layer.macs)))


def design_layer_study(study: OpenStudy, signature: Signature) -> LayerStudyDesign:
    """Return the design of a layer study.

    Raises:
        StudyError: a value other than the pairs is left open, no term or several terms take
            pairs, the scheme does not have exactly one teacher, there are fewer than two pairs, or
            the arm without hint would have nothing to learn from.
    """
    number, pairing = _term(study, signature)
    _check_all_else_fixed(study, number)
    settings = study.settings
    student, teacher = _models(study, signature)
    hints, guided, named_pairs = _layers(study, number, pairing, teacher, student)
    domain = pairing.domain if pairing is not None else None
    listed = len(settings.knowledge[number].pairs or ())
    design = LayerStudyDesign(
        study=settings,
        term=number,
        hints=_resolved(study, number, teacher, hints, "hint"),
        guided=_resolved(study, number, student, guided, "guided"),
        order=domain.order if domain is not None else "any",
        min_pairs=max(2, domain.least if domain is not None else 2),
        max_pairs=max(2, domain.most if domain is not None else listed),
        named_pairs=named_pairs,
        teacher=teacher,
        student=student,
        signature=signature,
    )
    if len(design.hints) * len(design.guided) < 2:
        raise _problem(
            study,
            ("knowledge", number, "pairs"),
            f"there is only one pair, {hints[0]}>{guided[0]}, so there is nothing to compare",
            "name more layers: `pairs: {pairing: {hint: auto, guided: auto}}`",
        )
    if settings.data.labels_per_class == 0 and isinstance(design.baseline.scheme, Alone):
        raise _problem(
            study,
            ("data", "labels_per_class"),
            "the arm without hint learns from labels alone, and there are none",
            "raise it, or add a term on logits: `knowledge: [{loss: kd}, ...]`",
        )
    return design


def _term(study: OpenStudy, signature: Signature) -> tuple[int, Pairing | None]:
    """Return the index of the term whose pairs are compared, and its pairing, if it has one."""
    terms = study.settings.knowledge
    with_pairs = [
        i for i, term in enumerate(terms) if term.active and term.loss and term.loss.takes_pairs
    ]
    places: dict[Place, int] = {("knowledge", i, "pairs"): i for i in with_pairs}
    open_ = {
        places[node.source]: node
        for node in study.bind(signature).space.pairings
        if node.source in places
    }
    if not with_pairs:
        raise _problem(
            study,
            ("knowledge",),
            "no term of `knowledge` takes layer pairs, so there is nothing to study",
            "add one: `- loss: {name: hint}` with `pairs: {pairing: {hint: auto, guided: auto}}`",
        )
    candidates = list(open_) if len(with_pairs) > 1 else with_pairs
    if len(candidates) != 1:
        names = " and ".join(f"knowledge[{i}] ({terms[i].loss.name})" for i in with_pairs)  # type: ignore[union-attr]
        raise _problem(
            study,
            ("knowledge",),
            f"{names} take layer pairs; a layer study compares the pairs of one term",
            "leave the pairs of one of them open (`pairs: {pairing: ...}`) and name those of the "
            "others, or remove the others",
        )
    return candidates[0], open_.get(candidates[0])


def _check_all_else_fixed(study: OpenStudy, number: int) -> None:
    """Check that only the pairs of the term are left open."""
    pairs = f"knowledge[{number}].pairs"
    rest = [dimension for dimension in study.dimensions if not dimension.path.startswith(pairs)]
    if not rest:
        return
    reason = "the arms of a layer study differ only in their pairs"
    problems = {
        path: study.document.problem(
            parse_place(path), f"left open; {reason}", f"give one value: --set '{path}=...'", path
        )
        for path in dict.fromkeys(dimension.path for dimension in rest)
    }
    raise StudyError(list(problems.values()))


def _models(study: OpenStudy, signature: Signature) -> tuple[ModelProfile, ModelProfile]:
    scheme = study.settings.scheme
    candidate = study.bind(signature).candidate(study.settings)
    if not scheme.takes_knowledge or len(candidate.teachers) != 1:
        raise _problem(
            study,
            ("scheme",),
            f"scheme '{scheme.name}' does not have exactly one trained teacher with hint layers",
            "use `scheme: {name: offline}`",
        )
    student, (teacher,) = candidate.student, candidate.teacher_profiles
    if teacher is None:
        raise _problem(
            study,
            ("teacher",),
            "the teacher's layers are unknown: it has weights and no `model`",
            "name its `model` beside its weights",
        )
    return student, teacher


def _layers(
    study: OpenStudy,
    number: int,
    pairing: Pairing | None,
    teacher: ModelProfile,
    student: ModelProfile,
) -> tuple[Sequence[str], Sequence[str], frozenset[tuple[str, str]] | None]:
    """Return the names of the hint and guided layers, and the named pairs (None: all)."""
    if pairing is not None:
        domain = pairing.domain
        if pairing.settings or any(pair.extra for pair in domain.named):
            raise _weighted(study, number)
        hints = tuple(dict.fromkeys(pair.hint for pair in domain.named))
        guided = tuple(dict.fromkeys(pair.guided for pair in domain.named))
        by_pair = domain.pairs is not None or domain.sets is not None
        pairs = frozenset((pair.hint, pair.guided) for pair in domain.named)
        return hints, guided, pairs if by_pair else None
    listed = study.settings.knowledge[number].pairs
    if listed is None:
        return stages_of(teacher), stages_of(student), None
    if not all(pair.is_alike for pair in listed):
        raise _weighted(study, number)
    return (
        tuple(dict.fromkeys(pair.hint for pair in listed)),
        tuple(dict.fromkeys(pair.guided for pair in listed)),
        None,
    )


def _weighted(study: OpenStudy, number: int) -> StudyError:
    return _problem(
        study,
        ("knowledge", number, "pairs"),
        "pairs with their own weights or losses cannot be compared with each other",
        "remove `weight` and `loss` from the pairs",
    )


def _resolved(
    study: OpenStudy, number: int, model: ModelProfile, names: Iterable[str], side: str
) -> tuple[Layer, ...]:
    try:
        layers = [resolve(model.ordered_layers, name) for name in names]
    except ValueError as error:
        raise _problem(study, ("knowledge", number, "pairs"), f"{side}: {error}") from None
    if not layers:
        model_name = "teacher" if side == "hint" else "student"
        raise _problem(
            study,
            ("knowledge", number, "pairs"),
            f"the {model_name} has no stages",
            f"list its layers: `{side}: [...]` (`raykd layers` shows them)",
        )
    return tuple(sorted(layers, key=lambda layer: (layer.depth, layer.macs)))


def _problem(study: OpenStudy, place: Place, text: str, fix: str = "") -> StudyError:
    return StudyError(study.document.problem(place, text, fix, dotted(place)))
