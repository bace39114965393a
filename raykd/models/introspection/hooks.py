"""Hooks: read the outputs of layers during a forward of any `nn.Module`.

Hooks are set for one forward and removed after it, also after an error, so that a network can be
copied, saved and wrapped between forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raykd.models.introspection.layouts import Layout

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Layer:
    """A module's output, or its first input, that losses can read.

    Attributes:
        name: dotted name of the module, or an alias.
        module: dotted name of the module.
        type: class name of the module.
        shape: shape for losses, without the batch: (C, H, W), (tokens, D) or (D,); four axes or
            more if the channel axis is unknown.
        depth: fraction of the network's leaf modules that have run, 0 to 1.
        stage: alias (`stage1`, ..., `embedding`), or empty.
        side: which tensor of the module it is.
        macs: multiply-accumulates per sample from the input to this layer.
        layout: conversion of the module's tensor to `shape`; None if it has that shape.
        overwritten: whether a later module overwrites the tensor in place.
    """

    name: str
    module: str
    type: str
    shape: tuple[int, ...]
    depth: float
    stage: str = ""
    side: Literal["output", "input"] = "output"
    macs: int = 0
    layout: Layout | None = None
    overwritten: bool = False

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of the module's tensor, without the batch."""
        return self.shape if self.layout is None else self.layout.raw

    @property
    def shape_text(self) -> str:
        """Shape for users, such as "192x7x7" or "7x7x192 channels last"."""
        raw = "x".join(map(str, self.raw_shape))
        if self.layout is None:
            return raw
        read = "x".join(map(str, self.shape))
        moved = self.layout.name.startswith("channels") or not self.layout.is_clear
        return f"{raw} {self.layout.name}" + ("" if moved else f", read as {read}")

    def arrange(self, tensor: Tensor) -> Tensor:
        """Convert the module's tensor to the axes of `shape`."""
        return tensor if self.layout is None else self.layout.arrange(tensor)

    def restore(self, tensor: Tensor) -> Tensor:
        """Convert a tensor with the axes of `shape` to the module's axes; inverse of `arrange`."""
        return tensor if self.layout is None else self.layout.restore(tensor)


class HookedOutputs(NamedTuple):
    """Outputs of one forward.

    Attributes:
        logits: (B, classes), or (B, classes, H, W).
        layers: tensors of the hooked layers, (B, *shape) with the axes of `Layer.shape`, by name.
    """

    logits: Tensor
    layers: dict[str, Tensor]


class LayerHooks:
    """A network and the layers to read; reusable, without state between forwards.

    If a module runs several times in one forward, its last call counts; if it returns several
    tensors, the first.  If a later module overwrites a layer in place, that module gets a copy.
    `run` calls `model` itself, so a wrapper does its work.

    Args:
        model: any module; names are those inside a wrapper for distributed training.
        layers: layers from `resolve` or `discover`, whose tensors are converted to `Layer.shape`,
            or dotted module names, whose tensors are not converted.

    Raises:
        ValueError: the model has no such module, or two layers have the same name.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str | Layer]) -> None:
        self.model = model
        self._targets = _targets(_inner_module(model), layers)
        self._call_counts: dict[str, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(target.name for target in self._targets)

    def run(self, *args: object, **kwargs: object) -> HookedOutputs:
        """Run one forward and return its logits and layers.

        Raises:
            ValueError: a layer did not run, returned no tensor, or was overwritten in place.
        """
        recorder = _Recorder(self._targets)
        with recorder.attached():
            output = self._forward(*args, **kwargs)
        logits = first_tensor(output)
        if logits is None:
            raise ValueError(f"the model must return a tensor, it returns {type(output).__name__}")
        self._call_counts = recorder.call_counts
        return HookedOutputs(logits, recorder.tensors())

    @property
    def _forward(self) -> Callable[..., object]:
        """The network; uncompiled if layers are read, since compiled code calls no hooks."""
        # `_compiled_call_impl` is set by `Module.compile`; both are private in torch 2.15.
        compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        return self.model._call_impl if compiled and self._targets else self.model

    def layers_only(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Return the layers alone; the forward stops after the last of them.

        The first call runs to the end, to count how often each layer runs.  Only for networks
        that are not trained (a teacher): a wrapper would not reach the end of its forward.

        Raises:
            ValueError: as `run`.
        """
        if not self._targets:
            return {}
        if self._call_counts is None:
            return self.run(*args, **kwargs).layers
        recorder = _Recorder(self._targets, stop_at=self._call_counts)
        try:
            with recorder.attached():
                self._forward(*args, **kwargs)
        except _StopForward:
            pass
        return recorder.tensors()


@contextmanager
def record_layers(
    model: nn.Module, layers: Iterable[str | Layer]
) -> Iterator[Mapping[str, Tensor]]:
    """Record layers in forwards: `with record_layers(model, ["stage2"]) as tensors: model(x)`.

    `tensors["stage2"]` is the tensor of that layer in the last forward.

    Raises:
        ValueError: as `LayerHooks`; or a layer is looked up that did not run, returned no tensor,
            or was overwritten in place.
    """
    recorder = _Recorder(_targets(_inner_module(model), layers))
    with recorder.attached():
        yield recorder


