"""Study with all schemes and all losses as choices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.study_cases import CLASS_LOSSES
from raykd.schemes import SCHEMES
from raykd.study.checks.load import load_study
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import SearchRun

SCHEME_NAMES = {name for name in SCHEMES.members if ":" not in name}  # none of another test's code
SPACES = Path(__file__).parents[2] / "search_spaces"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((SPACES / name).read_text(encoding="utf-8"))


def names(options: list[Any]) -> set[str]:
    return {option["name"] for option in options}


def test_shipped_studies_contain_all_options() -> None:
    assert names(read("schemes.yaml")["scheme"]["choice"]) == SCHEME_NAMES
    assert names(read("losses.yaml")["knowledge"][0]["loss"]["choice"]) == set(CLASS_LOSSES)


@pytest.mark.slow
def test_study_with_all_schemes_and_all_losses(tmp_path: Path) -> None:
    """Digits, one epoch per training: every trial finishes."""
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
    study["search"] = {"trials": 120, "sampler": "random", "finalists": 1, "replicates": 1}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    result = SearchRun(load_study(file)).run(LocalExecutor())
    trials = result.records.of("trial", "replicate", "alone", "teacher")
    assert {r.id: r.reason for r in trials if r.status != "finished"} == {}
    assert len(result.records.of("trial")) == 120
    drawn = [record.job.study for record in result.records.of("trial")]
    assert set(Counter(point["scheme"]["name"] for point in drawn)) == SCHEME_NAMES
    losses = {
        term["loss"]["name"] for point in drawn for term in point["knowledge"] if term["loss"]
    }
    assert len(losses) > 20
