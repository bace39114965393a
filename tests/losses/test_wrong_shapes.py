"""Mismatched shapes raise in every loss instead of being broadcast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.loss_cases import CLASSES, Case, label, make, variants
from raykd.losses import KD, Hint, Loss, ModelOutputs, PairLoss, ResponseLoss
from raykd.losses.connectors import PlaceMean
from raykd.losses.fsp import Fsp
from raykd.losses.ft import Ft
from raykd.losses.reviewkd import ReviewKD
from raykd.losses.simkd import SimKD

ALL = variants()
ON_LOGITS = [loss for loss in ALL if isinstance(loss, ResponseLoss)]
ON_PAIRS = [
    loss
    for loss in ALL
    if isinstance(loss, PairLoss) and type(loss).__call__ is not PairLoss.__call__
]


def test_logits_are_not_broadcast() -> None:
    student, teacher = torch.randn(8, 10), torch.randn(8, 1)
    with pytest.raises(ValueError, match=r"kd: .* \(8, 10\) .* \(8, 1\); both must be"):
        KD()(student, teacher, torch.zeros(8).long())


@pytest.mark.parametrize(
    ("student", "teacher", "targets"),
    [
        ((4, 5), (4, 1), (4,)),
        ((4, 5), (1, 5), (4,)),
        ((4, 5), (4, 6), (4,)),
        ((4, 5), (5,), (4,)),
        ((4, 5, 2), (4, 5, 2), (4,)),
        ((4, 5), (4, 5), (3,)),
        ((4, 5), (4, 5), (4, 1)),
        ((4, 5), (4, 5), ()),
    ],
)
@pytest.mark.parametrize("loss", ON_LOGITS, ids=label)
def test_mismatched_logits_raise(
    loss: ResponseLoss,
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    targets: tuple[int, ...],
) -> None:
    labels = torch.zeros(targets).long()
    with pytest.raises(ValueError, match=f"^{loss.name}: "):
        loss(torch.randn(student), torch.randn(teacher), labels)


@pytest.mark.parametrize("loss", [each for each in ON_LOGITS if "softmax" in each.kinds], ids=label)
def test_labels_must_be_integers(loss: ResponseLoss) -> None:
    logits = torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"must be (integers|values of shape \(4, 5\))"):
        loss(logits, logits, torch.zeros(4))


@pytest.mark.parametrize("loss", ON_PAIRS, ids=label)
def test_mismatched_batch_sizes_raise(loss: PairLoss) -> None:
    layer = torch.randn(4, 6, 2, 2)
    for other in (torch.randn(1, 6, 2, 2), torch.randn(3, 6, 2, 2), torch.randn(4)):
        with pytest.raises(ValueError, match=f"^{loss.name}: "):
            loss(layer, other)
        with pytest.raises(ValueError, match=f"^{loss.name}: "):
            loss(other, layer)


@pytest.mark.parametrize("loss", [loss for loss in ON_PAIRS if loss.same_shape], ids=label)
def test_mismatched_layer_shapes_raise(loss: PairLoss) -> None:
    for other in ((4, 6, 2, 1), (4, 1, 2, 2), (4, 6, 4, 4), (4, 6)):
        with pytest.raises(ValueError, match=f"^{loss.name}: "):
            loss(torch.randn(4, 6, 2, 2), torch.randn(other))


def test_formula_methods_check_shapes() -> None:
    layer, other = torch.randn(4, 6, 4, 4), torch.randn(4, 1, 4, 4)
    for loss in (Ft(), ReviewKD(), SimKD()):
        with pytest.raises(ValueError, match=f"^{loss.name}: "):
            loss(layer, other)
    with pytest.raises(ValueError, match=r"^fsp: "):
        Fsp()((layer, layer), (layer, other))


Change = Callable[[Case], Case]


def longer(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:1]


def layers_of(evidence: ModelOutputs, change: Callable[[Tensor], Tensor]) -> ModelOutputs:
    return ModelOutputs(
        evidence.logits, {k: change(v.detach()) for k, v in evidence.layers.items()}
    )


@pytest.mark.parametrize("loss", ALL, ids=label)
def test_modules_check_batches_and_shapes(loss: Loss) -> None:
    case = make(loss)
    wrong = [
        dataclasses.replace(case, targets=longer(case.targets)),
        dataclasses.replace(case, targets=case.targets.float().flatten()),
        dataclasses.replace(case, index=shorter(case.index)),
    ]
    if loss.takes_pairs:
        changes = [
            longer,
            shorter,
            lambda layer: layer[:, :1],
            lambda layer: layer[..., None],
        ]
        for change in changes:
            wrong.append(dataclasses.replace(case, student=layers_of(case.student, change)))
            wrong.append(dataclasses.replace(case, teacher=layers_of(case.teacher, change)))
    if loss.reads_logits:
        for other in (torch.randn(6, 1), torch.randn(1, CLASSES), torch.randn(6, CLASSES + 1)):
            taught = ModelOutputs(other, case.teacher.layers)
            wrong.append(dataclasses.replace(case, teacher=taught))
    for changed in wrong:
        with pytest.raises(ValueError, match="shape"):
            changed.value()


def test_error_suggests_missing_connector() -> None:
    with pytest.raises(ValueError, match=r"loss\.connector\(guided_shape, hint_shape\)"):
        Hint()(torch.randn(2, 6), torch.randn(2, 8))


def test_embedding_for_spatial_loss_raises() -> None:
    with pytest.raises(ValueError, match="no places"):
        PlaceMean()(torch.randn(4, 6))
