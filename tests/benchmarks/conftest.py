"""The benchmarks are scripts: they are imported from their files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a benchmark by its name, as if it were run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded: list[str] = []

    def by_name(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look there
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield by_name
    sys.modules.pop("measuring", None)
