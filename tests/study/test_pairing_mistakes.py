"""Errors in architectures and pairings: one message each, before anything starts.

Each says where (file, line, path), what was found, what is allowed, and the fix.
"""

from __future__ import annotations

import pytest

from helpers.study_files import opened
from raykd.errors import StudyError

STUDY = """\
name: mistaken
data: {name: digits}
teacher:
  model: TEACHER
  train: {epochs: 2}
student:
  model: STUDENT
scheme: {name: offline}
knowledge:
  - loss: {name: kd}
  - loss: LOSS
    pairs: PAIRS
train: {epochs: 2}
"""
MODELS_LINE, PAIRS_LINE = 7, 12
RESNET = "{name: resnet, depth: 8, width: 4}"
VIT = "{name: vit, depth: 2, width: 16, heads: 4, patch: 2}"


def message_of(
    pairs: str = "{pairing: {}}",
    loss: str = "{name: hint}",
    student: str = RESNET,
    teacher: str = "{name: resnet, depth: 14, width: 8}",
) -> str:
    text = STUDY.replace("TEACHER", teacher).replace("STUDENT", student)
    with pytest.raises(StudyError) as caught:
        opened(text.replace("LOSS", loss).replace("PAIRS", pairs))
    (problem,) = caught.value.problems
    return str(problem)


PAIRINGS = [
    (
        {"pairs": "[{hint: stage22, guided: stage2}]"},
        "knowledge[1].pairs[0].hint: teacher: there is no layer 'stage22'; did you mean 'stage2'",
        "stages are stage1, stage2, stage3, embedding",
    ),
    (
        {"pairs": "{pairing: {hint: [embed.patches, stage3], guided: auto}}", "student": VIT},
        "knowledge[1].pairs.pairing.hint[0]: teacher: there is no layer 'embed.patches'",
        "-> the student has this layer: `hint` names the teacher's, `guided` the student's",
    ),
    (
        {"pairs": "[{hint: stage1, guided: embed.patches}]", "teacher": VIT},
        "knowledge[1].pairs[0].guided: student: there is no layer 'embed.patches'",
        "-> the teacher has this layer",
    ),
    (
        {"pairs": "{pairing: {hint: [stage1, stage2], guided: [embedding]}}"},
        "knowledge[1].pairs: none of its pairs can be compared: guided layer 'embedding' (16,) "
        "cannot be carried to hint layer 'stage1' (8, 8, 8)",
        "-> name other layers, or use another loss; `raykd layers` shows shapes",
    ),
    (
        {"pairs": "{pairing: {max: 2, order: reverse}}", "loss": "{name: reviewkd}"},
        "knowledge[1].pairs.pairing.order: loss 'reviewkd' compares all its pairs together, "
        "shallow to deep on both sides",
        "-> write `order: monotone`, or use a loss that compares pairs one by one",
    ),
    (
        {"pairs": "{pairing: {order: reversed}}"},
        "knowledge[1].pairs: `order` must be 'monotone', 'any' or 'reverse'; got 'reversed'",
        "-> did you mean 'reverse'?",
    ),
    (
        {
            "pairs": "{pairing: {guided: [stage1, stage4]}}",
            "teacher": "{name: resnet, stages: 4, depth: 10, width: 8}",
        },
        "knowledge[1].pairs.pairing.guided[1]: student: there is no layer 'stage4'; did you mean "
        "'stage3'",
        "-> the teacher has this layer",
    ),
    (
        {"pairs": "{pairing: {max: 0}}"},
        "knowledge[1].pairs: `max` must be a whole number >= 1; got 0",
        "-> for trials without pairs, write `loss` as a choice with null",
    ),
    (
        {"pairs": "{pairing: {min: 3, max: 2}}"},
        "knowledge[1].pairs: `min` 3 is greater than `max` 2",
        "-> exchange them",
    ),
    (
        {"pairs": "{pairing: {max: 1}}", "loss": "{name: fsp}"},
        "knowledge[1].pairs: loss 'fsp' needs at least 2 pairs and `max` is 1",
        "-> write `max: 2`",
    ),
    (
        {"pairs": "[]"},
        "knowledge[1].pairs: an empty list of pairs",
        "-> name pairs, or leave `pairs` out",
    ),
    (
        {"pairs": "{pairing: {pairs: []}}"},
        "knowledge[1].pairs: `pairs` must be a non-empty list of pairs",
        "-> write [[stage1, stage2], ...], hint layer first",
    ),
    (
        {"pairs": "{pairing: {pairs: [[stage1, stage1], [stage2]]}}"},
        "knowledge[1].pairs: `pairs[1]` must be a pair of layers; got ['stage2']",
        "-> write [HINT, GUIDED] or {hint: HINT, guided: GUIDED}",
    ),
    (
        {"pairs": "{pairing: {sets: [[[stage1, stage1]]], max: 2}}"},
        "knowledge[1].pairs: `sets` lists everything to draw, so `max` cannot be given",
        "-> remove `max`, or remove `sets`",
    ),
    (
        {
            "pairs": "{pairing: {max: 2, weight: {loguniform: [0.1, 10]}}}",
            "loss": "{name: reviewkd}",
        },
        "knowledge[1].pairs[0].weight: loss 'reviewkd' compares all its pairs together, so no pair "
        "can have a weight of its own",
        "-> remove the pair's `weight`, or set the weight of the term",
    ),
    (
        {"pairs": "{pairing: {max: 2, loss: {choice: [null, {name: semckd}]}}}"},
        "knowledge[1].pairs[0].loss: loss 'semckd' compares all its pairs together, so it cannot "
        "be the loss of a single pair",
        "-> use a loss that compares pairs one by one: hint, at, ",
    ),
    (
        {"pairs": "[{hint: stage1, guided: stage1, weight: -1.0}]"},
        "knowledge[1].pairs[0].weight: got -1.0; must be >= 0",
        "",
    ),
]

ARCHITECTURES = [
    (
        {"student": "{name: torchvision/resnet81}"},
        "student.model: torchvision has no model 'resnet81'; did you mean torchvision/resnet18",
        "",
    ),
    (
        {"student": "{name: resnet, depth: 9}"},
        "student.model.depth: a resnet's depth, with 3 stages of basic blocks, is 6n+2 (8, 14",
        "not 9",
    ),
    (
        {"student": "{name: hf/no-such-folder}"},
        "student.model: 'no-such-folder' is neither a folder here",
        "nor an architecture of transformers",
    ),
    (
        {"student": "{name: vit, depth: 2, width: 16, heads: 4, patch: 5}"},
        "student.model: ",
        "patch",
    ),
    (
        {"student": "{name: layer_pruning, keep: 5}"},
        "student.model.keep: got 5; must be <= 1",
        "",
    ),
    (
        {"student": "{name: hf/bert}"},
        "student.model: ",
        "no classifier of images",
    ),
]


@pytest.mark.parametrize(("written", "value", "allowed"), PAIRINGS, ids=lambda part: str(part)[:40])
def test_pairing_errors(written: dict[str, str], value: str, allowed: str) -> None:
    message = message_of(**written)
    assert message.startswith(f"study.yaml:{PAIRS_LINE}: {value}")
    assert allowed in message


@pytest.mark.parametrize(
    ("written", "value", "allowed"), ARCHITECTURES, ids=lambda part: str(part)[:40]
)
def test_architecture_errors(written: dict[str, str], value: str, allowed: str) -> None:
    message = message_of("[{hint: stage1, guided: stage1}]", **written)
    assert message.startswith(f"study.yaml:{MODELS_LINE}: {value}")
    assert allowed in message
