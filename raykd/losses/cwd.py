"""Channel-wise distillation: where each class, or each channel, is active."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.losses.base import PairLoss, ResponseLoss
from raykd.losses.connectors import connector, require
from raykd.losses.shapes import Shape
from raykd.registry import option

Temperature = Annotated[
    float, Field(gt=0, description="Softmax temperature over the positions of a channel")
]

PAPER = "Shu 2021, arXiv:2011.13256"


def channel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over positions, mean over channels.

    Args:
        student, teacher: (B, C, H, W) each.
        temperature: T.

    Returns:
        The mean over batch and channels.
    """
    log_student, log_teacher = (
        F.log_softmax(maps.flatten(2) / temperature, dim=2).flatten(0, 1)
        for maps in (student, teacher)
    )
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


@option
class Cwd(ResponseLoss):
    """Match the positions at which the teacher is most certain of each class.

    T^2 / C x the sum over the C classes of KL(p_t || p_s), mean over the batch, where p is the
    softmax at T over the positions of a class; Shu 2021 (arXiv:2011.13256), section 3.2, on the
    logits.  The value is 0 if the scores of each class differ by a constant.  For responses
    (B, classes, H, W) only.
    """

    kinds = ("dense",)
    paper = PAPER
    default_weight = 3.0
    weight_source = "The authors' 3 for logits at T = 4, with the label loss at 1."
    by_position = False

    name: Literal["cwd"] = "cwd"
    temperature: Temperature = 4.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return channel_kl(student, teacher, self.temperature)


@option
class CwdFeature(PairLoss):
    """Match the positions at which each channel of a hint layer is active.

    The loss `cwd` on layers (B, C, H, W), the guided layer after its connector; Shu 2021
    (arXiv:2011.13256), section 3.2, on feature maps.  Departure: the connector, a 1x1 convolution
    if the channels differ, ends with batch-norm.
    """

    knowledge = "feature"
    paper = PAPER
    default_weight = 50.0
    weight_source = "The authors' 50 for feature maps, with the label loss at 1."
    default_pairs = "last"

    name: Literal["cwd_feature"] = "cwd_feature"
    temperature: Temperature = 1.0

    def connector(self, guided: Shape, hint: Shape) -> nn.Module:
        require("map", self.name, guided, hint)
        return connector(guided, hint)

    def __call__(self, guided: Tensor, hint: Tensor) -> Tensor:
        return channel_kl(guided, hint, self.temperature)
