"""Real digits, a small teacher and student, on which every scheme is tried."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.architecture import Model, Resnet, Task
from raykd.data.batch import Batch
from raykd.knowledge import KD, Hint, Pair, Progress, Term
from raykd.schemes import Distiller, LiveTeacher, Parts, Scheme, StepOutput

TASK = Task(input_shape=(1, 8, 8), classes=10)
STUDENT = Resnet(depth=8, width=4)
TEACHER = Resnet(depth=8, width=8)
SIZE = 96
BATCH = 32
STEPS_PER_EPOCH = SIZE // BATCH
KNOWLEDGE = (
    Term(loss=KD()),
    Term(loss=Hint(), weight=1, pairs=(Pair(hint="stage2", guided="stage2"),)),
)


@dataclass
class Case:
    """A scheme made ready, its teacher and the data."""

    distiller: Distiller
    teacher: nn.Module
    epochs: int = 4

    def step(self, number: int) -> StepOutput:
        return self.distiller(batch(number), self.progress(number))

    def progress(self, number: int) -> Progress:
        return Progress(number // STEPS_PER_EPOCH, self.epochs, number, STEPS_PER_EPOCH)

    def train(self, steps: int, start: int = 0) -> list[float]:
        """Train by SGD; the task loss of each step."""
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


def ready(scheme: Scheme, *, seed: int = 0, terms: tuple[Term, ...] = KNOWLEDGE) -> Case:
    torch.manual_seed(seed)
    student = build(STUDENT)
    teacher = trained_teacher()
    source = LiveTeacher(teacher, ("stage2",), TASK)
    parts = Parts(
        student=student,
        build_student=lambda: build(STUDENT),
        teacher=source if scheme.needs_teacher else None,
        terms=terms if scheme.takes_knowledge else (),
        task_loss=F.cross_entropy,
        task=TASK,
        train_size=SIZE,
        data_size=SIZE,
        guided_shapes={"stage2": (8, 4, 4)},
        hint_shapes={"stage2": (16, 4, 4)},
    )
    return Case(scheme.build(parts), teacher)


def build(model: Model) -> nn.Module:
    return model.build(TASK)


def trained_teacher() -> nn.Module:
    """A fresh copy of a teacher that knows the batch."""
    teacher = build(TEACHER)
    teacher.load_state_dict(_teacher_state())
    return teacher


@cache
def _teacher_state() -> dict[str, Tensor]:
    state = torch.get_rng_state()
    torch.manual_seed(11)
    teacher = build(TEACHER).train()
    optimiser = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    for number in range(20):
        optimiser.zero_grad()
        F.cross_entropy(teacher(batch(number).inputs), batch(number).targets).backward()
        optimiser.step()
    torch.set_rng_state(state)
    return teacher.state_dict()


def batch(number: int) -> Batch:
    inputs, targets = _digits()
    rows = torch.arange(SIZE).roll(-BATCH * number)[:BATCH]
    return Batch(inputs[rows], targets[rows], rows)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, targets = load_digits(return_X_y=True)
    inputs = torch.as_tensor(images[:SIZE]).float().view(-1, *TASK.input_shape) / 16
    return inputs, torch.as_tensor(targets[:SIZE]).long()
