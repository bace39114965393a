"""Contrastive representation distillation, with a memory bank of negatives."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.knowledge.connectors import PlaceMean, kind_of
from raykd.knowledge.evidence import Evidence, Progress, Shape
from raykd.knowledge.gather import from_all_workers
from raykd.knowledge.loss import Loss, LossContext, LossModule, for_each_pair
from raykd.option import option


@option
class Crd(Loss):
    """A sample's two embeddings are told from those of samples of other classes.

    -log h(t_i, s_i) - sum over N negatives j of log(1 - h(t_j, s_i)), mean over the batch, plus the
    same with the roles changed; h = e / (e + N/M), e = exp(g_t . g_s / tau) / Z with linear g of
    norm 1 and M training samples; Tian 2020 (arXiv:1910.10699), Eqs. 17 to 19.  Z, as in the
    authors' code, is the mean of exp x M over the first batch, kept.  Negatives come from a memory
    of every training sample's last embeddings (moved by `momentum`), which starts at random and is
    the same on all workers; a drawn sample of the anchor's own class, as far as its class has been
    seen, is left out.  The positive is the current embedding (the authors' code: the memory's).
    Weight 0.8, 128, 16384 and 0.07 are the CRD benchmark's.
    """

    knowledge = "feature"
    paper = "Tian 2020, arXiv:1910.10699"
    default_weight = 0.8
    default_pairs = "embedding"
    zero_at_teacher = False
    relates_samples = True
    random = True

    name: Literal["crd"] = "crd"
    width: Annotated[int, Field(ge=1, description="of the compared embeddings")] = 128
    negatives: Annotated[int, Field(ge=1, description="N, drawn for each sample")] = 16384
    temperature: Annotated[float, Field(gt=0, description="tau")] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1, description="of the memory")] = 0.5

    def build(self, context: LossContext) -> LossModule:
        return _Contrast(self, context)


class _Contrast(LossModule):
    def __init__(self, loss: Crd, context: LossContext) -> None:
        super().__init__()
        self.pairs = context.pairs
        self.judges = nn.ModuleList(
            for_each_pair(context, lambda guided, hint: _Contrasted(loss, context, guided, hint))
        )

    def value(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        values = [
            judge(student.layers[pair.guided], teacher.layers[pair.hint], targets, index)
            for pair, judge in zip(self.pairs, self.judges, strict=True)
        ]
        return torch.stack(values).sum()


class _Contrasted(nn.Module):
    """(guided, hint, targets, index) -> the contrastive value, and moves the memory."""

    slot_of: Tensor
    taken: Tensor
    class_of: Tensor
    guided_memory: Tensor
    hint_memory: Tensor
    log_scales: Tensor
    started: Tensor

    def __init__(self, loss: Crd, context: LossContext, guided: Shape, hint: Shape) -> None:
        super().__init__()
        self.loss = loss
        self.size = context.train_size
        self.log_odds = log(loss.negatives / self.size)
        self.guided_head = _head(guided, loss.width)
        self.hint_head = _head(hint, loss.width)
        self.register_buffer("slot_of", torch.full((context.data_size,), -1))
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))
        self.register_buffer("class_of", torch.full((self.size,), -1))
        self.register_buffer("guided_memory", _random_directions(self.size, loss.width))
        self.register_buffer("hint_memory", _random_directions(self.size, loss.width))
        self.register_buffer("log_scales", torch.zeros(2))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, guided: Tensor, hint: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        ours = F.normalize(self.guided_head(guided), dim=1)
        theirs = F.normalize(self.hint_head(hint), dim=1)
        rows = from_all_workers(torch.stack([ours, theirs], dim=1))
        labels = from_all_workers(torch.stack([targets, index], dim=1))
        if self.training:  # before the memory is used: autograd forbids a change after that
            self._remember(rows, labels)
        scales = torch.where(self.started, self.log_scales, self._estimated_scales(rows))
        if self.training:
            self.log_scales.copy_(scales)
            self.started.fill_(True)
        shape = (len(ours), self.loss.negatives)
        drawn = torch.randint(self.size, shape, device=ours.device)
        others = self.class_of[drawn] != targets[:, None]
        value = self._one_way(ours, theirs, self.hint_memory, drawn, others, scales[0])
        return value + self._one_way(theirs, ours, self.guided_memory, drawn, others, scales[1])

    def _one_way(
        self,
        anchors: Tensor,
        positives: Tensor,
        memory: Tensor,
        drawn: Tensor,
        others: Tensor,
        log_scale: Tensor,
    ) -> Tensor:
        offset = log_scale + self.log_odds
        positive = (anchors * positives).sum(dim=1) / self.loss.temperature - offset
        negative = (anchors @ memory.T).gather(1, drawn) / self.loss.temperature - offset
        told_apart = (F.softplus(negative) * others).sum(dim=1)
        return (F.softplus(-positive) + told_apart).mean()

    def _estimated_scales(self, rows: Tensor) -> Tensor:
        """(2,): log Z for the student's anchors and for the teacher's; Z = sum of exp over M."""
        memories = (self.hint_memory, self.guided_memory)
        sums = [
            (rows[:, side] @ memory.T / self.loss.temperature).exp().sum(dim=1).mean()
            for side, memory in enumerate(memories)
        ]
        return torch.stack(sums).log()

    @torch.no_grad()
    def _remember(self, rows: Tensor, labels: Tensor) -> None:
        targets, index = labels.unbind(dim=1)
        slots = self._slots(index)
        self.class_of[slots] = targets
        for side, memory in enumerate((self.guided_memory, self.hint_memory)):
            moved = self.loss.momentum * memory[slots] + (1 - self.loss.momentum) * rows[:, side]
            memory[slots] = F.normalize(moved, dim=1)

    def _slots(self, index: Tensor) -> Tensor:
        """(B,): each sample's place in the memory; samples not seen yet take the next ones."""
        slots = self.slot_of[index]
        fresh = slots < 0
        following = (self.taken + fresh.cumsum(0) - 1) % self.size
        slots = torch.where(fresh, following, slots)
        self.slot_of[index] = slots
        self.taken += fresh.sum()
        return slots


def _head(shape: Shape, width: int) -> nn.Module:
    """(B, *shape) -> (B, width)."""
    if kind_of(shape) == "embedding":
        return nn.Linear(shape[0], width)
    channels = shape[0] if kind_of(shape) == "map" else shape[-1]
    return nn.Sequential(PlaceMean(), nn.Linear(channels, width))


def _random_directions(count: int, width: int) -> Tensor:
    return F.normalize(torch.randn(count, width), dim=1)
