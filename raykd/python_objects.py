"""Source of objects that were handed over from Python, as files of user code.

A study names such an object `python:NAME`.  Its source becomes a file, with everything of its
script or notebook that it uses, so that workers and resumed studies run what was handed over.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import linecache
import symtable
import sys
import sysconfig
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from raykd.source_files import source_files

FOLDER = "python_objects"
"""Folder of the files of objects, below that of the study."""

PREFIX = "python"
"""Start of the name of an object in a study, `python:NAME`."""

_INSTALLED = ("site-packages", "dist-packages")
_MAIN = ("__main__", "__mp_main__")


@dataclass(frozen=True)
class PythonObject:
    """An object that was handed over.

    Attributes:
        name: of the class or function.
        files: content of the files that it consists of, by their path below the study.
    """

    name: str
    files: Mapping[str, bytes]


def file_of(name: str) -> str:
    """Return the path of the file of an object, relative to the study file."""
    return f"{FOLDER}/object_{name}.py"  # no name of a module that it imports


def read_object(value: object) -> PythonObject:
    """Return the source of a class or function.

    Raises:
        ValueError: its source is unknown, or it uses something that has no source.
    """
    name = getattr(value, "__name__", None)
    if not isinstance(value, type | FunctionType) or not isinstance(name, str):
        raise ValueError(f"{value!r} is a {type(value).__name__}; hand over a class or a function")
    if name == "<lambda>":
        raise ValueError("a lambda has no name; write a function with `def`")
    if "<locals>" in value.__qualname__:
        raise ValueError(
            f"{name} is defined inside a function; define it at the top level of a script, "
            "a notebook cell or a module"
        )
    collector = _Collector()
    collector.add(name, value, value)
    return PythonObject(name, {file_of(name): collector.text().encode(), **collector.files})


@dataclass
class _Collector:
    """Statements that define an object and what it uses.

    Attributes:
        statements: in the order of their execution, by the name that they define.
        files: modules of the user that they import.
        future: whether annotations are not evaluated.
    """

    statements: dict[str, str] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    future: bool = False

    def text(self) -> str:
        start = ["from __future__ import annotations"] if self.future else []
        return "\n".join([*start, *self.statements.values(), ""])

    def add(self, name: str, value: object, user: object) -> None:
        """Add the definition of a name that `user` uses, after what it needs itself."""
        if name in self.values:
            if self.values[name] is not value:
                raise ValueError(f"{_name(user)} uses two objects called {name}; rename one")
            return
        self.values[name] = value
        if isinstance(value, ModuleType):
            self._ship(value.__name__)
            self.statements[name] = f"import {value.__name__}{_renamed(value.__name__, name)}"
        elif (module := _module_of(name, value)) is not None:
            self._ship(module)
            attribute = getattr(value, "__name__", name) if _is_at(value, module) else name
            text = f"from {module} import {attribute}{_renamed(attribute, name)}"
            self.statements[name] = text
        elif isinstance(value, type | FunctionType):
            self._define(name, value)
        elif _is_literal(value):
            self.statements[name] = f"{name} = {value!r}"
        elif typing.get_origin(value) is not None and isinstance(user, type | FunctionType):
            self._copy_assignment(name, user)
        else:
            raise ValueError(
                f"{_name(user)} uses `{name}`, a {type(value).__name__} whose source is unknown; "
                "make it a field of the option, or compute it in a function"
            )

    def _define(self, name: str, value: type | FunctionType) -> None:
        """Copy the source of a class or function of a script or notebook."""
        if name != value.__name__:
            raise ValueError(f"{value.__name__} is also called {name}; use one of the names")
        text, node = _definition(value)
        self.future |= _has_future_annotations(value)
        self._need(ast.unparse(node), name, value)
        self.statements[name] = text

    def _copy_assignment(self, name: str, user: type | FunctionType) -> None:
        """Copy an assignment, such as that of an alias of a type, from the source of its user."""
        for text in _texts_of(user):
            for node in ast.parse(text).body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
                    source = ast.unparse(node)
                    self._need(source, name, user)
                    self.statements[name] = source
                    return
        raise ValueError(f"{_name(user)} uses `{name}`, whose assignment was not found")

    def _need(self, source: str, name: str, value: type | FunctionType) -> None:
        """Add the definitions of all names that a source uses."""
        scope = _globals_of(value)
        for used in dict.fromkeys(_used_names(source)):
            if used != name and used in scope:
                self.add(used, scope[used], value)

    def _ship(self, module: str) -> None:
        """Add the files of a module of the user; installed ones are on every node."""
        file = _user_file(module)
        if file is None:
            return
        depth = module.count(".") + (file.name == "__init__.py")
        root = file.parents[depth]
        for source in source_files(file, module):
            path = f"{FOLDER}/{source.relative_to(root).as_posix()}"
            self.files[path] = source.read_bytes()


def _module_of(name: str, value: object) -> str | None:
    """Return a module from which a value can be imported; None if only `__main__` has it."""
    module = getattr(value, "__module__", None)
    if isinstance(module, str) and module not in _MAIN and _is_at(value, module):
        return module
    if _is_literal(value) or (isinstance(value, type | FunctionType) and module in _MAIN):
        return None
    modules = [each for each in sys.modules.items() if each[0] not in _MAIN]
    return next((other for other, loaded in modules if _has(loaded, name, value)), None)


def _renamed(attribute: str, name: str) -> str:
    return "" if attribute == name else f" as {name}"


def _is_at(value: object, module: str) -> bool:
    return _has(sys.modules.get(module), getattr(value, "__name__", ""), value)


def _has(module: object, name: str, value: object) -> bool:
    return isinstance(module, ModuleType) and vars(module).get(name) is value


def _user_file(module: str) -> Path | None:
    """Return the file of a module that is neither installed nor Python's own."""
    text = getattr(sys.modules.get(module), "__file__", None)
    if not text or module.partition(".")[0] == "raykd":
        return None
    file, stdlib = Path(text).absolute(), Path(sysconfig.get_paths()["stdlib"])
    if any(part in _INSTALLED for part in file.parts) or file.is_relative_to(stdlib):
        return None
    return file if file.suffix == ".py" else None


