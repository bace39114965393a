from __future__ import annotations

from pathlib import Path

import pytest

from helpers.events import STUDY, Teller
from raykd.study.checks.load import load_study
from raykd.study.open_study import OpenStudy


@pytest.fixture(scope="session")
def open_study(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    file = tmp_path_factory.mktemp("study") / "made-up.yaml"
    file.write_text(STUDY)
    return load_study(file)


@pytest.fixture
def teller(open_study: OpenStudy, tmp_path: Path) -> Teller:
    return Teller(open_study, tmp_path)