def first_tensor(value: object) -> Tensor | None:
    """Return the tensor that a return value stands for: itself, its `logits`, or the first one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        values = [value["logits"]] if "logits" in value else list(value.values())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        values = list(value)
    elif is_dataclass(value) and getattr(value, "logits", None) is None:
        values = [getattr(value, field.name) for field in fields(value)]
    else:
        values = [getattr(value, "logits", None)]
    return next((item for item in values if isinstance(item, Tensor)), None)


def unknown_layer_message(name: str, layers: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """Return the error message for an unknown layer, with similar names and the stages."""
    names = sorted(layers)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    listed = list(aliases) or names[:8]
    return (
        f"there is no layer {name!r}; {guess}the model's {'stages' if aliases else 'layers'} are "
        f"{', '.join(listed) or 'none'}{'' if aliases or len(names) <= 8 else ', ...'}, and every "
        "module's dotted name is a layer (`raykd layers` lists them)"
    )


class _Target(NamedTuple):
    """A module to hook, and the layer it stands for; None: the module's own tensor."""

    name: str
    path: str
    module: nn.Module
    layer: Layer | None

    @property
    def takes_input(self) -> bool:
        return self.layer is not None and self.layer.side == "input"

    @property
    def is_overwritten(self) -> bool:
        return self.layer is not None and self.layer.overwritten


class _StopForward(BaseException):
    """End a forward; not an `Exception`, so that no handler of a network catches it."""


class _Recorder(Mapping[str, Tensor]):
    """Tensors of the hooked layers in the last forward."""

    def __init__(
        self, targets: Sequence[_Target], stop_at: Mapping[str, int] | None = None
    ) -> None:
        self._targets = {target.name: target for target in targets}
        self._outputs: dict[str, tuple[Tensor, int] | None] = {}
        self._stop_at = stop_at
        self.call_counts: dict[str, int] = dict.fromkeys(self._targets, 0)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._targets:
            names = ", ".join(self._targets)
            raise ValueError(f"layer {name!r} is not recorded; recorded are {names}")
        path = self._targets[name].path
        if name not in self._outputs:
            raise ValueError(f"layer {name!r} (module {path!r}) did not run in the forward")
        output = self._outputs[name]
        if output is None:
            raise ValueError(f"layer {name!r} (module {path!r}) returned no tensor")
        tensor, count = output
        if write_count(tensor) != count:
            raise ValueError(
                f"layer {name!r} (module {path!r}) was overwritten in place after it ran; "
                "name the module that overwrites it, or build the model without `inplace`"
            )
        layer = self._targets[name].layer
        return tensor if layer is None else layer.arrange(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def tensors(self) -> dict[str, Tensor]:
        return {name: self[name] for name in self._targets}

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            handles.extend(self._attach(target) for target in self._targets.values())
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self, target: _Target) -> RemovableHandle:
        if target.takes_input:
            return target.module.register_forward_pre_hook(self._on_input(target), with_kwargs=True)
        return target.module.register_forward_hook(self._on_output(target))

    def _on_input(self, target: _Target) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self._record(target.name, (*args, *kwargs.values()))

        return hook

    def _on_output(self, target: _Target) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> Tensor | None:
            self._record(target.name, output)
            # Later modules write into the copy; its values are the same.
            return output.clone() if target.is_overwritten and isinstance(output, Tensor) else None

        return hook

    def _record(self, name: str, value: object) -> None:
        tensor = first_tensor(value)
        self._outputs[name] = None if tensor is None else (tensor, write_count(tensor))
        self.call_counts[name] += 1
        if self._stop_at is not None and self.call_counts == self._stop_at:
            raise _StopForward


def _targets(model: nn.Module, layers: Iterable[str | Layer]) -> list[_Target]:
    modules = dict(model.named_modules())
    targets: dict[str, _Target] = {}
    for layer in layers:
        name, path = (layer, layer) if isinstance(layer, str) else (layer.name, layer.module)
        if path not in modules or not path:
            raise ValueError(unknown_layer_message(path or name, filter(None, modules)))
        target = _Target(name, path, modules[path], None if isinstance(layer, str) else layer)
        first = targets.setdefault(name, target)
        if (first.path, first.takes_input) != (path, target.takes_input):
            raise ValueError(f"two layers are called {name!r}: {targets[name].path!r} and {path!r}")
    return list(targets.values())


def _inner_module(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def write_count(tensor: Tensor | None) -> int:
    """Return the number of in-place writes to a tensor; -1 if torch does not count them."""
    # `_version` is private in torch 2.15, and documented in its notes on autograd.
    return -1 if tensor is None or tensor.is_inference() else tensor._version
