"""The training loop: plain PyTorch, the same for teachers, students and students taught.

It does not know that distillation exists: it calls a distiller and follows the gradient of what
comes back.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.architecture.derived.int8 import InputRange
from raykd.data import Batch, BatchLoader, Dataset, Placement, ViewOptions
from raykd.knowledge import Progress, Terms
from raykd.schemes import StepOutput
from raykd.study.schema import Cache, Study
from raykd.training.assembly import assemble
from raykd.training.cache import TeacherAtHand
from raykd.training.evaluate import evaluate_split, precision_of, summed
from raykd.training.graph import CudaGraphStep
from raykd.training.layout import can_compile, laid_out
from raykd.training.optimisation import learning_rate, make_optimizer, set_learning_rate
from raykd.training.record import Diverged, EpochMetrics
from raykd.training.seeding import derive, seeded

__all__ = ["Diverged", "Training"]

Teachers = nn.Module | TeacherAtHand | Sequence[nn.Module | TeacherAtHand]

STUDENT = "student."
"""What the names of the student's tensors begin with in a distiller."""


class Training:
    """One training of a concrete study, epoch by epoch.

    What it computes depends on the study, the data, the seed and `world` alone, not on what the
    process did before: weights, connectors, batch order, views and dropout each draw from a seed
    of their own, and those of an epoch from the epoch's number, so that a training that goes on
    from a saved state is the one that was never interrupted (bit for bit on the CPU).

    With `world` > 1 the process group stands already, every rank makes the same calls, and the
    gradient is that of the mean over the whole batch, whatever the ranks' shares of it.
    Batch-norm statistics, and ranges of inputs that are quantized, are averaged over the ranks at
    each epoch's end.

    Args:
        study: concrete; its knowledge may leave pairs to the losses' defaults.
        data: moved to `device` where it is not there yet; a caller that trains often moves it
            once (`Dataset.to`).
        seed: of everything random.
        teacher: the trained teacher, or one for each of `teachers_of(study)`, where the scheme
            learns from any; put in eval mode and frozen.  A `TeacherAtHand` may have its outputs
            read in place of being run.
        device: where to train.
        rank, world: this worker's number, and how many there are.

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
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.study, self.seed = study, seed
        self.device, self.rank, self.world = torch.device(device), rank, world
        self.history: list[dict[str, float]] = []
        one = isinstance(teacher, nn.Module | TeacherAtHand)
        teachers = [teacher] if one else list(teacher or ())
        self.distiller = assemble(study, data, seed=seed, teachers=teachers, device=self.device)
        self.optimizer = make_optimizer(study.train, self.distiller.parameters())
        self._data = data
        self.loader = BatchLoader(
            data.train,
            data,
            batch_size=study.train.batch_size,
            shuffle_seed=seed,
            views=ViewOptions(study.data.augment, study.cache.seed, self.distiller.extra_inputs),
            placement=Placement(self.device, rank, world),
        )
        self._precision = precision_of(study.train.precision, self.device)
        self._parameters = list(self.distiller.parameters())
        mode = study.train.compile
        self._is_compiled = mode not in ("none", "graph") and can_compile(self.student, self.device)
        if self._is_compiled:
            self.student.compile(mode=mode, dynamic=False)
        self._cuda_graph: CudaGraphStep | None = None
        if mode == "graph" and self.device.type == "cuda" and world == 1:
            # A graph repeats the same kernels: all steps of an epoch must be alike.
            terms = [module for module in self.distiller.modules() if isinstance(module, Terms)]
            if not self.distiller.steps_differ and not any(each.ramps for each in terms):
                self._cuda_graph = CudaGraphStep(self._parameters, self.device)
        self._model: nn.Module = self.distiller
        if world > 1:
            self._model = DistributedDataParallel(
                self.distiller,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=self.distiller.needs_unused_parameter_search,
            )

    @property
    def student(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.distiller.student

    @property
    def epochs(self) -> int:
        """How many epochs there will be."""
        return self.study.train.epochs

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch and evaluate on the validation split.

        Returns:
            train_loss and term_<name> (unweighted), means over the epoch's samples;
            train_accuracy, of the forwards that were trained on; val_loss (plain cross-entropy)
            and val_accuracy; lr, of the last step; epoch_seconds, with the evaluation;
            images_per_second, of the training alone, all ranks together.

        Raises:
            Diverged: a loss was NaN or infinite; on every rank alike.
        """
        assert self.epoch < self.epochs, "all epochs are done"
        start = time.perf_counter()
        metrics = self.train_epoch().compute(self.epoch + 1, self.world)
        train_seconds = time.perf_counter() - start
        self._average_statistics()
        metrics |= self.evaluate("val")
        if not abs(metrics["val_loss"]) < float("inf"):
            raise Diverged(self.epoch + 1, "the validation loss not finite after the last step")
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["epoch_seconds"] = time.perf_counter() - start
        metrics["images_per_second"] = metrics.pop("samples") / train_seconds
        self.history.append(metrics)
        return dict(metrics)

    def run_steps(self, count: int) -> int:
        """Train so many steps, at most to the end: whole epochs, and the first steps of the next.

        The training cannot go on from within an epoch; this is for looking at a student that has
        only begun to learn.

        Returns:
            how many steps were trained.
        """
        count = min(count, self.epochs * len(self.loader))
        epochs, steps = divmod(count, len(self.loader))
        for _ in range(epochs):
            self.run_epoch()
        if steps:
            self.train_epoch(steps)
        return count

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        """<split>_loss (mean cross-entropy) and <split>_accuracy of the student as it is now."""
        return evaluate_split(
            self.student,
            self._data,
            split,
            batch_size=self.study.train.batch_size,
            device=self.device,
            precision=self._precision,
            rank=self.rank,
            world=self.world,
        )

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs: a copy, on the CPU, in types that need no code to load.

        `student` and `distiller` (what the scheme and the losses learn beside it) hold tensors by
        name.  There is no random state in it: an epoch's random numbers follow from the seed and
        the epoch's number.
        """
        tensors = self.distiller.state_dict()
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "history": copy.deepcopy(self.history),
            "student": _copied(_below(tensors, STUDENT)),
            "distiller": _copied({k: v for k, v in tensors.items() if not k.startswith(STUDENT)}),
            "optimizer": _copied(self.optimizer.state_dict()["state"]),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken, in this or another process, on whatever device.

        Raises:
            ValueError: it is the state of another training.
        """
        if state["seed"] != self.seed or len(state["history"]) > self.epochs:
            raise ValueError(
                f"the saved state is that of a training of seed {state['seed']} after "
                f"{len(state['history'])} epochs, this one has seed {self.seed} and "
                f"{self.epochs} epochs; remove the state to start over"
            )
        student = {STUDENT + name: tensor for name, tensor in state["student"].items()}
        try:
            self.distiller.load_state_dict({**student, **state["distiller"]})
        except RuntimeError as error:
            raise ValueError(f"the saved state is that of another study: {error}") from None
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {"state": _copied(state["optimizer"]), "param_groups": groups}
        self.optimizer.load_state_dict(saved)
        self.history = copy.deepcopy(list(state["history"]))

    def train_epoch(self, max_steps: int | None = None) -> EpochMetrics:
        """Train one epoch, or its first `max_steps` steps; no step waits for the device."""
        metrics = EpochMetrics(self.device)
        with seeded(derive(self.seed, "epoch", self.epoch, self.rank), self.device):
            self.distiller.train()
            self.distiller.begin_epoch(self._progress(step=0))
            view = view_of(self.study.cache, self.epoch)
            batches = self.loader.epoch(self.epoch, view=view, steps=max_steps)
            for step, batch in enumerate(map(laid_out, batches)):
                progress = self._progress(step)
                # Forward and backward, replayed as one CUDA graph if the study asks for that
                if self._cuda_graph is None:
                    output = self.forward_backward(batch, progress)
                else:
                    output = self._cuda_graph.run(self.forward_backward, batch, progress)
                # Update of the weights
                if self.study.train.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self._parameters, self.study.train.clip_norm)
                rate = learning_rate(self.study.train, progress.step, progress.steps_per_epoch)
                set_learning_rate(self.optimizer, rate)
                self.optimizer.step()
                metrics.update(output, batch.targets)
        return metrics

    def forward_backward(self, batch: Batch, progress: Progress) -> StepOutput:
        """Replace the gradient of every parameter by that of one batch."""
        if self._is_compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with self._precision():
            output: StepOutput = self._model(batch, progress)
        loss = output.loss
        if self.world > 1:
            # DDP averages over ranks: weigh each by its share of the global batch.
            size = self.loader.global_size(progress.step % progress.steps_per_epoch)
            loss = loss * (len(batch) * self.world / size)
        self.optimizer.zero_grad()
        loss.backward()
        return dataclasses.replace(output, loss=output.loss.detach())

    def _progress(self, step: int) -> Progress:
        steps = len(self.loader)
        return Progress(self.epoch, self.epochs, self.epoch * steps + step, steps)

    def _average_statistics(self) -> None:
        """Average over the ranks what each has learnt of its own share without gradients."""
        if self.world == 1:
            return
        statistics = [
            statistic
            for module in self.distiller.modules()
            for statistic in _statistics(module)
            if statistic is not None
        ]
        if statistics:
            flat = summed(torch.cat([each.flatten() for each in statistics]), self.world)
            parts = flat.div_(self.world).split([each.numel() for each in statistics])
            for statistic, part in zip(statistics, parts, strict=True):
                statistic.copy_(part.view_as(statistic))


def _statistics(module: nn.Module) -> tuple[Tensor | None, ...]:
    """What a module learns of its inputs in training without gradients."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean, module.running_var
    return (module.low, module.high) if isinstance(module, InputRange) else ()


def view_of(cache: Cache, epoch: int) -> int:
    """Which view of each sample an epoch, counted from 0, shows."""
    return epoch if cache.views == "auto" else epoch % cache.views


T = TypeVar("T")


def _copied(value: T) -> T:
    """The same nest of mappings with its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}  # type: ignore[return-value]
    return value


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
