"""What can be known of a layer pair before anything is trained with it.

Three cheap predictors of what a pair will be worth, none of which looks at validation data:
- CKA between hint and guided layer, of the student as it starts and after a few steps;
- how the gradient of the pair's loss agrees with that of the labels' loss after these steps;
- how deep the two layers lie (`raykd.models` tells that without any data).
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
from torch.nn.functional import cosine_similarity, cross_entropy

from raykd.data import Batch, BatchLoader, Dataset, Placement, ViewOptions
from raykd.losses import ModelOutputs, Pair, Progress, Term, Terms
from raykd.losses.cka_map import LEAST_SAMPLES, CkaMap
from raykd.models import LayerHooks, Task, discover, model_profile, resolve
from raykd.study.config import Study
from raykd.training.build import task_of
from raykd.training.memory_format import to_memory_format
from raykd.training.optim import make_optimizer, set_learning_rate
from raykd.training.seeding import derive_seed, seeded
from raykd.training.trainer import Training

FITTING_STEPS = 50
"""Steps in which the connectors learn before their gradients are looked at."""

Matrix = list[list[float]]


@dataclass(frozen=True)
class Question:
    """What is asked of a teacher and a student.

    Attributes:
        hints, guided: the layers of the pairs, shallow to deep.
        teacher_layers, student_layers: those of the CKA map.
        term: the term that compares the layers, as the study has it, without its pairs.
        possible: the pairs (number of hint, number of guided) that its loss can compare.
        steps: of training without hint before the second look.
        batches: how many are looked at.
    """

    hints: tuple[str, ...]
    guided: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    student_layers: tuple[str, ...]
    term: Term
    possible: tuple[tuple[int, int], ...]
    steps: int
    batches: int


def question_of(told: Mapping[str, Any], knowledge: Sequence[Term]) -> Question:
    """The question that plain data ask; their `term` is the number of a term of `knowledge`."""
    return Question(
        hints=tuple(told["hints"]),
        guided=tuple(told["guided"]),
        teacher_layers=tuple(told["teacher_layers"]),
        student_layers=tuple(told["student_layers"]),
        term=replace(knowledge[told["term"]], pairs=None),
        possible=tuple((hint, guided) for hint, guided in told["possible"]),
        steps=told["steps"],
        batches=told["batches"],
    )


def answer(
    question: Question,
    study: Study,
    data: Dataset,
    *,
    seed: int,
    teacher: nn.Module,
    teachers: Sequence[Any] = (),
    trained: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The predictors of every pair, in plain data; the same for the same arguments (on a CPU).

    The student is the one that starts under `seed` in every arm, and it is trained `steps` steps
    (at most as many as a training has) by the same loop as the arm without hint.

    Args:
        study: concrete: that of the arm without hint.
        data: training batches are looked at alone.
        seed: of the training.
        teacher: trained.
        teachers: as `Training` takes them for `study`.
        trained: the student without hint after its whole training, for a third map.
        device: where to compute.

    Returns:
        `steps` that were trained; `cka`: "start", "steps" and (with `trained`) "trained" ->
        (teacher_layers, student_layers) matrix; `gradient`: (hints, guided) matrix of cosines,
        NaN for pairs that cannot be compared.
    """
    device = torch.device(device)
    teacher = teacher.to(device).eval().requires_grad_(False)
    training = Training(study, data, seed=seed, teacher=list(teachers), placement=Placement(device))
    look = _Look(question, study, data, seed, teacher, device)
    maps = {"start": look.map_with(training.student)}
    steps = training.run_steps(question.steps)
    maps["steps"] = look.map_with(training.student)
    gradient = look.gradients(training.student)
    if trained is not None:
        maps["trained"] = look.map_with(trained.to(device))
    return {"steps": steps, "cka": maps, "gradient": gradient}


