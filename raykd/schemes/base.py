"""Base class of schemes: who teaches whom, and when.

A scheme option builds a `Distiller`, the module the training loop calls.  The loop does not know
that distillation exists: it calls the distiller, and walks down the gradient of what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from raykd.losses import Term
from raykd.models import Model
from raykd.models.normalization import Named, Normalization
from raykd.registry import Registry, option
from raykd.schemes.distiller import Distiller, Parts
from raykd.schemes.teachers import Teacher
from raykd.train_config import Train


@option
class Scheme:
    """Base of every scheme option."""

    name: str
    paper: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    takes_knowledge: ClassVar[bool] = True

    @property
    def lends_classifier(self) -> bool:
        """Whether one frozen teacher teaches the student alone, so that a loss may deploy the
        student with that one's classifier (`Loss.deploys`)."""
        return False

    def reads_logits(self, terms: Sequence[Term]) -> bool:
        """Whether a student that is taught these terms looks at its teachers' logits; if not,
        their forwards may end earlier."""
        return True

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        """The networks that teach under this scheme, each prepared before a trial begins.

        Their evidence reaches `build` in this order: `Parts.teacher`, then `Parts.others`.  By
        default the study's own teacher, where the scheme needs one.
        """
        if not self.needs_teacher or around.teacher is None:
            return ()
        return (independent_teacher(around.teacher, around),)

    def build(self, parts: Parts) -> Distiller:
        """Make the scheme ready for one trial.

        Raises:
            ValueError: the parts do not fit (no teacher, layers that cannot be bridged).
        """
        raise NotImplementedError


SCHEMES = Registry("scheme", base=Scheme, entry_points="raykd.schemes")
"""Schemes that a study may name; `raykd.schemes` adds them."""

AnyScheme = Annotated[Scheme, SCHEMES]
"""Type of a field that holds a scheme."""


@dataclass(frozen=True)
class TeacherContext:
    """What a scheme may choose its teachers by.

    Attributes:
        teacher: the study's own, if it has one.
        student: the trial's model.
        train: how the trial is trained.
        knowledge: the trial's terms.
        seed: the study's: networks that many trials share are trained under it.
        trial_seed: the trial's own; a replicate's differs from the study's.
        augment: the trial's augmentation.
    """

    teacher: Teacher | None
    student: Model
    train: Train
    knowledge: tuple[Term, ...]
    seed: int
    trial_seed: int
    augment: tuple[Any, ...] = ()


@dataclass(frozen=True)
class TeacherSpec:
    """A network that must be there before a trial begins: what it is and how it is trained.

    Two trials that need the same preparation share one; see `raykd.training.teachers.teacher_key`.

    Attributes:
        model: None where `weights` alone tell.
        weights: a file or URI it is loaded from; None: it is trained.
        train, seed: of its training.
        scheme: who teaches it; None: it learns alone.
        knowledge: what its own teachers teach it.
        teachers: those, each prepared before it.
        augment: the augmentation of its training; None: the study's.
        origin: the trained network it starts from; None: it draws its weights, or loads them.
        classes: class names in the order of the outputs of `weights`, where the study gives them.
        normalization: of the pictures that loaded weights were trained with.
    """

    model: Model | None
    weights: str | None
    train: Train
    seed: int
    scheme: Scheme | None = None
    knowledge: tuple[Term, ...] = ()
    teachers: tuple[TeacherSpec, ...] = ()
    augment: tuple[Any, ...] | None = None
    origin: TeacherSpec | None = None
    classes: tuple[str, ...] = ()
    normalization: Normalization | Named = "auto"

    @property
    def needs(self) -> tuple[TeacherSpec, ...]:
        """The networks that must be there before it is trained: its teachers, then its origin."""
        return self.teachers if self.origin is None else (*self.teachers, self.origin)

    @property
    def is_mlflow(self) -> bool:
        return Teacher(weights=self.weights).is_mlflow

    @property
    def is_shared(self) -> bool:
        """Whether it belongs to the study, rather than to one trial."""
        return self.augment is None

    @property
    def as_teacher(self) -> Teacher:
        """The option that stands for it where it teaches: its model, and nothing of its past."""
        return Teacher(
            model=self.model,
            weights=self.weights,
            classes=self.classes or None,
            normalization=self.normalization,
            train=self.train,
            seed=self.seed,
        )


def independent_teacher(teacher: Teacher, around: TeacherContext) -> TeacherSpec:
    """The preparation of a teacher that the study, or a scheme, names.

    Where it does not say how it is trained, it is trained as the study's own teacher is, or else
    as the student.
    """
    own = around.teacher.train if around.teacher is not None else None
    return TeacherSpec(
        model=teacher.model,
        weights=teacher.weights,
        train=teacher.train or own or around.train,
        seed=around.seed if teacher.seed is None else teacher.seed,
        origin=origin_of(teacher.model, around) if teacher.weights is None else None,
        classes=tuple(map(str, teacher.classes or ())),
        normalization=teacher.normalization,
    )


def origin_of(model: Model | None, around: TeacherContext) -> TeacherSpec | None:
    """The study's own teacher where a model's networks inherit from it; else None."""
    teacher = around.teacher
    if model is None or teacher is None or model.origin is None or model.origin != teacher.model:
        return None
    return independent_teacher(teacher, around)


def self_teacher(around: TeacherContext, generation: int = 0) -> TeacherSpec:
    """A network of the student's own architecture, trained alone as the trial is trained.

    Its seed differs from the trial's, so that it starts from other weights.
    """
    return TeacherSpec(
        model=around.student,
        weights=None,
        train=around.train,
        seed=(around.trial_seed + GENERATION_SEEDS * (generation + 1)) % 2**31,
        augment=around.augment,
        origin=origin_of(around.student, around),
    )


GENERATION_SEEDS = 100_003
"""Added to a trial's seed for each generation before it; more than there are replicates."""
