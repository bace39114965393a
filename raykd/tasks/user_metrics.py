"""Metrics of the user: classes of torchmetrics in a file, `FILE.py:NAME`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from raykd.metrics import Direction
from raykd.tasks.statistics import (
    IGNORED,
    MergedStatistic,
    SplitStatistic,
    Statistic,
    predicted_boxes,
    true_boxes,
)
from raykd.user_code import FILE_NAME, find_object

if TYPE_CHECKING:
    from torchmetrics import Metric

UserMetric = Annotated[str, Field(pattern=FILE_NAME, examples=["FILE.py:NAME"])]
"""Name of a metric of the user."""

_SAMPLES = 32
"""Number of random samples on which a metric is tried."""

_IMAGES, _SIDE, _BOXES = 3, 16, 2
"""Number, side and boxes of random images on which a metric of positions or boxes is tried."""


def build_user_metric(name: str) -> Metric:
    """Return a new metric, without samples.

    Args:
        name: `FILE.py:NAME`, registered in this process.

    Raises:
        ValueError: it is no metric of torchmetrics, cannot be built without arguments, or does not
            state its better direction.
    """
    from torchmetrics import Metric

    try:
        metric = find_object(name)()  # type: ignore[operator]
    except Exception as error:
        raise ValueError(
            f"{name} cannot be called without arguments ({type(error).__name__}: {error}); give "
            "its parameters defaults"
        ) from error
    if not isinstance(metric, Metric):
        raise ValueError(
            f"{name} is no metric but a {type(metric).__name__}; derive it from torchmetrics.Metric"
        )
    if not isinstance(metric.higher_is_better, bool):
        raise ValueError(
            f"{name} does not state its better direction; set its attribute `higher_is_better` to "
            "True or False"
        )
    for part in metric.modules():  # they get the responses of all workers
        if isinstance(part, Metric):
            part.distributed_available_fn = _never_distributed
    return metric


def _never_distributed() -> bool:
    return False


def user_metric_direction(name: str) -> Direction:
    """Return the better direction of a metric; raises ValueError as `build_user_metric`."""
    return "max" if build_user_metric(name).higher_is_better else "min"


def user_statistic(
    name: str, kind: str, scale: Sequence[float] = (), shift: Sequence[float] = ()
) -> Statistic:
    """Return the computation of a metric of the user.

    It gets all responses of a split at once; those of positions (`dense`), which are large, batch
    by batch.  Boxes are lists with a mapping for each image, as for torchmetrics'
    `MeanAveragePrecision`.

    Args:
        name: `FILE.py:NAME`.
        kind: of the response.
        scale, shift: units of values: value * scale + shift; () for values in their own units.
    """

    def in_units(values: Tensor) -> Tensor:
        if values.is_floating_point() and len(scale):
            values = values * values.new_tensor(scale) + values.new_tensor(shift)
        return values.float() if values.is_floating_point() else values

    def value(response: Tensor, targets: Tensor) -> float:
        metric = build_user_metric(name)
        metric.update(*_arguments(kind, in_units(response), in_units(targets)))
        return float(metric.compute())

    if kind == "dense":
        return MergedStatistic(partial(build_user_metric, name))
    return SplitStatistic(value)


def _arguments(kind: str, response: Tensor, targets: Tensor) -> tuple[Any, Any]:
    """Return the arguments of `update` for responses and targets."""
    if kind == "boxes":
        return predicted_boxes(response), true_boxes(targets)
    return response, targets


def try_user_metric(name: str, kind: str, outputs: int) -> None:
    """Compute a metric of random responses, as evaluations do.

    Args:
        name: `FILE.py:NAME`.
        kind: of the response.
        outputs: values of a response.

    Raises:
        ValueError: it does not return a number, or, for positions, the states of batches cannot be
            merged.
    """
    targets = random_targets(kind, outputs)
    response = _random_responses(kind, outputs, targets)
    metric = build_user_metric(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random responses
            metric.update(*_arguments(kind, response, targets))
            value = float(metric.compute())
    except Exception as error:
        text = " ".join(str(error).split())
        shapes = f"responses {tuple(response.shape)} and targets {tuple(targets.shape)}"
        if kind == "boxes":
            shapes = f"the boxes of {len(targets)} images"
        raise ValueError(f"{name} fails for {shapes}: {type(error).__name__}: {text}") from error
    if kind == "dense":
        _try_to_merge(name, response, targets, value)


def _try_to_merge(name: str, response: Tensor, targets: Tensor, whole: float) -> None:
    """Raise ValueError if a metric of two batches differs from that of their samples, `whole`."""
    statistic = MergedStatistic(partial(build_user_metric, name))
    states = []
    for rows in (slice(2), slice(2, None)):
        metric = statistic.build()
        metric.update(response[rows], targets[rows])
        states.append(metric.metric_state)
    try:
        merged = statistic.value(states)
    except Exception as error:
        raise ValueError(
            f"the states of {name} cannot be merged: {type(error).__name__}: {error}; set "
            "its attribute `full_state_update = False`, and in `add_state` "
            '`dist_reduce_fx="sum"` or "cat"'
        ) from error
    if not math.isclose(merged, whole, rel_tol=1e-3, abs_tol=1e-6) and not math.isnan(whole):
        raise ValueError(
            f"{name} depends on the division of the samples among batches: {merged:.6g} for two "
            f"batches, {whole:.6g} for one; keep sums and counts in its states, and divide in "
            "`compute`"
        )


def _random_responses(kind: str, outputs: int, targets: Tensor) -> Tensor:
    """Return responses for `random_targets`, or boxes near them."""
    generator = torch.Generator().manual_seed(0)
    if kind == "boxes":
        corners = targets[:, :, :4] + torch.rand(*targets.shape[:2], 4, generator=generator)
        scores = torch.rand(*targets.shape[:2], 1, generator=generator)
        return torch.cat([corners, scores, targets[:, :, 4:]], dim=2)
    shape = (len(targets), outputs, *targets.shape[1:]) if kind == "dense" else (_SAMPLES, outputs)
    return torch.randn(shape, generator=generator)


def random_targets(kind: str, outputs: int) -> Tensor:
    """Return targets like those of a task of this kind of responses."""
    generator = torch.Generator().manual_seed(1)
    if kind == "boxes":
        corners = torch.randint(_SIDE // 2, (_IMAGES, _BOXES, 2), generator=generator)
        classes = torch.arange(_IMAGES * _BOXES).view(_IMAGES, _BOXES, 1) % outputs
        targets = torch.cat([corners, corners + _SIDE // 2, classes], dim=2).float()
        targets[0, :, 4] = -1  # an image without boxes
        return targets
    if kind == "dense":
        positions = torch.randint(outputs, (_IMAGES, _SIDE, _SIDE), generator=generator)
        ignored = torch.rand(positions.shape, generator=generator) < 0.2
        return positions.masked_fill(ignored, IGNORED)
    if kind == "softmax":
        return torch.arange(_SAMPLES) % outputs
    values = torch.randn(_SAMPLES, outputs, generator=generator)
    return (values > 0).float() if kind == "sigmoid" else values
