"""Deep mutual learning: peers, trained together, teach one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture import MODELS, Task, discover, resolve
from raykd.data.batch import Batch
from raykd.knowledge import KD, Evidence, Progress, Shape, Term, Terms
from raykd.knowledge.terms import layer_names
from raykd.option import option
from raykd.schemes.scheme import Distiller, Parts, Scheme, StepOutput
from raykd.schemes.watched import Watched

if TYPE_CHECKING:
    from raykd.architecture import Model

    AnyModel = Model
else:
    AnyModel = MODELS.annotation


@option
class Dml(Scheme):
    """Peers trained side by side learn from the labels and from each other.

    Sum over peers k of task_weight x labels' loss + mean over the other peers j of the terms with
    k as student and j as teacher; Zhang 2018 (arXiv:1706.00384), Eqs. 8 and 9, all peers stepping
    at once.  The terms are the study's `knowledge` (its hint layers are a peer's own); without any,
    the paper's: kd at temperature 1 and weight 1.  The first peer is kept.
    """

    paper = "Zhang 2018, arXiv:1706.00384"
    needs_teacher = False

    name: Literal["dml"] = "dml"
    peers: Annotated[int, Field(ge=2, le=8, description="networks, the student included")] = 2
    others: Annotated[
        tuple[AnyModel, ...],
        Field(description="architectures of the other peers; those not named are the student's"),
    ] = ()
    task_weight: Annotated[float, Field(ge=0, description="weight of the labels' loss")] = 1.0

    def __post_init__(self) -> None:
        if len(self.others) >= self.peers:
            raise ValueError(
                f"{len(self.others)} architectures are named in `others` and {self.peers} peers "
                f"leave room for {self.peers - 1}; set peers: {len(self.others) + 1}"
            )

    def build(self, parts: Parts) -> Distiller:
        others = [model.build(parts.task) for model in self.others]
        alike = [parts.build_student() for _ in range(self.peers - 1 - len(others))]
        return Mutual(self, parts, [parts.student, *others, *alike])


PAPERS_TERM = Term(loss=KD(temperature=1.0), weight=1.0)
"""What peers teach one another where the study names no knowledge."""


class Mutual(Distiller):
    """Several networks, each the teacher of all others."""

    def __init__(self, scheme: Dml, parts: Parts, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        terms = [term for term in parts.terms if term.active] or [PAPERS_TERM]
        layers = tuple({*layer_names(terms, "hint"), *layer_names(terms, "guided")})
        shapes = [_shapes(peer, layers, parts.task) for peer in peers]
        self.scheme = scheme
        self.task_loss = parts.task_loss
        self.student = peers[0]
        self.others = nn.ModuleList(peers[1:])
        self.watched = [Watched(peer, layers, parts.task) for peer in peers]
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
        shown = [watched(batch.inputs) for watched in self.watched]
        tasks = [self.task_loss(peer.logits, batch.targets) for peer in shown]
        total = self.scheme.task_weight * torch.stack(tasks).sum()
        values: dict[str, Tensor] = {"task": tasks[0].detach()}
        for k in range(len(shown)):
            taught, named = self._taught(k, shown, batch, progress)
            total = total + taught
            values |= named if k == 0 else {}
        values["peers_task"] = torch.stack(tasks[1:]).mean().detach()
        return StepOutput(total, values, shown[0].logits.detach())

    def _taught(
        self, k: int, shown: Sequence[Evidence], batch: Batch, progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What peer k is taught: the mean over the others, and each term's."""
        teachers = [j for j in range(len(shown)) if j != k]
        lessons = [
            self.lessons[_lesson(k, j)](shown[k], shown[j], batch.targets, batch.index, progress)
            for j in teachers
        ]
        total = torch.stack([value for value, _ in lessons]).mean()
        names = lessons[0][1]
        return total, {
            name: torch.stack([named[name] for _, named in lessons]).mean() for name in names
        }


def _lesson(learner: int, teacher: int) -> str:
    return f"{learner}_from_{teacher}"


def _terms(
    parts: Parts, terms: Sequence[Term], guided: dict[str, Shape], hint: dict[str, Shape]
) -> Terms:
    return Terms(
        terms,
        classes=parts.classes,
        train_size=parts.train_size,
        data_size=parts.data_size,
        guided_shapes=guided,
        hint_shapes=hint,
    )


def _shapes(model: nn.Module, names: Sequence[str], task: Task) -> dict[str, Shape]:
    known = discover(model, task) if names else ()
    return {name: resolve(known, name).shape for name in names}
