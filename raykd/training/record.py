"""What happened in one epoch, kept on the device until its end so that no step waits for it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from raykd.schemes import StepOutput
from raykd.training.evaluate import summed


class Diverged(ArithmeticError):
    """A loss became NaN or infinite.

    Attributes:
        epoch: counted from 1.
        what: which of the training's figures, and where in the epoch.
    """

    def __init__(self, epoch: int, what: str) -> None:
        super().__init__(epoch, what)
        self.epoch = epoch
        self.what = what

    def __str__(self) -> str:
        return (
            f"diverged in epoch {self.epoch}: {self.what}; lower the learning rate or the "
            "term's weight, add train.warmup_epochs, or set train.clip_norm"
        )


class Record:
    """Losses and hits of every step of one epoch on this rank.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._values: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._counts: list[int] = []

    def add(self, output: StepOutput, targets: Tensor) -> None:
        """Write down one step; an epoch's steps all have the same terms."""
        names = ("loss", *output.terms)
        self._names = self._names or names
        assert self._names == names, "an epoch's terms stay the same"
        parts = [output.loss.detach(), *output.terms.values()]
        self._values.append(torch.stack([part.float() for part in parts]))
        self._hits.append((output.logits.argmax(1) == targets).sum())
        self._counts.append(len(targets))

    def metrics(self, epoch: int, world: int = 1) -> dict[str, float]:
        """train_loss, train_accuracy and term_<name> as means over all ranks' samples, samples.

        Args:
            epoch: counted from 1, for the message.
            world: how many ranks there are; all of them call this.

        Raises:
            Diverged: a loss was NaN or infinite in some step on some rank; on every rank alike.
        """
        counts = torch.tensor(self._counts, dtype=torch.float64, device=self._device)
        values, hits = torch.stack(self._values), torch.stack(self._hits).sum()
        sums = torch.cat([counts @ values.double(), hits[None], counts.sum()[None]])
        *losses, right, samples = summed(sums, world).tolist()
        means = {name: loss / samples for name, loss in zip(self._names, losses, strict=True)}
        if not all(map(_is_finite, losses)):
            raise Diverged(epoch, self._first_fault(values, world))
        terms = {f"term_{name}": mean for name, mean in means.items() if name != "loss"}
        return {
            "train_loss": means["loss"],
            "train_accuracy": right / samples,
            **terms,
            "samples": samples,
        }

    def _first_fault(self, values: Tensor, world: int) -> str:
        """Which figures were the first not to be finite; after them all the others follow."""
        broken = ~torch.isfinite(values)
        never = torch.full_like(broken[0], len(values), dtype=torch.int64)
        first = torch.where(broken.any(0), broken.int().argmax(0), never)
        if world > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        steps = dict(zip(self._names, first.tolist(), strict=True))
        step = min(steps.values())
        terms = [f"term {name!r}" for name in steps if name != "loss" and steps[name] == step]
        where = f"in step {step + 1} of {len(values)}"
        return f"{' and '.join(terms) or 'the weighted sum of the terms'} not finite {where}"


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
