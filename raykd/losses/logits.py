"""Response-based knowledge: losses on the logits."""

from __future__ import annotations

from math import sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raykd.losses.base import ResponseLoss
from raykd.losses.functional import centred, unit
from raykd.registry import option

Temperature = Annotated[
    float, Field(gt=0, description="Softmax temperature of student and teacher")
]


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch; (B, K) each."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def softened_binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL of (p, 1 - p) of each label, p = sigmoid(z / T), mean over batch and labels."""
    student, teacher = student / temperature, teacher / temperature
    probability = teacher.sigmoid()
    present = F.logsigmoid(teacher) - F.logsigmoid(student)
    absent = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return (probability * present + (1 - probability) * absent).mean() * temperature**2


@option
class KD(ResponseLoss):
    """Match the softened class probabilities of the teacher.

    T^2 KL(p_t^T || p_s^T), mean over the batch; Hinton 2015 (arXiv:1503.02531), section 2. T^2
    keeps the size of the gradient when T changes. The value is 0 if the logits of each sample
    differ by a constant. The factor r = 0.1 of the label loss in the CRD benchmark is
    `task_weight` of the scheme.  For several labels a sample it is the binary KL divergence of each
    label, T^2 KL((p_t, 1 - p_t) || (p_s, 1 - p_s)) with p = sigmoid(z / T), mean over batch and
    labels; Yang 2023 (arXiv:2308.06453), multi-label logits distillation, where it is a sum.  For
    positions of images it is the mean over batch and positions; Liu 2019
    (arXiv:1903.04197), pixel-wise distillation.
    """

    kinds = ("softmax", "sigmoid", "dense")
    paper = "Hinton 2015, arXiv:1503.02531"
    default_weight = 0.9
    weight_source = (
        "The CRD benchmark's a = 0.9 at T = 4 for the same formula; the benchmark weighs the "
        "labels with r = 0.1, a scheme here with `task_weight`, 1 unless it is set."
    )

    name: Literal["kd"] = "kd"
    temperature: Temperature = 4.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        are_labels = targets.is_floating_point()
        divergence = softened_binary_kl if are_labels else softened_kl
        return divergence(student, teacher, self.temperature)


@option
class LogitMse(ResponseLoss):
    """Match the logits of the teacher.

    Mean over batch and classes of (z_s - z_t)^2.  This is 2 / K of the objective of Ba 2014
    (arXiv:1312.6184), Eq. 1 (half a sum over classes), and 1 / K of L_MSE of Kim 2021
    (arXiv:2105.08919; a sum).  Half of it is the limit of kd for large T and logits of mean zero
    (Hinton 2015, section 2.1; Kim 2021).
    """

    kinds = ("softmax", "sigmoid", "real", "dense")
    paper = "Ba 2014, arXiv:1312.6184; Kim 2021, arXiv:2105.08919"
    default_weight = 0.1
    weight_source = (
        "The 0.1 that Knowledge-Distillation-Zoo takes for the same mean on CIFAR-10; half of "
        "kd's 0.9, to which it corresponds at a large temperature, did not help a student of "
        "six epochs."
    )

    name: Literal["logit_mse"] = "logit_mse"

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)


@option
class Dkd(ResponseLoss):
    """Decouple kd into two parts: the target class against the rest, and the other classes.

    T^2 (alpha TCKD + beta NCKD), mean over the batch; Zhao 2022 (arXiv:2203.08679), Eq. 7.  TCKD is
    the KL divergence of (p_target, 1 - p_target), NCKD that of the softmax over the other classes.
    The authors use beta 8 for most pairs on CIFAR-100, 6 for vgg and wide_resnet, 2 for narrow
    pairs, and increase the weight from 0 over the first 20 of 240 epochs (`ramp_epochs: 20` of the
    term).  With two classes NCKD is 0.
    """

    kinds = ("softmax",)
    paper = "Zhao 2022, arXiv:2203.08679"
    default_weight = 0.1
    weight_source = (
        "A tenth of the authors' 1 (CIFAR-100, the labels at 1, a warm-up over 20 of 240 "
        "epochs, here `ramp_epochs`), because 1 and 0.25 hurt a student of six epochs."
    )
    reads_labels = True

    name: Literal["dkd"] = "dkd"
    temperature: Temperature = 4.0
    alpha: Annotated[float, Field(ge=0, description="Weight of the target class")] = 1.0
    beta: Annotated[float, Field(ge=0, description="Weight of the other classes")] = 8.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        student, teacher = student / self.temperature, teacher / self.temperature
        target = _kl(_target_or_not(student, targets), _target_or_not(teacher, targets))
        rest = _kl(
            F.log_softmax(others_of(student, targets), dim=1),
            F.log_softmax(others_of(teacher, targets), dim=1),
        )
        return (self.alpha * target + self.beta * rest) * self.temperature**2


