"""Base class of schemes; the teacher option, and specifications of teachers.

A scheme option builds a `Distiller`, the module that the training loop calls.  The loop does not
know about distillation: it minimizes the loss that the distiller returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raykd.losses import Term
from raykd.models import AnyModel, Model
from raykd.models.normalization import (
    Normalization,
    NormalizationName,
    NormalizationSetting,
)
from raykd.registry import Registry, option
from raykd.schemes.distiller import Distiller, SchemeInputs
from raykd.tasks.base import Kind
from raykd.train_config import Train

InputName = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Input of each sample that the network takes, such as gray or 16x16 of color "
        "images, or a group of the columns of a table. null: the whole sample",
    ),
]


@option
class Teacher:
    """The teacher: a network trained by the study or loaded from a file, or a file of outputs.

    Exactly one of these holds: `weights` is null and the teacher is trained by `train`; `weights`
    is a file for `model`; `weights` is an MLflow model URI (`models:/name@alias`,
    `runs:/id/model`), and `model` may be left out; `outputs` is a file of logits or values by
    sample, and there is no network.
    """

    model: AnyModel | None = None
    input: InputName = None
    weights: Annotated[
        str | None,
        Field(
            description="File or folder of weights, or MLflow model URI. null: train the teacher"
        ),
    ] = None
    outputs: Annotated[
        str | None,
        Field(
            description="File of the teacher's outputs by sample (Parquet, CSV, JSON, "
            "safetensors), in place of a network"
        ),
    ] = None
    classes: Annotated[
        tuple[str | int, ...] | None,
        Field(
            description="Class names in the order of the outputs of `weights`. null: the "
            "names stored with the weights, otherwise the order of the data"
        ),
    ] = None
    normalization: Annotated[
        NormalizationSetting,
        Field(
            description="Normalization of the images that `weights` were trained with. auto: as "
            "stored with the weights, otherwise that of the data; model: from the configuration "
            "of the model library"
        ),
    ] = "auto"
    train: Annotated[
        Train | None,
        Field(
            description="Training settings. null: those of the teacher of the study, or of "
            "the student"
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0, lt=2**31, description="Random seed of the training. null: the seed of the study"
        ),
    ] = None

    @property
    def is_trained(self) -> bool:
        """True if the study trains it, False if it is loaded."""
        return self.weights is None and self.outputs is None

    @property
    def is_mlflow(self) -> bool:
        return self.weights is not None and self.weights.split(":", 1)[0] in (
            "models",
            "runs",
            "mlflow-artifacts",
        )


@option
class Scheme:
    """Base class of schemes.

    Class attributes:
        paper: author, year, arXiv number.
        needs_teacher: whether it needs a teacher.
        takes_knowledge: whether it uses the terms of a study.
        kinds: kinds of responses that it fits.
        unlabeled: use of training samples without a label.  used: the teacher teaches them;
            left_out: the student sees labeled samples alone; refused: it reads every label.
    """

    name: str
    paper: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    takes_knowledge: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("softmax",)
    unlabeled: ClassVar[Literal["used", "left_out", "refused"]] = "refused"

    @property
    def lends_classifier(self) -> bool:
        """True if the student has a single frozen teacher, whose classifier a loss may deploy.

        See `Loss.deploys`.
        """
        return False

    def reads_logits(self, terms: Sequence[Term]) -> bool:
        """Return whether training with these terms reads the logits of the teachers.

        If not, their forward passes may end earlier.
        """
        return True

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        """Return the teachers of this scheme, each trained or loaded before a trial starts.

        `build` receives them in this order: `SchemeInputs.teacher`, then
        `SchemeInputs.more_teachers`.
        By default it is the teacher of the study, if the scheme needs one.
        """
        if not self.needs_teacher or around.teacher is None:
            return ()
        return (independent_teacher(around.teacher, around),)

    def build(self, parts: SchemeInputs) -> Distiller:
        """Build the distiller of one trial.

        Raises:
            ValueError: the parts do not fit (no teacher, layers that cannot be connected).
        """
        raise NotImplementedError


SCHEMES = Registry("scheme", base=Scheme, entry_points="raykd.schemes")
"""Schemes that a study may name; `raykd.schemes` adds them."""

AnyScheme = Annotated[Scheme, SCHEMES]
"""Type of a field that holds a scheme."""


@dataclass(frozen=True)
class TeacherContext:
    """Facts from which a scheme derives its teachers.

    Attributes:
        teacher: of the study, if it has one.
        student: model of the trial.
        train: training settings of the trial.
        knowledge: terms of the trial.
        seed: of the study, for teachers that trials share.
        trial_seed: of the trial; that of a replicate differs from the seed of the study.
        augment: augmentation of the trial.
        student_input: input of the samples that the student takes; None: the whole sample.
    """

    teacher: Teacher | None
    student: Model
    train: Train
    knowledge: tuple[Term, ...]
    seed: int
    trial_seed: int
    augment: tuple[Any, ...] = ()
    student_input: str | None = None


@dataclass(frozen=True)
class TeacherSpec:
    """Specification of a network that is trained or loaded before a trial starts.

    Trials with equal specifications share one network (`raykd.training.teacher_keys.spec_key`).

    Attributes:
        model: None if `weights` determines it.
        weights: file or URI that it is loaded from; None: it is trained.
        train, seed: of its training.
        scheme: of its training; None: it is trained alone.
        knowledge: terms between it and its teachers.
        teachers: of its training.
        augment: augmentation of its training; None: that of the study.
        origin: trained network that it starts from; None: random weights, or `weights`.
        classes: class names in the order of the outputs of `weights`, if the study has them.
        normalization: of the images that `weights` were trained with.
        outputs: file of its outputs, in place of a network.
        input: input of the samples that it takes; None: the whole sample.
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
    normalization: Normalization | NormalizationName = "auto"
    outputs: str | None = None
    input: str | None = None

    @property
    def is_trained(self) -> bool:
        """True if a study trains it, False if it is loaded."""
        return self.weights is None and self.outputs is None

    @property
    def needs(self) -> tuple[TeacherSpec, ...]:
        """Networks that its training needs: its teachers, then its origin."""
        return self.teachers if self.origin is None else (*self.teachers, self.origin)

    @property
    def is_mlflow(self) -> bool:
        return Teacher(weights=self.weights).is_mlflow

    @property
    def is_shared(self) -> bool:
        """True if all trials share it, False if it belongs to one trial."""
        return self.augment is None

    @property
    def as_teacher(self) -> Teacher:
        """The `teacher` option of a study that it teaches."""
        return Teacher(
            model=self.model,
            weights=self.weights,
            classes=self.classes or None,
            normalization=self.normalization,
            train=self.train,
            seed=self.seed,
            outputs=self.outputs,
            input=self.input,
        )


