"""Who draws the values of a space, and walks over all that can be drawn.

A space is drawn define-by-run: it asks for one value after another, and what it asks next may
hang on what it got.  An `optuna.Trial` answers such questions; so do the classes here.
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
    """Whoever answers; `optuna.Trial` is one."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...


Draw = Callable[[Suggest], T]


class Seeded:
    """Answers at random, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._kept(name, lambda: self.random.choice(choices))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return self._kept(name, lambda: low + step * self._upto((high - low) / step))
        if log:
            return self._kept(name, lambda: _between(low, high, self._log(low, high)))
        return self._kept(name, lambda: self.random.uniform(low, high))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        if log:
            drawn = self._kept(name, lambda: round(self._log(low - 0.499, high + 0.499)))
            return _between(low, high, drawn)
        return self._kept(name, lambda: low + step * self._upto((high - low) // step))

    def _upto(self, steps: float) -> int:
        return self.random.randint(0, math.floor(steps + 1e-9))

    def _log(self, low: float, high: float) -> float:
        return math.exp(self.random.uniform(math.log(low), math.log(high)))

    def _kept(self, name: str, draw: Callable[[], T]) -> T:
        """The same answer when the same name is asked for again, as Optuna does."""
        if name not in self.params:
            self.params[name] = draw()
        return self.params[name]


Pick = Callable[[Mapping[str, Any], str, Sequence[Any]], Any]
"""(answers so far, parameter, its values) -> one of the values."""


class _Asked:
    """Turns every question into a pick from a list: all of a domain's values, or its two ends."""

    def __init__(self, pick: Pick, *, ends: bool) -> None:
        self.pick = pick
        self.ends = ends
        self.params: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
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
    """Every point of a finite space, with its parameters, the first options first.

    Raises:
        ValueError: the space is continuous.
    """
    script: list[list[int]] = []  # for each question in turn: the answer taken, of how many

    def pick(before: Mapping[str, Any], name: str, values: Sequence[Any]) -> Any:
        if len(before) == len(script):
            script.append([0, len(values)])
        return values[script[len(before)][0]]

    while True:
        asked = _Asked(pick, ends=False)
        try:
            drawn = draw(asked)
        except Infeasible:
            pass
        else:
            yield asked.params, drawn
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1


def corners(draw: Draw[T], attempts: int = 20) -> list[T]:
    """Points that take every branch and both ends of every numeric domain at least once.

    Their number grows with that of branches and ends, not with its product.  A value that is
    infeasible in `attempts` points is left out.
    """
    return list(_Cover(draw, attempts).points())


class _Cover(Generic[T]):
    """Keeps a list of values still to be taken, each with the answers that lead to its question."""

    def __init__(self, draw: Draw[T], attempts: int) -> None:
        self.draw = draw
        self.attempts = attempts
        self.random = random.Random(0)
        self.taken: set[tuple[str, Any]] = set()
        self.found: set[tuple[str, Any]] = set()
        self.todo: list[dict[str, Any]] = [{}]

    def points(self) -> Iterator[T]:
        while self.todo:
            lead = self.todo.pop()
            name = next(reversed(lead), None)
            if name is None or (name, _exact(lead[name])) not in self.taken:
                yield from self._point(list(lead.items()))

    def _point(self, lead: list[tuple[str, Any]]) -> Iterator[T]:
        """One point that follows `lead`, or, where that is infeasible, less and less of it."""
        for attempt in range(self.attempts):
            kept = dict([*lead[: max(0, len(lead) - 1 - attempt)], *lead[-1:]])
            asked = _Asked(partial(self._pick, kept), ends=True)
            try:
                drawn = self.draw(asked)
            except Infeasible:
                continue
            self.taken |= {(name, _exact(value)) for name, value in asked.params.items()}
            yield drawn
            return

    def _pick(
        self, lead: Mapping[str, Any], before: Mapping[str, Any], name: str, values: Sequence[Any]
    ) -> Any:
        for value in values:
            if (name, _exact(value)) not in self.found:
                self.found.add((name, _exact(value)))
                self.todo.append({**before, name: value})
        if name in lead:
            return lead[name]
        fresh = [value for value in values if (name, _exact(value)) not in self.taken]
        return self.random.choice(fresh or values)


def _exact(value: Any) -> tuple[type, Any]:
    """Tells 1 from True and 1.0."""
    return type(value), value


def _between(low: Any, high: Any, value: Any) -> Any:
    return max(low, min(high, value))
