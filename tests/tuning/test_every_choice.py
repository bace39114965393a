"""A study that lets the search choose among all schemes and all losses at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from raykd.losses import LOSSES
from raykd.schemes import SCHEMES
from raykd.study.checks.load import load_study
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import SearchRun

SPACES = Path(__file__).parents[2] / "search_spaces"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((SPACES / name).read_text(encoding="utf-8"))


def names(options: list[Any]) -> set[str]:
    return {option["name"] for option in options}


def test_the_shipped_studies_name_them_all() -> None:
    assert names(read("schemes.yaml")["scheme"]["choice"]) == set(SCHEMES.members)
    assert names(read("losses.yaml")["knowledge"][0]["loss"]["choice"]) == set(LOSSES.members)


@pytest.mark.slow
def test_all_schemes_and_all_losses_in_one_study(tmp_path: Path) -> None:
    """Real digits, one epoch a training: every trial runs to its end."""
    study = read("schemes.yaml")
    study |= {
        "name": "every-choice",
        "data": {"name": "digits", "limit": 128, "val_limit": 60},
        "knowledge": [
            {"loss": read("losses.yaml")["knowledge"][0]["loss"]},
            {"loss": {"choice": [None, {"name": "kd"}]}},
        ],
        "train": {"epochs": 1, "batch_size": 32},
        "cluster": {"storage": str(tmp_path / "studies")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    study["teacher"]["train"] = {"epochs": 1, "batch_size": 32}
    study["search"] = {"trials": 90, "sampler": "random", "finalists": 1, "replicates": 1}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    result = SearchRun(load_study(file)).run(LocalExecutor())
    trials = result.records.of("trial", "replicate", "alone", "teacher")
    assert {r.id: r.reason for r in trials if r.status != "finished"} == {}
    assert len(result.records.of("trial")) == 90
    drawn = [record.job.study for record in result.records.of("trial")]
    assert set(Counter(one["scheme"]["name"] for one in drawn)) == set(SCHEMES.members)
    losses = {term["loss"]["name"] for one in drawn for term in one["knowledge"] if term["loss"]}
    assert len(losses) > 20
