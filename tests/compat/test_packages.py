from __future__ import annotations

import sys

import pytest

from raykd.compat.packages import is_installed


def test_packages_are_looked_up_without_import() -> None:
    assert is_installed("json")
    assert not is_installed("no_such_package")
    assert not is_installed("no_such_package.part")


def test_package_that_replaces_its_module_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Replacement:
        __spec__ = None

    monkeypatch.setitem(sys.modules, "colorful", Replacement())  # type: ignore[arg-type]
    assert is_installed("colorful")
