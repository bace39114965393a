"""Samplers: each draws the next point of the space.  All of them are Optuna's.

Optuna is imported when a sampler is built, because importing it takes longer than reading a study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from raykd.registry import Registry, option

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@option
class Sampler:
    """Base class of samplers.

    Class attributes:
        paper: author, year, arXiv number or venue; empty if there is none.
        learns: whether its draws depend on results of trials.  A trial that was stopped early
            counts with its last results.
        several_objectives: whether it supports several objectives.
        needs_finite_space: whether the space must have a finite number of points.
        needs_numbers: whether the space must have an open number that all trials have.
        package: package that it needs beside raykd's own; empty if there is none.
        runs_code: whether it runs code from outside raykd.
        when: when to use it.
    """

    paper: ClassVar[str] = ""
    learns: ClassVar[bool]
    several_objectives: ClassVar[bool] = True
    needs_finite_space: ClassVar[bool] = False
    needs_numbers: ClassVar[bool] = False
    package: ClassVar[str] = ""
    runs_code: ClassVar[bool] = False
    when: ClassVar[str]

    name: str

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        """Build the sampler.

        Args:
            seed: of its draws.
            startup_trials: number of random trials before a model is fitted.
            slots: number of trials in parallel.
        """
        raise NotImplementedError


@option
class Tpe(Sampler):
    """Sample values that are more frequent among good trials than among the rest."""

    paper = "Bergstra 2011, NeurIPS; several objectives: Ozaki 2022, JAIR 73"
    learns = True
    when = (
        "the default, for any space with or without branches; its first trials (half of them, "
        "at least 4, at most 10) are random"
    )

    name: Literal["tpe"] = "tpe"
    multivariate: Annotated[
        bool | Literal["auto"],
        Field(
            description="Sample the parameters that all trials have together, so that their "
            "interactions count. auto: with one objective"
        ),
    ] = "auto"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from raykd.compat.optuna_tpe import make_tpe

        multivariate = None if self.multivariate == "auto" else self.multivariate
        return make_tpe(
            seed=seed,
            n_startup_trials=startup_trials,
            constant_liar=slots > 1,
            multivariate=multivariate,
        )


@option
class Random(Sampler):
    """Sample all values independently of previous results."""

    paper = "Bergstra 2012, JMLR 13"
    learns = False
    when = "baselines, or uniform coverage of the space"

    name: Literal["random"] = "random"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@option
class Nsga2(Sampler):
    """Cross over and mutate the trials of the best fronts in generations."""

    paper = "Deb 2002, IEEE Transactions on Evolutionary Computation 6"
    learns = True
    when = "several objectives and enough trials for many generations (of 4 to 10 trials each)"

    name: Literal["nsga2"] = "nsga2"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=max(4, startup_trials))


@option
class Nsga3(Sampler):
    """Cross over and mutate trials that lie near reference directions, in generations."""

    paper = "Deb 2014, IEEE Transactions on Evolutionary Computation 18"
    learns = True
    when = "three or more objectives and enough trials for many generations, as for nsga2"

    name: Literal["nsga3"] = "nsga3"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from optuna.samplers import NSGAIIISampler

        return NSGAIIISampler(seed=seed, population_size=max(4, startup_trials))


@option
class Gp(Sampler):
    """Fit a Gaussian process and sample where the expected improvement is largest."""

    paper = "Ament 2023, arXiv:2310.20708; several objectives: Daulton 2020, arXiv:2006.05078"
    learns = True
    when = (
        "few, expensive trials with few parameters; parameters inside branches are sampled "
        "at random"
    )

    name: Literal["gp"] = "gp"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from raykd.compat.optuna_gp import make_gp

        return make_gp(seed=seed, n_startup_trials=startup_trials, warn_independent_sampling=False)


@option
class Cmaes(Sampler):
    """Sample numbers from a normal distribution that moves and adapts to the better trials.

    Choices, and numbers inside branches, are sampled at random.  A trial that was stopped early
    counts with its last result.
    """

    paper = "Hansen 2016, arXiv:1604.00772"
    learns = True
    several_objectives = False
    needs_numbers = True
    package = "cmaes"
    when = "one objective, more than about 100 trials, and mostly numbers without branches"

    name: Literal["cmaes"] = "cmaes"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from raykd.compat.optuna_cmaes import QuietCmaEs

        return QuietCmaEs(
            seed=seed,
            n_startup_trials=startup_trials,
            consider_pruned_trials=True,
            warn_independent_sampling=False,
        )


@option
class Auto(Sampler):
    """Select one of Optuna's samplers for each trial, by the space, objectives and budget.

    This is AutoSampler of OptunaHub.  Its code is downloaded from there when a search starts.
    """

    learns = True
    package = "optunahub"
    runs_code = True
    when = "a machine that reaches GitHub, and no opinion on samplers"

    name: Literal["auto"] = "auto"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        import optunahub  # pyright: ignore[reportMissingImports]

        return optunahub.load_module("samplers/auto_sampler").AutoSampler(seed=seed)


@option
class Grid(Sampler):
    """Try every point of a finite space once, in random order."""

    learns = False
    needs_finite_space = True
    when = "complete coverage of a small finite space; numbers need a `step` or a list"

    name: Literal["grid"] = "grid"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from raykd.compat.optuna_grid import GridSampler

        return GridSampler(seed)


@option
class Qmc(Sampler):
    """Sample points evenly with a scrambled Sobol' sequence."""

    paper = "Sobol' 1967, USSR Computational Mathematics and Mathematical Physics 7"
    learns = False
    when = (
        "even coverage of a space without branches; parameters that the first trial did not "
        "sample are random"
    )

    name: Literal["qmc"] = "qmc"

    def build(self, seed: int, startup_trials: int, slots: int) -> BaseSampler:
        from optuna.samplers import QMCSampler

        return QMCSampler(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        )


SAMPLERS = Registry("sampler", base=Sampler, entry_points="raykd.samplers")
SAMPLERS.add(Tpe, Random, Nsga2, Nsga3, Gp, Cmaes, Auto, Grid, Qmc)

AnySampler = Annotated[Sampler, SAMPLERS]
"""Type of a field that holds a sampler."""
