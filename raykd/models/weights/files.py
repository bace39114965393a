"""Read weights files in common formats, without running code from them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raykd.compat.network_files import check_archive
from raykd.models.weights.class_order import find_class_names

_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "net_state_dict"),
    *("network", "weights", "params", "module"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
)
"""Keys of checkpoints that hold a state_dict, preferred ones first."""

_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weights files in a folder written by `save_pretrained`."""

_FIX = "save only the weights: safetensors.torch.save_file(model.state_dict(), path)"

_NOT_WEIGHTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"\x89HDF", f"is an HDF5 file (Keras); raykd reads PyTorch weights; {_FIX}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"GGUF", "is a GGUF file of quantized weights; use the weights in full precision"),
    (b"<", "is a web page or XML, not weights; download it again"),
    (b"\x93NUMPY", f"is a NumPy array; raykd reads weights by name; {_FIX}"),
    (b"version https", "is a pointer to a file, not the file itself; download the file"),
)
"""First bytes of files that are not weights, with the error message."""

_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""First bytes, after the pickle header, of files that torch.save wrote before PyTorch 1.6."""

_QUANTIZED = ("_packed_params", ".qweight", ".qzeros", ".quant_state", ".absmax", ".SCB")


@dataclass(frozen=True)
class WeightFile:
    """Content of a weights file.

    Attributes:
        source: path of the file, for messages.
        tensors: tensors by their names in the file.
        class_names: class names in output order, from the file or the `config.json` next to it;
            () if there are none.
        metadata: text values of a safetensors header.
        notes: sentences on how the file was read.
        is_plain: whether it is a single safetensors file.
    """

    source: str
    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_plain: bool = False


def read_weight_file(path: str | Path) -> WeightFile:
    """Read the tensors of a file, a sharded checkpoint, or a folder of transformers.

    Reads safetensors and files of `torch.save`, with any suffix; the state_dict may be nested under
    common keys.  No code of the file runs.

    Raises:
        ValueError: there is no such file, or it has no usable weights, with the reason and a fix.
    """
    return _read(str(path), *_stamps(path))


def weight_parts(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold the weights at `path`: itself, or the shards of an index.

    Raises:
        ValueError: a file does not exist.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        candidates = [file / name for name in _FOLDER_FILES if (file / name).is_file()]
        if not candidates:
            raise ValueError(
                f"{path} is a folder; give the path of a file (relative to {Path.cwd()}, or "
                f"absolute), or of a folder with one of {', '.join(_FOLDER_FILES)}"
            )
        file = candidates[0]
    if not file.is_file():
        raise ValueError(
            f"{path} does not exist; give the path of a file, absolute or relative to {Path.cwd()}"
        )
    return _shards(file) if file.name.endswith(".index.json") else (file,)


Stamps = tuple[tuple[str, int, int], ...]
"""Path, modification time and size of files."""


def _stamps(path: str | Path) -> tuple[Stamps, Stamps]:
    """Return the stamps of the weights files, and of the configuration next to them."""
    parts = weight_parts(path)
    config = parts[0].parent / "config.json"
    return _stamped(parts), _stamped((config,) if config.is_file() else ())


def _stamped(files: tuple[Path, ...]) -> Stamps:
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=256)
def _class_names(stamps: Stamps, config: Stamps) -> tuple[str, ...]:
    return _read(stamps[0][0], stamps, config).class_names


def weight_class_names(path: str | Path) -> tuple[str, ...]:
    """Return the class names that come with a weights file; () if there are none.

    Raises:
        ValueError: as `read_weight_file`.
    """
    return _class_names(*_stamps(path))


def class_names_beside(file: Path) -> tuple[str, ...]:
    """Return the class names in the `config.json` next to a file (transformers, timm)."""
    return find_class_names(_config_beside(file))


def _config_beside(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((file.parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, Mapping) else {}


@lru_cache(maxsize=1)
def _read(source: str, stamps: Stamps, config: Stamps) -> WeightFile:
    """Read a file; cached until another one is read, since a file is first checked, then loaded."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    names: tuple[str, ...] = ()
    notes: list[str] = []
    is_plain = len(stamps) == 1
    for name, _, _ in stamps:
        file = Path(name)
        if _is_safetensors(file):
            new, header = _safetensors(file)
            metadata |= header
            names = names or find_class_names(header)
        else:
            is_plain = False
            new, saved_names, steps = _pickled(file)
            names = names or saved_names
            notes += [f"{source}: {step}" for step in steps]
        tensors |= new
    if len(stamps) > 1:
        notes.append(f"{source}: read {len(stamps)} shards")
    _refuse_quantized(source, tensors)
    settings = _config_beside(Path(next(iter(stamps))[0])) if config else {}
    names = names or find_class_names(settings)
    problem = settings.get("problem_type")
    if isinstance(problem, str):
        metadata = {"problem_type": problem, **metadata}
    return WeightFile(source, tensors, names, metadata, tuple(notes), is_plain)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        files = sorted({*json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{index} is not an index of a sharded checkpoint: it has no `weight_map`"
        ) from None
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} lists {len(files)} files, and {', '.join(missing[:4])} "
            f"{'is' if len(missing) == 1 else 'are'} missing in its folder; download all of them"
        )
    return tuple(index.parent / name for name in files)


