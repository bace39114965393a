"""Whole networks in files of `torch.save`, read without running code that the files name.

Unpickling calls what a file names.  `torch.load(weights_only=True)` prevents that, but reads no
classes by default, and may call every class that is allowed.  The reader here creates objects of
known classes without calling them.  It relies on `pickle._Unpickler` (Python 3.11 to 3.14), the
only unpickler whose single operations can be replaced.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import io
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import _tensor, _utils, nn

PACKAGES = ("raykd", "timm", "torch", "torchvision", "transformers")
"""Packages whose layers a network may consist of."""

_ALLOW = "if you trust it, allow it to run code: --allow-import (allow_import=True)"


def read_network(source: Path | bytes, name: str, *, allow_code: bool = False) -> nn.Module:
    """Return the network in a file of `torch.save`, on the CPU.

    Args:
        source: a file, or its content.
        name: of the file, for messages.
        allow_code: unpickle any object; this runs code that the file names.

    Raises:
        ValueError: it holds no network, or objects of other packages than `PACKAGES` and
            `allow_code` is not set.
    """
    content = io.BytesIO(source) if isinstance(source, bytes) else source
    check_archive(content, name)
    if isinstance(content, io.BytesIO):
        content.seek(0)
    reader: Any = pickle if allow_code else SimpleNamespace(__name__="pickle", Unpickler=_Reader)
    try:
        network = torch.load(content, "cpu", pickle_module=reader, weights_only=False)
    except _Refused as error:
        raise ValueError(f"{name} {error}; {_ALLOW}") from None
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: needs the package {error.name!r}; install it") from error
    except Exception as error:  # a damaged file, or code of its own, may raise anything
        text = " ".join(str(error).split())
        raise ValueError(f"{name} cannot be read: {type(error).__name__}: {text}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} holds a {type(network).__name__}, not a torch.nn.Module")
    return network


def check_archive(source: Path | io.BytesIO, name: str) -> None:
    """Check that a file of `torch.save` takes no more memory than disk space.

    Raises:
        ValueError: it is damaged, or has compressed or overlapping parts, which `torch.save` never
            writes and which may unpack to any size.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{name} is not a whole file of torch.save: {error}") from None
    size = len(source.getbuffer()) if isinstance(source, io.BytesIO) else source.stat().st_size
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if is_packed or sum(part.file_size for part in parts) > size:
        raise ValueError(
            f"{name} has compressed or overlapping parts, which torch.save does not write; save it "
            "again with torch.save"
        )


class _Refused(pickle.UnpicklingError):
    """Raised for an object that may run code."""


_OPERATIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.BINPERSID, pickle.NEWOBJ),
    *(pickle.REDUCE, pickle.BUILD, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
)
"""Operations of pickles that `torch.save` writes.  The others call classes or look up names."""

_REBUILT = tuple(
    getattr(_utils, name)
    for name in (
        *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"),
        *("_rebuild_parameter", "_rebuild_parameter_with_state"),
        "_rebuild_meta_tensor_no_storage",
    )
)


def _rebuild_from_type(
    function: Callable[..., Any], new_type: type, arguments: tuple[Any, ...], state: Any
) -> Any:
    """Rebuild a tensor with attributes, by one of the functions that rebuild tensors."""
    if function not in _REBUILT:
        raise _Refused(f"calls {_title(function)}")
    return _tensor._rebuild_from_type_v2(function, new_type, arguments, state)


_VALUES: dict[tuple[str, str], Any] = {
    **{("torch._utils", function.__name__): function for function in _REBUILT},
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): torch.Tensor,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.nn.parameter", "Parameter"): nn.Parameter,
    ("torch.nn.parameter", "Buffer"): nn.Buffer,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("functools", "partial"): functools.partial,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "bytearray"): bytearray,
}
"""Objects by module and name.  `functools.partial` can only hold objects that are allowed, too."""

_CALLED = frozenset(_VALUES.values()) - {torch.Tensor, nn.Parameter, nn.Buffer}
_CONSTRUCTORS = {("raykd.models.adapters.huggingface", "_new_instance")}
_HOOKS = {
    ("raykd.models.adapters.find_logits", "SelectLogits"),
    ("raykd.models.normalization", "_renormalize"),
    ("raykd.training.memory_format", "_contiguous_inputs"),
}
_BOX_RULES = {
    ("torchvision.models.detection._utils", name)
    for name in ("BoxCoder", "BoxLinearCoder", "Matcher", "SSDMatcher")
}
"""Classes of torchvision that hold the numbers of a detector's rules for boxes, not its weights."""

_FUNCTIONS = ("torch.nn.functional", "torch._C._nn")
_ACTIVATIONS = frozenset({"relu", "tanh", "sigmoid", "selu", "celu", "rrelu"})


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Reader(_PythonUnpickler):
    """Unpickler that creates tensors, layers and plain values only."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: _PythonUnpickler.dispatch[code[0]] for code in _OPERATIONS
    }

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise _Refused(f"has the operation {error}, which torch.save does not write") from None

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _VALUES:
            return _VALUES[module, name]
        if module.partition(".")[0] in PACKAGES and name.isidentifier():
            value = getattr(importlib.import_module(module), name, None)
            if _is_allowed(value, module, name):
                return value
        raise _Refused(f"holds {module}.{name}, which is no layer of {', '.join(PACKAGES)}")

    def load_reduce(self) -> None:
        function = self.stack[-2]
        if not _is_callable(function):
            raise _Refused(f"calls {_title(function)}")
        _PythonUnpickler.load_reduce(self)

    def load_build(self) -> None:
        changed = self.stack[-2]
        if isinstance(changed, type) or not hasattr(changed, "__dict__"):
            raise _Refused(f"changes {_title(changed)}")
        _PythonUnpickler.load_build(self)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def _is_allowed(value: Any, module: str, name: str) -> bool:
    """Return whether a value of one of the packages may be a part of a network."""
    if (module, name) in _CONSTRUCTORS | _HOOKS | _BOX_RULES:
        return True
    if isinstance(value, type):
        if module.startswith("torch.") and not module.startswith("torch.nn."):
            return False  # such as graphs of torch.fx, which compile their code
        return issubclass(value, nn.Module | enum.Enum) or _is_record(value)
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return True
    return module in _FUNCTIONS or (module == "torch" and name in _ACTIVATIONS)


def _is_record(cls: type) -> bool:
    """Return whether a class holds options: of raykd, or of a network of transformers."""
    if cls.__module__.startswith("raykd."):
        return dataclasses.is_dataclass(cls)
    module = sys.modules.get("transformers.configuration_utils")
    base = getattr(module, "PretrainedConfig", None)
    return base is not None and issubclass(cls, base)


def _is_callable(value: Any) -> bool:
    """Return whether a value may be called while a file is read: it creates values only."""
    if isinstance(value, type) and issubclass(value, enum.Enum):
        return True
    try:
        is_known = value in _CALLED
    except TypeError:  # not hashable
        return False
    return is_known or (getattr(value, "__module__", ""), _title(value)) in _CONSTRUCTORS


def _title(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__))
