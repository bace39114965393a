"""Terms: weights, names, and when they act."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from raykd.knowledge import KD, Evidence, Hint, Pair, Progress, Term, Terms, term_names

LOGITS = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]])
TEACHER = Evidence(LOGITS.flip(1), {"stage1": torch.ones(2, 4, 2, 2)})
STUDENT = Evidence(LOGITS, {"stage1": torch.zeros(2, 3, 2, 2)})
PAIRS = (Pair(hint="stage1", guided="stage1"),)


def ready(*terms: Term) -> Terms:
    shapes = {"stage1": (3, 2, 2)}, {"stage1": (4, 2, 2)}
    return Terms(
        terms,
        classes=3,
        train_size=2,
        data_size=2,
        guided_shapes=shapes[0],
        hint_shapes=shapes[1],
    )


def total(terms: Terms, progress: Progress) -> float:
    value, _ = terms(STUDENT, TEACHER, torch.tensor([0, 1]), torch.tensor([0, 1]), progress)
    return float(value)


def at(epoch: float, steps_per_epoch: int = 4) -> Progress:
    step = round(epoch * steps_per_epoch)
    return Progress(int(epoch), 8, step=step, steps_per_epoch=steps_per_epoch)


def test_weighted_sum_and_unweighted_values() -> None:
    terms = ready(Term(loss=KD(), weight=2), Term(loss=KD(temperature=1), weight=3))
    value, parts = terms(STUDENT, TEACHER, torch.zeros(2), torch.zeros(2), at(0))
    assert list(parts) == ["kd", "kd_2"]
    assert value.item() == pytest.approx(2 * parts["kd"].item() + 3 * parts["kd_2"].item())
    assert not parts["kd"].requires_grad


def test_names_stay_distinct() -> None:
    terms = [Term(loss=KD()), Term(loss=Hint(), pairs=PAIRS), Term(loss=KD()), Term(loss=KD())]
    assert term_names(terms) == ["kd", "hint", "kd_2", "kd_3"]


def test_inactive_terms_are_left_out() -> None:
    terms = ready(Term(), Term(loss=KD(), weight=0), Term(loss=Hint(), weight=0, pairs=PAIRS))
    assert list(terms.losses) == []
    assert terms.hint_layers == ()
    assert total(terms, at(0)) == 0


def test_layers_and_logits_that_are_needed() -> None:
    hints = ready(Term(loss=Hint(), pairs=PAIRS))
    assert hints.hint_layers == hints.guided_layers == ("stage1",)
    assert not hints.reads_logits
    assert ready(Term(loss=KD())).reads_logits


def test_default_weight_is_the_losses_own() -> None:
    assert Term(loss=Hint()).effective_weight == Hint.default_weight
    assert Term(loss=Hint(), weight=3).effective_weight == 3


def test_start_and_stop() -> None:
    terms = ready(Term(loss=KD(), start_epoch=2, stop_epoch=4))
    acted = [total(terms, at(epoch)) > 0 for epoch in range(6)]
    assert acted == [False, False, True, True, False, False]


def test_ramp_is_linear_from_the_start_epoch() -> None:
    term = Term(loss=KD(), weight=8, start_epoch=1, ramp_epochs=2)
    weights = [term.weight_at(at(epoch)) for epoch in (0.75, 1, 1.5, 2, 3, 5)]
    assert weights == [0, 0, 2, 4, 8, 8]


def test_what_a_late_term_learns_gets_no_gradient_at_first() -> None:
    assert ready(Term(loss=Hint(), pairs=PAIRS, start_epoch=1)).sometimes_unused
    assert not ready(Term(loss=Hint(), pairs=PAIRS)).sometimes_unused
    assert not ready(Term(loss=KD(), start_epoch=1)).sometimes_unused


def test_stop_before_start_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop_epoch 2 is not after start_epoch 4"):
        TypeAdapter(Term).validate_python({"start_epoch": 4, "stop_epoch": 2})


def test_layer_without_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="guided layer 'deep' has no known shape"):
        ready(Term(loss=Hint(), pairs=(Pair(hint="stage1", guided="deep"),)))
