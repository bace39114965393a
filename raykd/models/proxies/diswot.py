"""DisWOT: similarity of an untrained student to its untrained teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, autograd, nn
from torch.nn import functional as F

from raykd.models.base import Model
from raykd.models.introspection.hooks import LayerHooks
from raykd.models.introspection.layers import EMBEDDING
from raykd.models.introspection.profile import profile_model
from raykd.models.proxies.base import (
    NetworkProxy,
    ProxyContext,
    Scorer,
    build_initialized,
    derive_seed,
    first,
)
from raykd.models.proxies.zen import last_stage
from raykd.registry import option
from raykd.tasks.base import Kind


@option
class Diswot(NetworkProxy):
    """Semantic and relational similarity of the untrained student and teacher.

    After Dong et al. 2023 (arXiv:2303.15678), section 3: the negative of two distances,

        semantic: ||C(g_T) - C(g_S)||_F^2 / classes^2, g (classes, D) the gradient of the
            cross-entropy with respect to the classifier's weights (the pooled features weighted
            by the error of each class, the weights of Grad-CAM), C the cosines of its rows;
        relation: ||R(f_T) - R(f_S)||_F^2 / B^2, f (B, ...) the output of the last stage, R the
            (B, B) products of the samples, each row of length 1 (Tung & Mori 2019,
            arXiv:1907.09682).

    Both networks have weights from N(0, 1); the samples are training samples of the study, with
    their labels.

    Differences from the paper: it describes Grad-CAM maps, and its authors' scripts compare the
    classifier's gradient channel by channel, which requires a teacher and a student of equal
    width.  We compare that gradient class by class, so that widths may differ.  Any network with a
    linear classifier works, including text models.
    """

    paper = "Dong 2023, arXiv:2303.15678"
    needs_teacher: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("softmax",)

    name: Literal["diswot"] = "diswot"
    gaussian: Annotated[
        bool,
        Field(
            description="Initialize weights from N(0, 1); false: default initialization of "
            "the models"
        ),
    ] = True

    def seeded_scorer(self, context: ProxyContext, seed: int) -> Scorer:
        if context.teacher is None:
            raise ValueError(
                "proxy 'diswot' compares students with a teacher, and the model of the teacher is "
                "unknown; set `teacher.model`, or use naswot, zen, params or macs"
            )
        teacher = self._similarities(context.teacher, context, derive_seed(seed, "teacher"))
        return lambda model: similarity_score(teacher, self._similarities(model, context, seed))

    def _similarities(self, model: Model, context: ProxyContext, seed: int) -> Similarities:
        profile = profile_model(model, context.signature)
        if EMBEDDING not in profile.aliases:
            raise ValueError(
                f"proxy 'diswot' needs a linear classifier, and {model.name} has none; use "
                "naswot, zen, params or macs"
            )
        network = build_initialized(model, context, seed, gaussian=self.gaussian)
        layer = last_stage(model, context)
        outputs = LayerHooks(network, profile.resolve([layer])).run(
            first(context.inputs, self.batch)
        )
        classifier = network.get_submodule(profile.aliases[EMBEDDING])
        assert isinstance(classifier, nn.Linear)
        loss = F.cross_entropy(outputs.logits, context.targets[: self.batch])
        (gradient,) = autograd.grad(loss, classifier.weight)
        return Similarities(class_cosines(gradient), relations(outputs.layers[layer].detach()))


@dataclass(frozen=True)
class Similarities:
    """Similarity matrices of a network on a batch.

    Attributes:
        semantic: (classes, classes).
        relation: (B, B).
    """

    semantic: Tensor
    relation: Tensor


def class_cosines(gradient: Tensor) -> Tensor:
    """Compute cosines between the rows of (classes, D): (classes, classes)."""
    rows = F.normalize(gradient.double(), dim=1)
    return rows @ rows.T


def relations(features: Tensor) -> Tensor:
    """Compute products between samples (B, ...), each row normalized: (B, B)."""
    samples = features.double().flatten(1)
    return F.normalize(samples @ samples.T, dim=1)


def similarity_score(teacher: Similarities, student: Similarities) -> float:
    """Return the negative sum of the mean squared differences of both matrices; 0 if equal."""
    semantic = (teacher.semantic - student.semantic).square().mean()
    relation = (teacher.relation - student.relation).square().mean()
    return -float(semantic + relation)
