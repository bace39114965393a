"""A network cut in two at one of its layers: the part up to it, and the part after it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from raykd.architecture.layers import Layer, blank_inputs, discover
from raykd.architecture.macs import Rehearsal, without_fused_attention
from raykd.architecture.model import Task
from raykd.architecture.taps import first_tensor, tapped


class Trunk(nn.Module):
    """A network up to one of its layers: (B, *input_shape) -> (B, *layer.shape).

    The forward ends as soon as the layer has run.  Modules that only run after it are taken out
    of the network, so that it has no more parameters than it uses.

    Args:
        network: becomes part of this, and is changed.
        layer: where it ends; of this network (`raykd.architecture.resolve`).
        task: what the network takes and gives.

    Attributes:
        layers: those of the network's layers that are ready when the trunk ends, and that one.
    """

    def __init__(self, network: nn.Module, layer: Layer, task: Task) -> None:
        super().__init__()
        known = discover(network, task)
        whole = _course(network, task)
        cut = _course(network, task, layer, whole.begun[layer.module])
        self.network = network
        self.layer = layer
        self.runs = whole.begun[layer.module]
        self.layers = tuple(
            one
            for one in known
            if (one.side == "output" and cut.ended[one.module])
            or (one.module, one.side) == (layer.module, layer.side)
        )
        for path in cut.beyond(whole, layer):
            network.set_submodule(path, nn.Identity())

    def forward(self, inputs: Any) -> Tensor:
        return self.layer.arranged(_until(self.network, self.layer, self.runs, inputs))


class Head(nn.Module):
    """The rest of a network after one of its layers, frozen: (B, *layer.shape) -> (B, classes).

    A copy, that stays in eval mode and whose parameters need no gradient.

    Args:
        network: left as it is.
        layer: the one whose tensor is taken instead; of this network.
        task: what the network takes and gives.

    Raises:
        ValueError: the logits do not hang on this layer alone, nothing that was learned comes
            after it, or `torch.fx` cannot trace what does.
    """

    def __init__(self, network: nn.Module, layer: Layer, task: Task) -> None:
        super().__init__()
        rest = _rest(network, layer, task)
        self.layer = layer
        self.network = copy.deepcopy(rest).requires_grad_(False).eval()

    def forward(self, features: Tensor) -> Tensor:
        logits = first_tensor(self.network(self.layer.restored(features)))
        assert logits is not None, "the whole network gives a tensor"
        return logits

    def train(self, mode: bool = True) -> Head:
        super().train(mode)
        self.network.eval()
        return self


def shows_negatives(network: nn.Module, layer: Layer, task: Task) -> bool:
    """Whether some of the layer's values are negative, as seen on noise."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *task.input_shape, generator=draw)
    place = next(network.parameters(), noise).device
    with _evaluating(network), torch.no_grad(), tapped(network, [layer]) as seen:
        network(noise.to(place))
    return bool((seen[layer.name] < 0).any())


class _Reached(BaseException):
    """Ends a forward; not an `Exception`, so that no network's own handler takes it."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _until(network: nn.Module, layer: Layer, runs: int, inputs: Any) -> Tensor:
    """The layer's tensor of its last run; the forward ends there."""
    left = runs

    def see(values: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            tensor = first_tensor(values)
            assert tensor is not None, "a layer that is known gives a tensor"
            raise _Reached(tensor)

    module = network.get_submodule(layer.module)
    handle = (
        module.register_forward_hook(lambda module, inputs, output: see(output))
        if layer.side == "output"
        else module.register_forward_pre_hook(
            lambda module, inputs, more: see((*inputs, *more.values())), with_kwargs=True
        )
    )
    try:
        network(inputs)
    except _Reached as reached:
        return reached.tensor
    finally:
        handle.remove()
    raise ValueError(f"layer {layer.name!r} did not run {runs} time(s) in the forward")


class _Course:
    """How often each module's forward begins and ends in one forward of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = {path: module for path, module in network.named_modules() if path}
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    @contextmanager
    def watched(self) -> Iterator[None]:
        handles = []
        for path, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(_counting(self.begun, path)))
            handles.append(module.register_forward_hook(_counting(self.ended, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def beyond(self, whole: _Course, layer: Layer) -> list[str]:
        """The outermost modules that ran in the whole course, and did nothing in this one, which
        ended at the layer."""
        found: list[str] = []
        for path, module in self.modules.items():
            # One whose input is the layer has begun, and no more.
            leaf = path == layer.module or not any(True for _ in module.children())
            idle = not self.ended[path] if leaf else not self.begun[path]
            if whole.begun[path] and idle and not any(path.startswith(f"{up}.") for up in found):
                found.append(path)
        return found


def _counting(counter: Counter[str], path: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        counter[path] += 1

    return hook


def _course(network: nn.Module, task: Task, layer: Layer | None = None, runs: int = 0) -> _Course:
    """Of a forward without most of its arithmetic: the whole one, or up to a layer."""
    course = _Course(network)
    place = next(network.parameters(), torch.empty(0)).device
    inputs = blank_inputs(task, 2, place)
    with (
        _evaluating(network),
        torch.no_grad(),
        without_fused_attention(),
        Rehearsal(),
        course.watched(),
    ):
        if layer is None:
            network(inputs)
        else:
            _until(network, layer, runs, inputs)
    return course


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Tracer(fx.Tracer):
    """Traces a network without looking into the modules of `before`."""

    def __init__(self, before: Collection[str] = ()) -> None:
        super().__init__()
        self.before = before

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_qualified_name in self.before
        return known or super().is_leaf_module(m, module_qualified_name)


def _rest(network: nn.Module, layer: Layer, task: Task) -> fx.GraphModule:
    """What the network makes of the layer's tensor; shares its parameters.

    Only what runs after the layer needs a forward that `torch.fx` can trace.
    """
    runs = _course(network, task).begun[layer.module]
    before = {layer.module, *_course(network, task, layer, runs).ended}
    try:
        with _evaluating(network):  # tracing fixes whatever asks which mode it is
            graph = _Tracer(before).trace(network)
    except Exception as error:  # noqa: BLE001  it runs the network's own code: anything may come
        raise ValueError(
            f"the part after layer {layer.name!r} cannot be cut out of the network: torch.fx "
            f"cannot trace it ({error})"
        ) from None
    rest = fx.GraphModule(network, graph)
    _take_instead(rest.graph, layer)
    rest.recompile()
    rest.delete_all_unused_submodules()
    if not any(True for _ in rest.parameters()):
        raise ValueError(
            f"nothing that was learned comes after layer {layer.name!r}; name one before the "
            "classifier, such as the last stage"
        )
    return rest


def _take_instead(graph: fx.Graph, layer: Layer) -> None:
    """Let the layer's tensor come from outside, in place of the network's inputs."""
    given = [node for node in graph.nodes if node.op == "placeholder"]
    runs = [node for node in graph.nodes if node.target == layer.module]
    if not runs:
        raise ValueError(
            f"layer {layer.name!r} lies inside a module that torch.fx does not look into; name "
            "one further out"
        )
    value = runs[-1] if layer.side == "output" else runs[-1].all_input_nodes[0]
    with graph.inserting_before(given[0]):
        features = graph.placeholder("features")
    value.replace_all_uses_with(features)
    graph.eliminate_dead_code()
    if not features.users or any(node.users for node in given):
        raise ValueError(
            f"the logits do not come from layer {layer.name!r} alone; name one through which all "
            "goes, such as the last stage"
        )
    for node in given:
        graph.erase_node(node)
