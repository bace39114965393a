"""Terms: weights, names, schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from raykd.losses import (
    KD,
    LOSSES,
    AttentionTransfer,
    Hint,
    LossContext,
    ModelOutputs,
    Pair,
    Progress,
    Term,
    Terms,
    term_names,
)
from raykd.losses.terms import LayerShapes

LOGITS = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]])
TEACHER = ModelOutputs(LOGITS.flip(1), {"stage1": torch.ones(2, 4, 2, 2)})
ROWS = torch.arange(2)
STUDENT = ModelOutputs(LOGITS, {"stage1": torch.zeros(2, 3, 2, 2)})
PAIRS = (Pair(hint="stage1", guided="stage1"),)


def ready(*terms: Term) -> Terms:
    shapes = {"stage1": (3, 2, 2)}, {"stage1": (4, 2, 2)}
    return Terms(
        terms,
        classes=3,
        train_size=2,
        data_size=2,
        shapes=LayerShapes(*shapes),
    )


def total(terms: Terms, progress: Progress) -> float:
    value, _ = terms(STUDENT, TEACHER, torch.tensor([0, 1]), torch.tensor([0, 1]), progress)
    return float(value)


def at(epoch: float, steps_per_epoch: int = 4) -> Progress:
    step = round(epoch * steps_per_epoch)
    return Progress(int(epoch), 8, step=step, steps_per_epoch=steps_per_epoch)


def test_weighted_sum_and_unweighted_values() -> None:
    terms = ready(Term(loss=KD(), weight=2), Term(loss=KD(temperature=1), weight=3))
    value, parts = terms(STUDENT, TEACHER, ROWS, ROWS, at(0))
    assert list(parts) == ["kd", "kd_2"]
    assert value.item() == pytest.approx(2 * parts["kd"].item() + 3 * parts["kd_2"].item())
    assert not parts["kd"].requires_grad


def test_names_are_unique() -> None:
    terms = [Term(loss=KD()), Term(loss=Hint(), pairs=PAIRS), Term(loss=KD()), Term(loss=KD())]
    assert term_names(terms) == ["kd", "hint", "kd_2", "kd_3"]


def test_inactive_terms_are_skipped() -> None:
    terms = ready(Term(), Term(loss=KD(), weight=0), Term(loss=Hint(), weight=0, pairs=PAIRS))
    assert list(terms.losses) == []
    assert terms.hint_layers == ()
    assert total(terms, at(0)) == 0


def test_required_layers_and_logits() -> None:
    hints = ready(Term(loss=Hint(), pairs=PAIRS))
    assert hints.hint_layers == hints.guided_layers == ("stage1",)
    assert not hints.reads_logits
    assert ready(Term(loss=KD())).reads_logits


def test_default_weight_comes_from_loss() -> None:
    assert Term(loss=Hint()).effective_weight == Hint.default_weight
    assert Term(loss=Hint(), weight=3).effective_weight == 3


def test_start_and_stop() -> None:
    terms = ready(Term(loss=KD(), start_epoch=2, stop_epoch=4))
    acted = [total(terms, at(epoch)) > 0 for epoch in range(6)]
    assert acted == [False, False, True, True, False, False]


def test_ramp_is_linear_from_start_epoch() -> None:
    term = Term(loss=KD(), weight=8, start_epoch=1, ramp_epochs=2)
    weights = [term.weight_at(at(epoch)) for epoch in (0.75, 1, 1.5, 2, 3, 5)]
    assert weights == [0, 0, 2, 4, 8, 8]


def test_connector_of_late_term_gets_no_gradient_before_its_start() -> None:
    assert ready(Term(loss=Hint(), pairs=PAIRS, start_epoch=1)).sometimes_unused
    assert not ready(Term(loss=Hint(), pairs=PAIRS)).sometimes_unused
    assert not ready(Term(loss=KD(), start_epoch=1)).sometimes_unused


def test_stop_before_start_raises() -> None:
    with pytest.raises(ValidationError, match="stop_epoch 2 is not after start_epoch 4"):
        TypeAdapter(Term).validate_python({"start_epoch": 4, "stop_epoch": 2})


def test_layer_without_shape_raises() -> None:
    with pytest.raises(ValueError, match="guided layer 'deep' has no known shape"):
        ready(Term(loss=Hint(), pairs=(Pair(hint="stage1", guided="deep"),)))


TWO = (
    Pair(hint="stage1", guided="stage1", weight=0.5),
    Pair(hint="stage1", guided="stage2", weight=3, loss=AttentionTransfer()),
)


def test_weight_and_loss_of_pair_are_applied() -> None:
    """0.5 x 2 x hint of the first pair and 3 x 2 x at of the second, each computed separately."""
    shapes = {"stage1": (4, 2, 2), "stage2": (4, 2, 2)}
    outputs = ModelOutputs(
        LOGITS, {"stage1": torch.rand(2, 4, 2, 2), "stage2": torch.rand(2, 4, 2, 2)}
    )
    taught = ModelOutputs(LOGITS, {"stage1": torch.rand(2, 4, 2, 2)})
    terms = Terms(
        [Term(loss=Hint(), weight=2, pairs=TWO)],
        classes=3,
        train_size=2,
        data_size=2,
        shapes=LayerShapes(shapes, shapes),
    )
    nothing = torch.tensor([0, 1])
    value, parts = terms(outputs, taught, nothing, nothing, at(0))
    hint = Hint()(outputs.layers["stage1"], taught.layers["stage1"])
    attention = AttentionTransfer()(outputs.layers["stage2"], taught.layers["stage1"])
    assert list(parts) == ["hint", "at"]
    assert parts["hint"].item() == pytest.approx(hint.item())
    assert parts["at"].item() == pytest.approx(attention.item())
    assert value.item() == pytest.approx(1.0 * hint.item() + 6.0 * attention.item())


def test_null_weight_uses_default_weight_times_factor() -> None:
    hint, attention = Term(loss=Hint(), pairs=TWO).parts
    assert hint.effective_weight == 0.5 * Hint.default_weight
    assert attention.effective_weight == 3 * AttentionTransfer.default_weight


def test_pairs_with_equal_weight_and_loss_share_module() -> None:
    plain = Term(loss=Hint(), pairs=PAIRS)
    assert plain.parts == (plain,)
    three = (*(Pair(hint="a", guided=name, weight=2) for name in "xy"), Pair(hint="b", guided="x"))
    first, second = Term(loss=Hint(), weight=3, pairs=three).parts
    assert [pair.guided for pair in first.pairs or ()] == ["x", "y"]
    assert (first.effective_weight, second.effective_weight) == (6, 3)


def test_pair_with_zero_weight_is_skipped() -> None:
    pairs = (Pair(hint="stage1", guided="stage1", weight=0),)
    assert list(ready(Term(loss=Hint(), pairs=pairs)).losses) == []


@pytest.mark.parametrize("name", sorted(LOSSES.members))
def test_pairs_apart_loss_is_sum_over_pairs(name: str) -> None:
    """Contract of `Loss.pairs_apart`, for every loss that sets it."""
    loss = LOSSES[name]()
    if not loss.pairs_apart:
        return
    torch.manual_seed(0)
    shape = (6, 4) if loss.name in ("attention_map", "value_relation") else (4, 4, 4)
    context = LossContext(
        pairs=(Pair(hint="a", guided="a"), Pair(hint="b", guided="b")),
        guided_shapes=(shape, shape),
        hint_shapes=(shape, shape),
        classes=3,
        train_size=8,
        data_size=8,
    )
    try:
        both = loss.build(context)
    except ValueError:
        pytest.skip("takes layers of another kind")
    layers = {key: torch.rand(4, *shape) for key in "ab"}
    taught = {key: torch.rand(4, *shape) for key in "ab"}
    outputs = ModelOutputs(torch.rand(4, 3), layers), ModelOutputs(torch.rand(4, 3), taught)
    index, targets = torch.arange(4), torch.tensor([0, 1, 2, 0])
    value = both(*outputs, targets, index, at(4))
    single = []
    for number, key in enumerate("ab"):
        judge = loss.build(replace(context, pairs=context.pairs[number : number + 1],
                                 guided_shapes=(shape,), hint_shapes=(shape,)))  # fmt: skip
        prefix = f"judges.{number}."
        state = both.state_dict().items()
        pair_state = {
            f"judges.0.{k.removeprefix(prefix)}": v for k, v in state if k.startswith(prefix)
        }
        judge.load_state_dict(pair_state)
        only = (
            ModelOutputs(outputs[0].logits, {key: layers[key]}),
            ModelOutputs(outputs[1].logits, taught),
        )
        single.append(judge(*only, targets, index, at(4)))
    if not loss.random:
        assert value.item() == pytest.approx(sum(judge.item() for judge in single), rel=1e-4)
