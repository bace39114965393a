"""Factor transfer: the teacher's features paraphrased, the student's translated."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.knowledge.connectors import Resize, require
from raykd.knowledge.evidence import Evidence, Progress, Shape
from raykd.knowledge.loss import Loss, LossContext, LossModule, for_each_pair
from raykd.option import option


@option
class Ft(Loss):
    """The student's translated features follow factors the teacher's can be restored from.

    || f_t/||f_t||_2 - f_s/||f_s||_2 ||_1, mean over the batch, f_t the teacher's factor and f_s the
    student's; Kim 2018 (arXiv:1802.04977), Eq. 3 with p = 1.  The paraphraser, an autoencoder of
    the hint layer with `rate` times its channels in the middle, learns by the mean squared error
    of its restoration (Eq. 2), which is part of the value; the factor's gradient does not reach it.
    It learns alone in the first `pretrain_epochs` (the paper: 30 beforehand) and goes on slowly
    afterwards (there: frozen), so that every worker trains every parameter in every step.  The
    authors' code weighs a mean over elements by 500; 0.25 is that for 2048 elements.
    """

    knowledge = "feature"
    paper = "Kim 2018, arXiv:1802.04977"
    default_weight = 0.25
    default_pairs = "last"
    zero_at_teacher = False
    relates_samples = False

    name: Literal["ft"] = "ft"
    rate: Annotated[float, Field(gt=0, le=4, description="factor's channels over hint's")] = 0.5
    pretrain_epochs: Annotated[int, Field(ge=0, description="of the paraphraser alone")] = 1

    def build(self, context: LossContext) -> LossModule:
        return _FactorTransfer(self, context)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        """The distance of two factors, (B, ...) each of one shape."""
        difference = F.normalize(guided.flatten(1), dim=1) - F.normalize(hint.flatten(1), dim=1)
        return difference.abs().sum(dim=1).mean()


class _FactorTransfer(LossModule):
    def __init__(self, loss: Ft, context: LossContext) -> None:
        super().__init__()
        self.loss = loss
        self.pairs = context.pairs
        self.judges = nn.ModuleList(for_each_pair(context, self._pair))

    def value(
        self,
        student: Evidence,
        teacher: Evidence,
        targets: Tensor,
        index: Tensor,
        progress: Progress,
    ) -> Tensor:
        total = student.logits.new_zeros(())
        acts = float(progress.epoch >= self.loss.pretrain_epochs)
        for pair, judge in zip(self.pairs, self.judges, strict=True):
            restoration, distance = judge(student.layers[pair.guided], teacher.layers[pair.hint])
            total = total + restoration + acts * distance
        return total

    def _pair(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", "ft", guided, hint)
        return _Factors(self.loss, guided, hint)


class _Factors(nn.Module):
    """(guided, hint) -> (restoration error, distance of the factors)."""

    def __init__(self, loss: Ft, guided: Shape, hint: Shape) -> None:
        super().__init__()
        width = max(1, round(hint[0] * loss.rate))
        self.loss = loss
        self.encoder = _layers([hint[0], hint[0], width, width])
        self.decoder = _layers([width, width, hint[0], hint[0]])
        self.translator = nn.Sequential(
            Resize((hint[1], hint[2])), *_layers([guided[0], guided[0], width, width])
        )

    def forward(self, guided: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.encoder(hint)
        restoration = F.mse_loss(self.decoder(factor), hint)
        return restoration, self.loss(self.translator(guided), factor.detach())


def _layers(widths: list[int]) -> nn.Sequential:
    """Convolutions of one size, each with batch norm and leaky ReLU (0.1), as the paper's."""
    made: list[nn.Module] = []
    for before, after in pairwise(widths):
        made += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
    return nn.Sequential(*made)
