"""Resolving layer pairs: defaults, names, incompatible pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.study_files import opened
from raykd.losses import LOSSES, Pair, Term
from raykd.models import Signature, profile_model
from raykd.study.checks.layer_pairs import PairError, resolve_pairs, stages_of
from raykd.study.config import Study

TASK = Signature((1, 8, 8), 10)

TEXT = """\
name: x
data: digits
teacher: {model: {name: resnet, depth: 14, width: 8}, train: {epochs: 1}}
student: {model: {name: resnet, depth: 8, width: 4}}
knowledge: [{loss: kd}]
"""


def study_with(term: Term, student: str = "{name: resnet, depth: 8, width: 4}") -> Study:
    study = opened(TEXT, f"student.model={student}").concrete()
    return replace(study, knowledge=(term,))


def resolved(term: Term, student: str = "{name: resnet, depth: 8, width: 4}") -> Term:
    study = study_with(term, student)
    assert study.teacher is not None
    assert study.teacher.model is not None
    models = profile_model(study.student.model, TASK), profile_model(study.teacher.model, TASK)
    (term,) = resolve_pairs(study, models[0], models[1:]).knowledge
    return term


@pytest.mark.parametrize("name", sorted(LOSSES.members))
def test_every_loss_has_default_pairs_between_two_resnets(name: str) -> None:
    loss = LOSSES[name]()
    term = resolved(Term(loss=loss))
    expected = {
        "stages": tuple(Pair(hint=f"stage{i}", guided=f"stage{i}") for i in (1, 2, 3)),
        "last": (Pair(hint="stage3", guided="stage3"),),
        "embedding": (Pair(hint="embedding", guided="embedding"),),
        "none": () if loss.takes_pairs else None,
    }
    assert term.pairs == expected[loss.default_pairs]


def test_stages_are_paired_from_deepest() -> None:
    term = resolved(Term(loss=LOSSES["rkd"]()), "{name: mlp, depth: 2, width: 8}")
    assert term.pairs == (Pair(hint="embedding", guided="embedding"),)
    mlp = profile_model(study_with(Term(), "{name: mlp, depth: 2, width: 8}").student.model, TASK)
    assert len(stages_of(mlp)) >= 1


@pytest.mark.parametrize(
    "term",
    [Term(), Term(loss=LOSSES["hint"](), weight=0), Term(loss=LOSSES["kd"]())],
    ids=["no loss", "no weight", "no pairs"],
)
def test_terms_without_pairs_are_unchanged(term: Term) -> None:
    assert resolved(term) == term


def test_dotted_module_names_are_layers() -> None:
    layer = profile_model(study_with(Term()).student.model, TASK).aliases["stage2"]
    pairs = (Pair(hint="stage2", guided=layer),)
    assert resolved(Term(loss=LOSSES["hint"](), pairs=pairs)).pairs == pairs


def test_unknown_layers() -> None:
    for pair, side in (
        (Pair(hint="stage22", guided="stage2"), "hint"),
        (Pair(hint="stage2", guided="stage22"), "guided"),
    ):
        with pytest.raises(PairError, match="did you mean 'stage2'") as caught:
            resolved(Term(loss=LOSSES["hint"](), pairs=(pair,)))
        assert caught.value.place == ("knowledge", 0, "pairs", 0, side)


def test_incompatible_pairs_error_names_layers_and_shapes() -> None:
    pairs = (Pair(hint="stage1", guided="embedding"),)
    with pytest.raises(ValueError, match="knowledge") as caught:
        resolved(Term(loss=LOSSES["hint"](), pairs=pairs))
    for word in ("knowledge[0].pairs", "'embedding'", "(16,)", "'stage1'", "(8, 8, 8)"):
        assert word in str(caught.value)


def test_hints_of_unknown_teacher_are_unchanged() -> None:
    study = study_with(Term(loss=LOSSES["hint"]()))
    student = profile_model(study.student.model, TASK)
    assert resolve_pairs(study, student, (None,)) == study
    wrong = study_with(Term(loss=LOSSES["hint"](), pairs=(Pair(hint="x", guided="y"),)))
    with pytest.raises(PairError, match="student: there is no layer 'y'"):
        resolve_pairs(wrong, student, (None,))
