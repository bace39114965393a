"""Load weights of a network with other classes or input channels."""

from __future__ import annotations

from torch import Tensor, nn

from raykd.models.base import Signature
from raykd.models.weights.files import WeightFile
from raykd.models.weights.matching import MatchedWeights, match_weights


def load_matching(network: nn.Module, file: WeightFile, signature: Signature) -> MatchedWeights:
    """Load weights into a network, in place.

    A classifier for other classes keeps its initial weights, as does a stem of another kernel
    size.  A stem for other channels gets the sum of the kernels over channels, spread over its own
    channels: its output for images with equal channels does not change.

    Raises:
        ValueError: as `match_weights`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    matched = match_weights(
        network, file, signature, frozenset(_classifier(network, signature) | _stem(network))
    )
    tensors = dict(matched.tensors)
    for name, tensor in matched.tensors.items():
        if tuple(tensor.shape) != expected[name]:
            spread = _spread(tensor, expected[name])
            if spread is None:
                del tensors[name]
            else:
                tensors[name] = spread
    network.load_state_dict(tensors, strict=False)
    return matched


def keeps_classifier(network: nn.Module, matched: MatchedWeights, signature: Signature) -> bool:
    """Return whether the classifier of a file has the data's number of classes."""
    expected = network.state_dict()
    heads = [name for name in _classifier(network, signature) if name in matched.tensors]
    return bool(heads) and all(matched.tensors[n].shape == expected[n].shape for n in heads)


def _classifier(network: nn.Module, signature: Signature) -> set[str]:
    """Return the tensors of layers with one output per class."""
    layers = {
        name: module
        for name, module in network.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None))
        == signature.classes
    }
    return {f"{name}.{part}" for name in layers for part in ("weight", "bias")}


def _stem(network: nn.Module) -> set[str]:
    stem = first_convolution(network)
    return set() if stem is None else {f"{stem}.weight"}


def first_convolution(network: nn.Module) -> str | None:
    """Return the dotted name of the first convolution, or None."""
    named = ((name, module) for name, module in network.named_modules())
    return next((name for name, module in named if isinstance(module, nn.Conv2d)), None)


def _spread(kernels: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Adapt kernels (out, C, h, w) to other channels; None if the shapes differ otherwise."""
    if kernels.dim() != 4 or (kernels.shape[0], *kernels.shape[2:]) != (shape[0], *shape[2:]):
        return None
    return (kernels.sum(1, keepdim=True) / shape[1]).expand(shape).clone()
