"""Students deployed with their teacher's classifier (simkd)."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.scheme_cases import SIZE, STUDENT, TASK, TEACHER, Case, batch, build, trained_teacher
from raykd.losses import KD, Hint, Pair, Term
from raykd.losses.simkd import SimKD
from raykd.models import WideResnet
from raykd.schemes import (
    Dml,
    LiveTeacher,
    MultiTeacher,
    Offline,
    Scheme,
    SchemeInputs,
    Teacher,
    TeacherInputs,
)
from raykd.schemes.classifier_reuse import Reusing

LAST = (Pair(hint="stage3", guided="stage3"),)
SIMKD = Term(loss=SimKD(), weight=10, pairs=LAST)
SHAPES = {"stage1": (4, 8, 8), "stage2": (8, 4, 4), "stage3": (16, 2, 2), "embedding": (16,)}


def parts_for(*terms: Term, teacher: nn.Module | None = None) -> SchemeInputs:
    torch.manual_seed(0)
    student = build(STUDENT)
    teacher = teacher or trained_teacher()
    hints = {name: (2 * shape[0], *shape[1:]) for name, shape in SHAPES.items()}
    named = tuple({pair.hint: None for term in terms for pair in term.pairs or ()})
    return SchemeInputs(
        student=student,
        build_student=lambda: build(STUDENT),
        teacher=LiveTeacher(teacher, named, TASK),
        terms=terms,
        task_loss=F.cross_entropy,
        signature=TASK,
        train_size=SIZE,
        data_size=SIZE,
        guided_shapes=SHAPES,
        hint_shapes=hints,
        teacher_network=teacher,
    )


def ready(*terms: Term, scheme: Scheme | None = None) -> Case:
    return Case((scheme or Offline()).build(parts_for(*terms)), [])


def test_logits_come_from_teachers_classifier_on_projected_features() -> None:
    case = ready(SIMKD)
    student = case.distiller.student.eval()
    assert isinstance(student, Reusing)
    inputs = batch(0).inputs
    projected = student.projector(student.trunk(inputs))
    assert projected.shape == (len(inputs), 32, 2, 2)
    classifier = trained_teacher().eval().get_submodule("classifier")
    torch.testing.assert_close(student(inputs), classifier(projected.mean(dim=(2, 3))))
    torch.testing.assert_close(case.step(0).logits, student(inputs).detach())


def test_loss_is_only_mean_square() -> None:
    case = ready(SIMKD)
    output = case.step(0)
    case.distiller.eval()
    student = case.distiller.student
    assert isinstance(student, Reusing)
    output = case.step(0)
    hint = LiveTeacher(trained_teacher(), ("stage3",), TASK)(batch(0)).layers["stage3"]
    expected = F.mse_loss(student.projector(student.trunk(batch(0).inputs)), hint)
    torch.testing.assert_close(output.terms["simkd"], expected.detach())
    torch.testing.assert_close(output.loss.detach(), 10 * expected.detach())
    labels = F.cross_entropy(output.logits, batch(0).targets)
    torch.testing.assert_close(output.terms["task"], labels)


def test_labels_are_used_after_term_stops() -> None:
    case = ready(dataclasses.replace(SIMKD, stop_epoch=1))
    assert "simkd" in case.step(0).terms
    later = case.step(3)
    assert "simkd" not in later.terms
    torch.testing.assert_close(later.loss.detach(), later.terms["task"])


def test_student_learns_and_teacher_classifier_is_frozen() -> None:
    case = ready(SIMKD)
    student = case.distiller.student
    assert isinstance(student, Reusing)
    before = copy.deepcopy(student.head.state_dict())
    values = case.train(15)
    assert sum(values[-3:]) < 0.8 * sum(values[:3])
    for name, value in student.head.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not student.head.network.training


def test_trained_parameters_are_saved_ones_except_head() -> None:
    case = ready(SIMKD)
    case.step(0).loss.backward()
    trained = [n for n, p in case.distiller.named_parameters() if p.requires_grad]
    assert all(name.startswith(("student.trunk", "student.projector")) for name in trained)
    assert all(p.grad is not None for p in case.distiller.parameters() if p.requires_grad)
    frozen = [n for n, p in case.distiller.named_parameters() if not p.requires_grad]
    assert [name.rpartition(".")[2] for name in frozen] == ["weight", "bias"]
    assert not any("trunk.network.classifier" in name for name in trained)


def test_other_terms_can_be_combined() -> None:
    hint = Term(loss=Hint(), weight=3, pairs=(Pair(hint="stage1", guided="stage1"),))
    case = ready(SIMKD, Term(loss=KD(), weight=2), hint)
    output = case.step(0)
    expected = 10 * output.terms["simkd"] + 2 * output.terms["kd"] + 3 * output.terms["hint"]
    torch.testing.assert_close(output.loss.detach(), expected)
    taught = trained_teacher().eval()(batch(0).inputs).detach()
    torch.testing.assert_close(output.terms["kd"], KD()(output.logits, taught, batch(0).targets))


def test_other_terms_may_read_last_layer_unprojected() -> None:
    case = ready(SIMKD, Term(loss=Hint(), weight=1, pairs=LAST))
    output = case.step(0)
    assert output.terms["hint"] != output.terms["simkd"]
    output.loss.backward()
    assert all(p.grad is not None for p in case.distiller.parameters() if p.requires_grad)


def test_signed_teacher_layer_can_be_matched() -> None:
    torch.manual_seed(1)
    teacher = WideResnet(depth=10, widen=2).build(TASK)
    parts = parts_for(SIMKD, teacher=teacher)
    hint_shapes = {"stage3": (128, 2, 2)}
    student = Offline().build(dataclasses.replace(parts, hint_shapes=hint_shapes)).student
    assert isinstance(student, Reusing)
    assert (student.projector(student.trunk(batch(0).inputs)) < 0).any()


def test_smaller_map_is_averaged_before_classifier() -> None:
    teacher = trained_teacher()
    pair = (Pair(hint="stage2", guided="stage3"),)
    case = Offline().build(parts_for(dataclasses.replace(SIMKD, pairs=pair), teacher=teacher))
    student = case.student.eval()
    assert isinstance(student, Reusing)
    inputs = batch(0).inputs
    small = student.projector(student.trunk(inputs))
    assert small.shape[2:] == (2, 2)
    repeated = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = teacher.get_submodule("stage3")(repeated).mean(dim=(2, 3))
    logits = teacher.get_submodule("classifier")(expected)
    torch.testing.assert_close(student(inputs), logits)


def test_model_and_state_can_be_saved_and_loaded() -> None:
    case = ready(SIMKD)
    case.train(3)
    student, inputs = case.distiller.student.eval(), batch(0).inputs
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    torch.testing.assert_close(read(inputs), student(inputs), rtol=0, atol=0)
    other = ready(SIMKD)
    other.distiller.load_state_dict(case.distiller.state_dict())
    torch.testing.assert_close(other.distiller.student.eval()(inputs), student(inputs))


@pytest.mark.parametrize("scheme", [Dml(), MultiTeacher(others=(Teacher(model=TEACHER),))])
def test_other_schemes_reject_simkd(scheme: Scheme) -> None:
    parts = parts_for(SIMKD)
    assert parts.teacher is not None
    other = TeacherInputs(parts.teacher, parts.terms, parts.hint_shapes)
    with pytest.raises(ValueError, match=r"'simkd'.*scheme: \{name: offline\}"):
        scheme.build(dataclasses.replace(parts, more_teachers=(other,)))


def test_missing_layer_raises() -> None:
    embedding = (Pair(hint="embedding", guided="embedding"),)
    with pytest.raises(ValueError, match=r"student ends after 'stage3' under simkd.*'embedding'"):
        ready(SIMKD, Term(loss=Hint(), weight=1, pairs=embedding))


def test_cached_teacher_without_network_raises() -> None:
    parts = dataclasses.replace(parts_for(SIMKD), teacher_network=None)
    with pytest.raises(ValueError, match=r"set `SchemeInputs\.teacher_network`"):
        Offline().build(parts)


def test_two_simkd_terms_raise() -> None:
    with pytest.raises(ValueError, match="'simkd' and 'simkd_2' each replace"):
        ready(SIMKD, SIMKD)


def test_epoch_without_trained_parameters_raises() -> None:
    case = ready(Term(loss=KD(), start_epoch=1), scheme=Offline(start_epoch=2))
    case.distiller.train()
    with pytest.raises(ValueError, match=r"nothing is trained in epoch 0.*starts in epoch 2"):
        case.step(0)
    assert case.step(3).loss.requires_grad
