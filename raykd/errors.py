"""What is wrong with a study, said so that it can be mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        message: what was found and what is allowed, in one sentence.
        path: the place in the study, dotted (`knowledge[0].loss.temperature`); empty for the
            whole file or for things outside it.
        fix: how to mend it; empty where `message` says it all.
        file: the study file, or empty.
        line: its line, counted from 1; 0 where there is none.
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
    """A study, or the place it is to run in, is not fit to start; carries every problem found."""

    def __init__(self, problems: Problem | str | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP ended a run, which was put in order as after Ctrl-C.

    Leaves the program with the usual exit code: 128 + the signal's number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(128 + signal)
        self.signal = signal


class Infeasible(ValueError):
    """A sampled point that cannot be a trial (a broken constraint, an impossible pairing).

    The search draws again; it is no fault of the study.
    """
