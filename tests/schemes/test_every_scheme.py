"""What every scheme must do; a new member of SCHEMES is tried for nothing."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import typing

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from raykd.architecture import MODELS, Model, Task
from raykd.data.batch import Batch
from raykd.knowledge import KD, Progress, Term
from raykd.schemes import SCHEMES, LiveTeacher, Parts, Scheme
from scheme_cases import BATCH, STUDENT, TASK, batch, build, ready


def variants() -> list[Scheme]:
    """Every scheme with its defaults, and once for each other choice one of its fields offers."""
    return list(itertools.chain.from_iterable(map(_variants, SCHEMES)))


def _variants(cls: type[Scheme]) -> list[Scheme]:
    default = cls()  # type: ignore[call-arg]
    made = [default]
    for field, kind in typing.get_type_hints(cls).items():
        if field != "name" and typing.get_origin(kind) is typing.Literal:
            others = [
                choice for choice in typing.get_args(kind) if choice != getattr(default, field)
            ]
            made += [dataclasses.replace(default, **{field: other}) for other in others]
    return made


def label(scheme: Scheme) -> str:
    default = type(scheme)()  # type: ignore[call-arg]
    changed = [
        f"{field.name}={getattr(scheme, field.name)}"
        for field in dataclasses.fields(scheme)
        if getattr(scheme, field.name) != getattr(default, field.name)
    ]
    return "-".join([scheme.name, *changed])


@pytest.fixture(params=variants(), ids=label)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


def test_a_step_gives_a_finite_loss_its_parts_and_the_students_logits(scheme: Scheme) -> None:
    case = ready(scheme)
    case.distiller.begin_epoch(case.progress(0))
    output = case.step(0)
    assert output.loss.shape == () and torch.isfinite(output.loss)
    assert output.logits.shape == (BATCH, TASK.classes) and not output.logits.requires_grad
    assert "task" in output.terms
    assert all(torch.isfinite(value) and not value.requires_grad for value in output.terms.values())


def test_the_student_learns(scheme: Scheme) -> None:
    values = ready(scheme).train(12)
    assert sum(values[-3:]) < 0.9 * sum(values[:3])


def test_the_teacher_stays_as_it_is(scheme: Scheme) -> None:
    case = ready(scheme)
    before = copy.deepcopy(case.teacher.state_dict())
    case.train(3)
    for name, value in case.teacher.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in case.teacher.parameters())
    ours = {id(parameter) for parameter in case.distiller.parameters()}
    assert not ours & {id(parameter) for parameter in case.teacher.parameters()}
    if scheme.needs_teacher:
        assert not case.teacher.training


def test_every_parameter_gets_a_gradient_unless_it_says_otherwise(scheme: Scheme) -> None:
    case = ready(scheme)
    for number in range(5):
        case.distiller.zero_grad()
        case.distiller.begin_epoch(case.progress(number))
        case.step(number).loss.backward()
        idle = [name for name, p in case.distiller.named_parameters() if p.grad is None]
        assert case.distiller.needs_unused_parameter_search or not idle


def test_the_kept_student_is_the_plain_network(scheme: Scheme) -> None:
    case = ready(scheme)
    case.train(3)
    plain = build(STUDENT)
    plain.load_state_dict(case.distiller.student.state_dict())
    inputs = batch(0).inputs
    torch.testing.assert_close(plain.eval()(inputs), case.distiller.student.eval()(inputs))


def test_the_same_seed_gives_the_same_training(scheme: Scheme) -> None:
    assert ready(scheme).train(4) == ready(scheme).train(4)


def test_going_on_from_a_saved_state_equals_going_on(scheme: Scheme) -> None:
    case = ready(scheme)
    case.train(4)
    saved = copy.deepcopy(case.distiller.state_dict())
    torch.manual_seed(1)
    expected = case.train(4, start=4)
    other = ready(scheme, seed=5)
    other.distiller.load_state_dict(saved)
    torch.manual_seed(1)
    assert other.train(4, start=4) == expected


def test_evaluation_moves_nothing(scheme: Scheme) -> None:
    case = ready(scheme)
    before = copy.deepcopy(case.distiller.state_dict())
    case.distiller.eval()
    with torch.no_grad():
        case.distiller.student(batch(0).inputs)
    for name, value in case.distiller.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("model", list(MODELS), ids=lambda cls: cls.name)
def test_any_family_can_be_its_student(scheme: Scheme, model: type[Model]) -> None:
    task = Task(input_shape=(1, 32, 32), classes=10)
    small = {"width": 4} if "width" in {f.name for f in dataclasses.fields(model)} else {}
    student = model(**small)  # type: ignore[call-arg]
    draw = torch.Generator().manual_seed(0)
    inputs, rows = torch.rand(4, *task.input_shape, generator=draw), torch.arange(4)
    parts = Parts(
        student=student.build(task),
        build_student=lambda: student.build(task),
        teacher=LiveTeacher(student.build(task), (), task) if scheme.needs_teacher else None,
        terms=(Term(loss=KD()),) if scheme.takes_knowledge else (),
        task_loss=F.cross_entropy,
        task=task,
        train_size=4,
        data_size=4,
    )
    distiller = scheme.build(parts)
    output = distiller(Batch(inputs, rows, rows), Progress(0, 1))
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_it_stands_in_a_study_file_as_it_is(scheme: Scheme) -> None:
    written = dataclasses.asdict(scheme)
    read = TypeAdapter(SCHEMES.annotation).validate_python(written)
    assert read == scheme and hash(read) == hash(scheme)


@pytest.mark.parametrize("cls", list(SCHEMES), ids=lambda cls: cls.name)
def test_it_says_what_it_is(cls: type[Scheme]) -> None:
    first = (cls.__doc__ or "").partition("\n")[0]
    assert first.endswith(".") and len(first) < 100
    assert isinstance(cls.paper, str)
