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
        summary="Sample values that are more frequent among good trials than among the rest.",
        paper="Bergstra 2011, NeurIPS; several objectives: Ozaki 2022, JAIR 73",
        learns=True,
        several_objectives=True,
        when="the default, for any space with or without branches; its first trials (half of them, "
        "at least 4, at most 10) are random",
    ),
    "random": About(
        summary="Sample all values independently of previous results.",
        paper="Bergstra 2012, JMLR 13",
        learns=False,
        several_objectives=True,
        when="baselines, or uniform coverage of the space",
    ),
    "nsga2": About(
        summary="Cross over and mutate the trials of the best fronts in generations.",
        paper="Deb 2002, IEEE Transactions on Evolutionary Computation 6",
        learns=True,
        several_objectives=True,
        when="several objectives and enough trials for many generations (of 4 to 10 trials each)",
    ),
    "gp": About(
        summary="Fit a Gaussian process and sample where the expected improvement is largest.",
        paper="Ament 2023, arXiv:2310.20708; several objectives: Daulton 2020, arXiv:2006.05078",
        learns=True,
        several_objectives=True,
        when="few, expensive trials with few parameters; parameters inside branches are sampled "
        "at random",
    ),
    "grid": About(
        summary="Try every point of a finite space once, in random order.",
        paper="",
        learns=False,
        several_objectives=True,
        when="complete coverage of a small finite space; numbers need a `step` or a list",
    ),
    "qmc": About(
        summary="Sample points evenly with a scrambled Sobol' sequence.",
        paper="Sobol' 1967, USSR Computational Mathematics and Mathematical Physics 7",
        learns=False,
        several_objectives=True,
        when="even coverage of a space without branches; parameters that the first trial did not "
        "sample are random",
    ),
}
"""In the order in which they are listed."""
