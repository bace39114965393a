"""Trial of an earlier study as the start of another: distill, search and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raykd
from raykd.errors import StudyError
from raykd.study.checks.load import load_study
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult, read_result
from raykd.tuning.search_run import SearchRun
from raykd.tuning.single_run import distill
from raykd.tuning.trial_reference import search_of_trial, study_of_trial

STUDY = """\
name: first
data: {name: digits, limit: 100, val_limit: 50}
teacher:
  model: {name: resnet, depth: 8, width: 4}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: resnet, depth: 8, width: {int: [2, 8], step: 2}}
knowledge:
  - loss: {name: kd, temperature: {uniform: [1, 9]}}
  - loss: {name: hint}
    pairs: {pairing: {hint: auto, guided: auto, max: 1}}
train: {epochs: 1, batch_size: 32}
search: {sampler: random, trials: 3, replicates: 0}
tracking: {uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("study.yaml").write_text(STUDY)
        return SearchRun(load_study("study.yaml", ["train.epochs=2"])).run(LocalExecutor())


def study_of(result: StudyResult, trial: str) -> Any:
    return result.records[trial].job.study


def test_distill_repeats_trial(first: StudyResult, tmp_path: Path) -> None:
    named = f"{first.folder}:trial-0001"
    result_ = distill(named)
    assert result_.folder.parent == first.folder.parent  # where relative paths mean the same
    before, after = study_of(first, "trial-0001"), study_of(result_, "trial-0000")
    for part in ("data", "teacher", "student", "scheme", "knowledge", "train", "seed"):
        assert after[part] == before[part], part
    reached = [r.metrics["val_accuracy"] for r in (first.records["trial-0001"], result_.best) if r]
    assert reached[0] == reached[1]
    assert read_result(result_.folder).name == "first"


def test_trial_values_can_be_overridden(first: StudyResult) -> None:
    result_ = distill(f"{first.folder}:trial-0002", overrides=["train.epochs=1", "seed=5"])
    before, after = study_of(first, "trial-0002"), study_of(result_, "trial-0000")
    assert (after["train"]["epochs"], after["seed"]) == (1, 5)
    assert after["student"] == before["student"]


def test_search_starts_with_trial(first: StudyResult) -> None:
    with search_of_trial(f"{first.folder}:trial-0001", ["search.trials=2"], ["other"]) as result_:
        study, overrides, start_from = result_
        assert isinstance(study, str) and Path(study).read_text() == STUDY
        assert overrides == ["train.epochs=2", "search.trials=2"]
        assert start_from == [f"{first.folder}:trial-0001", "other"]


def test_layer_study_leaves_pairs_open(first: StudyResult) -> None:
    with study_of_trial(f"{first.folder}:trial-0000", [], pairs_open=True) as (study, overrides):
        assert isinstance(study, str)
        opened = load_study(study, overrides)
    assert opened.dimensions
    assert all(dimension.path.startswith("knowledge[1].pairs") for dimension in opened.dimensions)
    drawn = study_of(first, "trial-0000")
    assert opened.settings.student.model.width == drawn["student"]["model"]["width"]  # type: ignore[attr-defined]
    loss = opened.settings.knowledge[0].loss
    assert loss is not None
    assert loss.temperature == drawn["knowledge"][0]["loss"]["temperature"]  # type: ignore[attr-defined]


def test_invalid_trials_raise(first: StudyResult, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"has no trial 'trial-0009'; it has trial-0000, trial-00"):
        raykd.distill(f"{first.folder}:trial-0009")
    with pytest.raises(StudyError, match=r"did you mean 'trial-0001'"):
        raykd.search(f"{first.folder}:trail-0001")
    with pytest.raises(
        StudyError, match=r"name one of its trials: .*:trial-000.*raykd search --resume "
    ):
        raykd.distill(str(first.folder))
    with pytest.raises(StudyError, match="is not a study's folder"):
        raykd.pairs(f"{tmp_path}:trial-0000")


def test_plain_studies_are_returned_unchanged(tmp_path: Path) -> None:
    for study in ("study.yaml", tmp_path / "a:b.yaml"):
        with study_of_trial(study, ["seed=1"]) as same_study:
            assert same_study == (study, ["seed=1"])
