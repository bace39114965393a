"""Teachers of each scheme, and combinations of several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.scheme_cases import SIZE, STEPS_PER_EPOCH, STUDENT, TASK, batch, build, trained_teacher
from raykd.data.batch import Batch
from raykd.losses import KD, Hint, Pair, Progress, Term
from raykd.losses.model_outputs import ModelOutputs
from raykd.models import Mlp, Resnet
from raykd.schemes import (
    Alone,
    BornAgain,
    Dml,
    LiveTeacher,
    MultiTeacher,
    Offline,
    Scheme,
    SchemeInputs,
    StepOutput,
    Teacher,
    TeacherContext,
    TeacherInputs,
    TfKdSelf,
)
from raykd.schemes.assistant import Assistant
from raykd.schemes.multi_teacher import MultiTeacherDistiller, Shares
from raykd.train_config import Train

Array = NDArray[np.float64]

BIG = Teacher(model=Resnet(depth=20, width=16), train=Train(epochs=30))
MIDDLE = Teacher(model=Resnet(depth=14, width=16))
SMALL = Teacher(model=Resnet(depth=8, width=16), train=Train(epochs=5))
AROUND = TeacherContext(
    teacher=BIG,
    student=STUDENT,
    train=Train(epochs=7),
    knowledge=(Term(loss=KD(temperature=3)),),
    seed=5,
    trial_seed=6,
    augment=(),
)


# Who teaches


def test_plain_scheme_uses_studys_teacher_or_none() -> None:
    [large] = Offline().teachers(AROUND)
    assert large.model == BIG.model and large.train == BIG.train and large.seed == 5
    assert large.scheme is None and large.teachers == () and large.is_shared
    for scheme in (Dml(), Alone()):
        assert scheme.teachers(AROUND) == ()
    assert Offline().teachers(replace(AROUND, teacher=None)) == ()


def test_teacher_may_have_its_own_seed() -> None:
    around = replace(AROUND, teacher=replace(BIG, seed=77))
    assert [spec.seed for spec in Offline().teachers(around)] == [77]


def test_each_assistant_is_taught_by_previous_one() -> None:
    """TAKD: teacher -> first assistant -> second assistant -> student."""
    [last] = Assistant(chain=(MIDDLE, SMALL)).teachers(AROUND)
    assert last.model == SMALL.model and last.train == SMALL.train
    [middle] = last.teachers
    assert middle.model == MIDDLE.model and middle.train == BIG.train  # as the teacher is trained
    [large] = middle.teachers
    assert large == Offline().teachers(AROUND)[0]
    for assistant in (last, middle):
        assert assistant.scheme == Offline() and assistant.is_shared and assistant.seed == 5
        assert [term.loss for term in assistant.knowledge] == [KD(temperature=4)]


def test_dense_chain_uses_all_larger_networks() -> None:
    """DGKD: two assistants and the teacher teach the student; teacher and first the second."""
    large, middle, small = Assistant(chain=(MIDDLE, SMALL), dense=True, drop=0.5).teachers(AROUND)
    assert (
        large.teachers == () and middle.teachers == (large,) and small.teachers == (large, middle)
    )
    assert isinstance(middle.scheme, Offline) and isinstance(small.scheme, MultiTeacher)
    assert small.scheme.target == "each" and small.scheme.drop == 0.5
    # The assistant's own training finds its teachers' models by its own scheme.
    within = replace(AROUND, teacher=large.as_teacher)
    assert [spec.model for spec in small.scheme.teachers(within)] == [large.model, middle.model]


def test_assistant_with_weights_is_not_trained() -> None:
    loaded = Teacher(model=MIDDLE.model, weights="middle.safetensors")
    [last] = Assistant(chain=(loaded,)).teachers(AROUND)
    assert last.weights == "middle.safetensors" and last.teachers == () and last.scheme is None


@pytest.mark.parametrize("generations", [1, 2, 4])
def test_generations_form_chain(generations: int) -> None:
    scheme: Scheme = BornAgain(generations=generations)
    seeds, [previous] = [AROUND.trial_seed], scheme.teachers(AROUND)
    for generation in range(generations - 1, -1, -1):
        assert previous.model == AROUND.student and previous.train == AROUND.train
        assert not previous.is_shared
        seeds.append(previous.seed)
        assert (previous.scheme is None) == (generation == 0)
        if generation:
            assert previous.knowledge == AROUND.knowledge
            [previous] = previous.teachers
    assert previous.teachers == () and len(set(seeds)) == generations + 1


def test_generations_may_start_from_teacher() -> None:
    [first] = BornAgain(first="teacher").teachers(AROUND)
    assert first == Offline().teachers(AROUND)[0]
    assert BornAgain(first="teacher").teachers(replace(AROUND, teacher=None)) == ()


def test_pretrained_self_has_training_of_trial() -> None:
    [former] = TfKdSelf().teachers(replace(AROUND, teacher=None))
    assert former.model == AROUND.student and former.train == AROUND.train
    assert former.scheme is None and former.seed != AROUND.trial_seed
    [other] = TfKdSelf().teachers(replace(AROUND, trial_seed=9))
    assert other.seed != former.seed


# What several teach


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kd(student: Array, target: Array, temperature: float) -> float:
    """T^2 KL(target || student), mean over the batch; `target` are probabilities at T."""
    ours = softmax(student / temperature)
    return float(np.mean(np.sum(target * np.log(target / ours), axis=1)) * temperature**2)


class Three:
    """A student and three teachers, and their logits on a batch."""

    temperature = 3.0

    def __init__(
        self, terms: Sequence[Term] = (Term(loss=KD(temperature=3.0), weight=1.0),)
    ) -> None:
        torch.manual_seed(3)
        self.networks = [trained_teacher(), build(Mlp(depth=1, width=16)), build(STUDENT)]
        for network in self.networks:
            network.eval()
        self.student = build(STUDENT)
        layers = ("stage2",) if any(term.loss and term.loss.takes_pairs for term in terms) else ()
        if layers:
            self.networks[1] = build(Resnet(depth=8, width=4))
        shapes: list[tuple[int, ...]] = [(16, 4, 4), (8, 4, 4), (8, 4, 4)]
        guides = [
            TeacherInputs(LiveTeacher(network, layers, TASK), terms, {"stage2": shape})
            for network, shape in zip(self.networks, shapes, strict=True)
        ]
        self.parts = SchemeInputs(
            student=self.student,
            build_student=lambda: build(STUDENT),
            teacher=guides[0].teacher,
            terms=terms,
            task_loss=F.cross_entropy,
            signature=TASK,
            train_size=SIZE,
            data_size=SIZE,
            guided_shapes={"stage2": (8, 4, 4)},
            hint_shapes=guides[0].hint_shapes,
            more_teachers=guides[1:],
        )

    def step(self, number: int = 0, **fields: Any) -> StepOutput:
        teachers = (Teacher(model=STUDENT), Teacher(model=STUDENT))
        distiller = MultiTeacher(others=teachers, **fields).build(self.parts)
        return distiller(batch(number), Progress(0, 4, number, STEPS_PER_EPOCH))

    def logits(self) -> tuple[Array, list[Array]]:
        with torch.no_grad():
            z = [array(network.eval()(batch(0).inputs)) for network in self.networks]
            return array(self.student.train()(batch(0).inputs)), z


def test_mean_of_probabilities_is_target() -> None:
    three = Three()
    student, z = three.logits()
    target = np.mean([softmax(scores / 3) for scores in z], axis=0)
    output = three.step()
    assert output.terms["kd"].item() == pytest.approx(kd(student, target, 3), rel=1e-4)
    for number in (1, 2, 3):
        assert output.terms[f"share_{number}"].item() == pytest.approx(1 / 3)
    expected = output.terms["task"] + output.terms["kd"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_mean_of_logits_is_target() -> None:
    three = Three()
    student, z = three.logits()
    target = softmax(np.mean(z, axis=0) / 3)
    value = three.step(target="logits").terms["kd"].item()
    assert value == pytest.approx(kd(student, target, 3), rel=1e-4)


def test_teacher_weights_weight_losses() -> None:
    three = Three()
    student, z = three.logits()
    lessons = np.array([kd(student, softmax(scores / 3), 3) for scores in z])
    expected = float(np.array([0.5, 0.3, 0.2]) @ lessons)
    value = three.step(target="each", combine="weighted", weights=(5, 3, 2)).terms["kd"].item()
    assert value == pytest.approx(expected, rel=1e-4)


def test_confidence_weights_favor_teachers_with_right_label() -> None:
    """Zhang 2022 (CA-MKD): w_k = (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1)."""
    three = Three()
    _, z = three.logits()
    targets = batch(0).targets.numpy()
    errors = np.stack(
        [-np.log(softmax(scores)[np.arange(len(targets)), targets]) for scores in z], 1
    )
    expected = (1 - np.exp(errors) / np.exp(errors).sum(1, keepdims=True)) / 2
    shares = Shares("confidence", 3, 10)(
        [torch.as_tensor(scores) for scores in z], batch(0).targets, (0, 1, 2)
    )
    np.testing.assert_allclose(shares.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(expected.sum(1), 1)
    # The first teacher has learned the batch; it has the largest share.
    assert expected.mean(0).argmax() == 0


def test_gate_learns_to_prefer_better_teacher() -> None:
    three = Three()
    shares = Shares("gate", 3, 10)
    logits = [torch.as_tensor(values).float() for values in three.logits()[1]]
    targets = batch(0).targets
    before = shares(logits, targets, (0, 1, 2))
    np.testing.assert_allclose(before.numpy(), 1 / 3, rtol=1e-5)
    optimiser = torch.optim.SGD(shares.parameters(), lr=0.05)
    first = shares.loss(logits, targets).item()
    for _ in range(30):
        optimiser.zero_grad()
        shares.loss(logits, targets).backward()
        optimiser.step()
    assert shares.loss(logits, targets).item() < first
    after = shares(logits, targets, (0, 1, 2))
    assert not after.requires_grad and after[:, 0].mean() > 0.5


def test_gate_gets_gradient_only_from_its_own_loss() -> None:
    three = Three()
    teachers = (Teacher(model=STUDENT), Teacher(model=STUDENT))
    distiller = MultiTeacher(others=teachers, combine="gate").build(three.parts)
    assert isinstance(distiller, MultiTeacherDistiller)
    output = distiller(batch(0), Progress(0, 4, 0, STEPS_PER_EPOCH))
    logits = [torch.as_tensor(values).float() for values in three.logits()[1]]
    output.loss.backward()
    gate = distiller.shares.gate.weight
    expected = torch.autograd.grad(distiller.shares.loss(logits, batch(0).targets), gate)[0]
    torch.testing.assert_close(gate.grad, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for network in three.networks for p in network.parameters())


def test_each_teacher_has_its_own_connectors() -> None:
    hint = Term(loss=Hint(), weight=2.0, pairs=(Pair(hint="stage2", guided="stage2"),))
    three = Three((Term(loss=KD(temperature=3.0), weight=1.0), hint))
    teachers = (Teacher(model=STUDENT), Teacher(model=STUDENT))
    distiller = MultiTeacher(
        others=teachers, combine="weighted", weights=(2, 1, 1), task_weight=0
    ).build(three.parts)
    assert isinstance(distiller, MultiTeacherDistiller)
    output = distiller(batch(0), Progress(0, 4, 0, STEPS_PER_EPOCH))
    student = distiller.watched(batch(0).inputs)
    expected = torch.zeros(())
    for k, share in enumerate((0.5, 0.25, 0.25)):
        guide, terms = distiller.guides[k], distiller.on_each[k]
        taught = guide.teacher(batch(0))
        value = terms(student, taught, batch(0).targets, batch(0).index, Progress(0, 4))[1]["hint"]
        expected = expected + share * value
    torch.testing.assert_close(output.terms["hint"], expected, rtol=1e-3, atol=1e-5)
    total = output.terms["kd"] + 2 * output.terms["hint"]
    torch.testing.assert_close(output.loss.detach(), total, rtol=1e-5, atol=1e-6)
    widths = {tuple(p.shape) for terms in distiller.on_each for p in terms.parameters()}
    assert any(16 in shape for shape in widths)  # the first teacher's layer is wider


def test_dropped_teacher_is_not_evaluated_in_that_step() -> None:
    three = Three()
    calls: list[int] = []

    class Counted:
        def __init__(self, number: int, source: Any) -> None:
            self.number, self.source = number, source

        def __call__(self, data: Batch) -> ModelOutputs:
            calls.append(self.number)
            return self.source(data)

    guides = [
        replace(guide, teacher=Counted(i, guide.teacher))
        for i, guide in enumerate(three.parts.guides)
    ]
    parts = replace(three.parts, teacher=guides[0].teacher, more_teachers=guides[1:])
    distiller = MultiTeacherDistiller(parts, Shares("mean", 3, 10), "each", 1.0, drop=0.5)
    evaluated = []
    for step in range(60):
        calls.clear()
        output = distiller(batch(0), Progress(0, 4, step, STEPS_PER_EPOCH))
        assert calls and calls == sorted(calls)
        shares = [float(output.terms[f"share_{k + 1}"]) for k in range(3)]
        assert shares == pytest.approx([(k in calls) / len(calls) for k in range(3)])
        evaluated.append(tuple(calls))
    assert 0.3 < np.mean([len(c) for c in evaluated]) / 3 < 0.75
    repeated = [tuple(distiller._present(Progress(0, 4, step, 3))) for step in range(60)]
    assert repeated == evaluated  # the same on every worker, and after a restore
    distiller.eval()
    assert distiller._present(Progress(0, 4, 0, 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combine": "weighted"}, "set `weights` only with"),
        ({"weights": (1, 1)}, "set `weights` only with"),
        ({"combine": "weighted", "weights": (1, 1, 1)}, "3 weights for 2 teachers"),
        ({"combine": "gate", "drop": 0.5}, "a gate needs all teachers"),
    ],
)
def test_incompatible_options_raise(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTeacher(others=(SMALL,), **fields)


def test_single_teacher_is_never_dropped() -> None:
    with pytest.raises(ValueError, match="set dense: true"):
        Assistant(chain=(SMALL,), drop=0.5)


def test_missing_teacher_raises() -> None:
    parts = replace(Three().parts, teacher=None)
    for scheme in (Offline(), MultiTeacher(others=(SMALL,)), BornAgain(first="teacher")):
        with pytest.raises(ValueError, match="needs a teacher and the study has none"):
            scheme.build(parts)


def test_pretrained_self_teaches_at_its_temperature() -> None:
    """Yuan 2020, Tf-KD_self: (1 - alpha) CE + alpha T^2 KL."""
    three = Three()
    student, z = three.logits()
    output = TfKdSelf(alpha=0.7, temperature=5).build(three.parts)(batch(0), Progress(0, 4))
    lesson = kd(student, softmax(z[0] / 5), 5)
    expected = 0.3 * output.terms["task"].item() + 0.7 * lesson
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)


def test_generation_without_terms_follows_previous_probabilities() -> None:
    """Furlanello 2018, section 3: both outputs at temperature 1."""
    three = Three(())
    student, z = three.logits()
    output = BornAgain().build(three.parts)(batch(0), Progress(0, 4))
    assert output.terms["kd"].item() == pytest.approx(kd(student, softmax(z[0]), 1), rel=1e-4)


def test_networks_are_not_modified() -> None:
    three = Three()
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in three.networks]
    three.step(combine="gate").loss.backward()
    for network, state in zip(three.networks, before, strict=True):
        assert isinstance(network, nn.Module) and not network.training
        assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items())
