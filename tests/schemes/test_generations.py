"""Resumed trainings equal uninterrupted ones."""

from __future__ import annotations

import pytest
import torch

from helpers.study_cases import STUDIES, training_of, untimed
from raykd.training.state_file import dump_state, parse_state


@pytest.mark.parametrize("name", list(STUDIES))
def test_resume_from_bytes_equals_uninterrupted_training(name: str) -> None:
    study = STUDIES[name]()
    whole = training_of(study)
    whole.run_epoch()
    saved = b"".join(dump_state(whole.state(), "training"))
    metrics = whole.run_epoch()
    torch.manual_seed(5)  # what the process did before is no matter
    resumed = training_of(study)
    resumed.load_state(parse_state(saved, "training"))
    assert untimed(resumed.run_epoch()) == untimed(metrics)
    _assert_same(resumed.state(), whole.state(), "state")


def _assert_same(ours: object, theirs: object, path: str) -> None:
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor) and torch.equal(ours, theirs), path
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and ours.keys() == theirs.keys(), path
        for key, value in theirs.items():
            _assert_same(ours[key], value, f"{path}.{key}")
    elif path != "state.history":
        assert ours == theirs, path
