"""The training loop: plain PyTorch, the same for teachers, students and students taught.

It does not know that distillation exists: it calls a distiller and follows the gradient of what
comes back.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
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
from raykd.training.at_hand import TeacherAtHand
from raykd.training.evaluate import evaluate_split, precision_of, summed
from raykd.training.graph import Replay
from raykd.training.layout import can_compile, laid_out
from raykd.training.optimisation import learning_rate, make_optimizer, set_rate
from raykd.training.record import Diverged, Record
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
        self._batches = self._train_batches()
        self._precision = precision_of(study.train.precision, self.device)
        self._learned = list(self.distiller.parameters())
        self._replay = Replay(self._learned, self.device) if self._can_replay() else None
        if self._compiles and can_compile(self.student, self.device):
            self.student.compile(mode=study.train.compile, dynamic=False)
        self._stepper: nn.Module = self.distiller
        if world > 1:
            self._stepper = DistributedDataParallel(
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
        begun = time.perf_counter()
        with seeded(derive(self.seed, "epoch", self.epoch, self.rank), self.device):
            record = self._train()
        metrics = record.metrics(self.epoch + 1, self.world)
        trained = time.perf_counter()
        self._share_statistics()
        metrics |= self.evaluate("val")
        if not abs(metrics["val_loss"]) < float("inf"):
            raise Diverged(self.epoch + 1, "the validation loss not finite after the last step")
        metrics["lr"] = learning_rate(self.study.train, self._steps_done(1) - 1, len(self._batches))
        metrics["epoch_seconds"] = time.perf_counter() - begun
        metrics["images_per_second"] = metrics.pop("samples") / (trained - begun)
        self.history.append(metrics)
        return dict(metrics)

    def run_steps(self, count: int) -> int:
        """Train so many steps, at most to the end: whole epochs, and the first steps of the next.

        The training cannot go on from within an epoch; this is for looking at a student that has
        only begun to learn.

        Returns:
            how many steps were trained.
        """
        each = len(self._batches)
        count = min(count, self.epochs * each)
        for _ in range(count // each):
            self.run_epoch()
        if count % each:
            with seeded(derive(self.seed, "epoch", self.epoch, self.rank), self.device):
                self._train(count % each)
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

    def _train(self, steps: int | None = None) -> Record:
        """One epoch of steps, or its first ones."""
        record = Record(self.device)
        self.distiller.train()
        self.distiller.begin_epoch(self._progress(0))
        if self._replay is not None:
            self._replay.begin_epoch()
        view = view_of(self.study.cache, self.epoch)
        batches = self._batches.epoch(self.epoch, view=view, steps=steps)
        for step, batch in enumerate(map(laid_out, batches)):
            record.add(self._step(batch, step), batch.targets)
        return record

    def _step(self, batch: Batch, step: int) -> StepOutput:
        """One optimiser step; nothing in it waits for the device."""
        train, progress = self.study.train, self._progress(step)
        if self._compiles:
            torch.compiler.cudagraph_mark_step_begin()
        work = partial(self._learn, progress=progress, step=step)
        output = work(batch) if self._replay is None else self._replay(work, batch)
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._learned, train.clip_norm)
        set_rate(self.optimizer, learning_rate(train, progress.step, len(self._batches)))
        self.optimizer.step()
        return output

    def _learn(self, batch: Batch, progress: Progress, step: int) -> StepOutput:
        """Forward and backward: every parameter's gradient is that of this batch."""
        with self._precision():
            output: StepOutput = self._stepper(batch, progress)
        for parameter in self._learned:
            parameter.grad = None
        self._weighed(output.loss, batch, step).backward()
        return dataclasses.replace(output, loss=output.loss.detach())

    @property
    def _compiles(self) -> bool:
        return self.study.train.compile not in ("none", "graph")

    def _can_replay(self) -> bool:
        """Whether steps are asked to be replayed, and those of an epoch differ by their batches
        alone."""
        asked = self.study.train.compile == "graph" and self.device.type == "cuda"
        terms = [one for one in self.distiller.modules() if isinstance(one, Terms)]
        differ = self.distiller.steps_differ or any(one.ramps for one in terms)
        return asked and self.world == 1 and not differ

    def _weighed(self, loss: Tensor, batch: Batch, step: int) -> Tensor:
        """The loss times what makes DDP's mean over ranks the mean over the batch's samples."""
        if self.world == 1:
            return loss
        return loss * (len(batch) * self.world / self._batches.global_size(step))

    def _progress(self, step: int) -> Progress:
        return Progress(
            epoch=self.epoch,
            epochs=self.epochs,
            step=self._steps_done() + step,
            steps_per_epoch=len(self._batches),
        )

    def _steps_done(self, more_epochs: int = 0) -> int:
        return (self.epoch + more_epochs) * len(self._batches)

    def _train_batches(self) -> BatchLoader:
        return BatchLoader(
            self._data.train,
            self._data,
            batch_size=self.study.train.batch_size,
            shuffle_seed=self.seed,
            views=ViewOptions(
                self.study.data.augment, self.study.cache.seed, self.distiller.extra_inputs
            ),
            placement=Placement(self.device, self.rank, self.world),
        )

    def _share_statistics(self) -> None:
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
