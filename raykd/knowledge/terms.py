"""The terms of one trial, made ready and summed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raykd.knowledge.evidence import Evidence, Progress
from raykd.knowledge.loss import LossContext, widened
from raykd.knowledge.shapes import Shape
from raykd.knowledge.term import Pair, Term


class Terms(nn.Module):
    """Every active term of a trial; what their losses learn is registered here.

    Args:
        terms: the knowledge to transfer, pairs resolved to layer names; inactive ones are left
            out, and one whose pairs have losses or weights of their own becomes several.
        guided_shapes / hint_shapes: shape of every layer named in a pair, without the batch.
        classes, train_size, data_size: as in `LossContext`.
        deployable: whether a loss may change the network that is kept (`Loss.deploys`).

    Attributes:
        deploying: the name of the term whose loss does so; None where none does.

    Raises:
        ValueError: layers that cannot be bridged, a pair's layer without a shape, a loss that
            deploys where it cannot, or two of them.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        classes: int,
        train_size: int,
        data_size: int,
        guided_shapes: Mapping[str, Shape] | None = None,
        hint_shapes: Mapping[str, Shape] | None = None,
        deployable: bool = False,
    ) -> None:
        super().__init__()
        active = [part for term in terms for part in term.parts if part.active]
        self.terms = dict(zip(term_names(active), active, strict=True))
        self.deploying = _deploying(self.terms, deployable)
        self.losses = nn.ModuleDict()
        for name, term in self.terms.items():
            assert term.loss is not None
            pairs = term.pairs or ()
            context = LossContext(
                pairs=pairs,
                guided_shapes=_shapes(pairs, "guided", guided_shapes or {}),
                hint_shapes=_shapes(pairs, "hint", hint_shapes or {}),
                classes=classes,
                train_size=train_size,
                data_size=data_size,
                weight=term.effective_weight,
            )
            self.losses[name] = term.loss.build(context)

    def forward(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each acting term's own value (unweighted, detached) by name."""
        student, teacher = student.map(widened), teacher.detached().map(widened)
        total = torch.zeros((), device=student.logits.device)
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if not term.acts(progress):
                continue
            own = progress.since(term.start_epoch)
            value = self.losses[name](student, teacher, targets, index, own)
            total = total + term.weight_at(progress) * value
            values[name] = value.detach()
        return total, values

    @property
    def guided_layers(self) -> tuple[str, ...]:
        """The student's layers that are needed, as the pairs name them."""
        return layer_names(self.terms.values(), "guided")

    @property
    def hint_layers(self) -> tuple[str, ...]:
        """The teacher's layers that are needed, as the pairs name them."""
        return layer_names(self.terms.values(), "hint")

    @property
    def reads_logits(self) -> bool:
        """Whether any term reads the teacher's logits."""
        return any(term.loss is not None and term.loss.reads_logits for term in self.terms.values())

    @property
    def ramps(self) -> bool:
        """Whether a weight changes from step to step."""
        return any(term.ramp_epochs > 0 for term in self.terms.values())

    @property
    def sometimes_unused(self) -> bool:
        """Whether some learned parameters get no gradient in some steps."""
        return any(
            self.losses[name].sometimes_unused
            or (not term.always_acts and any(True for _ in self.losses[name].parameters()))
            for name, term in self.terms.items()
        )


def any_reads_logits(terms: Iterable[Term]) -> bool:
    """Whether any active term reads the teacher's logits."""
    return any(term.active and term.loss and term.loss.reads_logits for term in terms)


def _deploying(terms: Mapping[str, Term], deployable: bool) -> str | None:
    found = [name for name, term in terms.items() if term.loss is not None and term.loss.deploys]
    if found and not deployable:
        raise ValueError(
            f"loss '{found[0]}' gives the student its teacher's classifier, which takes a scheme "
            "with one frozen teacher; take `scheme: {name: offline}`, or another loss"
        )
    if len(found) > 1:
        raise ValueError(
            f"terms {' and '.join(map(repr, found))} each replace the student's classifier; keep "
            "one of them"
        )
    return found[0] if found else None


def term_names(terms: Sequence[Term]) -> list[str]:
    """One name a term: its loss's, with _2, _3 ... where a loss is there more than once."""
    names: list[str] = []
    for term in terms:
        assert term.loss is not None
        loss = term.loss.name
        count = 1 + sum(name == loss or name.startswith(f"{loss}_") for name in names)
        candidate = loss if count == 1 else f"{loss}_{count}"
        names.append(candidate)
    return names


def layer_names(terms: Iterable[Term], side: Literal["guided", "hint"]) -> tuple[str, ...]:
    """The layers the pairs of active terms name on one side, each once."""
    found: dict[str, None] = {}
    for term in terms:
        if term.active:
            found.update(dict.fromkeys(getattr(pair, side) for pair in term.pairs or ()))
    return tuple(found)


def _shapes(pairs: Sequence[Pair], side: str, shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    names = [getattr(pair, side) for pair in pairs]
    for name in names:
        if name not in shapes:
            raise ValueError(
                f"{side} layer {name!r} has no known shape; known are "
                f"{', '.join(sorted(shapes)) or 'none'}"
            )
    return tuple(shapes[name] for name in names)
