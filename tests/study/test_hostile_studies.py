"""Mutated study files: accepted or refused with a message, quickly; they run no code.

RAYKD_MUTATIONS=1000 uv run pytest -m slow -n 0 tests/study/test_hostile_studies.py
"""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path

import pytest

from helpers.mutations import mutate_study
from raykd.errors import StudyError
from raykd.study.checks.load import load_study

SPACES = sorted(Path(__file__).parents[2].joinpath("search_spaces").glob("*.yaml"))
MUTATIONS = int(os.environ.get("RAYKD_MUTATIONS", "160"))
LONGEST_S, MOST_KB = 10.0, 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_mutated_studies(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, file = space.read_text(), tmp_path / "study.yaml"
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(-(-MUTATIONS // len(SPACES))):
        content = mutate_study(text, random.Random(f"{space.stem} {number}"))
        file.write_bytes(content)
        message = "none"
        start = time.process_time()
        try:
            load_study(file)
        except StudyError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"mutation {number} of {space.name}:\n{content!r}") from error
        assert time.process_time() - start < LONGEST_S, f"mutation {number} of {space.name}"
        assert 0 < len(message) < 100_000 and "Traceback" not in message
        assert file.read_bytes() == content and os.listdir(tmp_path) == ["study.yaml"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < MOST_KB
