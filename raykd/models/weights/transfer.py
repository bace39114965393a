"""Weights that were made for other classes or channels, put into a network."""

from __future__ import annotations

from torch import Tensor, nn

from raykd.models.base import Task
from raykd.models.weights.files import WeightFile
from raykd.models.weights.matching import MatchedWeights, fit


def fill(network: nn.Module, file: WeightFile, task: Task) -> MatchedWeights:
    """Put weights into a network, in place.

    A classifier for other classes keeps its initial weights; so does a stem of another kernel.  A
    stem for other channels gets the given kernels' sum over channels, spread over its own: its
    output for pictures of equal channels stays the same.

    Raises:
        ValueError: as `fit`.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    fitted = fit(network, file, task, frozenset(_classifier(network, task) | _stem(network)))
    kept = dict(fitted.tensors)
    for name, tensor in fitted.tensors.items():
        if tuple(tensor.shape) != wanted[name]:
            spread = _spread(tensor, wanted[name])
            if spread is None:
                del kept[name]
            else:
                kept[name] = spread
    network.load_state_dict(kept, strict=False)
    return fitted


def keeps_classifier(network: nn.Module, fitted: MatchedWeights, task: Task) -> bool:
    """Whether the classifier of a file has the data's number of classes."""
    wanted = network.state_dict()
    heads = [name for name in _classifier(network, task) if name in fitted.tensors]
    return bool(heads) and all(fitted.tensors[n].shape == wanted[n].shape for n in heads)


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
