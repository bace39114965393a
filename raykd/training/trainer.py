"""Training loop: plain PyTorch, the same for teachers and students under every scheme.

The loop does not know about distillation: it runs a distiller and minimizes the loss it returns.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.data import (
    Batch,
    BatchLoader,
    Dataset,
    Placement,
    ViewOptions,
    to_memory_format,
)
from raykd.data.few_labels import labeled_samples
from raykd.data.loader import ON_CPU
from raykd.data.unlabeled import ratio_of, remove_unlabeled
from raykd.losses import Progress, Terms
from raykd.metrics import AGREEMENT
from raykd.models.compression.int8 import InputRange
from raykd.schemes import StepOutput
from raykd.study.config import Cache, Study
from raykd.training.build import build_distiller
from raykd.training.cuda_graph import CudaGraphStep
from raykd.training.memory_format import can_compile
from raykd.training.metrics import (
    Diverged,
    EpochMetrics,
    all_reduce_sum,
    autocast_for,
    evaluate_split,
)
from raykd.training.normalization import adapt_teacher
from raykd.training.out_of_memory import SplitStep, may_split
from raykd.training.seeding import derive_seed, seeded
from raykd.training.state_file import TrainingState
from raykd.training.teacher_cache import TeacherHandle
from raykd.training.teacher_responses import TeacherResponses

__all__ = ["Diverged", "Training"]

Teachers = nn.Module | TeacherHandle | Sequence[nn.Module | TeacherHandle]

STUDENT = "student."
"""Prefix of the names of the student's tensors in a distiller."""


