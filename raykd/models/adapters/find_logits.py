"""Select the logits of networks that return more than logits.

A network may return a tuple, a mapping or a dataclass: GoogLeNet and Inception with auxiliary
classifiers in training, distilled transformers with two heads, models of transformers.  The logits
are its entry `logits`, or else the first tensor of shape (B, classes).  Networks for segmentation
give its entry `logits` or `out`, or else the first tensor of shape (B, classes, H, W).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from raykd.models.base import Signature, UnfitShape
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.layers import blank_inputs


class SelectLogits:
    """Forward hook that replaces the output of a network by its logits.

    Args:
        classes: number of classes.
        dense: the logits are (B, classes, H, W), not (B, classes).

    Raises:
        ValueError: the output has no logits.
    """

    dense = False  # of networks that older versions saved

    def __init__(self, classes: int, *, dense: bool = False) -> None:
        self.classes = classes
        self.dense = dense

    def __call__(self, network: nn.Module, inputs: object, output: Any) -> Tensor | None:
        if isinstance(output, Tensor):
            return None
        logits = find_logits(output, self.classes, dense=self.dense)
        if logits is None:
            raise ValueError(no_logits_message(output, self.classes, dense=self.dense))
        return logits


def find_logits(output: object, classes: int, *, dense: bool = False) -> Tensor | None:
    """Return the logits in the output of a network, or None."""
    keys, dims = (("logits", "out"), 4) if dense else (("logits",), 2)
    for key in keys:
        if isinstance(output, Mapping) and isinstance(output.get(key), Tensor):
            return output[key]
        attribute = getattr(output, key, None)
        if isinstance(attribute, Tensor):
            return attribute
    candidates = (t for t in _tensors(output) if t.dim() == dims and t.shape[1] == classes)
    return next(candidates, None)


def no_logits_message(output: object, classes: int, *, dense: bool = False) -> str:
    """Return the error message for an output without logits."""
    shapes = [str(tuple(tensor.shape)) for tensor in _tensors(output)]
    content = f" with tensors of shape {', '.join(shapes)}" if shapes else " without any tensor"
    shape = f"(samples, {classes}, height, width)" if dense else f"(samples, {classes})"
    return (
        f"it returns {type(output).__name__}{content}; it must return logits of shape {shape}, "
        "alone, as `logits`, or as the first tensor of that shape"
    )


def return_logits(network: nn.Module, signature: Signature) -> nn.Module:
    """Make a network, in place, return only logits, in training and in evaluation.

    Parameters that do not affect the logits, such as those of auxiliary classifiers, are frozen,
    since they are not trained.

    Raises:
        ValueError: the network returns no logits.
        UnfitShape: the network cannot be trained on samples of this shape.
    """
    if not _differs_in_training(type(network)):
        return network
    output = _training_output(network, signature)
    if isinstance(output, Tensor):
        return network
    dense = signature.dense
    logits = find_logits(output, signature.classes, dense=dense)
    if logits is None:
        message = no_logits_message(output, signature.classes, dense=dense)
        raise ValueError(f"in training {message}")
    _freeze_unused(network, logits)
    return select_logits(network, signature)


def select_logits(network: nn.Module, signature: Signature) -> nn.Module:
    """Add the hook that selects the logits to a network."""
    network.register_forward_hook(SelectLogits(signature.classes, dense=signature.dense))
    return network


@cache
def _differs_in_training(cls: type[nn.Module]) -> bool:
    """Return whether the code of a network refers to its mode; its parts return tensors."""
    try:
        return "training" in inspect.getsource(cls)
    except (OSError, TypeError):
        return True


def _training_output(network: nn.Module, signature: Signature) -> object:
    """Return the output of a forward in training mode, without most arithmetic."""
    parameter = next(network.parameters(), torch.empty(0))
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        with torch.random.fork_rng(devices=[]), without_fused_attention(), FlopCounter():
            return network(blank_inputs(signature, 2, parameter.device))
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UnfitShape(
            f"the network cannot be trained on samples of shape {signature.input_shape}: {text}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
        for name, buffer in network.named_buffers():
            if name in buffers:
                buffer.data.copy_(buffers[name])


def _freeze_unused(network: nn.Module, logits: Tensor) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not logits.requires_grad or not trained:
        return
    with FlopCounter():
        gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
