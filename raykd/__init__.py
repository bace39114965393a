"""raykd searches students and distillations of a teacher, in warm slots on Ray.

The names below are loaded when they are first used, so that `import raykd` costs nothing.
`raykd.search` is both the package and the function `raykd.report.python.search`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import raykd.search as _package

if TYPE_CHECKING:
    from raykd.problems import Problem, StudyError
    from raykd.report.python import distill, pairs, search, train_teacher
    from raykd.search.pairs.result import PairsResult, read_pairs
    from raykd.search.result import StudyResult, read_result
    from raykd.study.load import load_study
    from raykd.study.opened import OpenStudy
    from raykd.study.schema import Study

__version__ = "0.1.0"

__all__ = [
    "OpenStudy",
    "PairsResult",
    "Problem",
    "Study",
    "StudyError",
    "StudyResult",
    "__version__",
    "distill",
    "load_study",
    "pairs",
    "read_pairs",
    "read_result",
    "search",
    "train_teacher",
]

_HOMES = {
    "OpenStudy": "raykd.study.opened",
    "Problem": "raykd.problems",
    "Study": "raykd.study.schema",
    "StudyError": "raykd.problems",
    "PairsResult": "raykd.search.pairs.result",
    "StudyResult": "raykd.search.result",
    "distill": "raykd.report.python",
    "load_study": "raykd.study.load",
    "pairs": "raykd.report.python",
    "read_pairs": "raykd.search.pairs.result",
    "read_result": "raykd.search.result",
    "train_teacher": "raykd.report.python",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _SearchPackage(ModuleType):
    """The package `raykd.search`, which can be called as the function of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> StudyResult:
        from raykd.report.python import search

        return search(*args, **kwargs)


# Importing any module of the package binds `raykd.search` to the package, so that is what must
# be callable.
sys.modules[_package.__name__].__class__ = _SearchPackage
