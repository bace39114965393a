"""Samplers: Optuna's, each draws the next point of the space."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raykd.compat.optuna_tpe import make_tpe
from raykd.tuning.study_lock import check_lock


class Grid(BruteForceSampler):
    """Optuna's exhaustive sampler over a conditional space, for its ask-and-tell interface.

    Outside `Study.optimize`, Optuna's sampler cannot end a study.  This one sets `exhausted`.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.exhausted = False

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        try:
            super().after_trial(study, trial, state, values)
        except RuntimeError:
            # `Study.stop` outside `optimize`: every point has been tried.
            self.exhausted = True


def make_sampler(name: str, *, seed: int, startup_trials: int, slots: int) -> BaseSampler:
    """Return the Optuna sampler that a study names.

    Args:
        name: random, tpe, nsga2, gp, grid or qmc.
        seed: of its draws.
        startup_trials: random draws before a model is fitted (tpe, gp), or the population (nsga2).
        slots: number of trials in parallel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _make(name, seed, startup_trials, slots)


def _make(name: str, seed: int, startup_trials: int, slots: int) -> BaseSampler:
    samplers = optuna.samplers
    build: dict[str, Callable[[], BaseSampler]] = {
        "random": lambda: samplers.RandomSampler(seed=seed),
        "tpe": lambda: make_tpe(
            seed=seed,
            n_startup_trials=startup_trials,
            constant_liar=slots > 1,
        ),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed, population_size=max(4, startup_trials)),
        "gp": lambda: samplers.GPSampler(seed=seed, n_startup_trials=startup_trials),
        "grid": lambda: Grid(seed),
        "qmc": lambda: samplers.QMCSampler(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        ),
    }
    return build[name]()


class DrawsFile(JournalFileBackend):
    """Optuna's journal in a file that only one process writes.

    It takes no lock and does not wait for the disk: a draw writes about ten lines, between two
    trials.  A killed process loses nothing, and after a power failure the study's own journal
    has all results.  An unfinished last line is removed when the file is opened.

    A draw takes a sixth of the CPU time that Optuna's SQLite storage needs (eight slots, ten
    parameters), because the results of other trials stay in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        _remove_unfinished_line(self._path)
        super().__init__(str(path))

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        check_lock(self._path.parent)
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with open(self._path, "ab", buffering=0) as file:
            file.write(lines.encode())


def _remove_unfinished_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with open(path, "r+b") as file:
                file.truncate(end)
