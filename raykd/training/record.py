"""Metrics of one epoch of training."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from raykd.schemes import StepOutput
from raykd.training.evaluate import all_reduce_sum


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
