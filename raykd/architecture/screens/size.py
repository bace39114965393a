"""Size as a screen: what every other screen has to beat."""

from __future__ import annotations

from typing import Literal

from raykd.architecture.cost import anatomy
from raykd.architecture.screens.screen import Ranking, Scorer, Screening
from raykd.option import option


@option
class Params(Ranking):
    """Number of parameters (more is better).

    The null screen: on DisWOT's table of 64 students it ranks the accuracy after distillation
    with Kendall's tau 0.87 (`benchmarks/screens.py`).  It says nothing where `params` is an
    objective.
    """

    name: Literal["params"] = "params"

    def scorer(self, about: Screening) -> Scorer:
        return lambda model: float(anatomy(model, about.task).params)


@option
class Macs(Ranking):
    """Number of multiply-accumulate operations (more is better).

    It says nothing where `macs` is an objective.
    """

    name: Literal["macs"] = "macs"

    def scorer(self, about: Screening) -> Scorer:
        return lambda model: float(anatomy(model, about.task).macs)
