"""Cost of the deployed network, where it differs from the student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers.study_files import opened
from raykd.errors import Infeasible
from raykd.losses import KD, LOSSES, Pair, Term
from raykd.models import ModelProfile, Resnet, Signature, profile_model
from raykd.schemes import Alone, Assistant, BornAgain, Dml, Offline, Scheme, Teacher
from raykd.study.candidate import Candidate
from raykd.study.checks.layer_pairs import PairError
from raykd.study.config import Study
from raykd.study.deployment import deployed_profile

TASK = Signature((1, 8, 8), 10)

TEXT = """\
name: x
data: digits
teacher: {model: {name: resnet, depth: 14, width: 8}, train: {epochs: 1}}
student: {model: {name: resnet, depth: 8, width: 4}}
knowledge: [{loss: simkd}]
"""


def study_with(*terms: Term, **fields: Any) -> Study:
    study = opened(TEXT).concrete()
    return replace(study, knowledge=terms or study.knowledge, **fields)


def profile_of(study: Study) -> ModelProfile:
    candidate = Candidate(study, TASK, study.seed)
    return deployed_profile(candidate.resolved, candidate.student, TASK)


def test_cost_of_plain_student() -> None:
    study = study_with(Term(loss=KD()))
    assert profile_of(study) is profile_model(study.student.model, TASK)


def test_projector_and_teachers_classifier_are_counted() -> None:
    profile = profile_model(Resnet(depth=8, width=4), TASK)
    deployed = profile_of(study_with())
    projector = 16 * 16 + 16 * 16 * 9 + 16 * 32
    norms = 2 * (16 + 16 + 32)
    assert deployed.params == profile.params - (16 * 10 + 10) + projector + norms + (32 * 10 + 10)
    assert deployed.macs == profile.macs - 16 * 10 + 2 * 2 * projector + 32 * 10
    assert deployed.layers == profile.layers


def test_cost_depends_on_pairs() -> None:
    shallow = Term(loss=LOSSES["simkd"](), pairs=(Pair(hint="stage2", guided="stage2"),))
    assert profile_of(study_with(shallow)).params != profile_of(study_with()).params


def test_scheme_without_terms_deploys_student() -> None:
    study = study_with(scheme=Alone())
    student = profile_model(study.student.model, TASK)
    assert deployed_profile(study, student, TASK) is student


@pytest.mark.parametrize(
    "scheme",
    [
        Dml(),
        BornAgain(generations=2),
        Assistant(chain=(Teacher(model=Resnet(depth=8, width=6)),), dense=True),
    ],
    ids=lambda scheme: scheme.name,
)
def test_schemes_without_teachers_classifier(scheme: Scheme) -> None:
    study = study_with(scheme=scheme)
    student = profile_model(study.student.model, TASK)
    pairs = (Pair(hint="stage3", guided="stage3"),)
    study = replace(study, knowledge=(Term(loss=LOSSES["simkd"](), pairs=pairs),))
    with pytest.raises(Infeasible, match=f"'simkd'.*('{scheme.name}'|networks that teach others)"):
        deployed_profile(study, student, TASK)


@pytest.mark.parametrize(
    "scheme",
    [
        Offline(),
        BornAgain(),
        Assistant(chain=(Teacher(model=Resnet(depth=8, width=6)),)),
    ],
    ids=lambda scheme: scheme.name,
)
def test_schemes_with_teachers_classifier(scheme: Scheme) -> None:
    widths = {"offline": 32, "born_again": 16, "assistant": 24}
    classifier = widths[scheme.name] * 10 + 10
    deployed = profile_of(study_with(scheme=scheme))
    profile = profile_model(Resnet(depth=8, width=4), TASK)
    middle = widths[scheme.name] // 2
    projector = 16 * middle + middle * middle * 9 + middle * 2 * middle
    norms = 2 * (middle + middle + 2 * middle)
    assert deployed.params == profile.params - 170 + projector + norms + classifier


def test_assistant_keeps_its_classifier() -> None:
    chain = (Teacher(model=Resnet(depth=8, width=6)),)
    scheme = Assistant(chain=chain, knowledge=(Term(loss=LOSSES["simkd"]()),))
    with pytest.raises(Infeasible, match="networks that teach others"):
        profile_of(study_with(Term(loss=KD()), scheme=scheme))


def test_invalid_split_layer_raises() -> None:
    pairs = (Pair(hint="stage3.0.conv2", guided="stage3"),)
    with pytest.raises(PairError, match=r"knowledge\[0\]\.pairs: the logits depend on more than"):
        profile_of(study_with(Term(loss=LOSSES["simkd"](), pairs=pairs)))


def test_term_on_removed_layer_raises() -> None:
    pkt = Term(loss=LOSSES["pkt"]())
    with pytest.raises(PairError, match="student ends after 'stage3' under simkd"):
        profile_of(study_with(Term(loss=LOSSES["simkd"]()), pkt))


def test_second_simkd_term_raises() -> None:
    simkd = Term(loss=LOSSES["simkd"]())
    with pytest.raises(PairError, match=r"knowledge\[1\].*is used twice"):
        profile_of(study_with(simkd, simkd))


def test_unknown_teacher_model_raises() -> None:
    study = study_with(teacher=Teacher(weights="models:/big@champion"))
    with pytest.raises(PairError, match="name the `model` under `teacher`"):
        deployed_profile(study, profile_model(study.student.model, TASK), TASK)
