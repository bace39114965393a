"""Predictors of the value of a layer pair, without training with it.

Two cheap predictors, which use no validation data:
- CKA between hint and guided layer, for the student at initialization and after a few steps;
- agreement of the gradient of the pair's loss with that of the label loss after these steps.

The third, the depth of the two layers, needs no data (`raykd.models`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from raykd.data import Batch, BatchLoader, Inputs, Placement, ViewOptions, to_memory_format
from raykd.input_forms import WHOLE
from raykd.losses import ModelOutputs, Pair, Progress, Term, Terms
from raykd.losses.cka_map import LEAST_SAMPLES, CkaMap
from raykd.losses.terms import LayerShapes
from raykd.models import Layer, LayerHooks, Signature, discover, profile_model, resolve
from raykd.training.build import signature_of
from raykd.training.seeding import derive_seed, seeded
from raykd.training.trainer import Training

FITTING_STEPS = 50
"""Training steps of the connectors before their gradients are compared."""

Matrix = list[list[float]]

PairIndex = tuple[int, int]
"""Numbers of the hint layer and the guided layer."""


@dataclass(frozen=True)
class ProbedPairs:
    """Layers and pairs for which predictors are computed.

    Attributes:
        hints, guided: layers of the pairs, shallow to deep.
        teacher_layers, student_layers: layers of the CKA map.
        term: the term that compares the layers, as in the study, without its pairs.
        possible: pairs that its loss can compare.
        steps: training steps without hint before the second look.
        batches: number of batches that are used.
        teacher_input: input of the samples that the teacher takes; None: the whole sample.
    """

    hints: tuple[str, ...]
    guided: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    student_layers: tuple[str, ...]
    term: Term
    possible: tuple[PairIndex, ...]
    steps: int
    batches: int
    teacher_input: str | None = None


def probe_layers(
    design: ProbedPairs,
    training: Training,
    *,
    teacher: nn.Module,
    trained: nn.Module | None = None,
) -> dict[str, Any]:
    """Compute the predictors of every pair; deterministic on a CPU.

    Args:
        design: layers and pairs.
        training: of the student without hint, at its start; trained for `design.steps` steps, at
            most to its end.  Only its training batches are used.
        teacher: trained.
        trained: the student after its whole training without hint, for a third CKA map.

    Returns:
        steps, the number of training steps; cka, a (teacher_layers, student_layers) matrix for
        "start", "steps" and, with `trained`, "trained"; gradient, a (hints, guided) matrix of
        cosines, NaN for pairs that cannot be compared.
    """
    teacher = teacher.to(training.device).eval().requires_grad_(False)
    probe = _Probe(design, training, teacher)
    maps = {"start": probe.cka_map(training.student)}
    steps = training.run_steps(design.steps)
    maps["steps"] = probe.cka_map(training.student)
    gradient = probe.gradient_agreement(training.student)
    if trained is not None:
        maps["trained"] = probe.cka_map(trained.to(training.device))
    return {"steps": steps, "cka": maps, "gradient": gradient}


class _Probe:
    """Runs the teacher and students on the same training batches."""

    def __init__(self, design: ProbedPairs, training: Training, teacher: nn.Module) -> None:
        self.design, self.teacher = design, teacher
        self.study, self.data, self.seed = training.study, training.data, training.seed
        self.device, self.signature = training.device, signature_of(training.data)
        self._label_loss = training.task.for_network(training.student).label_loss(
            self.data.train.targets.to(self.device),
            self.data.classes,
            smoothing=self.study.train.label_smoothing,
        )
        theirs = self.data.as_input(design.teacher_input)
        self._more_inputs = [] if theirs is self.data else [theirs]
        self.teacher_signature = signature_of(theirs)
        names = (*design.teacher_layers, *design.hints)
        self._taps = _taps(teacher, names, self.teacher_signature)

    def cka_map(self, student: nn.Module) -> Matrix:
        """Compute the CKA between the layers of the teacher and of a copy of a student."""
        design = self.design
        copied = _freeze_dropout(copy.deepcopy(student))
        taps = _taps(copied, design.student_layers, self.signature)
        cka = CkaMap(design.teacher_layers, design.student_layers)
        with torch.no_grad():
            for batch in self._batches(min_samples=LEAST_SAMPLES):
                hints = self._taps.layers_only(self._seen_by_teacher(batch))
                cka.add(hints, taps.run(batch.inputs).layers)
        return cka.values.tolist()

    def gradient_agreement(self, student: nn.Module) -> Matrix:
        """Compute for each pair the cosine between the gradients of its loss and the label loss.

        It is taken over the parameters that both reach, and averaged over batches.  The
        connectors are trained for `FITTING_STEPS` steps on the fixed student first: a gradient
        through a random connector is not informative.
        """
        design = self.design
        student = _freeze_dropout(copy.deepcopy(student))
        deploys = design.term.loss is not None and design.term.loss.deploys
        with seeded(derive_seed(self.seed, "predictors"), self.device):
            losses = {} if deploys else {pair: self._pair_loss(*pair) for pair in design.possible}
            self._fit(losses, student)
            batches = [self._cosines(losses, student, batch) for batch in self._batches()]
        table = [[math.nan] * len(design.guided) for _ in design.hints]
        for hint, guided in losses:
            cosines = [values[hint, guided] for values in batches]
            table[hint][guided] = math.fsum(cosines) / len(cosines)
        return table

    def _fit(self, losses: Mapping[PairIndex, nn.Module], student: nn.Module) -> None:
        """Train the connectors of all pairs on a fixed student."""
        parameters = [p for loss in losses.values() for p in loss.parameters()]
        if not parameters:
            return
        train = self.study.train
        optimizer = train.build_optimizer(parameters)
        weight = self.design.term.effective_weight
        taps = _taps(student, self.design.guided, self.signature)
        for batch in islice(self._endless_batches(), FITTING_STEPS):
            with torch.no_grad():
                guided = ModelOutputs(*taps.run(batch.inputs))
                hints = ModelOutputs(*self._taps.run(self._seen_by_teacher(batch)))
            values = [self._value(loss, guided, hints, batch) for loss in losses.values()]
            optimizer.zero_grad(set_to_none=True)
            (weight * torch.stack(values).sum()).backward()
            # The pairs share no parameters: each is clipped separately, as it would be alone.
            for loss in losses.values():
                connectors = list(loss.parameters())
                if train.clip_norm is not None and connectors:
                    nn.utils.clip_grad_norm_(connectors, train.clip_norm)
            optimizer.step()

    def _cosines(
        self, losses: Mapping[PairIndex, nn.Module], student: nn.Module, batch: Batch
    ) -> dict[PairIndex, float]:
        taps = _taps(student, self.design.guided, self.signature)
        guided = ModelOutputs(*taps.run(batch.inputs))
        with torch.no_grad():
            hints = ModelOutputs(*self._taps.run(self._seen_by_teacher(batch)))
        parameters = [p for p in student.parameters() if p.requires_grad]
        labels = self._label_loss(guided.logits, batch.targets)
        target = gradient_of(labels, parameters)
        return {
            pair: agreement(
                target, gradient_of(self._value(loss, guided, hints, batch), parameters)
            )
            for pair, loss in losses.items()
        }

    def _value(
        self, loss: nn.Module, guided: ModelOutputs, hints: ModelOutputs, batch: Batch
    ) -> Tensor:
        progress = Progress(epoch=0, epochs=self.study.train.epochs)
        return loss(guided, hints, batch.targets, batch.index, progress)

    def _pair_loss(self, hint: int, guided: int) -> nn.Module:
        """Build the loss of one pair, with its connectors."""
        pair = Pair(hint=self.design.hints[hint], guided=self.design.guided[guided])
        [hint_layer] = _layers(self.teacher, (pair.hint,), self.teacher_signature)
        [guided_layer] = profile_model(self.study.student.model, self.signature).resolve(
            [pair.guided]
        )
        terms = Terms(
            [replace(self.design.term, pairs=(pair,))],
            classes=self.signature.classes,
            train_size=len(self.data.train),
            data_size=self.data.data_size,
            shapes=LayerShapes({pair.guided: guided_layer.shape}, {pair.hint: hint_layer.shape}),
        )
        [loss] = terms.losses.values()
        return loss.to(self.device)

    def _seen_by_teacher(self, batch: Batch) -> Inputs:
        return (
            batch.more_inputs[self.design.teacher_input or WHOLE]
            if self._more_inputs
            else batch.inputs
        )

    def _batches(self, min_samples: int = 1) -> Iterator[Batch]:
        """Yield the training batches of a look, the same each time."""
        size = min(self.design.batches, len(self._loader(min_samples)))
        return islice(self._endless_batches(min_samples), size)

    def _endless_batches(self, min_samples: int = 1) -> Iterator[Batch]:
        loader = self._loader(min_samples)
        for epoch in count():
            yield from map(to_memory_format, loader.epoch(epoch))

    def _loader(self, min_samples: int) -> BatchLoader:
        return BatchLoader(
            self.data.train,
            self.data,
            batch_size=max(min_samples, self.study.train.batch_size),
            shuffle_seed=derive_seed(self.seed, "predictors") % 2**31,
            views=ViewOptions(self.study.data.augment, more_inputs=self._more_inputs),
            placement=Placement(self.device),
        )


Gradients = Sequence[Tensor | None]


def gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Return the gradient for each parameter; None if the loss does not depend on it."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def agreement(first: Gradients, second: Gradients) -> float:
    """Return the cosine of two gradients over the parameters that both reach.

    It is NaN if there are none, or one of the gradients is 0.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return math.nan
    left, right = (torch.cat([pair[side].flatten() for pair in both]) for side in (0, 1))
    if not left.any() or not right.any():
        return math.nan
    return float(cosine_similarity(left.double(), right.double(), dim=0))


def _taps(network: nn.Module, layers: Sequence[str], signature: Signature) -> LayerHooks:
    return LayerHooks(network, _layers(network, tuple(dict.fromkeys(layers)), signature))


def _layers(network: nn.Module, names: Sequence[str], signature: Signature) -> list[Layer]:
    layers = discover(network, signature)
    return [resolve(layers, name) for name in names]


def _freeze_dropout(network: nn.Module) -> nn.Module:
    """Put a network in eval mode, in place, but for batch norms, which use batch statistics."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return network
