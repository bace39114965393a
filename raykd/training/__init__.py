"""Training in plain PyTorch: trainer, teachers, cached teacher outputs, metrics.

Names are imported on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raykd.training.metrics import Diverged
    from raykd.training.teachers import teacher_key, teacher_study, train_teachers
    from raykd.training.trainer import Training

__all__ = ["Diverged", "Training", "teacher_key", "teacher_study", "train_teachers"]

_MODULES = {
    "Diverged": "metrics",
    "Training": "trainer",
    "teacher_key": "teachers",
    "teacher_study": "teachers",
    "train_teachers": "teachers",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
