"""Files of weights in the forms people keep them in, read without running code from them."""

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

from raykd.models.weights.class_order import find_class_names

_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "net_state_dict"),
    *("network", "weights", "params", "module"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
)
"""Keys under which training scripts keep a state_dict in a checkpoint, preferred ones first."""

_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of weights in a folder that `save_pretrained` wrote."""

_SAFE = "write the weights alone: safetensors.torch.save_file(model.state_dict(), path)"
"""The usual remedy."""

_OTHERS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"\x89HDF", f"is an HDF5 file (Keras); raykd reads PyTorch weights; {_SAFE}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"GGUF", "is a GGUF file of quantized weights; take the weights in full precision"),
    (b"<", "is a web page or XML, not weights: the download went wrong; download it again"),
    (b"\x93NUMPY", f"is a NumPy array; raykd reads weights by name; {_SAFE}"),
    (b"version https", "is a pointer to a file, not the file itself; download the file"),
)
"""First bytes of files that are no weights, and what to say."""

_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""Begins what `torch.save` wrote before PyTorch 1.6, behind the header of a pickle."""

_QUANTIZED = ("_packed_params", ".qweight", ".qzeros", ".quant_state", ".absmax", ".SCB")


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        source: the path, for messages.
        tensors: by their names in the file.
        class_names: of the outputs, in their order; () where the file, or the `config.json` beside
            it, names none.
        metadata: text values of a safetensors header.
        notes: sentences on how it was read.
        is_plain: one safetensors file without a wrapper.
    """

    source: str
    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_plain: bool = False


def read_weight_file(path: str | Path) -> WeightFile:
    """The tensors of a file, of a sharded checkpoint, or of a folder of transformers.

    Read are safetensors and what `torch.save` wrote, whatever the suffix; a state_dict may stand
    under one of the usual keys, nested, too.  No code of the file is run.

    Raises:
        ValueError: there is no such file, or it holds no weights that can be used; says why and
            the remedy.
    """
    return _read(str(path), *_stamps(path))


def weight_parts(path: str | Path) -> tuple[Path, ...]:
    """The files that hold the weights at `path`: itself, or the shards of an index.

    Raises:
        ValueError: one of them is not there.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        inside = [file / name for name in _FOLDER if (file / name).is_file()]
        if not inside:
            raise ValueError(
                f"{path} is a folder; give the path of a file (relative to {Path.cwd()}, or "
                f"absolute), or of a folder with one of {', '.join(_FOLDER)}"
            )
        file = inside[0]
    if not file.is_file():
        raise ValueError(
            f"{path} is not there; give the path of a file (relative to {Path.cwd()}, or absolute)"
        )
    return _shards(file) if file.name.endswith(".index.json") else (file,)


Stamps = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of files."""


def _stamps(path: str | Path) -> tuple[Stamps, Stamps]:
    """Of the files that hold the weights, and of the configuration beside them."""
    parts = weight_parts(path)
    config = parts[0].parent / "config.json"
    return _stamped(parts), _stamped((config,) if config.is_file() else ())


def _stamped(files: tuple[Path, ...]) -> Stamps:
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=256)
def _class_names(stamps: Stamps, config: Stamps) -> tuple[str, ...]:
    return _read(stamps[0][0], stamps, config).class_names


def weight_class_names(path: str | Path) -> tuple[str, ...]:
    """The class names that come with a file of weights; () where there are none.

    Raises:
        ValueError: as `read_weight_file`.
    """
    return _class_names(*_stamps(path))


def class_names_beside(file: Path) -> tuple[str, ...]:
    """Class names in the `config.json` that transformers and timm write beside a file."""
    return find_class_names(_config_beside(file))


def _config_beside(file: Path) -> Mapping[str, Any]:
    try:
        held = json.loads((file.parent / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, Mapping) else {}


@lru_cache(maxsize=1)
def _read(source: str, stamps: Stamps, config: Stamps) -> WeightFile:
    """Cached until another is read: what is checked first is loaded next."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    names: tuple[str, ...] = ()
    notes: list[str] = []
    plain = len(stamps) == 1
    for name, _, _ in stamps:
        file = Path(name)
        if _is_safetensors(file):
            found, more = _safetensors(file)
            metadata |= more
            names = names or find_class_names(more)
        else:
            plain = False
            found, beside, said = _pickled(file)
            names = names or beside
            notes += [f"{source}: {line}" for line in said]
        tensors |= found
    if len(stamps) > 1:
        notes.append(f"{source}: read {len(stamps)} shards")
    _refuse_quantized(source, tensors)
    held = _config_beside(Path(next(iter(stamps))[0])) if config else {}
    names = names or find_class_names(held)
    problem = held.get("problem_type")
    if isinstance(problem, str):
        metadata = {"problem_type": problem, **metadata}
    return WeightFile(source, tensors, names, metadata, tuple(notes), plain)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        files = sorted({*json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of a sharded checkpoint (`weight_map`)") from None
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} names {len(files)} files, and {', '.join(missing[:4])} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it; download all of them"
        )
    return tuple(index.parent / name for name in files)