class Training:
    """Training of one concrete study, epoch by epoch.

    The result depends on the study, the data, the seed and the number of workers alone: weights,
    connectors, batch order, views and dropout have separate seeds, and those of an epoch are
    derived from its number.  A training resumed from a saved state therefore equals one that was
    never interrupted (bit for bit on the CPU).

    With several workers the process group must exist, and every rank makes the same calls.  The
    gradient is that of the mean over the global batch, for any division among the ranks.
    Batch-norm statistics, and ranges of quantized inputs, are averaged over the ranks at the end
    of each epoch.

    Attributes:
        reference: responses of the teacher for its agreement with the student, if it is measured.

    Args:
        study: concrete; pairs that its knowledge leaves out are chosen by the losses.
        data: moved to the device if it is not there yet (a caller that trains often moves it
            once, `Dataset.to`); of which each network takes its input.
        seed: of everything random.
        teacher: the trained teacher, or one for each of `study.teacher_specs()`; put in eval mode
            and frozen.  None for schemes without a teacher.
        placement: device, rank and number of workers.

    Raises:
        ValueError: the study does not fit the data or the teacher.
    """

    def __init__(
        self,
        study: Study,
        data: Dataset,
        *,
        seed: int,
        teacher: Teachers | None = None,
        placement: Placement = ON_CPU,
    ) -> None:
        data = _for_student(study, data)
        self.study, self.data, self.seed = study, data, seed
        self.task = study.learning_task
        self.device = torch.device(placement.device)
        self.placement, self.world_size = placement, placement.world_size
        self.history: list[dict[str, float]] = []
        self._unlabeled = study.data.labels_per_class is not None or data.unlabeled > 0
        if self._unlabeled and study.scheme.unlabeled != "used":
            data, self._unlabeled = labeled_samples(remove_unlabeled(data)), False
        single = isinstance(teacher, nn.Module | TeacherHandle)
        teachers = [teacher] if single else list(teacher or ())
        self.reference = _reference(study, data, teachers)
        self.distiller = build_distiller(
            study, data, seed=seed, teachers=teachers, device=self.device
        )
        self.parameters = list(self.distiller.parameters())
        self.optimizer = study.train.build_optimizer(self.parameters)
        self.loader = BatchLoader(
            data.train,
            data,
            batch_size=study.train.batch_size,
            shuffle_seed=seed,
            views=ViewOptions(
                study.data.augment,
                study.cache.seed,
                self.distiller.extra_inputs,
                balanced=self.task.is_balanced,
                unlabeled=ratio_of(study.data),
                more_inputs=[data.as_input(name or None) for name in self.distiller.other_inputs],
            ),
            placement=placement,
        )
        self._autocast = autocast_for(study.train.precision, self.device)

        mode = study.train.compile
        self._is_compiled = mode not in ("none", "graph") and can_compile(self.student, self.device)
        if self._is_compiled:
            self.student.compile(mode=mode, dynamic=False)
        self.cuda_graph = self._make_cuda_graph() if mode == "graph" else None
        splits = self.cuda_graph is None and may_split(study, self.world_size)
        self.split_step = SplitStep() if splits else None
        self._model = self._data_parallel() if self.world_size > 1 else self.distiller

    @property
    def student(self) -> nn.Module:
        """Network that is evaluated and kept."""
        return self.distiller.student

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole training."""
        return self.study.train.epochs

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and evaluate on the validation split.

        Returns:
            train_loss and term_<name> (unweighted), means over the samples of the epoch;
            train_<metric>, of the same forward passes; val_loss and val_<metric> of the task; lr,
            of the last step; epoch_seconds, with the evaluation; images_per_second, of the
            training alone, over all ranks; batch_parts, if memory was too short for whole batches.

        Raises:
            Diverged: a loss was NaN or infinite; raised on every rank.
        """
        assert self.epoch < self.epochs, "all epochs are done"
        start = time.perf_counter()
        metrics = self.train_epoch().compute(self.epoch + 1, self.world_size)
        train_seconds = time.perf_counter() - start
        self._average_statistics()
        metrics |= self.evaluate("val")
        if not abs(metrics["val_loss"]) < float("inf"):
            raise Diverged(self.epoch + 1, "the validation loss not finite after the last step")
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["epoch_seconds"] = time.perf_counter() - start
        metrics["images_per_second"] = metrics.pop("samples") / train_seconds
        if self.split_step is not None and self.split_step.parts > 1:
            metrics["batch_parts"] = float(self.split_step.parts)
        self.history.append(metrics)
        return dict(metrics)

    def train_epoch(self, max_steps: int | None = None) -> EpochMetrics:
        """Train one epoch, or its first `max_steps` steps; no step waits for the device."""
        metrics = EpochMetrics(
            self.device,
            self.task.for_network(self.student),
            self.data.target_scale,
            unlabeled=self._unlabeled,
        )
        seed = derive_seed(self.seed, "epoch", self.epoch, self.placement.rank)
        with seeded(seed, self.device):
            self.distiller.train()
            self.distiller.begin_epoch(self._progress(step=0))
            view = view_number(self.study.cache, self.epoch)
            batches = self.loader.epoch(self.epoch, view=view, steps=max_steps)
            for step, batch in enumerate(map(to_memory_format, batches)):
                progress = self._progress(step)
                # Forward and backward: in parts if memory is short, or as one CUDA graph
                if self.split_step is not None:
                    add = partial(self.add_gradient, progress=progress)
                    outputs = self.split_step.run(batch, add, self.clear_gradients)
                elif self.cuda_graph is None:
                    outputs = [(self.forward_backward(batch, progress), batch.targets)]
                else:
                    output = self.cuda_graph.run(self.forward_backward, batch, progress)
                    outputs = [(output, batch.targets)]
                # Update of the weights
                if self.study.train.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self.parameters, self.study.train.clip_norm)
                rate = self.study.train.learning_rate(progress.step, progress.steps_per_epoch)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.step()
                for output, targets in outputs:
                    metrics.update(output, targets)
        return metrics

    def forward_backward(self, batch: Batch, progress: Progress) -> StepOutput:
        """Run the distiller on a batch and set the gradient of every parameter."""
        self.clear_gradients()
        return self.add_gradient(batch, 1.0, progress)

    def clear_gradients(self) -> None:
        """Remove the gradient of every parameter."""
        for parameter in self.parameters:
            parameter.grad = None

    def add_gradient(self, batch: Batch, share: float, progress: Progress) -> StepOutput:
        """Run the distiller on a part of a batch and add to the gradient of every parameter.

        Args:
            batch: the part.
            share: of the samples of the whole batch; 1: it is the whole one.
            progress: of the training.
        """
        if self._is_compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with self._autocast():
            output: StepOutput = self._model(batch, progress)
        loss = output.loss
        if self.world_size > 1:
            # DDP averages over ranks: weight each by its share of the global batch
            size = self.loader.global_size(progress.step % progress.steps_per_epoch)
            loss = loss * (len(batch) * self.world_size / size)
        if share != 1:
            loss = loss * share
        loss.backward()
        return dataclasses.replace(output, loss=output.loss.detach())

    def run_steps(self, count: int) -> int:
        """Train for a number of steps, at most to the end: whole epochs, then single steps.

        The training cannot be resumed from within an epoch; this is for a look at a student early
        in its training.

        Returns:
            The number of steps trained.
        """
        count = min(count, self.epochs * len(self.loader))
        epochs, steps = divmod(count, len(self.loader))
        for _ in range(epochs):
            self.run_epoch()
        if steps:
            self.train_epoch(steps)
        return count

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """Compute <split>_loss and <split>_<metric> of the student; see `evaluate_split`."""
        return evaluate_split(
            self.student,
            self.data,
            split,
            task=self.task,
            batch_size=self.study.train.batch_size,
            autocast=self._autocast,
            placement=self.placement,
            teacher=self.reference,
        )

    def state(self) -> TrainingState:
        """Return a copy of the state on the CPU, in types that need no code to load.

        There is no random state: the random numbers of an epoch follow from the seed and
        the number of the epoch.
        """
        tensors = self.distiller.state_dict()
        student = {k: v for k, v in tensors.items() if k.startswith(STUDENT)}
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "history": copy.deepcopy(self.history),
            "student": _to_cpu({k.removeprefix(STUDENT): v for k, v in student.items()}),
            "distiller": _to_cpu({k: v for k, v in tensors.items() if k not in student}),
            "optimizer": _to_cpu(self.optimizer.state_dict()["state"]),
        }

    def load_state(self, state: TrainingState) -> None:
        """Resume from a state, of this or another process or device.

        Raises:
            ValueError: the state is of another training.
        """
        if state["seed"] != self.seed or len(state["history"]) > self.epochs:
            raise ValueError(
                f"the saved state is of a training with seed {state['seed']} after "
                f"{len(state['history'])} epochs, but this training has seed {self.seed} and "
                f"{self.epochs} epochs"
            )
        student = {STUDENT + name: tensor for name, tensor in state["student"].items()}
        try:
            self.distiller.load_state_dict({**student, **state["distiller"]})
        except RuntimeError as error:
            raise ValueError(f"the saved state is of another study: {error}") from None
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {"state": self._laid_out(state["optimizer"]), "param_groups": groups}
        self.optimizer.load_state_dict(saved)
        self.history = copy.deepcopy(list(state["history"]))

    def _laid_out(self, states: Mapping[int, Mapping[str, object]]) -> dict[int, dict[str, object]]:
        """Copy the optimizer's states to the device, in the memory layout of their parameters.

        With another layout a step would take other kernels, which may round differently.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        def copied(value: object, parameter: Tensor) -> object:
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                return copy.deepcopy(value)
            return torch.empty_like(parameter, dtype=value.dtype).copy_(value)

        return {
            number: {name: copied(value, parameters[number]) for name, value in state.items()}
            for number, state in states.items()
        }

    def _data_parallel(self) -> DistributedDataParallel:
        return DistributedDataParallel(
            self.distiller,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.distiller.needs_unused_parameter_search,
        )

    def _make_cuda_graph(self) -> CudaGraphStep | None:
        if self.device.type != "cuda" or self.world_size > 1:
            return None
        # A graph repeats the same kernels: the steps of an epoch may differ by their batch only
        ramps = any(isinstance(m, Terms) and m.ramps for m in self.distiller.modules())
        if self.distiller.steps_differ or ramps:
            return None
        return CudaGraphStep(self.parameters, self.device)

    def _progress(self, step: int) -> Progress:
        steps = len(self.loader)
        return Progress(self.epoch, self.epochs, self.epoch * steps + step, steps)

    def _average_statistics(self) -> None:
        """Average over the ranks the statistics that modules learn without gradients."""
        if self.world_size == 1:
            return
        statistics = [
            statistic
            for module in self.distiller.modules()
            for statistic in _statistics(module)
            if statistic is not None
        ]
        if statistics:
            flat = torch.cat([statistic.flatten() for statistic in statistics])
            flat = all_reduce_sum(flat, self.world_size).div_(self.world_size)
            parts = flat.split([statistic.numel() for statistic in statistics])
            for statistic, part in zip(statistics, parts, strict=True):
                statistic.copy_(part.view_as(statistic))


def _for_student(study: Study, data: Dataset) -> Dataset:
    """Return the data as the student takes them.

    Also the statistics of the teachers' inputs are computed here, where no sample is left out.
    """
    for spec in study.required_networks():
        data.as_input(spec.input)
    return data.as_input(study.student.input)


def _reference(
    study: Study, data: Dataset, teachers: Sequence[nn.Module | TeacherHandle]
) -> TeacherResponses | None:
    """Return the responses of the teacher whose agreement is measured.

    Returns:
        None if the agreement is no metric, or that teacher is not among those of the training.
    """
    if AGREEMENT not in study.learning_task.metrics or not teachers:
        return None
    spec, networks = study.reference_teacher(), study.required_networks()
    if spec is not None and networks.index(spec) >= len(teachers):
        return None
    # without a teacher in the study, one was passed from Python
    teacher = teachers[0 if spec is None else networks.index(spec)]
    if isinstance(teacher, TeacherHandle):
        return teacher.responses
    input_name = study.student.input if spec is None else spec.input
    return TeacherResponses(lambda: adapt_teacher(teacher, data.as_input(input_name)), input_name)


def view_number(cache: Cache, epoch: int) -> int:
    """Return the number of the view of each sample in an epoch, counted from 0."""
    return epoch if cache.views == "auto" else epoch % cache.views


def _statistics(module: nn.Module) -> tuple[Tensor | None, ...]:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean, module.running_var
    return (module.low, module.high) if isinstance(module, InputRange) else ()


T = TypeVar("T")


def _to_cpu(value: T) -> T:
    """Copy nested mappings, with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}  # type: ignore[return-value]
    return value
