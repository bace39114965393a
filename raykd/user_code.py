"""Code of the user that a study names by its file: `losses.py:Focal`.

Such a name may stand wherever a study names an option (a network, a loss, a scheme, a metric, a
data source, an augmentation).  Its path is relative to the study file.  A process imports the files
when it registers them (`UserCode.register`): the process that starts a study, if `--allow-import`
is given, and its workers, which get the bytes of the files.  The files of objects that were handed
over from Python, `python:Focal`, are made of their source (`raykd.python_objects`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Literal

from raykd.python_objects import PREFIX, PythonObject, file_of
from raykd.registry import Registry, option
from raykd.source_files import source_files

FILE_NAME = r"^([^\s:]+\.py|python):[A-Za-z_]\w*$"
"""Pattern of names of user code: `FILE.py:NAME`, or `python:NAME` for objects from Python."""

ALLOW = "if you trust it, allow it in each command: --allow-import (allow_import=True)"
"""Fix for code that a study may not run."""

_codes: dict[str, UserCode] = {}
_objects: dict[str, object] = {}
_modules: dict[str, Path] = {}
_copies: dict[str, TemporaryDirectory[str]] = {}


def is_user_code(name: object) -> bool:
    """Return whether a value of a study is a name of user code."""
    return isinstance(name, str) and re.search(FILE_NAME, name) is not None


def is_python_object(name: str) -> bool:
    """Return whether a name of user code means an object that is handed over from Python."""
    return name.startswith(f"{PREFIX}:")


def path_of(name: str) -> str:
    """Return the path of the file of a name, relative to the study file."""
    path, _, attribute = name.rpartition(":")
    return file_of(attribute) if is_python_object(name) else path


def user_names(data: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Yield the place and text of every name of user code in plain data."""
    if isinstance(data, str) and is_user_code(data):
        yield place, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from user_names(value, (*place, key))
    elif isinstance(data, list | tuple):
        for number, value in enumerate(data):
            yield from user_names(value, (*place, number))


