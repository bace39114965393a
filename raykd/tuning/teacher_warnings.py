"""Warnings about weak teachers: at chance, or worse than a student without teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.05
"""Significance level of the warnings."""

USEFUL = 0.25
"""Fraction of the way from chance to 100% accuracy above which a teacher is not at chance."""

BELOW_STUDENT = "is worse than its student alone"

CAUSES = (
    "likely causes: another order of classes (`teacher.classes`), another normalization or input "
    "size than the teacher was trained with, a wrong file of weights"
)


def chance_warning(name: str, accuracy: float, counts: Sequence[int]) -> str:
    """Return a warning if a teacher is no better than the most frequent class, else "".

    Two binomial tests must agree: the accuracy is consistent with guessing, and below that of a
    useful teacher (`USEFUL`).  This prevents false warnings on small splits.

    Args:
        name: of the teacher.
        accuracy: on the validation split, 0 to 1.
        counts: samples of each class of that split.
    """
    samples = sum(counts)
    if not samples or max(counts) == samples:
        return ""
    chance = max(counts) / samples
    hits = round(accuracy * samples)
    useful = chance + USEFUL * (1 - chance)
    if cumulative(hits - 1, samples, chance) > 1 - LEVEL:
        return ""
    if cumulative(hits, samples, useful) > LEVEL:
        return ""
    return (
        f"teacher {name} is at chance: val accuracy {accuracy:.1%}, and the most frequent class "
        f"alone gives {chance:.1%}; {CAUSES}"
    )


def weak_teacher_warning(
    name: str, accuracy: float, student: str, alone: float, samples: int
) -> str:
    """Return a warning if a student trained without a teacher beats the teacher, else "".

    Args:
        name, student: of the teacher and of the training.
        accuracy, alone: on the validation split, 0 to 1.
        samples: of that split.
    """
    mean = (accuracy + alone) / 2
    noise = 1.645 * math.sqrt(2 * mean * (1 - mean) / samples) if samples else math.inf
    if alone - accuracy <= noise:
        return ""
    return (
        f"teacher {name} {BELOW_STUDENT}: val accuracy {accuracy:.1%} against "
        f"{alone:.1%} of {student}; take a stronger teacher or train it longer; {CAUSES}"
    )


def cumulative(hits: int, samples: int, chance: float) -> float:
    """Return P(X <= hits) of a binomial distribution."""
    if hits < 0:
        return 0.0
    if not 0 < chance < 1:
        return 1.0 if chance <= 0 or hits >= samples else 0.0
    log = math.lgamma(samples + 1)
    terms = (
        log
        - math.lgamma(k + 1)
        - math.lgamma(samples - k + 1)
        + k * math.log(chance)
        + (samples - k) * math.log1p(-chance)
        for k in range(min(hits, samples) + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
