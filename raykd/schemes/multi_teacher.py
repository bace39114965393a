"""Several teachers at once: their mean, a weighted mix, or a mix for each sample."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.losses import ModelOutputs, Progress, Term, Terms
from raykd.losses.terms import term_names
from raykd.registry import option
from raykd.schemes.base import Scheme, Teacher, TeacherContext, TeacherSpec, independent_teacher
from raykd.schemes.distiller import Distiller, HookedModel, SchemeInputs, StepOutput

Combine = Literal["mean", "weighted", "confidence", "gate"]
Target = Literal["probabilities", "logits", "each"]


@option
class MultiTeacher(Scheme):
    """Distill from several teachers at once (Gou 2021, section 5.3).

    combine, the weights w of the teachers, with sum 1: mean, equal weights (You 2017); weighted,
    proportional to `weights`; confidence, for each sample from the cross-entropy of each teacher,
    w_k = (1 - exp(CE_k) / sum_j exp(CE_j)) / (K - 1) (Zhang 2022, arXiv:2201.00007, CA-MKD); gate,
    for each sample a linear layer on the log-probabilities of all teachers, trained only by the
    cross-entropy of the mixed probabilities on the labels (a mixture of experts, Jacobs 1991).

    target, of losses on logits: probabilities, sum_k w_k softmax(z_k / T) with the T of the loss (1
    if it has none); logits, sum_k w_k z_k; each, the sum over k of the batch mean of w_k times the
    loss against teacher k.  Losses on layers always use the last form: the layers of teachers
    differ in shape, each teacher has its connectors, and a name such as `stage2` means a layer of
    each teacher.  (With several workers the batch mean is that of the samples of a worker.)
    """

    paper = "You 2017, KDD; Zhang 2022, arXiv:2201.00007"

    name: Literal["multi_teacher"] = "multi_teacher"
    others: Annotated[tuple[Teacher, ...], Field(min_length=1, description="Additional teachers")]
    combine: Annotated[Combine, Field(description="Method that combines the teachers")] = "mean"
    weights: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...] | None,
        Field(
            description="Weight per teacher, starting with the teacher of the study. Only "
            "with `combine: weighted`"
        ),
    ] = None
    target: Annotated[Target, Field(description="Target of losses on logits")] = "probabilities"
    drop: Annotated[
        float, Field(ge=0, lt=1, description="Probability of dropping a teacher in a step")
    ] = 0.0
    task_weight: Annotated[float, Field(ge=0, description="Weight of the label loss")] = 1.0

    def __post_init__(self) -> None:
        if (self.combine == "weighted") != (self.weights is not None):
            raise ValueError(
                f"combine is {self.combine} and weights are {self.weights}; set `weights` only "
                "with combine: weighted"
            )
        if self.weights is not None and len(self.weights) != len(self.others) + 1:
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.others) + 1} teachers; set one per "
                "teacher, starting with the teacher of the study"
            )
        if self.drop and self.combine == "gate":
            raise ValueError("a gate needs all teachers; set drop: 0, or combine: mean")

    def teachers(self, around: TeacherContext) -> tuple[TeacherSpec, ...]:
        teachers = super().teachers(around)
        return (
            *teachers,
            *(independent_teacher(other, around) for other in self.others if teachers),
        )

    def build(self, parts: SchemeInputs) -> Distiller:
        shares = Shares(self.combine, len(self.others) + 1, parts.classes, self.weights)
        return MultiTeacherDistiller(parts, shares, self.target, self.task_weight, self.drop)


class MultiTeacherDistiller(Distiller):
    """A student and several frozen teachers.

    Args:
        parts: inputs with at least one teacher.
        shares: weight of each teacher for each sample.
        target: target of losses on logits.
        task_weight: weight of the label loss.
        drop: probability of leaving a teacher out of a step; one teacher always remains.

    Raises:
        ValueError: there is no teacher.
    """

    def __init__(
        self,
        parts: SchemeInputs,
        shares: Shares,
        target: Target,
        task_weight: float,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.student = parts.student
        self.task_loss = parts.task_loss
        self.task_weight = task_weight
        self.target: Target = target
        self.drop = drop
        self.guides = parts.guides
        self.shares = shares
        self._seed = int(torch.randint(2**31, ()))
        mixed = [t for t in parts.terms if t.active and t.loss and not t.loss.takes_pairs]
        self.mixed = dict(zip(_names(parts.terms, mixed), mixed, strict=True))
        if target == "each":
            self.mixed = {}
        self.on_mixed = nn.ModuleDict(
            {name: parts.make_terms([term]) for name, term in self.mixed.items()}
        )
        self.on_each = nn.ModuleList(
            parts.make_terms(
                [t for t in guide.terms if t.loss and (target == "each" or t.loss.takes_pairs)],
                guide.hint_shapes,
            )
            for guide in self.guides
        )
        guided = {name: None for terms in self._terms for name in terms.guided_layers}
        self.watched = HookedModel(parts.student, tuple(guided), parts.signature)
        self.steps_differ = drop > 0
        self.needs_unused_parameter_search = drop > 0 or any(
            terms.sometimes_unused for terms in self._terms
        )

    @property
    def _terms(self) -> list[Terms]:
        return [m for m in (*self.on_mixed.values(), *self.on_each) if isinstance(m, Terms)]

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        present = self._present(progress)
        teacher_outputs = [self.guides[k].teacher(batch) for k in present]
        logits = [output.logits.float() for output in teacher_outputs]
        shares = self.shares(logits, batch.targets, present)
        outputs = self.watched(batch.inputs)
        task = self.task_loss(outputs.logits, batch.targets)
        total = self.task_weight * task + self.shares.loss(logits, batch.targets)
        values: dict[str, Tensor] = {"task": task.detach()}
        # Every step returns the same values, also if a teacher is left out.
        nothing = torch.zeros_like(values["task"])
        values |= {f"share_{k + 1}": nothing for k in range(len(self.guides))}
        for name, term in self.mixed.items():
            mixed = ModelOutputs(mix(logits, shares, self.target, temperature_of(term)), {})
            lesson, named = self.on_mixed[name](
                outputs, mixed, batch.targets, batch.index, progress
            )
            total = total + lesson
            for value in named.values():  # none before the term's first epoch
                values[name] = value
        for i, k in enumerate(present):
            share = shares[:, i].mean()
            terms = self.on_each[k]
            lesson, named = terms(outputs, teacher_outputs[i], batch.targets, batch.index, progress)
            total = total + share * lesson
            for name, value in named.items():
                values[name] = values.get(name, 0) + share * value
            values[f"share_{k + 1}"] = share
        return StepOutput(total, values, outputs.logits.detach())

    def _present(self, progress: Progress) -> list[int]:
        """Return the numbers of the teachers of this step; the same on every worker."""
        teachers = list(range(len(self.guides)))
        if not self.drop or not self.training:
            return teachers
        draw = random.Random(self._seed + progress.step)
        remaining = [k for k in teachers if draw.random() >= self.drop]
        return remaining or [draw.choice(teachers)]


class Shares(nn.Module):
    """Weights of the teachers for each sample; they sum to 1 and have no gradient.

    Args:
        combine: see `MultiTeacher`.
        teachers, classes: their numbers.
        weights: with `weighted`, one per teacher.
    """

    def __init__(
        self,
        combine: Combine,
        teachers: int,
        classes: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.combine = combine
        self.weights = tuple(weights or (1.0,) * teachers)
        if combine == "gate":
            self.gate = nn.Linear(teachers * classes, teachers)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, logits: Sequence[Tensor], targets: Tensor, present: Sequence[int]) -> Tensor:
        """Logits of the present teachers, (B, K) each -> (B, teachers present)."""
        with torch.no_grad():
            if self.combine == "confidence" and len(logits) > 1:
                errors = [F.cross_entropy(values, targets, reduction="none") for values in logits]
                unsure = torch.stack(errors, dim=1).softmax(dim=1)
                return (1 - unsure) / (len(logits) - 1)
            if self.combine == "gate":
                return self._gated(logits).exp()
            chosen = [self.weights[k] for k in present]
            each = [targets.new_full((), w / sum(chosen), dtype=logits[0].dtype) for w in chosen]
            return torch.stack(each).expand(len(targets), -1)

    def loss(self, logits: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the loss of the gate: -log of the mixed probability of the label, mean over the
        batch; 0 for shares that are not learned."""
        if self.combine != "gate":
            return torch.zeros((), device=targets.device)
        right = torch.stack(
            [-F.cross_entropy(values, targets, reduction="none") for values in logits], 1
        )
        return -(self._gated(logits) + right).logsumexp(dim=1).mean()

    def _gated(self, logits: Sequence[Tensor]) -> Tensor:
        """(B, teachers): logarithm of the weight of each teacher."""
        evidence = torch.cat([F.log_softmax(values, dim=1) for values in logits], dim=1)
        return F.log_softmax(self.gate(evidence), dim=1)


def mix(logits: Sequence[Tensor], shares: Tensor, target: Target, temperature: float) -> Tensor:
    """Mix the logits of all teachers: (B, K) each, shares (B, teachers) -> (B, K).

    probabilities: T log sum_k w_k softmax(z_k / T), whose softmax at T is the mixed probabilities.
    """
    stacked = torch.stack(list(logits), dim=1)
    if target == "logits":
        return torch.einsum("bt,btk->bk", shares, stacked)
    softened = F.log_softmax(stacked / temperature, dim=2)
    return temperature * (shares.log().unsqueeze(2) + softened).logsumexp(dim=1)


def temperature_of(term: Term) -> float:
    """Return the temperature of the loss of a term; 1 if it has none."""
    return float(getattr(term.loss, "temperature", 1.0))


def _names(terms: Sequence[Term], selected: Sequence[Term]) -> list[str]:
    """Return the names that some of the active terms have among all of them."""
    active = [term for term in terms if term.active]
    named = zip(term_names(active), active, strict=True)
    return [name for name, term in named if any(term is other for other in selected)]
