"""Deep mutual learning: peers are trained together and teach each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data.batch import Batch
from raykd.losses import KD, ModelOutputs, Progress, Shape, Term, Terms
from raykd.losses.terms import LayerShapes, layer_names
from raykd.models import AnyModel, Model, Signature, discover, resolve
from raykd.registry import option
from raykd.schemes.base import Scheme
from raykd.schemes.distiller import Distiller, HookedModel, SchemeInputs, StepOutput

Peers = Annotated[int, Field(ge=2, le=8, description="Number of networks, including the student")]
PeerModels = Annotated[
    tuple[AnyModel, ...],
    Field(description="Models of the other peers. Peers without a model use that of the student"),
]


def check_peers(peers: int, models: Sequence[object]) -> None:
    """Check that there are no more models than peers besides the student.

    Raises:
        ValueError: there are more models.
    """
    if len(models) >= peers:
        raise ValueError(
            f"{len(models)} models are named in `others` and {peers} peers leave room for "
            f"{peers - 1}; set peers: {len(models) + 1}"
        )


def build_peers(parts: SchemeInputs, peers: int, models: Sequence[Model]) -> list[nn.Module]:
    """Build the student, then the peers with other models, then those with the same model."""
    named = [model.build(parts.signature) for model in models]
    alike = [parts.build_student() for _ in range(peers - 1 - len(named))]
    return [parts.student, *named, *alike]


Together = Literal["mean", "sum", "ensemble"]


@option
class Dml(Scheme):
    """Train peers together on the labels and on each other's predictions.

    Sum over peers k of task_weight x label loss + the terms with k as student and the other peers
    as teachers, which get no gradient; Zhang 2018 (arXiv:1706.00384), section 2.  together: mean
    over the other peers (the loss of the paper for larger cohorts); sum (the authors' code; the
    same for two peers); ensemble, one teacher whose probabilities are the mean of those of the
    other peers (DML_e in the paper; layers have no such mean and are compared peer by peer).

    The terms are the `knowledge` of the study (hint layers are layers of a peer); without any, that
    of the paper: kd at temperature 1 and weight 1.  All peers are updated at once, in the paper one
    after another.  The first peer is the result.
    """

    paper = "Zhang 2018, arXiv:1706.00384"
    needs_teacher = False

    name: Literal["dml"] = "dml"
    peers: Peers = 2
    others: PeerModels = ()
    together: Annotated[
        Together, Field(description="Combination of the losses of several peers")
    ] = "mean"
    task_weight: Annotated[float, Field(ge=0, description="Weight of the label loss")] = 1.0

    def __post_init__(self) -> None:
        check_peers(self.peers, self.others)

    def build(self, parts: SchemeInputs) -> Distiller:
        return Mutual(self, parts, build_peers(parts, self.peers, self.others))


PAPERS_TERM = Term(loss=KD(temperature=1.0), weight=1.0)
"""Knowledge that peers transfer if the study names none."""


class Mutual(Distiller):
    """Several networks, each a teacher of all others."""

    def __init__(self, scheme: Dml, parts: SchemeInputs, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        terms = [term for term in parts.terms if term.active] or [PAPERS_TERM]
        layers = tuple({*layer_names(terms, "hint"), *layer_names(terms, "guided")})
        shapes = [_shapes(peer, layers, parts.signature) for peer in peers]
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = peers[0]
        self.others = nn.ModuleList(peers[1:])
        self.watched = [HookedModel(peer, layers, parts.signature) for peer in peers]
        self.lessons = nn.ModuleDict(
            {
                _lesson(k, j): _terms(parts, terms, shapes[k], shapes[j])
                for k in range(len(peers))
                for j in range(len(peers))
                if k != j
            }
        )
        self.needs_unused_parameter_search = any(
            lesson.sometimes_unused for lesson in self.lessons.values() if isinstance(lesson, Terms)
        )

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        outputs = [watched(batch.inputs) for watched in self.watched]
        tasks = [self.task_loss(peer.logits, batch.targets) for peer in outputs]
        total = self.scheme.task_weight * torch.stack(tasks).sum()
        values: dict[str, Tensor] = {"task": tasks[0].detach()}
        for k in range(len(outputs)):
            peer_loss, named = self._peer_loss(k, outputs, batch, progress)
            total = total + peer_loss
            values |= named if k == 0 else {}
        values["peers_task"] = torch.stack(tasks[1:]).mean().detach()
        return StepOutput(total, values, outputs[0].logits.detach())

    def _peer_loss(
        self, k: int, outputs: Sequence[ModelOutputs], batch: Batch, progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of peer k against the other peers, and the mean value of each term."""
        numbers = [j for j in range(len(outputs)) if j != k]
        teachers = [outputs[j] for j in numbers]
        if self.scheme.together == "ensemble":
            logits = mixed([teacher.logits for teacher in teachers])
            teachers = [ModelOutputs(logits, teacher.layers) for teacher in teachers]
        lessons = [
            self.lessons[_lesson(k, j)](outputs[k], teacher, batch.targets, batch.index, progress)
            for j, teacher in zip(numbers, teachers, strict=True)
        ]
        values = torch.stack([value for value, _ in lessons])
        total = values.sum() if self.scheme.together == "sum" else values.mean()
        names = lessons[0][1]
        return total, {
            name: torch.stack([named[name] for _, named in lessons]).mean() for name in names
        }


def mixed(logits: Sequence[Tensor]) -> Tensor:
    """(B, K) each -> (B, K): the log of the networks' mean probabilities, without gradient."""
    softened = torch.stack([F.log_softmax(values.detach().float(), dim=1) for values in logits])
    return softened.logsumexp(dim=0) - log(len(softened))


def _lesson(learner: int, teacher: int) -> str:
    return f"{learner}_from_{teacher}"


def _terms(
    parts: SchemeInputs, terms: Sequence[Term], guided: dict[str, Shape], hint: dict[str, Shape]
) -> Terms:
    return Terms(
        terms,
        classes=parts.classes,
        train_size=parts.train_size,
        data_size=parts.data_size,
        shapes=LayerShapes(guided, hint),
    )


def _shapes(model: nn.Module, names: Sequence[str], signature: Signature) -> dict[str, Shape]:
    layers = discover(model, signature) if names else ()
    return {name: resolve(layers, name).shape for name in names}
