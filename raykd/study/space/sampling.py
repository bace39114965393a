"""Drawing of values at random, and enumeration of a space.

A space is define-by-run: it asks for one value after another, and the next question may depend on
the last answer.  An `optuna.Trial` answers such questions, and so do the classes here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from raykd.errors import Infeasible

T = TypeVar("T")
Scalar = None | bool | int | float | str


class Suggest(Protocol):
    """Protocol of `optuna.Trial`: answers for the open values of a space."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...


Draw = Callable[[Suggest], T]


class Seeded:
    """Random answers, the same for the same seed.

    Attributes:
        params: the answers so far; set in advance, they are given instead of random ones.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._remembered(name, lambda: self.random.choice(choices))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return self._remembered(name, lambda: low + step * self._upto((high - low) / step))
        if log:
            return self._remembered(name, lambda: _between(low, high, self._log(low, high)))
        return self._remembered(name, lambda: self.random.uniform(low, high))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        if log:
            drawn = self._remembered(name, lambda: round(self._log(low - 0.499, high + 0.499)))
            return _between(low, high, drawn)
        return self._remembered(name, lambda: low + step * self._upto((high - low) // step))

    def _upto(self, steps: float) -> int:
        return self.random.randint(0, math.floor(steps + 1e-9))

    def _log(self, low: float, high: float) -> float:
        return math.exp(self.random.uniform(math.log(low), math.log(high)))

    def _remembered(self, name: str, draw: Callable[[], T]) -> T:
        """Return the same answer for the same name, as Optuna does."""
        if name not in self.params:
            self.params[name] = draw()
        return self.params[name]


Pick = Callable[[Mapping[str, Any], str, Sequence[Any]], Any]
"""(answers so far, parameter, its values) -> the value to take."""


class _Picker:
    """Answers every question by `pick` from a list: all values of a domain, or its two ends."""

    def __init__(self, pick: Pick, *, ends: bool) -> None:
        self.pick = pick
        self.ends = ends
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        return self._picked(name, choices)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if self.ends or low == high:
            return self._picked(name, (low, high) if low < high else (low,))
        if step is None:
            raise ValueError(f"{name} is continuous, so its values cannot be listed")
        steps = math.floor((high - low) / step + 1e-9)
        return self._picked(name, [low + step * i for i in range(steps + 1)])

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        if self.ends:
            return self._picked(name, (low, high) if low < high else (low,))
        return self._picked(name, range(low, high + 1, step))

    def _picked(self, name: str, values: Sequence[Any]) -> Any:
        if name not in self.params:
            self.params[name] = self.pick(self.params, name, values)
        return self.params[name]


def every(draw: Draw[T]) -> Iterator[tuple[dict[str, Any], T]]:
    """Yield every point of a finite space with its parameters, the first options first.

    Raises:
        ValueError: the space is continuous.
    """
    script: list[list[int]] = []  # for each question: index of the answer, number of answers

    def pick(before: Mapping[str, Any], name: str, values: Sequence[Any]) -> Any:
        if len(before) == len(script):
            script.append([0, len(values)])
        return values[script[len(before)][0]]

    while True:
        picker = _Picker(pick, ends=False)
        try:
            drawn = draw(picker)
        except Infeasible:
            pass
        else:
            yield picker.params, drawn
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1


def corners(draw: Draw[T], attempts: int = 20) -> list[T]:
    """Points that cover every branch and both ends of every numeric domain at least once.

    Their number grows with the sum of branches and ends, not with their product.  A value that is
    infeasible in `attempts` points is skipped.
    """
    return list(_Cover(draw, attempts).points())


class _Cover(Generic[T]):
    """A list of values not covered yet, each with the answers that lead to its question."""

    def __init__(self, draw: Draw[T], attempts: int) -> None:
        self.draw = draw
        self.attempts = attempts
        self.random = random.Random(0)
        self.covered: set[tuple[str, Any]] = set()
        self.queued: set[tuple[str, Any]] = set()
        self.todo: list[dict[str, Any]] = [{}]

    def points(self) -> Iterator[T]:
        while self.todo:
            lead = self.todo.pop()
            name = next(reversed(lead), None)
            if name is None or (name, _exact(lead[name])) not in self.covered:
                yield from self._point(list(lead.items()))

    def _point(self, lead: list[tuple[str, Any]]) -> Iterator[T]:
        """Yield a point that follows `lead`; if that is infeasible, ever fewer of its answers."""
        for attempt in range(self.attempts):
            answers = dict([*lead[: max(0, len(lead) - 1 - attempt)], *lead[-1:]])
            picker = _Picker(partial(self._pick, answers), ends=True)
            try:
                drawn = self.draw(picker)
            except Infeasible:
                continue
            self.covered |= {(name, _exact(value)) for name, value in picker.params.items()}
            yield drawn
            return

    def _pick(
        self, lead: Mapping[str, Any], before: Mapping[str, Any], name: str, values: Sequence[Any]
    ) -> Any:
        for value in values:
            if (name, _exact(value)) not in self.queued:
                self.queued.add((name, _exact(value)))
                self.todo.append({**before, name: value})
        if name in lead:
            return lead[name]
        fresh = [value for value in values if (name, _exact(value)) not in self.covered]
        return self.random.choice(fresh or values)


def _exact(value: Any) -> tuple[type, Any]:
    """Return a key that distinguishes 1, True and 1.0."""
    return type(value), value


def _between(low: Any, high: Any, value: Any) -> Any:
    return max(low, min(high, value))
