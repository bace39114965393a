"""Installed packages, by name and without an import, and the way that raykd was started."""

from __future__ import annotations

import importlib.util
import os


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


def launcher() -> str:
    """Return the prefix that runs a command the way this one was run: "uv run " or nothing.

    `uv run` sets the variable UV_RUN_RECURSION_DEPTH for its commands (documented by uv).
    """
    return "uv run " if os.environ.get("UV_RUN_RECURSION_DEPTH") else ""
