"""Online distillation via collaborative learning: the ensemble of the peers teaches each peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch, ExtraInputs, Inputs
from raykd.losses import Progress
from raykd.losses.functional import from_all_workers
from raykd.losses.logits import softened_kl
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, SchemeInputs, StepOutput
from raykd.schemes.dml import PeerModels, Peers, build_peers, check_peers

Ensemble = Literal["naive", "linear", "linear_batch", "min_logit", "general", "mean"]


@option
class Kdcl(Scheme):
    """Train peers together on the labels and on the logits of their ensemble.

    Sum over peers of the label loss + weight x T^2 KL(ensemble || peer), the ensemble without
    gradient; Guo 2020 (CVPR), section 3.  ensemble:

    - naive: for each sample the peer with the smallest cross-entropy.
    - linear: for each sample the convex combination of logits with the smallest cross-entropy,
      computed by exponentiated gradient; linear_batch: one combination for the whole batch.
    - min_logit: for each class the minimum over peers of the logit minus the logit of the label.
    - general: a combination fixed for an epoch, w = C^-1 1 / (1' C^-1 1), C the correlated errors
      of the peers, C_ij = mean of (p_i - label) (p_j - label).  The paper measures C after each
      epoch on held-out samples; here it comes from the batches of the epoch, each before its
      update; the first epoch has equal weights.
    - mean: equal weights (not in the paper).

    Every peer sees a separate view of each sample, as in the paper; with `own_views: false` all
    see the same view.  T = 2 and weight 1 are those of the paper for CIFAR.  The first peer is the
    result.
    """

    paper = "Guo 2020, CVPR"
    needs_teacher = False
    takes_knowledge = False

    name: Literal["kdcl"] = "kdcl"
    peers: Peers = 2
    others: PeerModels = ()
    ensemble: Annotated[
        Ensemble, Field(description="Method that combines the logits of the peers")
    ] = "min_logit"
    own_views: Annotated[bool, Field(description="Use a separate augmentation for each peer")] = (
        True
    )
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of peers and ensemble")
    ] = 2.0
    weight: Annotated[float, Field(ge=0, description="Weight of the ensemble loss")] = 1.0

    def __post_init__(self) -> None:
        check_peers(self.peers, self.others)

    def build(self, parts: SchemeInputs) -> Distiller:
        return Collaborative(self, parts, build_peers(parts, self.peers, self.others))


class Collaborative(Distiller):
    """Several networks and the ensemble of their logits."""

    def __init__(self, scheme: Kdcl, parts: SchemeInputs, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = peers[0]
        self.others = nn.ModuleList(peers[1:])
        self.extra_inputs = ExtraInputs(views=len(self.others) if scheme.own_views else 0)
        self.shares = GeneralShares(len(peers)) if scheme.ensemble == "general" else None

    def begin_epoch(self, progress: Progress) -> None:
        if self.shares is not None:
            self.shares.renew()

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = [
            peer(inputs).float()
            for peer, inputs in zip((self.student, *self.others), self._inputs(batch), strict=True)
        ]
        tasks = torch.stack([self.task_loss(values, batch.targets) for values in logits])
        ensemble = self._ensembled([values.detach() for values in logits], batch.targets)
        lessons = torch.stack(
            [softened_kl(values, ensemble, self.scheme.temperature) for values in logits]
        )
        total = (tasks + self.scheme.weight * lessons).sum()
        values = {
            "task": tasks[0].detach(),
            "ensemble": lessons[0].detach(),
            "peers_task": tasks[1:].mean().detach(),
        }
        return StepOutput(total, values, logits[0].detach())

    def _inputs(self, batch: Batch) -> tuple[Inputs, ...]:
        """Return the inputs of each peer.

        Raises:
            ValueError: the batch has another number of views than there are peers.
        """
        if not self.scheme.own_views:
            return (batch.inputs,) * (1 + len(self.others))
        if len(batch.views) != len(self.others):
            raise ValueError(
                f"the peers of scheme 'kdcl' need {len(self.others)} further view(s) of each "
                f"sample and the batch has {len(batch.views)}; load batches with the "
                "`extra_inputs` of the distiller, or set own_views: false"
            )
        return (batch.inputs, *batch.views)

    def _ensembled(self, logits: Sequence[Tensor], targets: Tensor) -> Tensor:
        if self.shares is None:
            return combine(logits, targets, self.scheme.ensemble)
        if self.training:
            self.shares.gather(logits, targets)
        return _combined(self.shares.shares[:, None], torch.stack(list(logits)))


class GeneralShares(nn.Module):
    """Weights of peers from their correlated errors of the last epoch, over all workers.

    Args:
        peers: number of peers.
    """

    shares: Tensor
    errors: Tensor
    samples: Tensor

    def __init__(self, peers: int) -> None:
        super().__init__()
        self.register_buffer("shares", torch.full((peers,), 1 / peers))
        self.register_buffer("errors", torch.zeros(peers, peers))
        self.register_buffer("samples", torch.zeros(()))

    def renew(self) -> None:
        """Update the shares from the errors collected so far, and clear the errors."""
        if self.samples:
            self.shares.copy_(general_shares(self.errors / self.samples))
            self.errors.zero_()
            self.samples.zero_()

    def gather(self, logits: Sequence[Tensor], targets: Tensor) -> None:
        """Add the errors of a batch, (B, K) logits of each peer."""
        errors = correlated_errors(torch.stack(list(logits)), targets)
        self.errors += from_all_workers(errors[None]).sum(dim=0)
        self.samples += from_all_workers(targets.new_full((1,), len(targets))).sum()


def correlated_errors(stacked: Tensor, targets: Tensor) -> Tensor:
    """(P, B, K) logits -> (P, P): inner products of the errors of peers, summed over samples."""
    label = F.one_hot(targets, stacked.shape[2]).to(stacked.dtype)
    errors = (stacked.softmax(dim=2) - label).flatten(1)
    return (errors[:, None] * errors[None]).sum(dim=2)


def general_shares(errors: Tensor) -> Tensor:
    """(P, P) -> (P,) with sum 1, possibly negative: minimizes the squared error of the ensemble."""
    size = errors.diagonal().mean()
    steady = errors.double() + 1e-6 * size * torch.eye(len(errors), device=errors.device)
    solved = torch.linalg.solve(steady, torch.ones_like(steady[0]))
    return (solved / solved.sum()).to(errors.dtype)


def combine(logits: Sequence[Tensor], targets: Tensor, method: Ensemble) -> Tensor:
    """Combine the logits of peers, (B, K) each -> (B, K); for every ensemble except `general`."""
    assert method != "general", "its weights come from the errors of an epoch"
    stacked = torch.stack(list(logits))
    if method == "mean":
        return stacked.mean(dim=0)
    if method == "naive":
        errors = torch.stack(
            [F.cross_entropy(values, targets, reduction="none") for values in logits]
        )
        best = errors.argmin(dim=0)
        return stacked[best, torch.arange(len(targets), device=targets.device)]
    if method == "min_logit":
        place = targets.view(1, -1, 1).expand(len(stacked), -1, 1)
        return (stacked - stacked.gather(2, place)).amin(dim=0)
    shares = best_mixture(stacked, targets, of_batch=method == "linear_batch")
    return _combined(shares, stacked)


STEPS = 60
"""Number of multiplicative steps of `best_mixture`."""

RATE = 16.0
"""Step size, relative to the squared difference of the peers; half the bound for two peers."""


def best_mixture(stacked: Tensor, targets: Tensor, *, of_batch: bool = False) -> Tensor:
    """(P, B, K) -> (P, B) weights with sum 1 that nearly minimize the cross-entropy of the mix.

    Exponentiated gradient (Kivinen 1997) from equal weights, on a convex function; its curvature
    determines the step size.  `of_batch`: the same weights for all samples, (P, 1).
    """
    peers, samples, _ = stacked.shape
    shares = stacked.new_full((peers, 1 if of_batch else samples), 1 / peers)
    right = stacked[:, torch.arange(samples, device=targets.device), targets]
    apart = stacked[:, None] - stacked[None]
    curvature = (apart.amax(dim=3) - apart.amin(dim=3)).amax(dim=(0, 1)).square()
    if of_batch:
        curvature = curvature.mean(dim=0, keepdim=True)
    rate = RATE / curvature.clamp_min(torch.finfo(stacked.dtype).tiny)
    for _ in range(STEPS):
        expected = (_combined(shares, stacked).softmax(dim=1) * stacked).sum(dim=2)
        gradient = expected - right
        if of_batch:
            gradient = gradient.mean(dim=1, keepdim=True)
        shares = (shares.log() - rate * (gradient - gradient.mean(dim=0))).softmax(dim=0)
    return shares


def _combined(shares: Tensor, stacked: Tensor) -> Tensor:
    """(P, B or 1), (P, B, K) -> (B, K)."""
    return (shares.unsqueeze(2) * stacked).sum(dim=0)