def independent_teacher(teacher: Teacher, around: TeacherContext) -> TeacherSpec:
    """Return the specification of a teacher option of a study or scheme.

    Without training settings it is trained like the teacher of the study, or else like the
    student.
    """
    study_train = around.teacher.train if around.teacher is not None else None
    return TeacherSpec(
        model=teacher.model,
        weights=teacher.weights,
        train=teacher.train or study_train or around.train,
        seed=around.seed if teacher.seed is None else teacher.seed,
        origin=origin_of(teacher.model, around) if teacher.weights is None else None,
        classes=tuple(map(str, teacher.classes or ())),
        normalization=teacher.normalization,
        outputs=teacher.outputs,
        input=teacher.input,
    )


def origin_of(model: Model | None, around: TeacherContext) -> TeacherSpec | None:
    """Return the teacher of the study if a model inherits its weights from it; else None."""
    teacher = around.teacher
    if model is None or teacher is None or model.origin is None or model.origin != teacher.model:
        return None
    return independent_teacher(teacher, around)


def teacher_chain(networks: tuple[TeacherSpec, ...]) -> Iterator[TeacherSpec]:
    """Yield these networks and all their teachers, each once, teachers before their students."""
    visited: set[TeacherSpec] = set()

    def walk(network: TeacherSpec) -> Iterator[TeacherSpec]:
        if network not in visited:
            visited.add(network)
            for teacher in network.needs:
                yield from walk(teacher)
            yield network

    for network in networks:
        yield from walk(network)


def self_teacher(around: TeacherContext, generation: int = 0) -> TeacherSpec:
    """Return the specification of a network like the student, trained alone like the trial.

    Its seed differs from that of the trial, so that it starts from other weights.
    """
    return TeacherSpec(
        model=around.student,
        weights=None,
        train=around.train,
        seed=(around.trial_seed + GENERATION_SEEDS * (generation + 1)) % 2**31,
        augment=around.augment,
        origin=origin_of(around.student, around),
        input=around.student_input,
    )


GENERATION_SEEDS = 100_003
"""Added to the seed of a trial for each earlier generation; more than there are replicates."""
