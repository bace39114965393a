"""Modules that the training loop calls: a `Distiller` and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from raykd.data.batch import Batch, ExtraInputs, Inputs
from raykd.losses import ModelOutputs, Progress, Shape, Term, Terms
from raykd.losses.terms import LayerShapes
from raykd.models import Layer, LayerHooks, Signature, discover, resolve


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
    """Returns the outputs of a teacher for a batch: from a forward pass, or from a cache.

    Attributes:
        other_input: key of `Batch.more_inputs` that it reads; None: it reads the input of the
            student, or none.
    """

    @property
    def other_input(self) -> str | None: ...

    def __call__(self, batch: Batch) -> ModelOutputs: ...


@dataclass(frozen=True)
class TeacherInputs:
    """Teacher of a scheme, with its terms.

    Attributes:
        teacher: returns its outputs.
        terms: terms with pairs resolved to layers of this teacher.
        hint_shapes: shape of every hint layer, by the name that pairs use.
    """

    teacher: TeacherSource
    terms: Sequence[Term]
    hint_shapes: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class SchemeInputs:
    """Inputs of a scheme for building its distiller.

    Attributes:
        student: network to train.
        build_student: returns another student (a peer) with new initial weights.
        teacher: returns outputs of the first teacher; None if there is none.
        terms: terms with pairs resolved to layers.
        task_loss: (logits, targets) -> scalar, the label loss.
        signature: inputs and classes of the networks.
        train_size: number of training samples.
        data_size: one more than the largest `Batch.index`.
        guided_shapes / hint_shapes: shape without the batch of every layer in a pair, by the name
            that the pair uses.
        more_teachers: the teachers after the first, in the order of `Scheme.teachers`.
        teacher_network: network of the first teacher, if it is loaded.
    """

    student: nn.Module
    build_student: Callable[[], nn.Module]
    teacher: TeacherSource | None
    terms: Sequence[Term]
    task_loss: Callable[[Tensor, Tensor], Tensor]
    signature: Signature
    train_size: int
    data_size: int
    guided_shapes: Mapping[str, Shape] = field(default_factory=dict)
    hint_shapes: Mapping[str, Shape] = field(default_factory=dict)
    more_teachers: Sequence[TeacherInputs] = ()
    teacher_network: nn.Module | None = None

    @property
    def classes(self) -> int:
        return self.signature.classes

    @property
    def guides(self) -> tuple[TeacherInputs, ...]:
        """All teachers, in order.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError(
                "the scheme needs a teacher and the study has none; name a `teacher`, or use a "
                "scheme without one (`scheme: {name: alone}`)"
            )
        return (TeacherInputs(self.teacher, self.terms, self.hint_shapes), *self.more_teachers)

    def with_terms(self, terms: Sequence[Term]) -> SchemeInputs:
        """Return a copy with other terms."""
        return replace(self, terms=terms)

    def make_terms(
        self,
        terms: Sequence[Term] | None = None,
        hint_shapes: Mapping[str, Shape] | None = None,
        deployable: bool = False,
    ) -> Terms:
        """Build terms whose losses have newly initialized parameters.

        Args:
            terms: None: `self.terms`.
            hint_shapes: None: those of the first teacher.
            deployable: whether a loss may change the network that is kept.

        Raises:
            ValueError: layers that cannot be connected.
        """
        return Terms(
            self.terms if terms is None else terms,
            classes=self.classes,
            train_size=self.train_size,
            data_size=self.data_size,
            shapes=LayerShapes(
                self.guided_shapes, self.hint_shapes if hint_shapes is None else hint_shapes
            ),
            deployable=deployable,
        )


class Distiller(nn.Module):
    """Training objective of one trial: networks, terms and label loss.

    Every registered parameter is trained; teachers are not registered.
    """

    student: nn.Module
    """Network that is evaluated and kept."""

    needs_unused_parameter_search: bool = False
    """True if some parameters may have no gradient in some step (for DDP)."""

    steps_differ: bool = False
    """True if steps of an epoch differ by more than their batches and the weights of terms."""

    extra_inputs: ExtraInputs = ExtraInputs()
    """Inputs it needs in addition to the samples of its batches."""

    other_inputs: tuple[str, ...] = ()
    """Keys of `Batch.more_inputs` that its teachers read."""

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        raise NotImplementedError

    def begin_epoch(self, progress: Progress) -> None:
        """Prepare for an epoch; called before its first batch."""


class HookedModel:
    """Network that returns its logits and the outputs of some layers.

    Args:
        model: (B, ...) -> (B, classes); not registered as a submodule.
        layers: dotted module names or aliases ("stage2", "embedding").
        signature: inputs and classes of the network.
        candidates: layers in which the names are looked up; None: all layers of the network.

    Raises:
        ValueError: the network has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        signature: Signature,
        candidates: Sequence[Layer] | None = None,
    ) -> None:
        if candidates is None:
            candidates = discover(model, signature) if layers else ()
        self._hooks = LayerHooks(model, [resolve(candidates, name) for name in layers])

    def __call__(self, inputs: Inputs) -> ModelOutputs:
        logits, layers = self._hooks.run(inputs)
        return ModelOutputs(logits, layers)

    def layers_only(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the layers without gradients; the forward pass ends after the last of them."""
        return self._hooks.layers_only(inputs)


class LiveTeacher:
    """Teacher that is run for every batch, frozen and in eval mode.

    A `TeacherSource`.  The model is put in eval mode, its parameters need no gradient from then
    on, and its batch-norm statistics do not change.

    Args:
        model: trained, on the device of the batches.
        layers: hint layers to return, as the pairs name them.
        signature: inputs and classes of the teacher.
        logits: whether a term reads the logits; if not, the forward pass ends after the last
            layer, and the logits are (B, 0).
        other_input: key of `Batch.more_inputs` of its input; None: that of the student.

    Raises:
        ValueError: the teacher has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        signature: Signature,
        *,
        logits: bool = True,
        other_input: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.logits = logits
        self.other_input = other_input
        self._hooked_model = HookedModel(self.model, layers, signature)

    def __call__(self, batch: Batch) -> ModelOutputs:
        if self.model.training:
            self.model.eval()
        other = self.other_input
        inputs = batch.inputs if other is None else batch.more_inputs[other]
        with torch.no_grad():
            if self.logits:
                return self._hooked_model(inputs)
            logits = torch.empty(len(batch), 0, device=batch.targets.device)
            return ModelOutputs(logits, self._hooked_model.layers_only(inputs))
