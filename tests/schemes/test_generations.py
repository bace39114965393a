"""A training that is saved and goes on elsewhere is the one that was never interrupted."""

from __future__ import annotations

import pytest
import torch

from helpers.study_cases import STUDIES, training_of, untimed
from raykd.training.checkpoint import dump_object, parse_state


@pytest.mark.parametrize("name", list(STUDIES))
def test_resuming_from_bytes_is_as_if_never_stopped(name: str) -> None:
    study = STUDIES[name]()
    whole = training_of(study)
    whole.run_epoch()
    saved = dump_object(whole.state())
    found = whole.run_epoch()
    torch.manual_seed(5)  # what the process did before is no matter
    resumed = training_of(study)
    resumed.load_state(parse_state(saved))
    assert untimed(resumed.run_epoch()) == untimed(found)
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
