"""Errors of studies and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Mistake in a study or its environment.

    Attributes:
        message: invalid value and allowed values, in one sentence.
        path: dotted path in the study (`knowledge[0].loss.temperature`); empty for the whole file
            or for anything outside it.
        fix: way to fix the mistake; may be empty.
        file: study file, or empty.
        line: line in the file, counted from 1; 0 if unknown.
    """

    message: str
    path: str = ""
    fix: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        head = ": ".join(part for part in (place, self.path) if part)
        text = f"{head}: {self.message}" if head else self.message
        return f"{text}\n    -> {self.fix}" if self.fix else text


class StudyError(ValueError):
    """Raised if a study, its data or the machine has problems; contains all of them."""

    def __init__(self, problems: Problem | str | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class RayLost(StudyError):
    """Raised if Ray itself ended during a run, once the run has been closed as after Ctrl-C."""


class Terminated(SystemExit):
    """Raised after SIGTERM or SIGHUP, once the run has been closed as after Ctrl-C.

    The exit code of the program is 128 + the number of the signal, as usual.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(128 + signal)
        self.signal = signal


class Infeasible(ValueError):
    """Raised for a sampled point that cannot be a trial (violated constraint, impossible pairing).

    The search then draws another point.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
