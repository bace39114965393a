"""The samplers a study may name: what each is, and when to take it.

Each is Optuna's; `raykd.search.samplers` makes them.  This file imports nothing of Optuna's, which
would take time that reading a study does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Sampler = Literal["random", "tpe", "nsga2", "gp", "grid", "qmc"]


@dataclass(frozen=True)
class About:
    """One sampler.

    Attributes:
        summary: how it draws, in one sentence.
        paper: author, year, arXiv number or venue; empty where there is none.
        learns: whether what it draws depends on the results of trials.  A trial that ended early
            counts with its last results.
        several_objectives: whether it serves several objectives as well as one.
        when: when to take it.
    """

    summary: str
    paper: str
    learns: bool
    several_objectives: bool
    when: str


SAMPLERS: Mapping[Sampler, About] = {
    "tpe": About(
        summary="Draws values that are more frequent among the good trials than among the rest.",
        paper="Bergstra 2011, NeurIPS; several objectives: Ozaki 2022, JAIR 73",
        learns=True,
        several_objectives=True,
        when="the default: any space, branches included; its first trials (half of them, at least "
        "4, at most 10) are drawn at random",
    ),
    "random": About(
        summary="Draws every value by itself, whatever the results.",
        paper="Bergstra 2012, JMLR 13",
        learns=False,
        several_objectives=True,
        when="as a baseline, or where every part of the space is to be seen alike, early stopping "
        "or not",
    ),
    "nsga2": About(
        summary="Crosses and mutates the trials of the best fronts, generation by generation.",
        paper="Deb 2002, IEEE Transactions on Evolutionary Computation 6",
        learns=True,
        several_objectives=True,
        when="several objectives and trials enough for many generations (of 4 to 10 trials each)",
    ),
    "gp": About(
        summary="Fits a Gaussian process to the results and draws where it expects to gain most.",
        paper="Ament 2023, arXiv:2310.20708; several objectives: Daulton 2020, arXiv:2006.05078",
        learns=True,
        several_objectives=True,
        when="few, costly trials over a handful of values; what stands inside branches is drawn at "
        "random",
    ),
    "grid": About(
        summary="Tries every point of a finite space once, in random order.",
        paper="",
        learns=False,
        several_objectives=True,
        when="a small finite space that is to be covered whole: numbers need a `step` or a list",
    ),
    "qmc": About(
        summary="Spreads points more evenly than chance does, along a scrambled Sobol' sequence.",
        paper="Sobol' 1967, USSR Computational Mathematics and Mathematical Physics 7",
        learns=False,
        several_objectives=True,
        when="an even survey of a space without branches; what the first trial did not draw is "
        "drawn at random",
    ),
}
"""In the order in which they are listed."""
