"""Conformance tests of every loss; new members of LOSSES are included."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from helpers.loss_cases import CLASSES, DATA_SIZE, PROGRESS, context_of, label, make, variants
from raykd.losses import LOSSES, Loss, LossContext, ModelOutputs, Pair, Progress, Shape, Term
from raykd.tasks.classification import UNLABELED

ALL = variants()


@pytest.fixture(params=ALL, ids=label)
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


def test_value_is_finite_scalar(loss: Loss) -> None:
    value = make(loss).value()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert math.isfinite(float(value.detach()))


def test_gradient_reaches_student_and_connector(loss: Loss) -> None:
    case = make(loss)
    case.value().backward()
    for leaf in case.student_leaves():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0
    if case.module.sometimes_unused:
        dataclasses.replace(case, progress=Progress(epoch=0, epochs=4)).value().backward()
    for name, parameter in case.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_no_gradient_reaches_teacher(loss: Loss) -> None:
    case = make(loss)
    case.teacher = case.teacher.map(lambda tensor: tensor.requires_grad_())
    case.value().backward()
    assert case.teacher.logits.grad is None
    assert all(layer.grad is None for layer in case.teacher.layers.values())


def test_zero_value_and_gradient_when_student_equals_teacher(loss: Loss) -> None:
    if not loss.zero_at_teacher:
        pytest.skip("its optimum lies elsewhere; see its docstring")
    case = make(loss, same=True)
    if any(True for _ in case.module.parameters()):
        pytest.skip("learns even where the shapes are the same")
    value = case.value()
    value.backward()
    assert abs(float(value.detach())) < 1e-5
    for leaf in case.student_leaves():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    away = make(loss, same=True)
    away.student = away.student.map(lambda tensor: tensor + torch.rand_like(tensor))
    assert away.value() > value + 1e-4


def test_gradient_descent_reduces_loss(loss: Loss) -> None:
    case = make(loss)
    optimiser = torch.optim.Adam([*case.student_leaves(), *case.module.parameters()], lr=0.02)
    torch.manual_seed(5)
    before = float(case.value().detach())
    for _ in range(60):
        optimiser.zero_grad()
        case.value().backward()
        optimiser.step()
    torch.manual_seed(5)
    after = float(case.value().detach())
    assert after < before - 0.1 * abs(before)


def test_value_is_invariant_to_batch_order(loss: Loss) -> None:
    if loss.random:
        pytest.skip("draws for each place in the batch")
    case = make(loss, dtype=torch.float64)
    shuffled = case.on(torch.tensor([3, 0, 5, 1, 4, 2]))
    shuffled.module = copy.deepcopy(case.module)
    torch.testing.assert_close(shuffled.value(), case.value())


def test_losses_that_read_labels_declare_it(loss: Loss) -> None:
    """The value of any other loss is the same for samples without a label."""
    inner = getattr(loss, "loss", loss)
    if loss.reads_labels or inner.reads_labels or "softmax" not in loss.kinds:
        pytest.skip("reads labels, or fits no classes")
    case, unlabeled = make(loss), make(loss)
    unlabeled.targets = torch.full_like(case.targets, UNLABELED)
    values = []
    for each in (case, unlabeled):
        torch.manual_seed(7)
        values.append(each.value())
    torch.testing.assert_close(values[1], values[0])


def test_value_is_sample_mean_unless_loss_relates_samples(loss: Loss) -> None:
    if loss.relates_samples or loss.random:
        pytest.skip("relates the samples of a batch, or draws for them")
    case = make(loss, dtype=torch.float64)
    case.module.eval()
    first, second = case.on(torch.arange(3)), case.on(torch.arange(3, 6))
    torch.testing.assert_close((first.value() + second.value()) / 2, case.value())


def test_single_sample_gives_finite_value(loss: Loss) -> None:
    case = make(loss, batch=1)
    value = case.value()
    value.backward()
    assert torch.isfinite(value)
    for leaf in case.student_leaves():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_bfloat16_inputs_match_float32(loss: Loss) -> None:
    half, full = make(loss), make(loss)
    for case in (half, full):
        case.student = case.student.map(lambda tensor: tensor.detach().bfloat16())
        case.teacher = case.teacher.map(lambda tensor: tensor.detach().bfloat16())
    full.student, full.teacher = full.student.map(Tensor.float), full.teacher.map(Tensor.float)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = half.value()
    torch.manual_seed(3)
    torch.testing.assert_close(under_autocast, full.value())
    torch.manual_seed(3)
    exact = make(loss)
    torch.manual_seed(3)
    torch.testing.assert_close(under_autocast, exact.value(), rtol=0.05, atol=0.02)


def test_gradient_matches_finite_differences(loss: Loss) -> None:
    case = make(loss, batch=4, dtype=torch.float64)
    names = list(case.student.layers)
    case.value()  # what is estimated from the first batch is a constant from now on

    def value(*leaves: Tensor) -> Tensor:
        torch.manual_seed(3)
        fresh = dataclasses.replace(case, module=copy.deepcopy(case.module))
        if loss.takes_pairs:
            student = ModelOutputs(case.student.logits, dict(zip(names, leaves, strict=True)))
        else:
            student = ModelOutputs(leaves[0])
        return dataclasses.replace(fresh, student=student).value()

    assert torch.autograd.gradcheck(value, tuple(case.student_leaves()), fast_mode=True)


def test_state_dict_round_trip(loss: Loss) -> None:
    used = make(loss)
    for seed in range(2):
        torch.manual_seed(seed)
        used.value()
    restored = make(loss)
    restored.module.load_state_dict(used.module.state_dict())
    torch.manual_seed(7)
    expected = used.value()
    torch.manual_seed(7)
    torch.testing.assert_close(restored.value(), expected, rtol=0, atol=0)


def test_two_modules_share_no_tensors(loss: Loss) -> None:
    context = context_of(loss)
    first, second = loss.build(context), loss.build(context)
    places = [{t.data_ptr() for t in module.state_dict().values()} for module in (first, second)]
    assert not places[0] & places[1]


def refusal(loss: Loss, context: LossContext) -> str:
    """Error text of building the loss, or an empty string."""
    try:
        loss.build(context)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("guided", "hint"),
    [((6,), (8,)), ((4, 6), (4, 8)), ((6, 4, 4), (8, 2, 2)), ((6, 2, 2), (8, 3, 3))],
    ids=["embeddings", "tokens", "larger map", "smaller map"],
)
def test_other_layer_kinds_work_or_raise_with_layer_names(
    loss: Loss, guided: Shape, hint: Shape
) -> None:
    if not loss.takes_pairs:
        pytest.skip("looks at logits alone")
    pairs = (Pair(hint="t1", guided="s1"), Pair(hint="t2", guided="s2"))
    context = dataclasses.replace(
        context_of(loss), pairs=pairs, guided_shapes=(guided,) * 2, hint_shapes=(hint,) * 2
    )
    if message := refusal(loss, context):
        assert all(part in message for part in ("'s1'", "'t1'", str(guided), str(hint)))
        return
    module = loss.build(context)
    draw = torch.Generator().manual_seed(0)
    student = {name: torch.randn(3, *guided, generator=draw) for name in ("s1", "s2")}
    teacher = {name: torch.randn(3, *hint, generator=draw) for name in ("t1", "t2")}
    logits, rows = torch.randn(3, CLASSES, generator=draw), torch.arange(3)
    value = module(
        ModelOutputs(logits, student), ModelOutputs(logits, teacher), rows, rows, PROGRESS
    )
    assert torch.isfinite(value)


def test_study_file_round_trip(loss: Loss) -> None:
    written = {"loss": dataclasses.asdict(loss)}  # type: ignore[call-overload]
    read = TypeAdapter(Term).validate_python(written)
    assert read == Term(loss=loss)
    assert hash(read) == hash(Term(loss=loss))
    assert read.effective_weight == loss.default_weight > 0


@pytest.mark.parametrize("cls", list(LOSSES), ids=lambda cls: cls.name)
def test_documentation_is_complete(cls: type[Loss]) -> None:
    first, _, rest = (cls.__doc__ or "").partition("\n")
    assert first.endswith(".") and len(first) < 100
    assert rest.strip(), "the docstring gives the formula and the paper"
    assert cls.paper
    assert cls.knowledge in ("response", "feature", "relation")
    assert cls.weight_source.endswith("."), "one sentence: where the default weight comes from"


def test_case_batch_matches_data() -> None:
    assert int(make(LOSSES["kd"]()).index.max()) < DATA_SIZE
