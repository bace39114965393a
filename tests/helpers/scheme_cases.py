"""Digits, a small teacher and a small student for tests of every scheme."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch, ExtraInputs
from raykd.losses import KD, Hint, Pair, Progress, Term
from raykd.models import Mlp, Model, Resnet, Signature
from raykd.schemes import (
    SCHEMES,
    Assistant,
    Distiller,
    Dml,
    Kdcl,
    LiveTeacher,
    MultiTeacher,
    Scheme,
    SchemeInputs,
    StepOutput,
    Teacher,
    TeacherContext,
    TeacherInputs,
)
from raykd.train_config import Train

TASK = Signature(input_shape=(1, 8, 8), classes=10)
STUDENT = Resnet(depth=8, width=4)
TEACHER = Resnet(depth=8, width=8)
SIZE = 96
BATCH = 32
STEPS_PER_EPOCH = SIZE // BATCH
KNOWLEDGE = (
    Term(loss=KD()),
    Term(loss=Hint(), weight=1, pairs=(Pair(hint="stage2", guided="stage2"),)),
)

_WIDER = Teacher(model=Resnet(depth=8, width=6))
MORE: dict[str, tuple[Scheme, ...]] = {
    "assistant": (
        Assistant(chain=(_WIDER,)),
        Assistant(chain=(_WIDER,), dense=True, drop=0.5),
    ),
    "multi_teacher": (
        MultiTeacher(others=(_WIDER,)),
        MultiTeacher(others=(_WIDER, _WIDER), combine="weighted", weights=(1, 0.5, 2)),
    ),
    "dml": (Dml(peers=3, others=(Resnet(depth=8, width=8),), together="ensemble"),),
    "kdcl": (Kdcl(peers=3, others=(Mlp(depth=1, width=16),)),),
}
"""Examples of schemes that cannot do without a field, or that fields change together.  The first
one stands for a scheme that has no defaults."""


def examples() -> list[Scheme]:
    """Every scheme with its defaults, and once per other choice of each field."""
    return list(itertools.chain.from_iterable(map(_examples, SCHEMES)))


def defaults() -> list[Scheme]:
    """Every scheme once."""
    return [next(_examples(cls)) for cls in SCHEMES]


def _examples(cls: type[Scheme]) -> Iterator[Scheme]:
    more = MORE.get(cls.name, ())
    plain = dataclasses.MISSING
    lacks = any(
        field.default is plain and field.default_factory is plain
        for field in dataclasses.fields(cls)
    )
    default, *rest = more if lacks else (cls(), *more)  # type: ignore[call-arg]
    yield default
    yield from rest
    for field, kind in typing.get_type_hints(cls).items():
        for choice in _choices(kind) if field != "name" else ():
            if choice != getattr(default, field) and (field, choice) not in _TOGETHER:
                yield dataclasses.replace(default, **{field: choice})


_TOGETHER = {("combine", "weighted")}
"""Choices that need a second field; `MORE` sets them."""


def _choices(kind: object) -> tuple[object, ...]:
    if kind is bool:
        return (False, True)
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def label(scheme: Scheme) -> str:
    """Name of a scheme and its differences from its first example."""
    default = next(_examples(type(scheme)))
    changed = [
        field.name if isinstance(value, tuple) else f"{field.name}={value}"
        for field in dataclasses.fields(scheme)
        if (value := getattr(scheme, field.name)) != getattr(default, field.name)
    ]
    return "-".join([scheme.name, *changed])


@dataclass
class Case:
    """Built scheme with its teachers and data."""

    distiller: Distiller
    teachers: list[nn.Module]
    epochs: int = 4

    def step(self, number: int) -> StepOutput:
        return self.distiller(self.batch(number), self.progress(number))

    def batch(self, number: int) -> Batch:
        return batch(number, self.distiller.extra_inputs)

    def progress(self, number: int) -> Progress:
        return Progress(number // STEPS_PER_EPOCH, self.epochs, number, STEPS_PER_EPOCH)

    def train(self, steps: int, start: int = 0) -> list[float]:
        """Train with SGD; return the task loss of each step."""
        parameters = [p for p in self.distiller.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(parameters, lr=0.1)
        self.distiller.train()
        values = []
        for number in range(start, start + steps):
            if number % STEPS_PER_EPOCH == 0:
                self.distiller.begin_epoch(self.progress(number))
            output = self.step(number)
            optimiser.zero_grad()
            output.loss.backward()
            optimiser.step()
            values.append(float(F.cross_entropy(output.logits, batch(number).targets)))
        return values


AROUND = TeacherContext(
    teacher=Teacher(model=TEACHER),
    student=STUDENT,
    train=Train(epochs=4),
    knowledge=KNOWLEDGE,
    seed=0,
    trial_seed=0,
)


def ready(
    scheme: Scheme,
    *,
    seed: int = 0,
    terms: tuple[Term, ...] = KNOWLEDGE,
    student: Model = STUDENT,
) -> Case:
    torch.manual_seed(seed)
    network = build(student)
    terms = terms if scheme.takes_knowledge else ()
    teachers = [trained_teacher(number) for number, _ in enumerate(scheme.teachers(AROUND))]
    shapes = {"stage2": (16, 4, 4)}
    guides = [
        TeacherInputs(LiveTeacher(teacher, ("stage2",), TASK), terms, shapes)
        for teacher in teachers
    ]
    parts = SchemeInputs(
        student=network,
        build_student=lambda: build(student),
        teacher=guides[0].teacher if guides else None,
        terms=terms,
        task_loss=F.cross_entropy,
        signature=TASK,
        train_size=SIZE,
        data_size=SIZE,
        guided_shapes={"stage2": (8, 4, 4)},
        hint_shapes=shapes,
        more_teachers=guides[1:],
        teacher_network=teachers[0] if teachers else None,
    )
    return Case(scheme.build(parts), teachers)


def build(model: Model) -> nn.Module:
    return model.build(TASK)


def trained_teacher(number: int = 0) -> nn.Module:
    """Return a new copy of a teacher that fits the batch; each number has other weights."""
    teacher = build(TEACHER)
    teacher.load_state_dict(_teacher_state(number))
    return teacher


@cache
def _teacher_state(number: int) -> dict[str, Tensor]:
    state = torch.get_rng_state()
    torch.manual_seed(11 + number)
    teacher = build(TEACHER).train()
    optimiser = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for number in range(20):
        optimiser.zero_grad()
        F.cross_entropy(teacher(batch(number).inputs), batch(number).targets).backward()
        optimiser.step()
    torch.set_rng_state(state)
    return teacher.state_dict()


def batch(number: int, extra: ExtraInputs = ExtraInputs()) -> Batch:  # noqa: B008 - it never changes
    """Return a batch of digits; further views are shifted, partners are the next of the class."""
    inputs, targets = _digits()
    rows = torch.arange(SIZE).roll(-BATCH * number)[:BATCH]
    plain = Batch(inputs[rows], targets[rows], rows)
    return dataclasses.replace(
        plain,
        views=tuple(inputs[rows].roll(k + 1, dims=-1) for k in range(extra.views)),
        partners=inputs[_next_of_class()[rows]] if extra.partners else None,
    )


@cache
def _next_of_class() -> Tensor:
    _, targets = _digits()
    ahead = (torch.arange(SIZE)[None] - torch.arange(SIZE)[:, None] - 1) % SIZE
    return torch.where(targets[None] == targets[:, None], ahead, SIZE).argmin(dim=1)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, targets = load_digits(return_X_y=True)
    inputs = torch.as_tensor(images[:SIZE]).float().view(-1, *TASK.input_shape) / 16
    return inputs, torch.as_tensor(targets[:SIZE]).long()
