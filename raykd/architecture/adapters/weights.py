"""Weights that were made for other classes or channels, put into a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raykd.architecture.model import Task

_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the weights in a checkpoint."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Beginnings of the names of classifiers that only help a training."""

_NAMED = 4


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name; runs no code from it.

    Raises:
        ValueError: there is no such file, or it holds no weights.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file of weights {path} (relative to {Path.cwd()})")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as weights ({str(error).splitlines()[0]}); write it with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path} holds no weights by name; save model.state_dict() in it")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], task: Task, source: str) -> None:
    """Put weights into a network, in place.

    A classifier for other classes stays as it is drawn; so does a stem of another kernel.  A stem
    for other channels gets the given kernels' sum over channels, spread over its own: what a
    picture of equal channels gave it gives still.

    Raises:
        ValueError: other tensors are missing, unexpected or of another shape; names some.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: t for name, t in tensors.items() if not _is_left_out(name, wanted)}
    replaceable = _classifier(network, task) | _stem(network)
    fitted, faults = dict(found), []
    for name in [name for name in wanted if name in found]:
        shape = tuple(found[name].shape)
        if shape == wanted[name]:
            continue
        if name not in replaceable:
            faults.append(f"{name} is {list(shape)} there and {list(wanted[name])} in the model")
            continue
        kept = _spread(found[name], wanted[name])
        if kept is None:
            del fitted[name]
        else:
            fitted[name] = kept
    faults += [f"{name} is missing there" for name in wanted if _lacks(name, found)]
    faults += [f"{name} is not in the model" for name in found if name not in wanted]
    if faults:
        more = f", and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise ValueError(
            f"the weights of {source} are not this model's: {'; '.join(faults[:_NAMED])}{more}"
        )
    network.load_state_dict(fitted, strict=False)


def _lacks(name: str, found: Mapping[str, Tensor]) -> bool:
    return name not in found and not name.endswith("num_batches_tracked")


def _is_left_out(name: str, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    return name not in wanted and name.startswith(_AUXILIARY)


def _classifier(network: nn.Module, task: Task) -> set[str]:
    """The tensors of layers that give one value a class."""
    layers = {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == task.classes
    }
    return {f"{name}.{part}" for name in layers for part in ("weight", "bias")}


def _stem(network: nn.Module) -> set[str]:
    stem = first_convolution(network)
    return set() if stem is None else {f"{stem}.weight"}


def first_convolution(network: nn.Module) -> str | None:
    """The dotted name of the convolution that comes first; None where there is none."""
    named = ((name, module) for name, module in network.named_modules())
    return next((name for name, module in named if isinstance(module, nn.Conv2d)), None)


def _spread(kernels: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """(out, C, h, w) kernels for other channels; None where more than these differ."""
    if kernels.dim() != 4 or (kernels.shape[0], *kernels.shape[2:]) != (shape[0], *shape[2:]):
        return None
    return (kernels.sum(1, keepdim=True) / shape[1]).expand(shape).clone()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is no readable safetensors file: {error}") from None
