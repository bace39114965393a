"""Code of the user's own that the workers of a study import: sent to the nodes of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_BYTES = 100 << 20
"""Size of a package above which it is not sent.  Ray refuses more than 500 MiB."""

INSTALLED = ("site-packages", "dist-packages")


def modules_to_send(files: Iterable[str], search_path: Sequence[str] | None = None) -> list[Path]:
    """Return the outermost modules of source files: packages (folders) and single files.

    Installed packages are no part of it: they must be installed on every node.

    Args:
        files: relative to the current folder, or absolute; all but `*.py` are ignored.
        search_path: folders from which modules are imported; None: the current folder and
            `sys.path`.
    """
    here = os.getcwd()
    folders = [here, *sys.path] if search_path is None else search_path
    roots = {Path(here, folder) for folder in folders}
    modules: set[Path] = set()
    for name in files:
        file = Path(here, name)
        if file.suffix != ".py" or any(part in INSTALLED for part in file.parts):
            continue
        # a file below two of the folders has two names as a module
        for root in roots.intersection(file.parents):
            modules.add(root / file.relative_to(root).parts[0])
    return sorted(modules)


def is_too_large(module: Path) -> bool:
    """Return whether a module is larger than `MAX_BYTES`."""
    size = 0
    for folder, _, names in os.walk(module):
        size += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        if size > MAX_BYTES:
            return True
    return False
