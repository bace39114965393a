"""Response-based knowledge: losses on the logits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.knowledge.loss import ResponseLoss
from raykd.option import option

Temperature = Annotated[float, Field(gt=0, description="softens both softmaxes")]


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch; (B, K) each."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


@option
class KD(ResponseLoss):
    """The student's softened class probabilities follow the teacher's.

    T^2 KL(p_t^T || p_s^T), mean over the batch; Hinton 2015 (arXiv:1503.02531), section 2, where
    T^2 keeps the gradient's size when T changes.  Zero where the logits differ by a constant a
    sample.  The weight is the CRD benchmark's a = 0.9 at T = 4 (its r = 0.1 on the labels is the
    scheme's `task_weight`).
    """

    paper = "Hinton 2015, arXiv:1503.02531"
    default_weight = 0.9

    name: Literal["kd"] = "kd"
    temperature: Temperature = 4.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return softened_kl(student, teacher, self.temperature)
