"""DisWOT: is an untrained student like its untrained teacher?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, autograd, nn
from torch.nn import functional as F

from raykd.architecture.cost import anatomy
from raykd.architecture.layers import EMBEDDING
from raykd.architecture.model import Model
from raykd.architecture.screens.screen import Measured, Scorer, Screening, derived, first, fresh
from raykd.architecture.screens.zen import last_stage
from raykd.architecture.taps import Taps
from raykd.option import option


@option
class Diswot(Measured):
    """Semantic and relational similarity of the untrained student and teacher.

    After Dong et al. 2023 (arXiv:2303.15678), section 3: the negative of two distances,

        semantic: ||C(g_T) - C(g_S)||_F^2 / classes^2, g (classes, D) the gradient of the
            cross-entropy by the classifier's weights (the pooled features, weighted by how much
            each class is missed: what Grad-CAM weighs its maps with), C the cosines of its rows;
        relation: ||R(f_T) - R(f_S)||_F^2 / B^2, f (B, ...) the end of the last stage, R the
            (B, B) products of the samples, each row of length 1 (Tung & Mori 2019,
            arXiv:1907.09682).

    Both networks have weights from N(0, 1); the samples are training samples of the study, with
    their labels.

    We depart: the paper describes Grad-CAM maps, its authors' scripts the classifier's gradient,
    compared channel by channel, which asks for a teacher and a student of equal width.  We take
    that gradient class by class, so that widths may differ.  Every network with a linear
    classifier will do, those for texts included.
    """

    paper = "Dong 2023, arXiv:2303.15678"
    needs_teacher: ClassVar[bool] = True

    name: Literal["diswot"] = "diswot"
    gaussian: Annotated[
        bool,
        Field(
            description="Initialize weights from N(0, 1); false: default initialization of "
            "the models"
        ),
    ] = True

    def seeded_scorer(self, about: Screening, seed: int) -> Scorer:
        if about.teacher is None:
            raise ValueError(
                "screen 'diswot' compares students with a teacher, and there is none whose model "
                "is known; name it under `teacher.model`, or take naswot, zen, params or macs"
            )
        ideal = self._looks(about.teacher, about, derived(seed, "teacher"))
        return lambda model: likeness(ideal, self._looks(model, about, seed))

    def _looks(self, model: Model, about: Screening, seed: int) -> Looks:
        found = anatomy(model, about.task)
        if EMBEDDING not in found.aliases:
            raise ValueError(
                f"screen 'diswot' looks at the linear classifier, and {model.name} has none; "
                "take naswot, zen, params or macs"
            )
        network = fresh(model, about, seed, gaussian=self.gaussian)
        layer = last_stage(model, about)
        seen = Taps(network, found.resolve([layer])).run(first(about.inputs, self.batch))
        classifier = network.get_submodule(found.aliases[EMBEDDING])
        assert isinstance(classifier, nn.Linear)
        loss = F.cross_entropy(seen.logits, about.targets[: self.batch])
        (gradient,) = autograd.grad(loss, classifier.weight)
        return Looks(semantics(gradient), relations(seen.layers[layer].detach()))


@dataclass(frozen=True)
class Looks:
    """What a network makes of a batch: (classes, classes) and (B, B)."""

    semantic: Tensor
    relation: Tensor


def semantics(gradient: Tensor) -> Tensor:
    """Cosines between the rows of (classes, D): (classes, classes)."""
    rows = F.normalize(gradient.double(), dim=1)
    return rows @ rows.T


def relations(features: Tensor) -> Tensor:
    """Products between samples (B, ...), each row of length 1: (B, B)."""
    samples = features.double().flatten(1)
    return F.normalize(samples @ samples.T, dim=1)


def likeness(teacher: Looks, student: Looks) -> float:
    """The negative sum of the mean squared differences of both matrices; 0: the same."""
    semantic = (teacher.semantic - student.semantic).square().mean()
    relation = (teacher.relation - student.relation).square().mean()
    return -float(semantic + relation)
