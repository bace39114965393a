"""Networks of others that return more than logits: the logits are picked, in one place.

A network may return a tuple, a mapping or a dataclass: GoogLeNet and Inception with auxiliary
classifiers in training, distilled transformers with two heads, models of transformers.  The logits
are its entry `logits` where it has one, and else the first tensor of shape (B, classes).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from raykd.models.base import Task, UnfitShape
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.layers import blank_inputs


class PicksLogits:
    """A forward hook that replaces a network's output by its logits, (B, classes).

    Raises:
        ValueError: there are none in the output.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, network: nn.Module, inputs: object, output: Any) -> Tensor | None:
        if isinstance(output, Tensor):
            return None
        logits = logits_of(output, self.classes)
        if logits is None:
            raise ValueError(no_logits(output, self.classes))
        return logits


def logits_of(output: Any, classes: int) -> Tensor | None:
    """The logits in what a network returned; None where there are none."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    fitting = (one for one in _tensors(output) if one.dim() == 2 and one.shape[1] == classes)
    return next(fitting, None)


def no_logits(output: Any, classes: int) -> str:
    """The message for an output without logits."""
    shapes = [str(tuple(one.shape)) for one in _tensors(output)]
    held = f" with tensors of shape {', '.join(shapes)}" if shapes else " without any tensor"
    return (
        f"it returns {type(output).__name__}{held}; it must return logits of shape (samples, "
        f"{classes}), alone, as `logits`, or as the first tensor of that shape"
    )


def with_logits(network: nn.Module, task: Task) -> nn.Module:
    """The network, in place, made to return logits alone, in training as in evaluation.

    One that does so already stays as it is.  Parameters from which no logits come, such as those
    of auxiliary classifiers, are frozen: nothing here trains them.

    Raises:
        ValueError: it returns no logits.
        UnfitShape: it cannot be trained on samples of this shape.
    """
    if not _differs_in_training(type(network)):
        return network
    output = _in_training(network, task)
    if isinstance(output, Tensor):
        return network
    logits = logits_of(output, task.classes)
    if logits is None:
        raise ValueError(f"in training {no_logits(output, task.classes)}")
    _freeze_idle(network, logits)
    return picking(network, task)


def picking(network: nn.Module, task: Task) -> nn.Module:
    """The network, in place, made to return logits alone, whatever it returns."""
    network.register_forward_hook(PicksLogits(task.classes))
    return network


@cache
def _differs_in_training(cls: type[nn.Module]) -> bool:
    """Whether a network's own code asks which mode it is in; that of its parts returns tensors."""
    try:
        return "training" in inspect.getsource(cls)
    except (OSError, TypeError):
        return True


def _in_training(network: nn.Module, task: Task) -> Any:
    """The output of a rehearsed forward in training mode; the network stays as it is."""
    parameter = next(network.parameters(), torch.empty(0))
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        with torch.random.fork_rng(devices=[]), without_fused_attention(), FlopCounter():
            return network(blank_inputs(task, 2, parameter.device))
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UnfitShape(
            f"it cannot be trained on samples of shape {task.input_shape}: {text}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
        for name, buffer in network.named_buffers():
            if name in kept:
                buffer.data.copy_(kept[name])


def _freeze_idle(network: nn.Module, logits: Tensor) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not logits.requires_grad or not trained:
        return
    with FlopCounter():
        gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for one in value:
            yield from _tensors(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
