"""SimKD: the student uses the classifier of the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PROJECTED, Loss, LossContext, LossModule, for_each_pair
from raykd.losses.connectors import kind_of, resized
from raykd.losses.model_outputs import LossInputs
from raykd.losses.shapes import Shape, check_features
from raykd.registry import option


@option
class SimKD(Loss):
    """Project the last layer to that of the teacher, and reuse its classifier.

    Mean over batch and elements of (P(f_s) - f_t)^2; Chen 2022 (arXiv:2203.14001), section 3.2,
    with the mean of the authors' code. The deployed network consists of the student up to the
    guided layer, the projector P, and the part of the teacher after the hint layer (pooling and
    classifier; more with a shallower hint layer), which is frozen. Parameters and multiply-
    accumulates are those of this network. While this term is active, the label loss has no effect,
    for any `task_weight` of the scheme. After `stop_epoch` it trains student and projector through
    the frozen classifier.

    P is that of the paper: for maps 1x1, 3x3 and 1x1 convolutions with batch norm and ReLU after
    each, and 1/factor of the channels of the hint layer in the middle. The last ReLU is left out
    if the hint layer has negative values. For tokens and embeddings (not in the paper), P consists
    of two linear layers with a ReLU between them. Area means reduce the larger of two maps; for
    the classifier a smaller map is repeated to the size of the teacher's, which does not change
    means over positions.

    Available with the schemes offline, and assistant and born_again with a single teacher.
    """

    knowledge = "feature"
    kinds = ("softmax", "sigmoid", "real")
    paper = "Chen 2022, arXiv:2203.14001"
    default_weight = 10.0
    weight_source = (
        "Ten times the authors' 1, which their 240 epochs allow: the loss is the objective's only "
        "part, and of six epochs 1 was too little."
    )
    default_pairs = "last"
    most_pairs = 1
    zero_at_teacher = False
    deploys = True

    name: Literal["simkd"] = "simkd"
    factor: Annotated[
        int,
        Field(
            ge=1, description="Ratio of the hint channels to the inner channels of the projector"
        ),
    ] = 2

    def build(self, context: LossContext) -> LossModule:
        return _Aligned(self, context)

    def __call__(self, projected: Tensor, hint: Tensor) -> Tensor:
        """Return the mean squared difference, for maps at the smaller of their two sizes."""
        if projected.dim() == 4:
            hint = resized(hint, (projected.shape[2], projected.shape[3]))
        check_features(self.name, projected, hint, same=True)
        return F.mse_loss(projected, hint)


class _Aligned(LossModule):
    projector: _Projector | None

    def __init__(self, loss: SimKD, context: LossContext) -> None:
        super().__init__(context)

        def project(guided: Shape, hint: Shape) -> _Projector:
            if len(context.pairs) > 1:
                raise ValueError(
                    f"simkd takes one pair, the layers before the two classifiers, and has "
                    f"{len(context.pairs)}; keep the deepest"
                )
            return _Projector(loss.factor, guided, hint)

        (self.projector,) = for_each_pair(context, project)
        (self.pair,) = context.pairs
        self.loss = loss

    def give_projector(self, signed: bool) -> nn.Module:
        projector, self.projector = self.projector, None
        assert projector is not None, "the projector was given away before"
        if signed:
            projector.end_signed()
        return projector

    def value(self, inputs: LossInputs) -> Tensor:
        if self.projector is None:
            projected = inputs.student.layers[PROJECTED]
        else:
            projected = self.projector(inputs.student.layers[self.pair.guided])
        return self.loss(projected, inputs.teacher.layers[self.pair.hint])


class _Projector(nn.Module):
    """(B, *guided) -> (B, *hint), for maps at the smaller of their two sizes.

    Raises:
        ValueError: the layers are of different kinds, or have different numbers of tokens.
    """

    def __init__(self, factor: int, guided: Shape, hint: Shape) -> None:
        super().__init__()
        kind = kind_of(guided)
        if kind != kind_of(hint) or (kind == "tokens" and guided[0] != hint[0]):
            raise ValueError(
                "the teacher's classifier must be fed with what it knows; name a guided layer of "
                "the hint layer's kind, with as many tokens where it has any"
            )
        self.size = None
        if kind == "map":
            self.size = (min(guided[1], hint[1]), min(guided[2], hint[2]))
        channel = 0 if kind == "map" else -1
        make = _convolutions if kind == "map" else _linears
        middle = max(1, hint[channel] // factor)
        self.steps = make(guided[channel], middle, hint[channel])

    def forward(self, layer: Tensor) -> Tensor:
        return self.steps(layer if self.size is None else resized(layer, self.size))

    def end_signed(self) -> None:
        """Leave out the last ReLU."""
        if isinstance(self.steps[-1], nn.ReLU):
            self.steps = self.steps[:-1]


def _convolutions(channels: int, middle: int, hint_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, hint_channels, 1, bias=False),
        nn.BatchNorm2d(hint_channels),
        nn.ReLU(),
    )


def _linears(width: int, middle: int, hint_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, hint_width))