def _is_safetensors(file: Path) -> bool:
    """By its content: people rename files.

    Raises:
        ValueError: it is neither safetensors nor what `torch.save` writes.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(64)
    if not size:
        raise ValueError(f"{file} is empty (0 bytes); the copy or download of it went wrong")
    for begin, what in _OTHERS:
        if head.lstrip().startswith(begin):
            raise ValueError(f"{file} {what}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return True
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return False
    raise ValueError(
        f"{file} is no readable safetensors file, nor one that torch.save wrote: it begins with "
        f"{head[:8]!r}; {_SAFE}"
    )


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return held, dict(opened.metadata() or {})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{file} is no readable safetensors file, truncated or damaged ({_line(error)}); copy "
            f"or download it again, or {_SAFE}"
        ) from None


def _pickled(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """Tensors by name of what `torch.save` wrote, the class names beside them, what was done."""
    held = _loaded(file)
    tensors, steps = _state_dict(file, held)
    names = find_class_names(held) if isinstance(held, Mapping) else ()
    notes = []
    if steps:
        notes.append(f"took the weights under {' > '.join(map(repr, steps))}")
        others = [key for key in _WRAPPERS if key != steps[0] and _has_tensors(held.get(key))]
        if others:
            notes[-1] += f" (not those under {', '.join(map(repr, others))})"
    return tensors, names, notes


def _loaded(file: Path) -> Any:
    try:
        with _harmless(), file.open("rb") as opened:  # by its name, torch would go by the suffix
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_bare_pickle(file):
            raise ValueError(
                f"{file} was written by pickle.dump, not by torch.save; raykd runs no code from "
                f"files. Where it was made, {_SAFE}, or torch.save(model.state_dict(), path)"
            ) from None
        raise ValueError(_would_run_code(file, error)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        if _is_torchscript(file):
            raise ValueError(f"{file} is a TorchScript program, not weights; {_SAFE}") from None
        if _is_npz(file):
            raise ValueError(
                f"{file} holds NumPy arrays (npz); raykd reads PyTorch weights; {_SAFE}"
            ) from None
        raise ValueError(
            f"{file} cannot be read as weights, it is truncated or damaged ({_line(error)}); copy "
            f"or download it again, or {_SAFE}"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever a damaged pickle raises
        raise ValueError(
            f"{file} cannot be read as weights ({type(error).__name__}: {_line(error)}); {_SAFE}"
        ) from None


def _would_run_code(file: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    _, found, rest = text.partition("GLOBAL ")
    if not found:
        return f"{file} cannot be read as weights, it is truncated or damaged; {_SAFE}"
    name = rest.split(" ")[0].strip("`'\"")
    return (
        f"{file} holds Python objects ({name}), such as a whole network; raykd runs no code from "
        f"files. Where it was made, {_SAFE}, or torch.save(model.state_dict(), path)"
    )


@contextmanager
def _harmless() -> Iterator[None]:
    """Plain values that checkpoints often hold beside their weights."""
    from argparse import Namespace
    from collections import defaultdict, deque
    from pathlib import PosixPath, PurePosixPath, WindowsPath

    import numpy as np

    numpy = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in "bBhHiIlLqQefd?U"}]
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    scalars: list[Any] = [multiarray.scalar, multiarray._reconstruct]
    plain = [Namespace, PosixPath, PurePosixPath, WindowsPath, defaultdict, deque, dict, set, list]
    old = [(one, f"numpy.core.multiarray.{one.__name__}") for one in scalars]
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
    """Return whether it is a whole pickle that lacks the magic number of torch's older format."""
    with file.open("rb") as opened:
        head = opened.read(32)
        opened.seek(-1, 2)
        return opened.read(1) == b"." and _MAGIC not in head and head[:1] == b"\x80"


def _state_dict(file: Path, held: Any, depth: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict in a checkpoint and the keys that lead to it."""
    if isinstance(held, Tensor) or not isinstance(held, Mapping):
        raise ValueError(
            f"{file} holds no weights by name but a {type(held).__name__}; save model.state_dict()"
        )
    for key in _WRAPPERS:
        if depth < 4 and _has_tensors(held.get(key)):
            tensors, steps = _state_dict(file, held[key], depth + 1)
            return tensors, [key, *steps]
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    nested = [str(key) for key, value in held.items() if _has_tensors(value)]
    if nested and not tensors and len(nested) == 1 and depth < 4:
        inner, steps = _state_dict(file, held[nested[0]], depth + 1)
        return inner, [nested[0], *steps]
    if not tensors:
        known = ", ".join(map(str, list(held)[:8])) or "nothing"
        raise ValueError(
            f"{file} holds no weights by name, it holds {known}; save model.state_dict() in it"
        )
    return tensors, []


def _has_tensors(value: Any) -> bool:
    """Return whether there are tensors by name in it, at most three mappings deep."""
    queue, depth = [value], 0
    while queue and depth < 3:
        mappings = [one for one in queue if isinstance(one, Mapping)]
        values = [inner for one in mappings for key, inner in one.items() if isinstance(key, str)]
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
            f"{source} holds quantized weights ({', '.join(quantized[:3])}); take the weights in "
            "full or half precision"
        )
    if tensors and all(".lora_" in name for name in tensors):
        raise ValueError(
            f"{source} holds LoRA adapters alone; merge them into the model and save that "
            "(model.merge_and_unload())"
        )


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weight_file(source: str, tensors: Mapping[str, Tensor]) -> WeightFile:
    """Tensors that a library gave, as if they were read from a file."""
    return WeightFile(source, dict(tensors))
