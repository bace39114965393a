"""Contrastive representation distillation, with a memory of negatives."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import Loss, LossContext, LossModule, for_each_pair
from raykd.losses.connectors import PlaceMean, kind_of
from raykd.losses.functional import from_all_workers, unit
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import Shape
from raykd.registry import option


@option
class Crd(Loss):
    """Contrast the two embeddings of a sample with those of other classes.

    The loss is the objective of Tian 2020 (arXiv:1910.10699), section 3.1 (Eq. 18 in the authors'
    code): -log h(t_i, s_i) - sum over N negatives j of log(1 - h(t_j, s_i)), mean over the batch,
    plus the same term with student and teacher exchanged. h = e / (e + N/M) with e = exp(g_t . g_s
    / tau) / Z, linear g with output of norm 1, and M training samples (the form of h that follows
    the objective in the paper, where Z is missing).

    Negatives come from a memory of the last embeddings of every training sample, updated with
    `momentum`; it is initialized at random and is equal on all workers.  N negatives are drawn, at
    most M (then each sample once).  A drawn sample of the same class as the anchor is left out if
    its class is known, and the others are reweighted to a sum of N.  Width, negatives, temperature
    and momentum are those of the CRD benchmark.

    Z is the mean over a batch of the sum of exp over the memory.  `scale: batch` computes Z from
    each batch (on each worker separately), and a positive is the current embedding of the other
    network.  `scale: benchmark`, as in the authors' code and the CRD benchmark, keeps the Z of the
    first batch, and a positive comes from the memory before the batch.  The Z of a random memory is
    far too small, so training starts with large losses: long trainings recover from them, trainings
    of a few epochs do not.
    """

    knowledge = "feature"
    kinds = ("softmax",)
    paper = "Tian 2020, arXiv:1910.10699"
    default_weight = 0.2
    weight_source = (
        "A quarter of the CRD benchmark's 0.8, which in six epochs on 3,000 pictures cost accuracy "
        "even with a Z that fits; 0.2 cost none, and gained some in fifteen."
    )
    default_pairs = "embedding"
    zero_at_teacher = False
    relates_samples = True
    random = True
    reads_labels = True

    name: Literal["crd"] = "crd"
    width: Annotated[int, Field(ge=1, description="Size of the compared embeddings")] = 128
    negatives: Annotated[
        int,
        Field(
            ge=1,
            description="Number of negatives N per sample; at most the size of the training set",
        ),
    ] = 16384
    temperature: Annotated[float, Field(gt=0, description="Temperature tau")] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum of the memory bank")] = 0.5
    scale: Annotated[
        Literal["batch", "benchmark"], Field(description="Source of Z and of the positives")
    ] = "batch"

    @property
    def pairs_apart(self) -> bool:
        return True

    def build(self, context: LossContext) -> LossModule:
        return _Contrast(self, context)


class _Contrast(LossModule):
    def __init__(self, loss: Crd, context: LossContext) -> None:
        super().__init__(context)
        self.pairs = context.pairs
        self.judges = nn.ModuleList(
            for_each_pair(context, lambda guided, hint: _Contrasted(loss, context, guided, hint))
        )

    def value(self, inputs: LossInputs) -> Tensor:
        values = [
            judge(
                inputs.student.layers[pair.guided],
                inputs.teacher.layers[pair.hint],
                inputs.targets,
                inputs.index,
            )
            for pair, judge in zip(self.pairs, self.judges, strict=True)
        ]
        return torch.stack(values).sum()


class _Contrasted(nn.Module):
    """(guided, hint, targets, index) -> contrastive value; also updates the memory.

    `memory` is (2, M, width): the embeddings of the student, then those of the teacher.
    """

    slot_of: Tensor
    used_slots: Tensor
    class_of: Tensor
    memory: Tensor
    log_scales: Tensor
    started: Tensor

    def __init__(self, loss: Crd, context: LossContext, guided: Shape, hint: Shape) -> None:
        super().__init__()
        self.loss = loss
        self.size = context.train_size
        self.negatives = min(loss.negatives, self.size)
        self.log_odds = log(self.negatives / self.size)
        self.heads = nn.ModuleList(_head(shape, loss.width) for shape in (guided, hint))
        bound = (3 / loss.width) ** 0.5  # rows of norm 1 on average; on the meta device as cheap
        memory = torch.empty(2, self.size, loss.width).uniform_(-bound, bound)
        self.register_buffer("memory", memory)
        self.register_buffer("slot_of", torch.full((context.data_size,), -1))
        self.register_buffer("used_slots", torch.zeros((), dtype=torch.long))
        self.register_buffer("class_of", torch.full((self.size,), -1))
        self.register_buffer("log_scales", torch.zeros(2))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, guided: Tensor, hint: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        pair = zip(self.heads, (guided, hint), strict=True)
        embeddings = torch.stack([unit(head(layer)) for head, layer in pair])
        rows = from_all_workers(embeddings.transpose(0, 1)).transpose(0, 1)
        labels = from_all_workers(torch.stack([targets, index], dim=1))
        slots = self._slots(labels[:, 1])
        before = self.memory[:, slots]
        if self.training:  # before the memory is used: autograd forbids a change after that
            self._remember(rows, labels, slots)
        drawn = self._drawn(targets)
        ways = [
            self._products(embeddings, anchors, slots, before, labels[:, 1], index)
            for anchors in (0, 1)
        ]
        scales = self._scales([scores for scores, _ in ways])
        values = [
            self._contrasted(scores, positive, drawn, scale)
            for (scores, positive), scale in zip(ways, scales, strict=True)
        ]
        return torch.stack(values).sum()

    def _products(
        self,
        embeddings: Tensor,
        anchors: int,
        slots: Tensor,
        before: Tensor,
        all_indices: Tensor,
        index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return (B, M) and (B,): products of each anchor with the memory of the other network and
        with its positive, divided by tau.
        """
        other = 1 - anchors
        scores = embeddings[anchors] @ self.memory[other].T
        scores = scores.index_copy(1, slots, embeddings[anchors] @ before[other].T)
        if self.loss.scale == "batch":
            positive = (embeddings[anchors] * embeddings[other]).sum(dim=1)
        else:
            mine = slots[(index[:, None] == all_indices).int().argmax(dim=1)]
            positive = scores.gather(1, mine[:, None]).squeeze(1)
        return scores / self.loss.temperature, positive / self.loss.temperature

    def _drawn(self, targets: Tensor) -> tuple[Tensor | None, Tensor]:
        """Draw negatives for each anchor: (B, N), or None for the whole memory; and their weights,
        0 for samples of the class of the anchor, with sum N.
        """
        drawn, classes = None, self.class_of.expand(len(targets), -1)
        if self.negatives < self.size:
            shape = (len(targets), self.negatives)
            drawn = torch.randint(self.size, shape, device=targets.device)
            classes = self.class_of[drawn]
        is_negative = classes != targets[:, None]
        return drawn, is_negative * (
            self.negatives / is_negative.sum(dim=1, keepdim=True).clamp_min(1)
        )

    def _scales(self, scores: list[Tensor]) -> Tensor:
        """Return (2,): log Z of the student's and the teacher's anchors, Z = sum of exp over M."""
        sums = [products.logsumexp(dim=1) for products in scores]
        if self.loss.scale == "benchmark":
            sums = [from_all_workers(log_sums) for log_sums in sums]
        log_scales = torch.stack([s.logsumexp(dim=0) - log(len(s)) for s in sums])
        if self.loss.scale == "batch":
            return log_scales
        used = torch.where(self.started, self.log_scales, log_scales)
        if self.training:
            self.log_scales.copy_(used)
            self.started.fill_(True)
        return used

    def _contrasted(
        self,
        scores: Tensor,
        positive: Tensor,
        drawn: tuple[Tensor | None, Tensor],
        log_scale: Tensor,
    ) -> Tensor:
        offset = log_scale + self.log_odds
        chosen, counts = drawn
        negative = scores if chosen is None else scores.gather(1, chosen)
        negatives = (F.softplus(negative - offset) * counts).sum(dim=1)
        return (F.softplus(offset - positive) + negatives).mean()

    @torch.no_grad()
    def _remember(self, rows: Tensor, labels: Tensor, slots: Tensor) -> None:
        targets, index = labels.unbind(dim=1)
        self.used_slots += (self.slot_of[index] < 0).sum()
        self.slot_of[index] = slots
        self.class_of[slots] = targets
        momentum = self.loss.momentum
        moved = momentum * self.memory[:, slots] + (1 - momentum) * rows
        self.memory[:, slots] = unit(moved)

    def _slots(self, index: Tensor) -> Tensor:
        """Return (B,): positions of samples in the memory; new samples get the next free ones."""
        slots = self.slot_of[index]
        fresh = slots < 0
        following = (self.used_slots + fresh.cumsum(0) - 1) % self.size
        return torch.where(fresh, following, slots)


def _head(shape: Shape, width: int) -> nn.Module:
    """Build the head: (B, *shape) -> (B, width)."""
    if kind_of(shape) == "embedding":
        return nn.Linear(shape[0], width)
    channels = shape[0] if kind_of(shape) == "map" else shape[-1]
    return nn.Sequential(PlaceMean(), nn.Linear(channels, width))
