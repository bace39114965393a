"""Split a network at a layer: the backbone up to it, and the head after it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from raykd.models.base import Signature
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.hooks import first_tensor, record_layers
from raykd.models.introspection.layers import Layer, blank_inputs, discover, evaluating


class Backbone(nn.Module):
    """A network up to one of its layers: (B, *input_shape) -> (B, *layer.shape).

    The forward stops after the layer.  Modules that run only after it are removed, so that all
    parameters are used.

    Args:
        network: becomes a submodule, and is modified.
        layer: last layer of the backbone; of this network (`resolve`).
        signature: inputs and outputs of the network.

    Attributes:
        layers: the layers that are complete at the end of the backbone, including `layer`.
    """

    def __init__(self, network: nn.Module, layer: Layer, signature: Signature) -> None:
        super().__init__()
        layers = discover(network, signature)
        full = _count_calls(network, signature)
        partial = _count_calls(network, signature, layer, full.started[layer.module])
        self.network = network
        self.layer = layer
        self.runs = full.started[layer.module]
        self.layers = tuple(
            other
            for other in layers
            if (other.side == "output" and partial.finished[other.module])
            or (other.module, other.side) == (layer.module, layer.side)
        )
        for path in partial.unused(full, layer):
            network.set_submodule(path, nn.Identity())

    def forward(self, inputs: Any) -> Tensor:
        return self.layer.arrange(_run_until(self.network, self.layer, self.runs, inputs))


class Head(nn.Module):
    """A frozen copy of a network after one of its layers: (B, *layer.shape) -> (B, classes).

    It stays in eval mode, and its parameters have no gradients.

    Args:
        network: not modified.
        layer: layer of the network whose tensor is the input of the head.
        signature: inputs and outputs of the network.

    Raises:
        ValueError: the logits depend on more than this layer, no parameters come after it, or
            `torch.fx` cannot trace the part after it.
    """

    def __init__(self, network: nn.Module, layer: Layer, signature: Signature) -> None:
        super().__init__()
        traced = _trace_after(network, layer, signature)
        self.layer = layer
        self.network = copy.deepcopy(traced).requires_grad_(False).eval()

    def forward(self, features: Tensor) -> Tensor:
        logits = first_tensor(self.network(self.layer.restore(features)))
        assert logits is not None, "the network returns a tensor"
        return logits

    def train(self, mode: bool = True) -> Head:
        super().train(mode)
        self.network.eval()
        return self


def has_negative_values(network: nn.Module, layer: Layer, signature: Signature) -> bool:
    """Return whether a layer has negative values for noise as input."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *signature.input_shape, generator=rng)
    device = next(network.parameters(), noise).device
    with evaluating(network), torch.no_grad(), record_layers(network, [layer]) as tensors:
        network(noise.to(device))
    return bool((tensors[layer.name] < 0).any())


class _StopForward(BaseException):
    """End a forward; not an `Exception`, so that no handler of a network catches it."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _run_until(network: nn.Module, layer: Layer, runs: int, inputs: Any) -> Tensor:
    """Run a forward up to the last call of a layer, and return the tensor of the layer."""
    remaining = runs

    def stop(values: Any) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            tensor = first_tensor(values)
            assert tensor is not None, "a layer has a tensor"
            raise _StopForward(tensor)

    module = network.get_submodule(layer.module)
    handle = (
        module.register_forward_hook(lambda module, args, output: stop(output))
        if layer.side == "output"
        else module.register_forward_pre_hook(
            lambda module, args, kwargs: stop((*args, *kwargs.values())), with_kwargs=True
        )
    )
    try:
        network(inputs)
    except _StopForward as stopped:
        return stopped.tensor
    finally:
        handle.remove()
    raise ValueError(f"layer {layer.name!r} did not run {runs} time(s) in the forward")


class _CallCounts:
    """Number of started and finished calls of each module in one forward."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = {path: module for path, module in network.named_modules() if path}
        self.started: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()

    @contextmanager
    def recording(self) -> Iterator[None]:
        handles = []
        for path, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(_increment(self.started, path)))
            handles.append(module.register_forward_hook(_increment(self.finished, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def unused(self, full: _CallCounts, layer: Layer) -> list[str]:
        """Return the outermost modules that run in the full forward, but not up to the layer."""
        paths: list[str] = []
        for path, module in self.modules.items():
            # A module whose input is the layer has started but not finished.
            is_leaf = path == layer.module or not any(True for _ in module.children())
            is_idle = not self.finished[path] if is_leaf else not self.started[path]
            is_inside = any(path.startswith(f"{parent}.") for parent in paths)
            if full.started[path] and is_idle and not is_inside:
                paths.append(path)
        return paths


def _increment(counter: Counter[str], path: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        counter[path] += 1

    return hook


def _count_calls(
    network: nn.Module, signature: Signature, layer: Layer | None = None, runs: int = 0
) -> _CallCounts:
    """Count calls in a forward that skips most arithmetic: the full one, or up to a layer."""
    counts = _CallCounts(network)
    device = next(network.parameters(), torch.empty(0)).device
    inputs = blank_inputs(signature, 2, device)
    with (
        evaluating(network),
        torch.no_grad(),
        without_fused_attention(),
        FlopCounter(),
        counts.recording(),
    ):
        if layer is None:
            network(inputs)
        else:
            _run_until(network, layer, runs, inputs)
    return counts


class _Tracer(fx.Tracer):
    """Trace a network without entering the modules `before` the layer."""

    def __init__(self, before: Collection[str] = ()) -> None:
        super().__init__()
        self.before = before

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_before = module_qualified_name in self.before
        return is_before or super().is_leaf_module(m, module_qualified_name)


def _trace_after(network: nn.Module, layer: Layer, signature: Signature) -> fx.GraphModule:
    """Trace the part of a network after a layer; it shares the parameters of the network.

    Only this part must be traceable by `torch.fx`.
    """
    runs = _count_calls(network, signature).started[layer.module]
    before = {layer.module, *_count_calls(network, signature, layer, runs).finished}
    try:
        with evaluating(network):  # a trace is valid for one mode only
            graph = _Tracer(before).trace(network)
    except Exception as error:  # noqa: BLE001  the network's code may raise anything
        raise ValueError(
            f"the network cannot be split after layer {layer.name!r}: torch.fx cannot trace the "
            f"part after it ({error}); name another layer"
        ) from None
    traced = fx.GraphModule(network, graph)
    _replace_input(traced.graph, layer)
    traced.recompile()
    traced.delete_all_unused_submodules()
    if not any(True for _ in traced.parameters()):
        raise ValueError(
            f"no parameters come after layer {layer.name!r}; name one before the classifier, such "
            "as the last stage"
        )
    return traced


def _replace_input(graph: fx.Graph, layer: Layer) -> None:
    """Make the tensor of the layer the input of a graph, in place of the network's inputs."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    runs = [node for node in graph.nodes if node.target == layer.module]
    if not runs:
        raise ValueError(
            f"layer {layer.name!r} is inside a module that torch.fx does not enter; name an outer "
            "one"
        )
    value = runs[-1] if layer.side == "output" else runs[-1].all_input_nodes[0]
    with graph.inserting_before(inputs[0]):
        features = graph.placeholder("features")
    value.replace_all_uses_with(features)
    graph.eliminate_dead_code()
    if not features.users or any(node.users for node in inputs):
        raise ValueError(
            f"the logits depend on more than layer {layer.name!r}; name a layer through which all "
            "data pass, such as the last stage"
        )
    for node in inputs:
        graph.erase_node(node)
