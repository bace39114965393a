"""Check that the outputs of a teacher on the validation data are finite logits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from raykd.data import BatchLoader, Dataset, Placement, to_memory_format
from raykd.losses.base import rows_of
from raykd.training.metrics import Autocast, evaluation_batch
from raykd.training.stored_outputs import respond

BATCHES = 4
"""Number of batches that are checked."""

SUMS_TO_ONE = "outputs_sum_to_one"
IN_UNIT_RANGE = "outputs_in_unit_range"
"""Metrics of a network, set to 1 if its outputs look like probabilities."""

_LEAST_SAMPLES = 4
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Allowed error of a sum of probabilities, by type; other types: `_USUAL`."""

_USUAL = 1e-3


@torch.no_grad()
def check_outputs(
    network: nn.Module,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> dict[str, float]:
    """Find signs that a classifier returns probabilities instead of logits.

    Softened with a temperature T, softmax(probabilities / T) is close to uniform, so that a
    distillation loss has little to teach.  Log-probabilities are harmless: they are the logits
    shifted by a constant per sample, and softmax(z / T) does not change under such a shift for any
    T.  The same holds for losses of centered or standardized logits.

    Args:
        network: run in eval mode; its mode is restored.
        data: its first validation batches are used.
        device: of the network.
        autocast: context of the forward passes.

    Returns:
        `SUMS_TO_ONE` if each row is in [0, 1] and sums to 1 (softmax), `IN_UNIT_RANGE` if each
        output is in [0, 1] (sigmoid); empty for logits.

    Raises:
        ValueError: an output is NaN or infinite.
    """
    loader = BatchLoader(
        data.val,
        data,
        batch_size=evaluation_batch(data),
        shuffle_seed=None,
        placement=Placement(device),
    )
    was_training = network.training
    network.eval()
    try:
        outputs = []
        for batch in map(to_memory_format, loader.epoch(0, steps=BATCHES)):
            with autocast():
                outputs.append(respond(network, batch))
    finally:
        network.train(was_training)
    return _signs(torch.cat(outputs)) if outputs else {}


def probabilities_warning(name: str, metrics: Mapping[str, float]) -> str:
    """Return a warning if metrics of a network have signs of probabilities; else an empty text.

    Args:
        name: of the network.
        metrics: of the network, with those of `check_outputs`.
    """
    if metrics.get(SUMS_TO_ONE):
        outputs = "probabilities: each row sums to 1 (a softmax inside the network?)"
    elif metrics.get(IN_UNIT_RANGE):
        outputs = "only values from 0 to 1 (a sigmoid inside the network?)"
    else:
        return ""
    return (
        f"{name} returns {outputs}; losses expect logits and apply softmax themselves, so its "
        "softened outputs are almost uniform; remove the last activation, or return the "
        "logarithm of the probabilities"
    )


def _signs(outputs: Tensor) -> dict[str, float]:
    finite = outputs.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(
            f"its outputs are NaN or infinite for {bad} of {len(outputs)} validation samples; "
            "check its weights and the normalization of its inputs (half precision overflows above "
            "65504)"
        )
    rows = rows_of(outputs) if outputs.dim() == 4 else outputs.flatten(1)
    tolerance = _TOLERANCE.get(rows.dtype, _USUAL)
    rows = rows.double()
    low, high = (float(value) for value in rows.aminmax())
    if len(rows) < _LEAST_SAMPLES or low < -tolerance or high > 1 + tolerance or low == high:
        return {}
    if float((rows.sum(1) - 1).abs().max()) <= tolerance:
        return {SUMS_TO_ONE: 1.0}
    # A sigmoid's values differ between samples; logits near their start are of both signs.
    return {IN_UNIT_RANGE: 1.0} if low >= 0 and high <= 1 else {}