def _is_safetensors(file: Path) -> bool:
    """Return whether the content of a file is safetensors, whatever its suffix.

    Raises:
        ValueError: it is neither safetensors nor a file of `torch.save`.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(64)
    if not size:
        raise ValueError(f"{file} is empty (0 bytes); copy or download it again")
    for begin, problem in _NOT_WEIGHTS:
        if head.lstrip().startswith(begin):
            raise ValueError(f"{file} {problem}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return True
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return False
    raise ValueError(
        f"{file} is neither a safetensors file nor one written by torch.save: it begins with "
        f"{head[:8]!r}; {_FIX}"
    )


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{file} is a truncated or damaged safetensors file ({_line(error)}); copy or download "
            f"it again, or {_FIX}"
        ) from None


def _pickled(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """Read a file of `torch.save`; return tensors by name, class names and notes."""
    content = _load(file)
    tensors, keys = _state_dict(file, content)
    names = find_class_names(content) if isinstance(content, Mapping) else ()
    notes = []
    if keys:
        notes.append(f"used the weights under {' > '.join(map(repr, keys))}")
        unused = [key for key in _WRAPPERS if key != keys[0] and _has_tensors(content.get(key))]
        if unused:
            notes[-1] += f" (not those under {', '.join(map(repr, unused))})"
    return tensors, names, notes


def _load(file: Path) -> Any:
    try:
        if zipfile.is_zipfile(file) and not _is_npz(file):
            check_archive(file, str(file))
        with (
            _allowed_globals(),
            file.open("rb") as opened,
        ):  # opened, so that torch ignores the suffix
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_bare_pickle(file):
            raise ValueError(
                f"{file} was written by pickle.dump, not by torch.save; raykd runs no code from "
                f"files. In the original code, {_FIX}, or torch.save(model.state_dict(), path)"
            ) from None
        raise ValueError(_code_error(file, error)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        if _is_torchscript(file):
            raise ValueError(f"{file} is a TorchScript program, not weights; {_FIX}") from None
        if _is_npz(file):
            raise ValueError(
                f"{file} holds NumPy arrays (npz); raykd reads PyTorch weights; {_FIX}"
            ) from None
        raise ValueError(
            f"{file} is not readable as weights, it is truncated or damaged ({_line(error)}); copy "
            f"or download it again, or {_FIX}"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything
        raise ValueError(
            f"{file} is not readable as weights ({type(error).__name__}: {_line(error)}); {_FIX}"
        ) from None


def _code_error(file: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    _, separator, rest = text.partition("GLOBAL ")
    if not separator:
        return f"{file} is not readable as weights, it is truncated or damaged; {_FIX}"
    name = rest.split(" ")[0].strip("`'\"")
    return (
        f"{file} holds Python objects ({name}), such as a whole network; raykd runs no code from "
        f"files. In the original code, {_FIX}, or torch.save(model.state_dict(), path)"
    )


@contextmanager
def _allowed_globals() -> Iterator[None]:
    """Allow torch.load to read plain values that checkpoints often contain."""
    from argparse import Namespace
    from collections import defaultdict, deque
    from pathlib import PosixPath, PurePosixPath, WindowsPath

    import numpy as np

    numpy = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "bBhHiIlLqQefd?U"}]
    # Private in numpy 2.4: pickles of arrays name these two functions.
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    scalars: list[Any] = [multiarray.scalar, multiarray._reconstruct]
    plain = [Namespace, PosixPath, PurePosixPath, WindowsPath, defaultdict, deque, dict, set, list]
    old = [(item, f"numpy.core.multiarray.{item.__name__}") for item in scalars]
    with torch.serialization.safe_globals([*plain, *numpy, *scalars, *old]):
        yield


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _is_npz(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_bare_pickle(file: Path) -> bool:
    """Return whether it is a complete pickle without the magic number of torch's older format."""
    with file.open("rb") as opened:
        head = opened.read(32)
        opened.seek(-1, 2)
        return opened.read(1) == b"." and _MAGIC not in head and head[:1] == b"\x80"


def _state_dict(file: Path, content: object, depth: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state_dict in a checkpoint and the keys that lead to it."""
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(
            f"{file} holds a {type(content).__name__} instead of weights by name; save "
            "model.state_dict()"
        )
    for key in _WRAPPERS:
        if depth < 4 and _has_tensors(content.get(key)):
            tensors, keys = _state_dict(file, content[key], depth + 1)
            return tensors, [key, *keys]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    nested = [str(key) for key, value in content.items() if _has_tensors(value)]
    if nested and not tensors and len(nested) == 1 and depth < 4:
        inner, keys = _state_dict(file, content[nested[0]], depth + 1)
        return inner, [nested[0], *keys]
    if not tensors:
        listed = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ValueError(
            f"{file} holds no weights by name, it holds {listed}; save model.state_dict() in it"
        )
    return tensors, []


def _has_tensors(value: object) -> bool:
    """Return whether a value contains tensors by name, at most three mappings deep."""
    queue, depth = [value], 0
    while queue and depth < 3:
        mappings = [item for item in queue if isinstance(item, Mapping)]
        values = [inner for item in mappings for key, inner in item.items() if isinstance(key, str)]
        if any(isinstance(inner, Tensor) for inner in values):
            return True
        queue, depth = values, depth + 1
    return False


def _refuse_quantized(source: str, tensors: Mapping[str, Tensor]) -> None:
    quantized = [
        name
        for name, tensor in tensors.items()
        if tensor.is_quantized or name.endswith(_QUANTIZED) or "._packed_params" in name
    ]
    if quantized:
        raise ValueError(
            f"{source} holds quantized weights ({', '.join(quantized[:3])}); use the weights in "
            "full or half precision"
        )
    if tensors and all(".lora_" in name for name in tensors):
        raise ValueError(
            f"{source} holds only LoRA adapters; merge them into the model and save it "
            "(model.merge_and_unload())"
        )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weight_file(source: str, tensors: Mapping[str, Tensor]) -> WeightFile:
    """Wrap tensors from a library as if they were read from a file."""
    return WeightFile(source, dict(tensors))