@option
class Nkd(ResponseLoss):
    """Match the target probability and the normalized other classes separately.

    -p_t[y] log p_s[y] - gamma T^2 sum_{i != y} n_t[i] log n_s[i], mean over the batch, where n is
    the softmax at T over the other classes; Yang 2023 (arXiv:2303.13005), NKD loss (T is called
    lambda there). Both parts are cross-entropies, so the value is not 0 if the student equals the
    teacher. The defaults gamma 1.5 and T 1 are those of the authors for ImageNet; for CIFAR-100
    they use gamma 3.5 and T 3.
    """

    kinds = ("softmax",)
    paper = "Yang 2023, arXiv:2303.13005"
    default_weight = 1.0
    weight_source = "The authors' code adds the loss as it is to the labels' loss: 1."
    zero_at_teacher = False
    reads_labels = True

    name: Literal["nkd"] = "nkd"
    temperature: Annotated[
        float, Field(gt=0, description="Softmax temperature of the other classes")
    ] = 1.0
    gamma: Annotated[float, Field(ge=0, description="Weight of the other classes")] = 1.5

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        place = targets[:, None]
        certainty = F.softmax(teacher, dim=1).gather(1, place)
        target = -(certainty * F.log_softmax(student, dim=1).gather(1, place)).mean()
        return target + self.gamma * self.temperature**2 * self._other_classes(
            student, teacher, targets
        )

    def _other_classes(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        teacher_p = F.softmax(others_of(teacher, targets) / self.temperature, dim=1)
        student_log_p = F.log_softmax(others_of(student, targets) / self.temperature, dim=1)
        return -(teacher_p * student_log_p).sum(dim=1).mean()


@option
class Dist(ResponseLoss):
    """Maximize the correlation of probabilities with the teacher, per sample and per class.

    T^2 (inter x mean over samples + intra x mean over classes) of 1 - Pearson's correlation of the
    softened probabilities; Huang 2022 (arXiv:2205.10536), Eqs. 8 and 9, where the weights are
    called beta and gamma. T^2 is from the authors' code. A positive affine change of the
    probabilities does not change the value. Equal probabilities have no correlation: it counts as
    0, without gradient. In a batch of one sample the part over classes is 0.
    """

    kinds = ("softmax", "dense")
    paper = "Huang 2022, arXiv:2205.10536"
    default_weight = 0.25
    weight_source = (
        "A quarter of the paper's, whose weights are the fields `inter` and `intra` (2 and 2 at "
        "T = 4 for CIFAR-100, 1 and 1 at T = 1 for ImageNet): in six epochs 0.25 helped and 1 "
        "did not."
    )
    relates_samples = True

    name: Literal["dist"] = "dist"
    temperature: Temperature = 4.0
    inter: Annotated[
        float,
        Field(ge=0, description="Weight beta of the correlation over the classes of a sample"),
    ] = 2.0
    intra: Annotated[
        float,
        Field(ge=0, description="Weight gamma of the correlation over the samples of a class"),
    ] = 2.0

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        learned = F.softmax(student / self.temperature, dim=1)
        taught = F.softmax(teacher / self.temperature, dim=1)
        value = self.inter * _uncorrelation(learned, taught)
        if len(student) > 1:
            value = value + self.intra * _uncorrelation(learned.T, taught.T)
        return value * self.temperature**2


SoftTarget = Annotated[KD | LogitMse | Dkd | Nkd | Dist, Field(discriminator="name")]


@option
class LogitStd(ResponseLoss):
    """Apply a loss on logits after standardizing the logits of each sample.

    `loss((z - mean z) / std z)` for student and teacher, so that the student need not match the
    range of the logits; Sun 2024 (arXiv:2403.01427), Algorithm 1. Its base temperature is that of
    the inner loss. `deviation: population` divides the squares by the number of classes K, as the
    paper does; `deviation: sample` divides by K - 1, as the authors' code does. Equal logits
    become 0.

    Raises:
        ValueError: the inner loss is not a loss on logits, or standardizes them as well.
    """

    kinds = ("softmax", "dense")
    paper = "Sun 2024, arXiv:2403.01427"
    default_weight = 1.0
    weight_source = (
        "The authors take 9 for CIFAR-100, with kd at T = 2 inside or dkd, and the labels at 1; "
        "9 hurt a student of six epochs, 3 made no difference, 1 helped."
    )
    relates_samples = True

    name: Literal["logit_std"] = "logit_std"
    loss: Annotated[SoftTarget, Field(description="Loss applied to the standardized logits")] = KD(
        temperature=2.0
    )
    deviation: Annotated[
        Literal["population", "sample"],
        Field(description="Standard deviation: squares over K (population) or K - 1 (sample)"),
    ] = "population"

    def __post_init__(self) -> None:
        if not isinstance(self.loss, ResponseLoss) or isinstance(self.loss, LogitStd):
            raise ValueError(
                f"logit_std wraps a loss on logits as they are, got {self.loss.name!r}; take kd, "
                "logit_mse, dkd, nkd or dist"
            )

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        unbiased = self.deviation == "sample"
        return self.loss(
            standardised(student, unbiased=unbiased),
            standardised(teacher, unbiased=unbiased),
            targets,
        )


def standardised(logits: Tensor, *, unbiased: bool = False) -> Tensor:
    """(B, K) -> (B, K), each row of mean 0 and standard deviation 1."""
    classes = logits.shape[1]
    return unit(centred(logits, dim=1)) * sqrt(classes - unbiased)


def others_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, K) -> (B, K - 1): every class except the target."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, places + (places >= targets[:, None]))


def _target_or_not(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, K) -> (B, 2): log-probabilities of the target and of all other classes together."""
    target = logits.gather(1, targets[:, None])
    rest = others_of(logits, targets).logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([target, rest], dim=1), dim=1)


def _kl(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _uncorrelation(left: Tensor, right: Tensor) -> Tensor:
    """Return the mean over rows of 1 - Pearson's correlation."""
    left, right = unit(centred(left, dim=1)), unit(centred(right, dim=1))
    return 1 - (left * right).sum(dim=1).mean()
