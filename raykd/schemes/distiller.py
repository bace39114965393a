"""Modules that the training loop calls: a `Distiller` and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from raykd.data.batch import Batch, ExtraInputs, Inputs
from raykd.losses import ModelOutputs, Progress, Shape, Term, Terms
from raykd.models import Layer, LayerHooks, Task, discover, resolve


@dataclass(frozen=True)
class StepOutput:
    """Result of one training step.

    Attributes:
        loss: the scalar to minimize.
        terms: each part of the loss by name ("task", "kd", "hint" ...), detached and unweighted.
        logits: (B, classes) of the student that will be deployed, detached.
    """

    loss: Tensor
    terms: Mapping[str, Tensor]
    logits: Tensor


class TeacherSource(Protocol):
    """Where the teacher's evidence comes from: a live forward, or a cache of one."""

    def __call__(self, batch: Batch) -> ModelOutputs: ...


@dataclass(frozen=True)
class Guide:
    """One teacher of several, as a scheme meets it.

    Attributes:
        teacher: its evidence.
        terms: the knowledge to transfer, pairs resolved to its own layers.
        hint_shapes: shape of every layer of its own that a pair names.
    """

    teacher: TeacherSource
    terms: Sequence[Term]
    hint_shapes: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """All that a scheme may build from.

    Attributes:
        student: the network to train.
        build_student: makes another untrained copy of it (for peers), fresh weights each call.
        teacher: evidence of the teacher (its layers named as the pairs name them); None where the
            scheme needs none.
        terms: the knowledge to transfer, pairs resolved to layer names.
        task_loss: (logits, targets) -> scalar, the loss on the labels.
        task: what the networks take and give; the distiller finds the student's layers with it.
        train_size: number of training samples.
        data_size: one more than the largest `Batch.index`.
        guided_shapes / hint_shapes: shape of every layer named in a pair, by the name the pair
            uses, without the batch.
        others: the teachers after the first, in the order of `Scheme.teachers`.
        teacher_network: the first teacher itself, where it is at hand.
    """

    student: nn.Module
    build_student: Callable[[], nn.Module]
    teacher: TeacherSource | None
    terms: Sequence[Term]
    task_loss: Callable[[Tensor, Tensor], Tensor]
    task: Task
    train_size: int
    data_size: int
    guided_shapes: Mapping[str, Shape] = field(default_factory=dict)
    hint_shapes: Mapping[str, Shape] = field(default_factory=dict)
    others: Sequence[Guide] = ()
    teacher_network: nn.Module | None = None

    @property
    def classes(self) -> int:
        return self.task.classes

    @property
    def guides(self) -> tuple[Guide, ...]:
        """Every teacher, the first one first.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError(
                "the scheme needs a teacher and the study has none; name a `teacher`, or take a "
                "scheme without one (`scheme: {name: alone}`)"
            )
        return (Guide(self.teacher, self.terms, self.hint_shapes), *self.others)

    def with_terms(self, terms: Sequence[Term]) -> Parts:
        """The same, but for what is transferred."""
        return replace(self, terms=terms)

    def make_terms(
        self,
        terms: Sequence[Term] | None = None,
        hint_shapes: Mapping[str, Shape] | None = None,
        deployable: bool = False,
    ) -> Terms:
        """Terms made ready, what their losses learn freshly initialised.

        Args:
            terms: null: all.
            hint_shapes: null: the first teacher's.
            deployable: whether a loss may change the network that is kept.

        Raises:
            ValueError: layers that cannot be bridged.
        """
        return Terms(
            self.terms if terms is None else terms,
            classes=self.classes,
            train_size=self.train_size,
            data_size=self.data_size,
            guided_shapes=self.guided_shapes,
            hint_shapes=self.hint_shapes if hint_shapes is None else hint_shapes,
            deployable=deployable,
        )


class Distiller(nn.Module):
    """A scheme made ready for one trial.

    Every registered parameter is trained; the teacher is not registered.
    """

    student: nn.Module
    """The network that is evaluated and kept."""

    needs_unused_parameter_search: bool = False
    """Whether some parameters may get no gradient in some step (for DDP)."""

    steps_differ: bool = False
    """Whether steps of one epoch differ by more than their batches and their terms' weights."""

    extra_inputs: ExtraInputs = ExtraInputs()
    """Inputs it needs in addition to the samples of its batches."""

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        raise NotImplementedError

    def begin_epoch(self, progress: Progress) -> None:
        """Called before an epoch's first batch."""


class HookedModel:
    """Runs a network and shows its logits and the layers asked for.

    Args:
        model: (B, ...) -> (B, classes); not registered anywhere by this.
        layers: dotted module names or aliases ("stage2", "embedding").
        task: what the network takes and gives.
        known: the layers the names are looked up in; None: all that are discovered.

    Raises:
        ValueError: the network has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        task: Task,
        known: Sequence[Layer] | None = None,
    ) -> None:
        if known is None:
            known = discover(model, task) if layers else ()
        self._taps = LayerHooks(model, [resolve(known, name) for name in layers])

    def __call__(self, inputs: Inputs) -> ModelOutputs:
        logits, layers = self._taps.run(inputs)
        return ModelOutputs(logits, layers)

    def layers_only(self, inputs: Inputs) -> dict[str, Tensor]:
        """The layers without the logits: the forward ends after the last of them.  No gradient."""
        return self._taps.layers_only(inputs)


class LiveTeacher:
    """ModelOutputs from a forward of the teacher, frozen and in eval mode.

    A `TeacherSource`.  The model is put in eval mode, its parameters need no gradient from then
    on, and its batch-norm statistics do not move.

    Args:
        model: the trained teacher, on the device of the batches.
        layers: the hint layers to show, as the pairs name them.
        task: what the teacher takes and gives.
        logits: whether any term reads the logits; if not, the forward ends after the last layer
            and the evidence's logits are (B, 0).

    Raises:
        ValueError: the teacher has no such layer.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], task: Task, *, logits: bool = True
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.logits = logits
        self._watched = HookedModel(self.model, layers, task)

    def __call__(self, batch: Batch) -> ModelOutputs:
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            if self.logits:
                return self._watched(batch.inputs)
            nothing = torch.empty(len(batch), 0, device=batch.targets.device)
            return ModelOutputs(nothing, self._watched.layers_only(batch.inputs))
