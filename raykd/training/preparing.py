"""The teachers of a study, trained where they are needed: for a notebook or a script."""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping

import torch
from torch import nn

from raykd.data import Dataset, Placement
from raykd.schemes import Preparation
from raykd.study.schema import Study
from raykd.study.teachers import needed_by
from raykd.training.assembly import task_of
from raykd.training.loop import Training
from raykd.training.normalizing import adapted
from raykd.training.output_check import output_signs, outputs_warning
from raykd.training.teacher import (
    load_network,
    normalization_of,
    preparation_key,
    preparing_study,
)

Networks = MutableMapping[str, nn.Module]
"""Trained networks by their content address."""


def train_teachers(
    study: Study,
    data: Dataset,
    *,
    seed: int | None = None,
    known: Networks | None = None,
    device: torch.device | str = "cpu",
) -> list[nn.Module]:
    """The networks that teach under a concrete study's scheme, in the scheme's order, and after
    them the one that its student inherits from, where it does.

    `Training(study, data, seed=..., teacher=train_teachers(study, data))` is a whole distillation
    without a search.

    Args:
        study: concrete.
        data: what they are trained on.
        seed: of those that many trials share; None: the study's.
        known: trained before; what is trained now joins them.
        device: where to train.

    Raises:
        ValueError: named weights cannot be read, or only MLflow has them; or a teacher's outputs
            are NaN or infinite.
        Diverged: a training did not converge.

    Warns:
        UserWarning: a teacher gives probabilities instead of logits.
    """
    known = {} if known is None else known
    return [
        _network(prepared, study, data, known, torch.device(device))
        for prepared in needed_by(study, seed)
    ]


def _network(
    prepared: Preparation, study: Study, data: Dataset, known: Networks, device: torch.device
) -> nn.Module:
    key = preparation_key(prepared, study, data.fingerprint, data.class_names)
    if key not in known:
        if prepared.weights is not None:
            network = load_network(prepared, task_of(data))
            network = adapted(network, data, normalization_of(prepared)).to(device)
        else:
            teachers = [_network(one, study, data, known, device) for one in prepared.needs]
            own = preparing_study(study, prepared)
            training = Training(
                own, data, seed=own.seed, teacher=teachers, placement=Placement(device)
            )
            while training.epoch < training.epochs:
                training.run_epoch()
            network = training.student.eval()
        _check_outputs(network, prepared, data, device)
        known[key] = network
    return known[key]


def _check_outputs(
    network: nn.Module, prepared: Preparation, data: Dataset, device: torch.device
) -> None:
    model = prepared.model
    name = f"teacher {model.name if model is not None else prepared.weights}"
    try:
        signs = output_signs(network, data, device=device)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    warning = outputs_warning(name, signs)
    if warning:
        warnings.warn(warning, stacklevel=4)
