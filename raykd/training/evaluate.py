"""Loss and accuracy of a network on a split, over all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raykd.data import Batch, BatchLoader, Dataset, Placement
from raykd.data.batches import ON_CPU
from raykd.training.layout import laid_out

EVALUATION_BATCH = 512
"""Minimum number of samples in an evaluation batch, over all ranks."""

Autocast = Callable[[], AbstractContextManager[object]]
"""Returns the context in which forward passes run."""


def precision_of(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Autocast:
    """Return the context of forward passes: autocast to bfloat16 for bf16, and for auto on CUDA."""
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    world: int = 1,
) -> dict[str, float]:
    """Compute the mean loss and the accuracy of a network.

    Args:
        model: run in eval mode; its mode is restored.
        batches: the share of the samples of this rank, of any size.
        device: of the model.
        autocast: context of the forward passes.
        world: number of ranks; each of them calls this and gets the result over all samples.

    Returns:
        loss, the mean cross-entropy (nats, without label smoothing), and accuracy (0 to 1).

    Raises:
        ValueError: there are no samples.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, samples
    samples = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in map(laid_out, batches):
                with autocast():
                    logits: Tensor = model(batch.inputs)
                sums[0] += cross_entropy(logits.float(), batch.targets, reduction="sum").double()
                sums[1] += (logits.argmax(1) == batch.targets).sum()
                samples += len(batch)  # on the CPU: copying a number to the device waits for it
    finally:
        model.train(was_training)
    sums[2] = samples
    loss, correct, total = all_reduce_sum(sums, world).tolist()
    if not total:
        raise ValueError("there are no samples to evaluate on: the split is empty")
    return {"loss": loss / total, "accuracy": correct / total}


def evaluate_split(
    model: nn.Module,
    data: Dataset,
    split: Literal["train", "val", "test"],
    *,
    batch_size: int = 1,
    autocast: Autocast = nullcontext,
    placement: Placement = ON_CPU,
) -> dict[str, float]:
    """Compute <split>_loss and <split>_accuracy of a network on a whole split; see `evaluate`."""
    loader = BatchLoader(
        data.split(split),
        data,
        batch_size=max(EVALUATION_BATCH, batch_size),
        shuffle_seed=None,
        placement=placement,
    )
    batches, world = loader.epoch(0), placement.world_size
    metrics = evaluate(model, batches, device=loader.device, autocast=autocast, world=world)
    return {f"{split}_{name}": value for name, value in metrics.items()}


def all_reduce_sum(values: Tensor, world: int) -> Tensor:
    """Sum a tensor over all ranks, in place; every rank gets the sum."""
    if world > 1:
        dist.all_reduce(values)
    return values
