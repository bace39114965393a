"""Metrics of one epoch of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raykd.data import Batch, BatchLoader, Dataset, Placement, to_memory_format
from raykd.data.loader import ON_CPU
from raykd.metrics import AGREEMENT
from raykd.schemes import StepOutput
from raykd.tasks import Classification, Task
from raykd.tasks.base import is_labeled
from raykd.tasks.statistics import (
    CountStatistic,
    MeanStatistic,
    MergedStatistic,
    SplitStatistic,
    Statistic,
)
from raykd.tasks.user_metrics import user_statistic
from raykd.training.stored_outputs import respond
from raykd.training.teacher_responses import Autocast, TeacherResponses
from raykd.user_code import is_user_code

EVALUATION_BATCH = 512
"""Minimum number of samples in an evaluation batch, over all ranks."""

EVALUATION_VALUES = 1 << 24
"""Number of values of the responses of an evaluation batch from which it is made smaller."""

CLASSIFICATION = Classification()


def autocast_for(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Autocast:
    """Return the context of forward passes: autocast to bfloat16 for bf16, and for auto on CUDA."""
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task = CLASSIFICATION,
    scale: Sequence[float] = (),
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    world: int = 1,
    teacher: Tensor | None = None,
    shift: Sequence[float] = (),
) -> dict[str, float]:
    """Compute the mean loss and the metrics of a network.

    Args:
        model: run in eval mode; its mode is restored.
        batches: the share of the samples of this rank, of any size.
        task: determines loss and metrics.
        scale: units of the targets per unit of the response (`Dataset.target_scale`).
        device: of the model.
        autocast: context of the forward passes.
        world: number of ranks; each of them calls this and gets the result over all samples.
        teacher: responses of the teacher for these samples, in the same order, (N, C), or its most
            likely classes, (N, H, W); None: the agreement with a teacher is not measured.
        shift: mean of the targets (`Dataset.target_mean`), for metrics of the user.

    Returns:
        loss, the mean label loss (without label smoothing and class weights), and the metrics of
        the task.

    Raises:
        ValueError: there are no samples.
    """
    meter = _Meter(task.for_network(model), scale, device, teacher, shift)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in map(to_memory_format, batches):
                with autocast():
                    response = respond(model, batch)
                meter.update(response.float(), batch.targets)
    finally:
        model.train(was_training)
    return meter.compute(world)


class _Meter:
    """Loss and metrics of the responses of a network on the samples of this rank.

    Sums stay on the device until the end, so that no batch waits for it.
    """

    def __init__(
        self,
        task: Task,
        scale: Sequence[float],
        device: torch.device | str,
        teacher: Tensor | None = None,
        shift: Sequence[float] = (),
    ) -> None:
        self._task = task
        self._teacher = teacher
        statistics: dict[str, Statistic] = {}
        for name, text in zip(task.metric_names, task.metrics, strict=True):
            if is_user_code(text):
                statistics[name] = user_statistic(text, task.kind, scale, shift)
            elif name != AGREEMENT:
                statistics[name] = task.statistic(text, scale)
            elif teacher is not None:
                statistics[name] = task.agreement()
        self._means = {n: s for n, s in statistics.items() if isinstance(s, MeanStatistic)}
        self._wholes = {n: s for n, s in statistics.items() if isinstance(s, SplitStatistic)}
        self._counts = {n: s for n, s in statistics.items() if isinstance(s, CountStatistic)}
        self._merged = {n: s for n, s in statistics.items() if isinstance(s, MergedStatistic)}
        self._updated = {name: statistic.build() for name, statistic in self._merged.items()}
        self._total = torch.zeros(1 + len(self._means), dtype=torch.float64, device=device)
        self._samples = 0
        self._counted: int | Tensor = 0
        self._sums: dict[str, Tensor] = {}
        self._responses: list[dict[str, Tensor]] = []

    def update(self, response: Tensor, targets: Tensor) -> None:
        references = self._references(targets)
        parts = [self._task.loss_sum(response, targets)]
        for name, statistic in self._means.items():
            parts.append(statistic.sums(response, references.get(name, targets)))
        self._total += torch.stack([part.double() for part in parts])
        # Samples are counted on the CPU: copying a number to the device waits for it
        self._samples += len(targets)
        self._counted = self._counted + self._task.count(targets)
        shared: dict[Callable[[Tensor, Tensor], Tensor], Tensor] = {}
        for name, statistic in self._counts.items():
            if statistic.counts not in shared:
                reference = references.get(name, targets)
                shared[statistic.counts] = statistic.counts(response, reference)
            batch = shared[statistic.counts]
            self._sums[name] = self._sums[name] + batch if name in self._sums else batch
        for metric in self._updated.values():
            metric.update(response.cpu(), targets.cpu())
        if self._wholes:
            summary = self._task.summary(response)
            columns = {"response": summary, "targets": targets, **references}
            self._responses.append({name: each.cpu() for name, each in columns.items()})

    def _references(self, targets: Tensor) -> dict[str, Tensor]:
        """Return the references of a batch other than its targets, by metric."""
        if self._teacher is None:
            return {}
        rows = self._teacher[self._samples : self._samples + len(targets)]
        return {AGREEMENT: rows.to(targets.device)}

    def compute(self, world: int) -> dict[str, float]:
        """Return the loss and the metrics over the samples of all ranks.

        Raises:
            ValueError: there are no samples.
        """
        counted = torch.as_tensor(self._counted, dtype=self._total.dtype, device=self._total.device)
        sums = torch.cat([self._total, counted.view(1)])
        *totals, samples = all_reduce_sum(sums, world).tolist()
        if not samples:
            raise ValueError("there are no samples to evaluate on: the split is empty")
        names = ("loss", *self._means)
        metrics = {name: total / samples for name, total in zip(names, totals, strict=True)}
        for name, counts in self._all_counts(world).items():
            metrics[name] = self._counts[name].value(counts)
        for name, states in self._all_states(world).items():
            metrics[name] = self._merged[name].value(states)
        if self._wholes:
            columns = self._gathered(world)
            response, targets = columns.pop("response"), columns.pop("targets")
            for name, statistic in self._wholes.items():
                metrics[name] = statistic.value(response, columns.get(name, targets))
        return {n: metrics[n] for n in ("loss", *self._task.metric_names) if n in metrics}

    def _all_counts(self, world: int) -> dict[str, Tensor]:
        """Return the counts of all ranks on the CPU, as float64, by metric."""
        if not self._counts:
            return {}
        mine = {name: counts.cpu() for name, counts in self._sums.items()}
        shares = [mine]
        if world > 1:  # a rank without samples has no counts, so they are not reduced
            shares = [{} for _ in range(world)]
            dist.all_gather_object(shares, mine)
        return {
            name: torch.stack([share[name] for share in shares if share]).sum(0).double()
            for name in self._counts
        }

    def _all_states(self, world: int) -> dict[str, list[dict[str, Any]]]:
        """Return the states of metrics of all ranks, by metric."""
        if not self._updated:
            return {}
        mine = {name: metric.metric_state for name, metric in self._updated.items()}
        shares = [mine]
        if world > 1:
            shares = [{} for _ in range(world)]
            dist.all_gather_object(shares, mine)
        return {name: [share[name] for share in shares] for name in mine}

    def _gathered(self, world: int) -> dict[str, Tensor]:
        """Return the tensors of all ranks on the CPU, floats as float64."""
        parts = self._responses
        if world > 1:
            shares: list[list[dict[str, Tensor]]] = [[] for _ in range(world)]
            dist.all_gather_object(shares, parts)
            parts = [part for share in shares for part in share]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {
            name: each.double() if each.is_floating_point() else each
            for name, each in whole.items()
        }


def evaluate_split(
    model: nn.Module,
    data: Dataset,
    split: Literal["train", "val", "test"],
    *,
    task: Task = CLASSIFICATION,
    batch_size: int = 1,
    autocast: Autocast = nullcontext,
    placement: Placement = ON_CPU,
    teacher: TeacherResponses | None = None,
) -> dict[str, float]:
    """Compute <split>_loss and <split>_<metric> of a network on a whole split; see `evaluate`.

    `teacher` gives the responses for the agreement with a teacher, if the task measures it.
    """

    def load(network_data: Dataset) -> BatchLoader:
        return BatchLoader(
            data.split(split),
            network_data,
            batch_size=evaluation_batch(data, batch_size),
            shuffle_seed=None,
            placement=placement,
        )

    loader = load(data)
    responses = None
    if teacher is not None and AGREEMENT in task.metrics:
        theirs = loader if teacher.input == data.input else load(data.as_input(teacher.input))
        responses = teacher.of(split, data.fingerprint, theirs, autocast)
    metrics = evaluate(
        model,
        loader.epoch(0),
        task=task,
        scale=data.target_scale,
        device=loader.device,
        autocast=autocast,
        world=placement.world_size,
        teacher=responses,
        shift=data.target_mean,
    )
    return {f"{split}_{name}": value for name, value in metrics.items()}


def evaluation_batch(data: Dataset, batch_size: int = 1) -> int:
    """Return the number of samples in an evaluation batch, over all ranks.

    Args:
        data: determines the size of a response.
        batch_size: of the training.
    """
    if not data.is_dense:
        return max(EVALUATION_BATCH, batch_size)
    height, width = data.input_shape[1:]
    most = EVALUATION_VALUES // (data.classes * height * width)
    return max(batch_size, min(EVALUATION_BATCH, most), 1)


def count_class_hits(
    model: nn.Module,
    data: Dataset,
    *,
    autocast: Autocast = nullcontext,
    placement: Placement = ON_CPU,
) -> tuple[int, ...]:
    """Count the correct predictions of a classifier for each class of the test split.

    Args:
        model: evaluated in eval mode; its mode is restored.
        data: with class numbers as targets.
        autocast: context of the forward passes.
        placement: this rank; each rank calls this and gets the counts over all samples.
    """
    loader = BatchLoader(
        data.test, data, batch_size=EVALUATION_BATCH, shuffle_seed=None, placement=placement
    )
    hits = torch.zeros(len(data.class_names), dtype=torch.int64, device=loader.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in map(to_memory_format, loader.epoch(0)):
                with autocast():
                    response: Tensor = model(batch.inputs)
                is_hit = response.argmax(1) == batch.targets
                hits.index_add_(0, batch.targets, is_hit.long())
    finally:
        model.train(was_training)
    return tuple(all_reduce_sum(hits, placement.world_size).tolist())


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
    """Sums of the losses and of the metric of the training samples of one epoch on this rank.

    They stay on the device until the end of the epoch, so that no step waits for it.

    Args:
        device: device of the training.
        task: determines the metric.
        scale: units of the targets per unit of the response.
        unlabeled: whether some samples have no label; the metric is of the others.
    """

    def __init__(
        self,
        device: torch.device,
        task: Task = CLASSIFICATION,
        scale: Sequence[float] = (),
        *,
        unlabeled: bool = False,
    ) -> None:
        self._device = device
        self._metric = task.train_metric
        statistic = task.statistic(task.train_metric, scale)
        assert isinstance(statistic, MeanStatistic), "the metric of training samples is a mean"
        self._statistic = statistic
        self._task = task
        self._names: tuple[str, ...] = ()
        self._losses: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._sizes: list[int] = []
        self._unlabeled = unlabeled
        self._counts: list[int | Tensor] = []

    def update(self, output: StepOutput, targets: Tensor) -> None:
        """Add one step; all steps of an epoch have the same terms."""
        names = ("loss", *output.terms)
        self._names = self._names or names
        assert self._names == names, "the terms changed within an epoch"
        losses = [output.loss.detach(), *output.terms.values()]
        self._losses.append(torch.stack([loss.float() for loss in losses]))
        self._sizes.append(len(targets))
        response = output.logits
        if self._unlabeled:
            mask = is_labeled(targets)
            self._counts.append(mask.sum())
            if targets.is_floating_point():
                response, targets = response[mask], targets[mask]
        else:
            self._counts.append(self._task.count(targets))
        self._sums.append(self._statistic.sums(response, targets))

    def compute(self, epoch: int, world: int = 1) -> dict[str, float]:
        """Compute the means over the samples of all ranks.

        Args:
            epoch: counted from 1, for the error message.
            world: number of ranks; each of them calls this.

        Returns:
            train_loss, train_<metric> (if a sample has a label), term_<name> for each term, and
            the number of samples.

        Raises:
            Diverged: a loss was NaN or infinite in some step on some rank; raised on every rank.
        """
        sizes = torch.tensor(self._sizes, dtype=torch.float64, device=self._device)
        losses, metric = torch.stack(self._losses), torch.stack(self._sums).sum()
        labeled = torch.as_tensor(sum(self._counts), dtype=sizes.dtype, device=self._device)
        counts = torch.stack([metric.double(), labeled, sizes.sum()])
        sums = torch.cat([sizes @ losses.double(), counts])
        *totals, metric_sum, labels, samples = all_reduce_sum(sums, world).tolist()
        means = {name: total / samples for name, total in zip(self._names, totals, strict=True)}
        if not all(map(math.isfinite, totals)):
            raise Diverged(epoch, self._describe_fault(losses, world))
        return {
            "train_loss": means.pop("loss"),
            **({f"train_{self._metric}": metric_sum / labels} if labels else {}),
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
