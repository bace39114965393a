"""Layers of a network: names, shapes, depths and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raykd.models.base import Signature
from raykd.models.introspection.axes import Axes, AxisTracker
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.hooks import Layer, first_tensor, unknown_layer_message, write_count
from raykd.models.introspection.layouts import layout_of
from raykd.models.introspection.stages import stage_ends

EMBEDDING = "embedding"
"""Alias of the classifier's input: the input of the last linear layer."""

_PROBE_BATCH = 2
"""Batch size of the forward that finds the layers; not 1, so that the batch axis is recognized."""


class Layers(tuple[Layer, ...]):
    """Layers of a network.

    Attributes:
        unreadable: modules that are not layers, with the reason.
    """

    unreadable: Mapping[str, str]

    def __new__(cls, layers: Iterable[Layer] = (), unreadable: Mapping[str, str] | None = None):
        instance = super().__new__(cls, layers)
        instance.unreadable = unreadable or {}
        return instance


def discover(model: nn.Module, signature: Signature) -> Layers:
    """Find the layers of a network, in the order in which their outputs are ready.

    Runs one forward in eval mode on the device of the network, without computing convolutions and
    matrix products.  Parameters, batch-norm statistics and training modes do not change.

    A module that runs several times is listed once, as of its last call; of several returned
    tensors the first one counts.  Modules that do not run or return no tensor with a batch axis
    are in `Layers.unreadable`.  `stages.py` describes how stages are found; the input of the
    classifier is the layer `embedding`.
    """
    return discover_and_count(model, signature)[0]


def discover_and_count(model: nn.Module, signature: Signature) -> tuple[Layers, int]:
    """Find the layers, as `discover`, and count the multiply-accumulates of a forward."""
    axes = AxisTracker()
    probe = _Probe(model, axes)
    inputs = blank_inputs(signature, _PROBE_BATCH, _device(model))
    axes.begin(inputs)
    counter = FlopCounter(axes)
    with (
        evaluating(model),
        torch.no_grad(),
        without_fused_attention(),
        counter,
        probe.attached(counter),
    ):
        output = first_tensor(model(inputs))
    layers = probe.layers()
    intact = [layer for layer in layers if not layer.overwritten]
    ends = stage_ends(intact, tuple(output.shape[1:]) if output is not None else ())
    stages = {module: f"stage{number}" for number, module in enumerate(ends, start=1)}
    staged = [replace(layer, stage=stages.get(layer.module, "")) for layer in layers]
    named = (*staged, *probe.embedding(_width(output)))
    return Layers(named, probe.unreadable()), _macs(counter)


