"""How well a network does on a split, over all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raykd.data import Batch, BatchLoader, Dataset, Placement
from raykd.training.layout import laid_out

EVALUATION_BATCH = 512
"""Least number of samples of an evaluation batch, all ranks together."""

Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context a forward runs in."""


def precision_of(asked: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """The context for forwards: autocast to bfloat16 on CUDA or where it is asked for."""
    if asked == "fp32" or (asked == "auto" and device.type != "cuda"):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    precision: Precision = nullcontext,
    world: int = 1,
) -> dict[str, float]:
    """Mean cross-entropy (nats, without label smoothing) and accuracy (0 to 1), in eval mode.

    With `world` > 1 each rank passes its own share of the samples, of whatever size, and every
    rank gets the figures of all of them.  The model's mode is put back afterwards.

    Raises:
        ValueError: there is no sample at all.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, samples
    samples = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in map(laid_out, batches):
                sums[:2] += _loss_and_hits(model, batch, precision)
                samples += len(batch)  # counted here: to put a number on the device waits for it
    finally:
        model.train(was_training)
    sums[2] = samples
    loss, hits, total = summed(sums, world).tolist()
    if not total:
        raise ValueError("there is no sample to evaluate on; the split is empty")
    return {"loss": loss / total, "accuracy": hits / total}


def evaluate_split(
    model: nn.Module,
    data: Dataset,
    split: Literal["train", "val", "test"],
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    precision: Precision = nullcontext,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """<split>_loss and <split>_accuracy of a network on a whole split, as `evaluate` gives them."""
    batches = BatchLoader(
        data.split(split),
        data,
        batch_size=max(EVALUATION_BATCH, batch_size),
        shuffle_seed=None,
        placement=Placement(device, rank, world),
    )
    found = evaluate(model, batches.epoch(0), device=device, precision=precision, world=world)
    return {f"{split}_{name}": value for name, value in found.items()}


def summed(values: Tensor, world: int) -> Tensor:
    """The sum over all ranks, on every rank; in place."""
    if world > 1:
        dist.all_reduce(values)
    return values


def _loss_and_hits(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """(2,) float64: the batch's losses summed, and how many answers were right."""
    with precision():
        logits: Tensor = model(batch.inputs)
    loss = cross_entropy(logits.float(), batch.targets, reduction="sum")
    hits = (logits.argmax(1) == batch.targets).sum()
    return torch.stack([loss.double(), hits.double()])
