"""Online distillation via collaborative learning: an ensemble of the peers teaches each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.knowledge import Progress
from raykd.knowledge.response import softened_kl
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput

Ensemble = Literal["naive", "linear", "min_logit", "mean"]


@option
class Kdcl(Scheme):
    """Peers trained side by side learn from the labels and from their ensemble's logits.

    Sum over peers of the labels' loss + weight x T^2 KL(ensemble || peer); Guo 2020 (CVPR), Eq. 4.
    ensemble: naive, per sample the peer with the least cross-entropy (Eq. 5); linear, the convex
    combination of least cross-entropy on the batch (Eq. 6); min_logit, the least of the peers'
    logits less the target's (Eq. 9); mean.  The ensemble gets no gradient.  Peers see the same
    augmented sample (the paper: each its own).  T = 2 is the paper's; the first peer is kept.
    """

    paper = "Guo 2020, CVPR"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["kdcl"] = "kdcl"
    peers: Annotated[int, Field(ge=2, le=8, description="networks, the student included")] = 2
    ensemble: Annotated[Ensemble, Field(description="how logits are put together")] = "min_logit"
    temperature: Annotated[float, Field(gt=0, description="softens both softmaxes")] = 2.0
    weight: Annotated[float, Field(ge=0, description="of the ensemble's teaching")] = 1.0

    def build(self, parts: Parts) -> Distiller:
        return Collaborative(self, parts)


class Collaborative(Distiller):
    """Several networks and the ensemble of their logits."""

    def __init__(self, scheme: Kdcl, parts: Parts) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = parts.student
        self.others = nn.ModuleList(parts.build_student() for _ in range(scheme.peers - 1))

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = [peer(batch.inputs).float() for peer in (self.student, *self.others)]
        tasks = torch.stack([self.task_loss(one, batch.targets) for one in logits])
        taught = ensembled([one.detach() for one in logits], batch.targets, self.scheme.ensemble)
        lessons = torch.stack([softened_kl(one, taught, self.scheme.temperature) for one in logits])
        total = (tasks + self.scheme.weight * lessons).sum()
        values = {
            "task": tasks[0].detach(),
            "ensemble": lessons[0].detach(),
            "peers_task": tasks[1:].mean().detach(),
        }
        return StepOutput(total, values, logits[0].detach())


def ensembled(logits: Sequence[Tensor], targets: Tensor, how: Ensemble) -> Tensor:
    """Peers' logits, (B, K) each -> (B, K)."""
    stacked = torch.stack(list(logits))
    if how == "mean":
        return stacked.mean(dim=0)
    if how == "naive":
        errors = torch.stack([F.cross_entropy(one, targets, reduction="none") for one in logits])
        best = errors.argmin(dim=0)
        return stacked[best, torch.arange(len(targets), device=targets.device)]
    if how == "min_logit":
        place = targets.view(1, -1, 1).expand(len(stacked), -1, 1)
        return (stacked - stacked.gather(2, place)).amin(dim=0)
    return torch.einsum("p,pbk->bk", best_mixture(stacked, targets), stacked)


STEPS = 20
"""Multiplicative steps towards the best mixture."""


def best_mixture(stacked: Tensor, targets: Tensor) -> Tensor:
    """(P, B, K) -> (P,) shares of sum 1 of nearly least cross-entropy of the mixed logits.

    Exponentiated gradient (Kivinen 1997) from equal shares, on a convex function.
    """
    shares = stacked.new_full((len(stacked),), 1 / len(stacked))
    rows = torch.arange(len(targets), device=targets.device)
    for _ in range(STEPS):
        mixed = torch.einsum("p,pbk->bk", shares, stacked).softmax(dim=1)
        expected = torch.einsum("bk,pbk->pb", mixed, stacked)
        gradient = (expected - stacked[:, rows, targets]).mean(dim=1)
        size = gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).eps)
        shares = (shares.log() - gradient / size / 2).softmax(dim=0)
    return shares
