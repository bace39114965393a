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
    "Diverged": "record",
    "Training": "loop",
    "check_weights": "teacher",
    "load_teacher": "teacher",
    "teacher_key": "teacher",
    "teacher_study": "teacher",
    "train_teachers": "preparing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
