"""A student that is deployed with the classifier of its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses import Pair, Shape, Terms
from raykd.losses.base import PROJECTED, LossModule
from raykd.models import Signature, discover, resolve
from raykd.models.introspection.backbone import Backbone, Head, has_negative_values
from raykd.models.introspection.layers import Layer
from raykd.schemes.distiller import SchemeInputs


class Reusing(nn.Module):
    """A student up to a layer, a projector, and the part of the teacher after that layer.

    (B, *input_shape) -> (B, classes).  Backbone and projector are trained, the head is frozen.

    Args:
        student: becomes part of this module, and loses everything after the guided layer.
        teacher: not changed; the head is a copy.
        pair: layers at which the two are cut.
        projector: maps the guided layer to the hint layer; the size of maps may differ.
        signature: inputs and classes of both networks.

    Raises:
        ValueError: there is no such layer, or the teacher cannot be cut there.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pair: Pair,
        projector: nn.Module,
        signature: Signature,
    ) -> None:
        super().__init__()
        hint = resolve(discover(teacher, signature), pair.hint)
        self.head = Head(teacher, hint, signature)
        self.trunk = Backbone(
            student, resolve(discover(student, signature), pair.guided), signature
        )
        self.projector = projector
        self.shape: Shape = hint.shape
        self.overwritten = hint.overwritten

    def forward(self, inputs: Any) -> Tensor:
        projected = self.projector(self.trunk(inputs))
        if projected.shape[1:] != self.shape and projected.dim() == 4:
            projected = F.interpolate(projected, size=self.shape[1:], mode="nearest")
        return self.head(projected)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Remaining layers of the student, by their names in the student, and `PROJECTED`."""
        left = self.trunk.layers
        projected = replace(
            left[-1],
            name=PROJECTED,
            module="projector",
            stage="",
            side="output",
            layout=None,
            overwritten=self.overwritten,
        )
        return (
            *(replace(layer, module=f"trunk.network.{layer.module}") for layer in left),
            projected,
        )

    def check_left(self, names: Iterable[str]) -> None:
        """Check that the student still has these layers.

        Raises:
            ValueError: a layer was removed.
        """
        for name in names:
            try:
                resolve(self.layers, name)
            except ValueError as error:
                end = self.trunk.layer.name
                raise ValueError(f"the student ends after {end!r} under simkd: {error}") from None


def reuse(parts: SchemeInputs, terms: Terms) -> Reusing | None:
    """Return the network that the terms deploy in place of the student; None if none does.

    Its projector is removed from the terms.

    Raises:
        ValueError: the network of the teacher is missing or cannot be split, or a term uses a layer
            of the student that was removed.
    """
    if terms.deploying is None:
        return None
    if parts.teacher_network is None:
        raise ValueError(
            f"loss '{terms.deploying}' reuses the classifier of the teacher, and only outputs "
            "of the teacher are available; set `SchemeInputs.teacher_network`"
        )
    pairs = terms.terms[terms.deploying].pairs
    assert pairs, "a term with a loss on layers has pairs"
    teacher, module = parts.teacher_network, terms.losses[terms.deploying]
    assert isinstance(module, LossModule)
    hint = resolve(discover(teacher, parts.signature), pairs[0].hint)
    projector = module.give_projector(has_negative_values(teacher, hint, parts.signature))
    reusing = Reusing(parts.student, teacher, pairs[0], projector, parts.signature)
    reusing.check_left(terms.guided_layers)
    return reusing
