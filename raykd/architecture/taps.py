"""Taps: what given layers put out during a forward, of any `nn.Module`.

Hooks are set for one forward and removed after it, whatever happens in it, so a tapped network
can be copied, saved and wrapped between forwards as if it were not tapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from raykd.architecture.layers import Layer


class Observed(NamedTuple):
    """What one forward gave.

    Attributes:
        logits: (B, classes).
        layers: the tapped layers' tensors, (B, *shape) with the axes of `Layer.shape`, by the
            layers' names.
    """

    logits: Tensor
    layers: dict[str, Tensor]


class Taps:
    """A network together with the layers to look at; reusable, without state between forwards.

    Args:
        model: any module; of one wrapped for distributed training, the inner module's layers.
        layers: layers from `resolve` or `discover`, or dotted module names.  Of a layer the tensor
            is rearranged to `Layer.shape` (channels before places); of a bare name it is the
            module's own.

    Of a module that runs several times in one forward, the last run is seen; of a module that
    returns several tensors, the first.  A layer that a later module overwrites in place is kept:
    that module gets a copy.  `run` goes through `model` itself, so a wrapper's own
    work is done.

    Raises:
        ValueError: the model has no such module, or two layers bear one name.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str | Layer]) -> None:
        self.model = model
        self._points = _points(_unwrapped(model), layers)
        self._runs: dict[str, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tapped layers' names."""
        return tuple(point.name for point in self._points)

    def run(self, *inputs: Any, **more: Any) -> Observed:
        """One forward of the network, with all it shows.

        Raises:
            ValueError: a layer did not run, gave no tensor, or was overwritten in place.
        """
        seen = _Seen(self._points)
        with seen.watching():
            output = self._forward(*inputs, **more)
        logits = first_tensor(output)
        if logits is None:
            raise ValueError(f"the model returns no tensor but {type(output).__name__}")
        self._runs = seen.runs
        return Observed(logits, seen.checked())

    @property
    def _forward(self) -> Callable[..., Any]:
        """The network; where layers are looked at, uncompiled: compiled code calls no hooks."""
        compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        return self.model._call_impl if compiled and self._points else self.model

    def layers_only(self, *inputs: Any, **more: Any) -> dict[str, Tensor]:
        """The tapped layers alone: the forward ends as soon as the last of them has run.

        The first call goes to the end, to learn how often each layer runs.  Only for networks
        that are not trained here (a teacher): a wrapper would not see the forward's end.

        Raises:
            ValueError: as `run`.
        """
        if not self._points:
            return {}
        if self._runs is None:
            return self.run(*inputs, **more).layers
        seen = _Seen(self._points, enough=self._runs)
        try:
            with seen.watching():
                self._forward(*inputs, **more)
        except _Enough:
            pass
        return seen.checked()


@contextmanager
def tapped(model: nn.Module, layers: Iterable[str | Layer]) -> Iterator[Mapping[str, Tensor]]:
    """Look at `layers` during the forwards made inside: `with tapped(...) as seen: model(x)`.

    `seen["stage2"]` is what that layer gave in the last forward.

    Raises:
        ValueError: as `Taps`; asking `seen` for a layer that did not run, gave no tensor, or was
            overwritten in place.
    """
    seen = _Seen(_points(_unwrapped(model), layers))
    with seen.watching():
        yield seen


def first_tensor(value: Any) -> Tensor | None:
    """The tensor meant where a module returns more than one: itself, its logits, or the first."""
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


def unknown_layer(name: str, known: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """The message for a layer that is not there: what comes near, what there is."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    some = list(aliases) or known[:8]
    return (
        f"there is no layer {name!r}; {guess}the model's {'stages' if aliases else 'layers'} are "
        f"{', '.join(some) or 'none'}{'' if aliases or len(known) <= 8 else ', ...'}, and every "
        "module's dotted name is a layer (`raykd layers` lists them)"
    )


class _Point(NamedTuple):
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


class _Enough(BaseException):
    """Ends a forward; not an `Exception`, so that no network's own handler takes it."""


class _Seen(Mapping[str, Tensor]):
    """The tapped layers' tensors of the last forward."""

    def __init__(self, points: Sequence[_Point], enough: Mapping[str, int] | None = None) -> None:
        self._points = {point.name: point for point in points}
        self._found: dict[str, tuple[Tensor, int] | None] = {}
        self._enough = enough
        self.runs: dict[str, int] = dict.fromkeys(self._points, 0)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._points:
            raise ValueError(f"layer {name!r} is not tapped; tapped are {', '.join(self._points)}")
        path = self._points[name].path
        if name not in self._found:
            raise ValueError(f"layer {name!r} (module {path!r}) did not run in the forward")
        found = self._found[name]
        if found is None:
            raise ValueError(f"layer {name!r} (module {path!r}) gave no tensor")
        tensor, first = found
        if version(tensor) != first:
            raise ValueError(
                f"layer {name!r} (module {path!r}) was overwritten in place after it ran; "
                "tap the module that overwrites it, or build the model without `inplace`"
            )
        layer = self._points[name].layer
        return tensor if layer is None else layer.arranged(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def checked(self) -> dict[str, Tensor]:
        return {name: self[name] for name in self._points}

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            handles.extend(self._watch(point) for point in self._points.values())
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, point: _Point) -> RemovableHandle:
        if point.takes_input:
            return point.module.register_forward_pre_hook(self._on_input(point), with_kwargs=True)
        return point.module.register_forward_hook(self._on_output(point))

    def _on_input(self, point: _Point) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(point.name, (*args, *kwargs.values()))

        return hook

    def _on_output(self, point: _Point) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            self._see(point.name, output)
            # What comes after writes into the copy; the values are the same for the network.
            return output.clone() if point.is_overwritten and isinstance(output, Tensor) else None

        return hook

    def _see(self, name: str, value: Any) -> None:
        tensor = first_tensor(value)
        self._found[name] = None if tensor is None else (tensor, version(tensor))
        self.runs[name] += 1
        if self._enough is not None and self.runs == self._enough:
            raise _Enough


def _points(model: nn.Module, layers: Iterable[str | Layer]) -> list[_Point]:
    modules = dict(model.named_modules())
    points: dict[str, _Point] = {}
    for layer in layers:
        name, path = (layer, layer) if isinstance(layer, str) else (layer.name, layer.module)
        if path not in modules or not path:
            raise ValueError(_unknown_module(name, path, modules))
        point = _Point(name, path, modules[path], None if isinstance(layer, str) else layer)
        first = points.setdefault(name, point)
        if (first.path, first.takes_input) != (path, point.takes_input):
            raise ValueError(f"two layers are called {name!r}: {points[name].path!r} and {path!r}")
    return list(points.values())


def _unknown_module(name: str, path: str, modules: Mapping[str, nn.Module]) -> str:
    return unknown_layer(path or name, [known for known in modules if known])


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def version(tensor: Tensor | None) -> int:
    """How often the tensor was written in place; -1 where nobody counts."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version
