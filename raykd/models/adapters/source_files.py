"""Source files of models that are built by code of the user's own."""

from __future__ import annotations

import ast
import contextlib
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages; their versions are recorded."""


@lru_cache(maxsize=64)
def source_files(file: Path, module: str) -> tuple[Path, ...]:
    """Return a module's source file and the files it imports, directly or through others.

    Imports are followed below the folder that holds the module's outermost package.  Those of
    installed packages and of Python's own modules are not: there they are thousands.

    Args:
        file: of the module.
        module: its dotted name.

    Returns:
        `file` first, the others in the order of their paths.
    """
    depth = module.count(".") + (file.name == "__init__.py")
    if depth >= len(file.parents):
        return (file,)
    root = file.parents[depth]
    if root.name in _INSTALLED or root == Path(sysconfig.get_paths()["stdlib"]):
        return (file,)
    packages = (file.parents[level] / "__init__.py" for level in range(depth))  # these run first
    waiting = [file, *(one for one in packages if one.is_file())]
    seen = set(waiting)
    while waiting:
        names: list[str] = []
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            names += _names_imported(waiting.pop(), root)
        for name in names:
            fresh = set(_sources_of(name, root)) - seen
            waiting += fresh
            seen |= fresh
    return (file, *sorted(seen - {file}))


def _names_imported(source: Path, root: Path) -> Iterator[str]:
    """Dotted names of modules that a source file may import."""
    package = source.parent.relative_to(root).parts
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else ())])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _sources_of(name: str, root: Path) -> Iterator[Path]:
    """The files of a module below `root`, its packages first."""
    place = root
    for part in filter(None, name.split(".")):
        place = place / part
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file