@dataclass(frozen=True)
class UserCode:
    """Python files that a study names, with their content.

    Attributes:
        folder: folder of the study file.
        names: names in the study.
        files: content of the files, by their path relative to the folder.
        imports: files of `files` that each named file consists of: itself, and those that it
            imports from its own folder.
    """

    folder: str
    names: tuple[str, ...]
    files: Mapping[str, bytes]
    imports: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(
        cls, folder: Path, names: Iterable[str], objects: Mapping[str, PythonObject] | None = None
    ) -> UserCode:
        """Read the files of some names; nothing is imported.

        Args:
            folder: of the study file.
            names: names in the study.
            objects: handed over from Python, by name; None: none.

        Raises:
            ValueError: a file is missing, or not below the folder.
        """
        names, root = tuple(dict.fromkeys(names)), folder.absolute()
        files: dict[str, bytes] = {}
        imports: dict[str, tuple[str, ...]] = {}
        handed_over = {path_of(name): each for name, each in (objects or {}).items()}
        for path in dict.fromkeys(map(path_of, names)):
            if path in handed_over:
                sources = handed_over[path].files
                files |= sources
                imports[path] = tuple(sorted(sources))
                continue
            if Path(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(
                    f"{path} is not below {root}; a path is relative to the study file, and has "
                    "no `..`: move the file next to the study"
                )
            file = root / path
            if not file.is_file():
                raise ValueError(f"there is no file {file}; a path is relative to the study file")
            sources = {
                source.relative_to(root).as_posix(): source.read_bytes()
                for source in source_files(file, file.stem)
            }
            files |= sources
            imports[path] = tuple(sorted(sources))
        return cls(str(root), names, files, imports)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file, by its relative path."""
        return {path: hashlib.sha256(self.files[path]).hexdigest() for path in sorted(self.files)}

    def digest(self, path: str) -> str:
        """Return a digest of a named file and of the files that it imports."""
        digest = hashlib.sha256()
        for source in self.imports[path]:
            digest.update(f"{source} {len(self.files[source])}\n".encode())
            digest.update(self.files[source])
        return digest.hexdigest()

    def copy_to(self, folder: Path) -> None:
        """Write the files below a folder."""
        for path, content in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)

    def register(self) -> None:
        """Import the files, and let studies of this process use their names.

        Raises:
            ValueError: a file cannot be imported, lacks a name, or the name is no option.
        """
        if all(_codes.get(name) == self for name in self.names):
            return
        folder = self._imported_folder()
        modules = {path: self._module(folder, path) for path in self.imports}
        for name in self.names:
            path, attribute = path_of(name), name.rpartition(":")[2]
            value = getattr(modules[path], attribute, None)
            if value is None:
                raise ValueError(f"{path} has no {attribute}; it has {_listed(modules[path])}")
            _register(name, value)
            _codes[name], _objects[name] = self, value

    def _imported_folder(self) -> Path:
        """Return the folder of the study, or a copy where its files are missing or differ."""
        folder = Path(self.folder)
        if all(_content(folder / path) == content for path, content in self.files.items()):
            return folder
        key = hashlib.sha256(str(self.digests()).encode()).hexdigest()
        if key not in _copies:
            _copies[key] = TemporaryDirectory(prefix="raykd-code-")
            self.copy_to(Path(_copies[key].name))
        return Path(_copies[key].name)

    def _module(self, folder: Path, path: str) -> ModuleType:
        """Import a named file; a file with the same content is imported once."""
        file = folder / path
        # the digest is part of the name, so that files of two studies do not meet
        name = f"raykd_user_code_{self.digest(path)[:12]}_{file.stem}"
        if name in sys.modules:
            return sys.modules[name]
        for source in self.imports[path]:
            _forget_other(folder / source, file.parent)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None, "a file that ends in .py"
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with importable(file.parent, first=True):
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            text = " ".join(str(error).split())
            raise ValueError(
                f"{path} cannot be imported: {type(error).__name__}: {text}"
            ) from error
        return module


def register_copies(study: object, folder: Path) -> None:
    """Register the code of a study from the copies in its folder, so that its networks load.

    Args:
        study: concrete, as plain data.
        folder: of the study.

    Raises:
        ValueError: as `UserCode.read` and `UserCode.register`.
    """
    UserCode.read(folder, [name for _, name in user_names(study)]).register()


def find_object(name: str) -> object:
    """Return the object that a registered name means.

    Raises:
        ValueError: the name is not registered in this process.
    """
    if name not in _objects:
        raise ValueError(f"'{name}' is code of a study, which this process has not imported")
    return _objects[name]


def code_digests(data: object) -> dict[str, str]:
    """Return a digest of the code of every registered name in plain data, by name."""
    names = sorted({name for _, name in user_names(data)} & {*_codes})
    return {name: _codes[name].digest(path_of(name)) for name in names}


@contextmanager
def importable(folder: Path, *, first: bool = False) -> Iterator[None]:
    """Allow imports from a folder.

    Args:
        folder: the folder.
        first: True: its modules precede installed ones, as those next to a script do.
    """
    text = str(folder)
    sys.path.insert(0 if first else len(sys.path), text)
    try:
        yield
    finally:
        sys.path.remove(text)


def _register(name: str, value: object) -> None:
    """Make a class an option with this name.  Functions and networks are used as they are.

    Raises:
        ValueError: it is no option, function or class.
    """
    if not isinstance(value, type):
        if not isinstance(value, Callable):
            raise ValueError(
                f"{name} is a {type(value).__name__}; a name means a class or a function"
            )
        return
    registry = next((each for each in Registry.all if issubclass(value, each.base)), None)
    if registry is None:
        return
    if "__dataclass_fields__" not in vars(value):
        raise ValueError(f"{name} is no option; write @option (of raykd.registry) above the class")
    members = {
        "__annotations__": {"name": Literal[name]},
        "__doc__": value.__doc__,
        "__module__": value.__module__,
        "__qualname__": value.__qualname__,
        "name": name,
    }
    registry.add_user_option(name, option(type(value.__name__, (value,), members)))


def _forget_other(source: Path, folder: Path) -> None:
    """Forget an imported module of the same name as a file, if it is that of another study."""
    name = ".".join(source.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    loaded = sys.modules.get(name)
    if loaded is not None and name in _modules:
        del sys.modules[name]
    _modules[name] = source


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _listed(module: ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(names) or "no class or function"
