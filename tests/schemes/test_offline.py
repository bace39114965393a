"""The offline scheme, its teacher, and the null arm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from helpers.scheme_cases import BATCH, STUDENT, TASK, batch, build, ready, trained_teacher
from raykd.losses import KD, Hint, Pair, Term
from raykd.schemes import Alone, LiveTeacher, Offline, SchemeInputs

STAGE2 = (Pair(hint="stage2", guided="stage2"),)


def test_loss_is_cross_entropy_plus_weighted_terms() -> None:
    terms = (Term(loss=KD(), weight=2), Term(loss=Hint(), weight=3, pairs=STAGE2))
    output = ready(Offline(task_weight=0.5), terms=terms).step(0)
    expected = 0.5 * output.terms["task"] + 2 * output.terms["kd"] + 3 * output.terms["hint"]
    torch.testing.assert_close(output.loss.detach(), expected)
    torch.testing.assert_close(
        output.terms["task"], F.cross_entropy(output.logits, batch(0).targets)
    )


def test_kd_uses_teacher_in_eval_mode() -> None:
    case = ready(Offline(), terms=(Term(loss=KD()),))
    case.distiller.train()
    output = case.step(0)
    with torch.no_grad():
        taught = trained_teacher().eval()(batch(0).inputs)
    expected = KD()(output.logits, taught, batch(0).targets)
    torch.testing.assert_close(output.terms["kd"], expected)


def test_fitnets_trains_in_two_stages() -> None:
    terms = (
        Term(loss=Hint(), weight=100, pairs=STAGE2, stop_epoch=1),
        Term(loss=KD(), weight=0.9, start_epoch=1),
    )
    case = ready(Offline(start_epoch=1), terms=terms)
    first, later = case.step(0), case.step(3)
    torch.testing.assert_close(first.loss.detach(), 100 * first.terms["hint"])
    assert "kd" not in first.terms and "hint" not in later.terms
    torch.testing.assert_close(later.loss.detach(), later.terms["task"] + 0.9 * later.terms["kd"])


def test_connectors_are_trained_with_student() -> None:
    names = [name for name, _ in ready(Offline()).distiller.named_parameters()]
    assert any(name.startswith("terms.losses.hint") for name in names)


def test_missing_teacher_raises() -> None:
    student = build(STUDENT)
    parts = SchemeInputs(student, lambda: student, None, (), F.cross_entropy, TASK, 8, 8)
    with pytest.raises(ValueError, match="needs a teacher"):
        Offline().build(parts)


def test_unknown_hint_layer_raises() -> None:
    with pytest.raises(ValueError, match="stage9"):
        LiveTeacher(trained_teacher(), ("stage9",), TASK)


def test_teacher_without_logits_returns_same_layers() -> None:
    whole = LiveTeacher(trained_teacher(), ("stage2", "embedding"), TASK)(batch(0))
    cut = LiveTeacher(trained_teacher(), ("stage2", "embedding"), TASK, logits=False)
    for _ in range(2):
        outputs = cut(batch(0))
        assert outputs.logits.shape == (BATCH, 0)
        for name in ("stage2", "embedding"):
            torch.testing.assert_close(outputs.layers[name], whole.layers[name])


def test_no_teacher_is_plain_training() -> None:
    case = ready(Alone())
    output = case.step(0)
    assert list(output.terms) == ["task"]
    torch.testing.assert_close(output.loss.detach(), output.terms["task"])
