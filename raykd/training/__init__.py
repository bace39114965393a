"""Training, plain PyTorch: the loop, evaluation, checkpoints, the teacher.

The names are loaded when they are asked for: what the driver needs of this package (assignments,
the mailbox, storage) comes without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykd.training.teachers import (
        check_weights,
        load_teacher,
        teacher_key,
        teacher_study,
        train_teachers,
    )
    from raykd.training.trainer import Diverged, Training

__all__ = [
    "Diverged",
    "Training",
    "check_weights",
    "load_teacher",
    "teacher_key",
    "teacher_study",
    "train_teachers",
]

_HOMES = {
    "Diverged": "metrics",
    "Training": "trainer",
    "check_weights": "teachers",
    "load_teacher": "teachers",
    "teacher_key": "teachers",
    "teacher_study": "teachers",
    "train_teachers": "teachers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