def _definition(value: type | FunctionType) -> tuple[str, ast.stmt]:
    """Return the source of a class or function, with its decorators, and its syntax tree."""
    name = value.__name__
    for text in _texts_of(value):
        nodes = [
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        ]
        if nodes and _is_from(nodes[-1], value):
            node = nodes[-1]
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            lines = text.splitlines()[first - 1 : node.end_lineno]
            return "\n".join(lines), node
    raise ValueError(
        f"the source of {name} is unknown; define it in a script, a notebook cell or a module"
    )


def _is_from(node: ast.ClassDef | ast.FunctionDef, value: type | FunctionType) -> bool:
    """Return False for an object of code without a file, such as that of `exec`."""
    codes = {code.co_name: code for code in _codes_of(value)}
    parts = node.body if isinstance(node, ast.ClassDef) else [node]
    names = [part.name for part in parts if isinstance(part, ast.FunctionDef)]
    return all(linecache.getlines(codes[name].co_filename) for name in names if name in codes)


def _texts_of(value: type | FunctionType) -> Iterator[str]:
    """Yield the texts of the files and notebook cells that may define a class or function."""
    names = [code.co_filename for code in _codes_of(value)]
    names.append(str(getattr(sys.modules.get(value.__module__), "__file__", "")))
    for name in dict.fromkeys(names):
        linecache.checkcache(name)
    texts = ["".join(linecache.getlines(name)) for name in dict.fromkeys(names)]
    cells = _globals_of(value).get("In")  # of IPython
    texts += reversed(cells) if isinstance(cells, list) else []
    for text in texts:
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        if text:
            yield text


def _codes_of(value: type | FunctionType) -> Iterator[Any]:
    """Yield the code of a function, or of the functions of a class."""
    if isinstance(value, FunctionType):
        yield inspect.unwrap(value).__code__
        return
    for member in vars(value).values():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, FunctionType):
            yield inspect.unwrap(function).__code__


def _has_future_annotations(value: type | FunctionType) -> bool:
    flag = __future__.annotations.compiler_flag
    codes = [c for c in _codes_of(value) if linecache.getlines(c.co_filename)]
    if any(code.co_flags & flag for code in codes):
        return True
    return any("from __future__ import annotations" in text for text in _texts_of(value))


def _globals_of(value: type | FunctionType) -> Mapping[str, object]:
    if isinstance(value, FunctionType):
        return value.__globals__
    return vars(sys.modules[value.__module__])


def _used_names(source: str) -> Iterator[str]:
    """Yield the names that a source uses and does not define."""
    tables = [symtable.symtable(source, "source", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            name = symbol.get_name()
            is_outer = symbol.is_global() or (table.get_type() == "module")
            if symbol.is_referenced() and is_outer and not hasattr(builtins, name):
                yield name


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Name):
            yield target.id


def _is_literal(value: object) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value and not isinstance(value, type)
    except (ValueError, SyntaxError, MemoryError, TypeError, RecursionError):
        return False


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))