def stage_aliases(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Return the layers that have an alias, by alias: `stage1`, `stage2`, ..., `embedding`."""
    return {layer.stage: replace(layer, name=layer.stage) for layer in layers if layer.stage}


def resolve(layers: Sequence[Layer], name: str) -> Layer:
    """Return the layer with this name: an alias, or else a dotted module name.

    The returned layer has the given name, so that hooks report it under that name.

    Raises:
        ValueError: there is no such layer, or its output cannot be read, with the reason.
    """
    aliases = stage_aliases(layers)
    by_name = {layer.name: layer for layer in layers} | aliases
    if name in by_name:
        return by_name[name]
    reason = layers.unreadable.get(name) if isinstance(layers, Layers) else None
    if reason:
        raise ValueError(f"module {name!r} cannot be read as a layer: {reason}")
    raise ValueError(unknown_layer_message(name, by_name, aliases))


def blank_inputs(
    signature: Signature, batch: int, device: torch.device
) -> Tensor | dict[str, Tensor]:
    """Return (batch, *input_shape) float32 zeros; for texts, copies of one text of the data.

    Some text models look for tokens that a tokenizer always adds, so an arbitrary text fails.
    Without a text of the data, all tokens are equal.
    """
    if signature.text is None:
        return torch.zeros(batch, *signature.input_shape, device=device)
    sample = dict(signature.text.sample)
    if any(len(row) != signature.input_shape[0] for row in sample.values()):
        sample = {}
    constant = _constant_text(signature, batch, device)
    real = {key: torch.tensor([row] * batch, device=device) for key, row in sample.items()}
    return {key: real.get(key, constant[key]) for key in constant}


def _constant_text(signature: Signature, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Return texts in which all tokens are equal."""
    assert signature.text is not None
    values = {"input_ids": int(signature.text.padding == 0), "attention_mask": 1}
    shape = (batch, *signature.input_shape)
    return {
        key: torch.full(shape, values.get(key, 0), device=device) for key in signature.text.inputs
    }


def random_inputs(
    signature: Signature, batch: int, device: torch.device
) -> Tensor | dict[str, Tensor]:
    """Draw random samples, uniform from 0 to 1; for texts, random tokens.

    If the last token of a text is known, each text ends with it and has it nowhere else: models
    such as BART classify by that token and need the same number of them in each text.
    """
    if signature.text is None:
        return torch.rand(batch, *signature.input_shape, device=device)
    blank = _constant_text(signature, batch, device)
    tokens = torch.randint(
        signature.text.vocabulary, (batch, *signature.input_shape), device=device
    )
    last = signature.text.last
    if last is not None:
        other = next(n for n in range(3) if n not in (last, signature.text.padding))
        tokens = tokens.where(tokens != last, other)
        tokens[:, -1] = last
    return {**blank, "input_ids": tokens}


class _Probe:
    """Record the output of each module in one forward."""

    def __init__(self, model: nn.Module, axes: AxisTracker) -> None:
        self._axes = axes
        self._model = model
        self._modules = {name: module for name, module in model.named_modules() if name}
        self._calls: dict[str, _Call] = {}
        self._leaves = 0

    @contextmanager
    def attached(self, counter: FlopCounter) -> Iterator[None]:
        handles = [
            module.register_forward_hook(self._hook(name, counter), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, counter: FlopCounter) -> Callable[..., None]:
        is_leaf = not any(True for _ in self._modules[name].children())

        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            before = self._leaves
            self._leaves += is_leaf
            tensor, first_input = first_tensor(output), first_tensor((*args, *kwargs.values()))
            self._calls.pop(name, None)  # the last call counts, in its place in the order
            self._calls[name] = _Call(
                output=tensor,
                write_count=write_count(tensor),
                input=first_input,
                leaves=(before, self._leaves),
                macs=_macs(counter),
                axes=(self._axes_of(tensor), self._axes_of(first_input)),
                return_type=type(output).__name__,
            )

        return hook

    def _axes_of(self, tensor: Tensor | None) -> Axes:
        return () if tensor is None else self._axes.of(tensor)

    def layers(self) -> list[Layer]:
        layers = []
        for name, call in self._calls.items():
            layer = self._layer(name, call, "output")
            if layer is not None:
                overwritten = write_count(call.output) != call.write_count
                layers.append(replace(layer, overwritten=overwritten))
        return layers

    def unreadable(self) -> dict[str, str]:
        """Return the modules that are not layers, with the reason."""
        return {
            name: _unreadable_reason(module, self._calls.get(name), self._is_scripted(name))
            for name, module in self._modules.items()
            if name not in self._calls or self._layer(name, self._calls[name], "output") is None
        }

    def _is_scripted(self, name: str) -> bool:
        """Return whether a module is inside a scripted or traced one, which calls no hooks."""
        parents = accumulate(name.split("."), lambda parent, child: f"{parent}.{child}")
        ancestors = [self._model, *(self._modules[parent] for parent in [*parents][:-1])]
        return any(isinstance(module, torch.jit.ScriptModule) for module in ancestors)

    def embedding(self, classes: int) -> list[Layer]:
        """Return the input of the classifier, or nothing.

        The classifier is the last linear layer with one output per class, or else the last one.
        """
        linear = [name for name in self._calls if isinstance(self._modules[name], nn.Linear)]
        heads = [name for name in linear if _width(self._calls[name].output) == classes] or linear
        if not heads:
            return []
        call = self._calls[heads[-1]]
        layer = self._layer(heads[-1], call, "input")
        if layer is None:
            return []
        macs = call.macs - _linear_macs(call)
        return [replace(layer, name=EMBEDDING, stage=EMBEDDING, side="input", macs=macs)]

    def _layer(self, name: str, call: _Call, side: Literal["output", "input"]) -> Layer | None:
        """Return the output or input of a module as a layer; None without a batch axis."""
        is_output = side == "output"
        tensor = call.output if is_output else call.input
        if tensor is None:
            return None
        axes = call.axes[0 if is_output else 1]
        batched, layout = layout_of(axes, tensor.shape, _PROBE_BATCH)
        if not batched:
            return None
        return Layer(
            name=name,
            module=name,
            type=type(self._modules[name]).__name__,
            shape=tuple(tensor.shape[1:]) if layout is None else layout.shape,
            depth=call.leaves[is_output] / max(1, self._leaves),
            macs=call.macs,
            layout=layout,
        )


@dataclass(frozen=True)
class _Call:
    """One call of a module.

    Attributes:
        output, input: first tensor of the return value, and of the arguments.
        write_count: number of in-place writes to the output so far.
        leaves: leaf modules that had run before and after it.
        macs: multiply-accumulates per sample until its end.
        axes: axes of the output and of the input.
        return_type: type of the return value.
    """

    output: Tensor | None
    write_count: int
    input: Tensor | None
    leaves: tuple[int, int]
    macs: int
    axes: tuple[Axes, Axes]
    return_type: str


def _unreadable_reason(module: nn.Module, call: _Call | None, is_scripted: bool) -> str:
    if call is None and is_scripted:
        return (
            "it is part of a scripted or traced module, whose parts call no hooks; name the whole "
            "scripted module, or build the model without scripting"
        )
    if call is None and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList):
        return f"a {type(module).__name__} only contains other modules; name one of these"
    if call is None:
        return (
            "the model does not call it in evaluation (it may run in training only, or its "
            "weights are used without calling it); name a module that runs"
        )
    if call.output is None:
        return f"it returns {call.return_type} without a tensor; name a module inside it"
    shape = tuple(call.output.shape)
    return (
        f"its output, {shape} for {_PROBE_BATCH} samples, has no axis for the samples (it is a "
        "weight or holds windows of all samples); name a module further out"
    )


def _macs(counter: FlopCounter) -> int:
    return counter.macs // _PROBE_BATCH


def _linear_macs(call: _Call) -> int:
    assert call.input is not None and call.output is not None
    return call.input.numel() * call.output.shape[-1] // _PROBE_BATCH


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch all modules to eval mode inside the context, and restore their modes after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
