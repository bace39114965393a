"""Source files of code outside raykd."""

from __future__ import annotations

import ast
import contextlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages, whose versions are recorded."""


def source_files(file: Path, module: str) -> tuple[Path, ...]:
    """Return a module's source file and the files it imports, directly or through others.

    Imports are followed inside the folder of the module's outermost package, but not into
    installed packages and the standard library, which have thousands of files.

    Args:
        file: file of the module.
        module: dotted name of the module.

    Returns:
        `file`, then the others sorted by path.
    """
    depth = module.count(".") + (file.name == "__init__.py")
    if depth >= len(file.parents):
        return (file,)
    root = file.parents[depth]
    if root.name in _INSTALLED or root == Path(sysconfig.get_paths()["stdlib"]):
        return (file,)
    packages = (file.parents[level] / "__init__.py" for level in range(depth))  # these run first
    queue = [file, *(package for package in packages if package.is_file())]
    visited = set(queue)
    while queue:
        names: list[str] = []
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            names += _imported_names(queue.pop(), root)
        for name in names:
            new = set(_files_of(name, root)) - visited
            queue += new
            visited |= new
    return (file, *sorted(visited - {file}))


def _imported_names(source: Path, root: Path) -> Iterator[str]:
    """Yield the dotted names of modules that a source file may import."""
    package = source.parent.relative_to(root).parts
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else ())])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _files_of(name: str, root: Path) -> Iterator[Path]:
    """Yield the files of a module below `root`, its packages first."""
    path = root
    for part in filter(None, name.split(".")):
        path = path / part
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file
