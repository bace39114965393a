"""Students compiled by torch.compile equal uncompiled students; needs a C++ compiler."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from helpers.training_cases import alone, digits, taught, teacher, weights
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Resnet
from raykd.study.config import Student, Study
from raykd.training.trainer import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def trained(study: Study, width: int = 16) -> Training:
    study = replace(study, student=Student(model=Resnet(depth=8, width=width)))
    needs = study.scheme.needs_teacher
    training = Training(study, digits(), seed=0, teacher=teacher() if needs else None)
    training.run_epoch()
    return training


def test_compiled_student_learns_same_and_can_be_saved() -> None:
    plain, compiled = (trained(taught(compile=mode)) for mode in ("none", "default"))
    assert compiled.student._compiled_call_impl is not None
    for name in ("train_loss", "val_loss", "term_kd"):
        assert compiled.history[0][name] == pytest.approx(plain.history[0][name], rel=1e-3)
    assert weights(compiled.student).keys() == weights(plain.student).keys()
    saved = pickle.loads(pickle.dumps(compiled.student)).eval()
    pictures = torch.randn(4, 1, 8, 8)
    expected = compiled.student.eval()._call_impl(pictures)
    torch.testing.assert_close(saved(pictures), expected, rtol=1e-4, atol=1e-5)


def test_layers_of_compiled_student_can_be_captured() -> None:
    term = Term(loss=LOSSES["hint"](), pairs=(Pair(hint="stage2", guided="stage2"),))
    plain, compiled = (trained(taught(term, compile=mode)) for mode in ("none", "default"))
    assert compiled.history[0]["term_hint"] == pytest.approx(
        plain.history[0]["term_hint"], rel=1e-3
    )


def test_layers_with_onednn_error_are_not_compiled_on_cpu() -> None:
    """The compiler would put the channels last (see raykd.training.memory_format)."""
    training = trained(alone(compile="default"), width=4)
    assert training.student._compiled_call_impl is None
