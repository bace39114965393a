"""Conformance tests of every scheme; new members of SCHEMES are included."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from helpers.scheme_cases import (
    BATCH,
    STEPS_PER_EPOCH,
    STUDENT,
    TASK,
    Case,
    batch,
    build,
    defaults,
    examples,
    label,
    ready,
)
from raykd.data.batch import Batch
from raykd.losses import KD, Hint, Pair, Progress, Term
from raykd.models import Mlp, Model, Vit
from raykd.schemes import SCHEMES, AnyScheme, Scheme

READER: TypeAdapter[Scheme] = TypeAdapter(AnyScheme)


@pytest.fixture(params=examples(), ids=label)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


def test_step_returns_finite_loss_terms_and_student_logits(scheme: Scheme) -> None:
    case = ready(scheme)
    case.distiller.begin_epoch(case.progress(0))
    output = case.step(0)
    assert output.loss.shape == () and torch.isfinite(output.loss)
    assert output.logits.shape == (BATCH, TASK.classes) and not output.logits.requires_grad
    assert "task" in output.terms
    assert all(torch.isfinite(value) and not value.requires_grad for value in output.terms.values())


def test_student_learns(scheme: Scheme) -> None:
    values = ready(scheme).train(9)
    assert sum(values[-3:]) < 0.9 * sum(values[:3])


def test_teachers_do_not_change(scheme: Scheme) -> None:
    case = ready(scheme)
    before = [copy.deepcopy(teacher.state_dict()) for teacher in case.teachers]
    case.train(3)
    ours = {id(parameter) for parameter in case.distiller.parameters()}
    for teacher, state in zip(case.teachers, before, strict=True):
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert not ours & {id(parameter) for parameter in teacher.parameters()}
        assert not any(module.training for module in teacher.modules())


def test_every_parameter_gets_gradient(scheme: Scheme) -> None:
    """In every step, unless the scheme declares otherwise; and a nonzero one in some step."""
    case = ready(scheme)
    trained = {name: p for name, p in case.distiller.named_parameters() if p.requires_grad}
    still = set(trained)
    for number in range(5):
        case.distiller.zero_grad()
        case.distiller.begin_epoch(case.progress(number))
        case.step(number).loss.backward()
        idle = [name for name, parameter in trained.items() if parameter.grad is None]
        assert case.distiller.needs_unused_parameter_search or not idle
        still -= {n for n, p in trained.items() if p.grad is not None and p.grad.any()}
    assert not still


def test_deployed_student_is_plain_network(scheme: Scheme) -> None:
    case = ready(scheme)
    case.train(3)
    plain = build(STUDENT)
    plain.load_state_dict(case.distiller.student.state_dict())
    inputs = batch(0).inputs
    torch.testing.assert_close(plain.eval()(inputs), case.distiller.student.eval()(inputs))


def test_equal_seeds_give_equal_trainings(scheme: Scheme) -> None:
    assert ready(scheme).train(3) == ready(scheme).train(3)


def test_evaluation_changes_nothing(scheme: Scheme) -> None:
    case = ready(scheme)
    before = copy.deepcopy(case.distiller.state_dict())
    case.distiller.eval()
    with torch.no_grad():
        case.distiller.student(batch(0).inputs)
    for name, value in case.distiller.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_step_is_invariant_to_batch_order(scheme: Scheme) -> None:
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(3))
    case, other = twins(scheme)
    output = case.step(3)
    two = other.distiller(permuted(other.batch(3), order), other.progress(3))
    torch.testing.assert_close(two.loss, output.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two.logits, output.logits[order], rtol=1e-3, atol=1e-4)


def twins(scheme: Scheme) -> tuple[Case, Case]:
    """Two equal cases after one epoch, so that schemes with memory have one."""
    case = ready(scheme)
    case.train(STEPS_PER_EPOCH)
    return case, copy.deepcopy(case)


def permuted(batch: Batch, order: Tensor) -> Batch:
    moved = dataclasses.replace(batch, targets=batch.targets[order], index=batch.index[order])
    return moved.map(lambda inputs: inputs[order])  # type: ignore[index]


def test_half_precision_matches_float32(scheme: Scheme) -> None:
    case, other = twins(scheme)
    exact = case.step(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = other.step(3)
    assert rough.loss.dtype == torch.float32
    torch.testing.assert_close(rough.loss, exact.loss, rtol=0.05, atol=0.02)
    rough.loss.backward()
    grads = [p.grad for p in other.distiller.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_batch_of_one_works_or_raises_with_reason(scheme: Scheme) -> None:
    case = ready(scheme)
    sample = permuted(case.batch(0), torch.tensor([5]))
    if any(isinstance(module, nn.BatchNorm1d) for module in case.distiller.modules()):
        # The scheme's message, or torch's if a peer normalizes an embedding.
        with pytest.raises(ValueError, match=r"raise train\.batch_size|more than 1 value"):
            case.distiller(sample, case.progress(0))
        return
    output = case.distiller(sample, case.progress(0))
    output.loss.backward()
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("scheme", defaults(), ids=label)
@pytest.mark.parametrize(
    "student",
    [Vit(patch=4, depth=4, width=8, heads=2), Mlp(depth=2, width=16)],
    ids=lambda model: model.name,
)
def test_students_of_tokens_or_embeddings_work(scheme: Scheme, student: Model) -> None:
    case = ready(scheme, terms=(Term(loss=KD()),), student=student)
    output = case.step(0)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in case.distiller.student.parameters())


@pytest.mark.parametrize(
    "scheme", [scheme for scheme in examples() if scheme.takes_knowledge], ids=label
)
def test_terms_start_ramp_and_stop(scheme: Scheme) -> None:
    """A term's start, ramp and stop hold under every scheme that takes knowledge."""
    pairs = (Pair(hint="stage2", guided="stage2"),)
    late = Term(loss=KD(), weight=2, start_epoch=1, ramp_epochs=2)
    early = Term(loss=Hint(), weight=3, pairs=pairs, stop_epoch=1)
    case = ready(scheme, terms=(late, early))
    steady = ready(scheme, terms=(Term(loss=KD(), weight=2), Term(loss=Hint(), weight=0)))
    never = ready(scheme, terms=(Term(loss=KD(), start_epoch=99),))
    for variant in (steady, never):
        variant.distiller.load_state_dict(case.distiller.state_dict(), strict=False)

    def at(epoch: float) -> Progress:
        return Progress(int(epoch), 4, round(epoch * STEPS_PER_EPOCH), STEPS_PER_EPOCH)

    def names(epoch: float) -> set[str]:
        return set(case.distiller(case.batch(0), at(epoch)).terms) & {"kd", "hint"}

    assert [names(epoch) for epoch in range(3)] == [{"hint"}, {"kd"}, {"kd"}]
    if getattr(scheme, "drop", 0):
        return  # teachers come and go from step to step
    full, none = (variant.distiller(variant.batch(0), at(3)).loss for variant in (steady, never))
    for epoch, share in ((1, 0), (1 + 1 / 3, 1 / 6), (2, 0.5), (3, 1), (3 + 2 / 3, 1)):
        output = case.distiller(case.batch(0), at(epoch)).loss
        torch.testing.assert_close(output, none + share * (full - none), rtol=1e-4, atol=1e-5)


def test_study_file_round_trip(scheme: Scheme) -> None:
    written = dataclasses.asdict(scheme)
    read = READER.validate_python(written)
    assert read == scheme and hash(read) == hash(scheme)


@pytest.mark.parametrize("cls", list(SCHEMES), ids=lambda cls: cls.name)
def test_documentation_is_complete(cls: type[Scheme]) -> None:
    first = (cls.__doc__ or "").partition("\n")[0]
    assert first.endswith(".") and len(first) < 100
    assert isinstance(cls.paper, str)
