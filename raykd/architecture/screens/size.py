"""Model size as a proxy: the baseline of all other proxies."""

from __future__ import annotations

from typing import Literal

from raykd.architecture.cost import anatomy
from raykd.architecture.screens.screen import Ranking, Scorer, Screening
from raykd.option import option


@option
class Params(Ranking):
    """Number of parameters (more is better).

    The baseline: on DisWOT's table of 64 students it ranks the accuracy after distillation with
    Kendall's tau 0.87 (`benchmarks/screens.py`).  Not informative if `params` is an objective.
    """

    name: Literal["params"] = "params"

    def scorer(self, context: Screening) -> Scorer:
        return lambda model: float(anatomy(model, context.task).params)


@option
class Macs(Ranking):
    """Number of multiply-accumulate operations (more is better).

    Not informative if `macs` is an objective.
    """

    name: Literal["macs"] = "macs"

    def scorer(self, context: Screening) -> Scorer:
        return lambda model: float(anatomy(model, context.task).macs)
