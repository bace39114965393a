"""Installed packages, by name and without an import."""

from __future__ import annotations

import importlib.util


def is_installed(module: str) -> bool:
    """Return True if a module can be imported.

    `importlib.util.find_spec` raises `ValueError` for an imported module whose entry in
    `sys.modules` has no specification: `colorful`, which Ray's dashboard imports, replaces its
    entry by such an object.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
    except ValueError:
        return True
