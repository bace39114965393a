"""raykd searches students and distillations of a teacher, in warm slots on Ray.

The names below are loaded when they are first used, so that `import raykd` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykd.errors import Problem, StudyError
    from raykd.layer_study.result import LayerStudyResult, read_layer_study
    from raykd.report.comparison.comparison import Comparison
    from raykd.report.comparison.sources import compare
    from raykd.report.python import distill, extend, pairs, reproduce, search, train_teacher
    from raykd.study.checks.load import load_study
    from raykd.study.config import Study
    from raykd.study.open_study import OpenStudy
    from raykd.tuning.result import StudyResult, read_result

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "LayerStudyResult",
    "OpenStudy",
    "Problem",
    "Study",
    "StudyError",
    "StudyResult",
    "__version__",
    "compare",
    "distill",
    "extend",
    "load_study",
    "pairs",
    "read_layer_study",
    "read_result",
    "reproduce",
    "search",
    "train_teacher",
]

_HOMES = {
    "Comparison": "raykd.report.comparison.comparison",
    "OpenStudy": "raykd.study.open_study",
    "Problem": "raykd.errors",
    "Study": "raykd.study.config",
    "StudyError": "raykd.errors",
    "LayerStudyResult": "raykd.layer_study.result",
    "StudyResult": "raykd.tuning.result",
    "compare": "raykd.report.comparison.sources",
    "distill": "raykd.report.python",
    "extend": "raykd.report.python",
    "load_study": "raykd.study.checks.load",
    "pairs": "raykd.report.python",
    "read_layer_study": "raykd.layer_study.result",
    "read_result": "raykd.tuning.result",
    "reproduce": "raykd.report.python",
    "search": "raykd.report.python",
    "train_teacher": "raykd.report.python",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
