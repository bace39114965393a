"""The examples of docs/losses-from-python.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raykd

PAGE = Path(raykd.__file__).parents[1] / "docs" / "losses-from-python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int) -> None:
    names: dict[str, object] = {}
    exec(EXAMPLES[number], names)
    assert "loss" in names or "output" in names
