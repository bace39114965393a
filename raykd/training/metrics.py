"""Metrics of one epoch of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raykd.data import Batch, BatchLoader, Dataset, Placement, to_memory_format
from raykd.data.loader import ON_CPU
from raykd.schemes import StepOutput

EVALUATION_BATCH = 512
"""Minimum number of samples in an evaluation batch, over all ranks."""

Autocast = Callable[[], AbstractContextManager[object]]
"""Returns the context in which forward passes run."""


def autocast_for(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Autocast:
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
            for batch in map(to_memory_format, batches):
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


class Diverged(ArithmeticError):
    """A loss became NaN or infinite.

    Attributes:
        epoch: counted from 1.
        fault: the losses, and the step in the epoch.
    """

    def __init__(self, epoch: int, fault: str) -> None:
        super().__init__(epoch, fault)
        self.epoch = epoch
        self.fault = fault

    def __str__(self) -> str:
        return (
            f"diverged in epoch {self.epoch}: {self.fault}; lower the learning rate or the "
            "term's weight, add train.warmup_epochs, or set train.clip_norm"
        )


class EpochMetrics:
    """Sums of the losses and correct predictions of one epoch on this rank.

    They stay on the device until the end of the epoch, so that no step waits for it.

    Args:
        device: device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._sizes: list[int] = []

    def update(self, output: StepOutput, targets: Tensor) -> None:
        """Add one step; all steps of an epoch have the same terms."""
        names = ("loss", *output.terms)
        self._names = self._names or names
        assert self._names == names, "the terms changed within an epoch"
        losses = [output.loss.detach(), *output.terms.values()]
        self._losses.append(torch.stack([loss.float() for loss in losses]))
        self._correct.append((output.logits.argmax(1) == targets).sum())
        self._sizes.append(len(targets))

    def compute(self, epoch: int, world: int = 1) -> dict[str, float]:
        """Compute the means over the samples of all ranks.

        Args:
            epoch: counted from 1, for the error message.
            world: number of ranks; each of them calls this.

        Returns:
            train_loss, train_accuracy, term_<name> for each term, and the number of samples.

        Raises:
            Diverged: a loss was NaN or infinite in some step on some rank; raised on every rank.
        """
        sizes = torch.tensor(self._sizes, dtype=torch.float64, device=self._device)
        losses, correct = torch.stack(self._losses), torch.stack(self._correct).sum()
        sums = torch.cat([sizes @ losses.double(), correct[None], sizes.sum()[None]])
        *totals, correct_count, samples = all_reduce_sum(sums, world).tolist()
        means = {name: total / samples for name, total in zip(self._names, totals, strict=True)}
        if not all(map(math.isfinite, totals)):
            raise Diverged(epoch, self._describe_fault(losses, world))
        return {
            "train_loss": means.pop("loss"),
            "train_accuracy": correct_count / samples,
            **{f"term_{name}": mean for name, mean in means.items()},
            "samples": samples,
        }

    def _describe_fault(self, losses: Tensor, world: int) -> str:
        """Name the losses that were first not finite; all others follow from them."""
        broken = ~torch.isfinite(losses)
        never = torch.full_like(broken[0], len(losses), dtype=torch.int64)
        first = torch.where(broken.any(0), broken.int().argmax(0), never)
        if world > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        steps = dict(zip(self._names, first.tolist(), strict=True))
        step = min(steps.values())
        terms = [f"term {name!r}" for name in steps if name != "loss" and steps[name] == step]
        faulty = " and ".join(terms) or "the weighted sum of the terms"
        return f"{faulty} not finite in step {step + 1} of {len(losses)}"
