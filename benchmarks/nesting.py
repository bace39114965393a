"""Nested runs of Ray, as in its guide: each trial of a Tune function calls `TorchTrainer.fit()`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_nested(
    train_student: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    folder: Path,
    *,
    tune_config: Any,
    scaling_config: Any,
) -> list[dict[str, Any]]:
    """Run one `TorchTrainer` in each trial of a search on a new local Ray.

    Args:
        train_student: training function, which calls `ray.train.report`.
        space: search space of Tune.
        folder: folder for all files.
        tune_config: `ray.tune.TuneConfig`.
        scaling_config: `ray.train.ScalingConfig` of each trainer.

    Returns:
        Last result of each trial.
    """
    from ray import train, tune
    from ray.train.torch import TorchTrainer

    from raykd.runtime.cluster import ray_session

    def trial(setup: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            train_student,
            train_loop_config=setup,
            scaling_config=scaling_config,
            run_config=train.RunConfig(
                name=f"trial-{os.getpid()}", storage_path=str(folder / "train")
            ),
        )
        metrics = trainer.fit().metrics or {}
        tune.report({name: metrics[name] for name in ("loss", "accuracy") if name in metrics})

    with ray_session(verbose=False):
        results = tune.Tuner(
            tune.with_resources(trial, {"CPU": 0.01}),
            param_space=space,
            tune_config=tune_config,
            run_config=tune.RunConfig(name="nested", storage_path=str(folder), verbose=0),
        ).fit()
    assert not results.errors, results.errors[0]
    return [result.metrics for result in results if result.metrics]