class _Look:
    """The same training batches, shown to the teacher and to students."""

    def __init__(
        self,
        question: Question,
        study: Study,
        data: Dataset,
        seed: int,
        teacher: nn.Module,
        device: torch.device,
    ) -> None:
        self.question, self.study, self.data, self.seed = question, study, data, seed
        self.device, self.task = device, task_of(data)
        self.teacher = teacher
        wanted = (*question.teacher_layers, *question.hints)
        self._taps = _taps(teacher, wanted, self.task)

    def map_with(self, student: nn.Module) -> Matrix:
        """CKA between the layers of the teacher and of a student, which stays as it is."""
        question = self.question
        shown = _as_in_training(copy.deepcopy(student))
        taps = _taps(shown, question.student_layers, self.task)
        found = CkaMap(question.teacher_layers, question.student_layers)
        with torch.no_grad():
            for batch in self._batches(least=LEAST_SAMPLES):
                theirs = self._taps.layers_only(batch.inputs)
                found.add(theirs, taps.run(batch.inputs).layers)
        return found.values.tolist()

    def gradients(self, student: nn.Module) -> Matrix:
        """For each pair the cosine between the gradients of its loss and of the labels' loss, in
        the parameters that both reach; mean over batches.

        The connectors first learn for `FITTING_STEPS` steps on a student that stands still: the
        gradient through one that was just drawn says nothing of the pair.
        """
        question = self.question
        student = _as_in_training(copy.deepcopy(student))
        deploys = question.term.loss is not None and question.term.loss.deploys
        with seeded(derive_seed(self.seed, "predictors"), self.device):
            modules = {} if deploys else {pair: self._module(*pair) for pair in question.possible}
            self._fit(modules, student)
            found = [self._cosines(modules, student, batch) for batch in self._batches()]
        table = [[math.nan] * len(question.guided) for _ in question.hints]
        for hint, guided in modules:
            cosines = [one[hint, guided] for one in found]
            table[hint][guided] = math.fsum(cosines) / len(cosines)
        return table

    def _fit(self, modules: Mapping[tuple[int, int], nn.Module], student: nn.Module) -> None:
        learned = [p for module in modules.values() for p in module.parameters()]
        if not learned:
            return
        train = self.study.train
        optimizer = make_optimizer(train, learned)
        set_learning_rate(optimizer, train.optimizer.lr)
        weight = self.question.term.effective_weight
        taps = _taps(student, self.question.guided, self.task)
        for batch in islice(self._endless(), FITTING_STEPS):
            with torch.no_grad():
                logits, layers = taps.run(batch.inputs)
                hints = self._taps.run(batch.inputs)
            shown, taught = ModelOutputs(logits, layers), ModelOutputs(*hints)
            losses = [self._loss(module, shown, taught, batch) for module in modules.values()]
            optimizer.zero_grad(set_to_none=True)
            (weight * torch.stack(losses).sum()).backward()
            # The pairs share nothing, so each is clipped by itself, as it would be alone.
            for module in modules.values():
                own = list(module.parameters())
                if train.clip_norm is not None and own:
                    nn.utils.clip_grad_norm_(own, train.clip_norm)
            optimizer.step()

    def _cosines(
        self, modules: Mapping[tuple[int, int], nn.Module], student: nn.Module, batch: Batch
    ) -> dict[tuple[int, int], float]:
        taps = _taps(student, self.question.guided, self.task)
        shown = ModelOutputs(*taps.run(batch.inputs))
        with torch.no_grad():
            taught = ModelOutputs(*self._taps.run(batch.inputs))
        shared = [p for p in student.parameters() if p.requires_grad]
        smoothing = self.study.train.label_smoothing
        labels = cross_entropy(shown.logits, batch.targets, label_smoothing=smoothing)
        wanted = gradient_of(labels, shared)
        return {
            pair: agreement(wanted, gradient_of(self._loss(module, shown, taught, batch), shared))
            for pair, module in modules.items()
        }

    def _loss(
        self, module: nn.Module, shown: ModelOutputs, taught: ModelOutputs, batch: Batch
    ) -> Tensor:
        progress = Progress(epoch=0, epochs=self.study.train.epochs)
        return module(shown, taught, batch.targets, batch.index, progress)

    def _module(self, hint: int, guided: int) -> nn.Module:
        """The pair's loss, made ready on the device."""
        question, study = self.question, self.study
        pair = Pair(hint=question.hints[hint], guided=question.guided[guided])
        term = replace(question.term, pairs=(pair,))
        [theirs] = [one.shape for one in _named(self.teacher, (pair.hint,), self.task)]
        ours = model_profile(study.student.model, self.task).resolve([pair.guided])[0].shape
        terms = Terms(
            [term],
            classes=self.task.classes,
            train_size=len(self.data.train),
            data_size=self.data.data_size,
            guided_shapes={pair.guided: ours},
            hint_shapes={pair.hint: theirs},
        )
        [module] = terms.losses.values()
        return module.to(self.device)

    def _batches(self, least: int = 1) -> Iterator[Batch]:
        """The training batches that are looked at, the same at every look."""
        return islice(self._endless(least), min(self.question.batches, len(self._order(least))))

    def _endless(self, least: int = 1) -> Iterator[Batch]:
        order = self._order(least)
        for epoch in count():
            yield from map(to_memory_format, order.epoch(epoch))

    def _order(self, least: int = 1) -> BatchLoader:
        return BatchLoader(
            self.data.train,
            self.data,
            batch_size=max(least, self.study.train.batch_size),
            shuffle_seed=derive_seed(self.seed, "predictors") % 2**31,
            views=ViewOptions(self.study.data.augment),
            placement=Placement(self.device),
        )


Gradients = Sequence[Tensor | None]


def gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """The gradient of each parameter; None where the loss does not reach it."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def agreement(one: Gradients, other: Gradients) -> float:
    """The cosine of two gradients over the parameters that both reach; NaN where there are none,
    or one of the two is 0."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not both:
        return math.nan
    first, second = (torch.cat([pair[side].flatten() for pair in both]) for side in (0, 1))
    if not first.any() or not second.any():
        return math.nan
    return float(cosine_similarity(first.double(), second.double(), dim=0))


def _taps(network: nn.Module, layers: Sequence[str], task: Task) -> LayerHooks:
    return LayerHooks(network, _named(network, tuple(dict.fromkeys(layers)), task))


def _named(network: nn.Module, layers: Sequence[str], task: Task) -> list[Any]:
    known = discover(network, task)
    return [resolve(known, name) for name in layers]


def _as_in_training(network: nn.Module) -> nn.Module:
    """The network, in place: batch norm by each batch's own statistics, nothing dropped."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return network
