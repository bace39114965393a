"""A network's layers: what they are called, their shapes, how deep they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from raykd.architecture.macs import Rehearsal, without_fused_attention
from raykd.architecture.stages import stage_ends
from raykd.architecture.taps import first_tensor, unknown_layer, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raykd.architecture.model import Task

EMBEDDING = "embedding"
"""Alias of the classifier's input: the input of the last linear layer."""

_PROBE_BATCH = 2
"""Samples in the forward that finds the layers; not 1, so that the batch's axis is known."""


@dataclass(frozen=True)
class Layer:
    """One place in a network at which a tensor can be tapped.

    Attributes:
        name: what it is called: the module's dotted name, or an alias.
        module: the dotted name of the module to tap.
        type: the module's class.
        shape: the tensor's shape without the batch.
        depth: how deep it lies, 0 to 1: the share of the network's leaf modules that have run.
        stage: the alias it bears (`stage1`, ..., `embedding`), or empty.
        side: whether the module's output or its first input is meant.
        macs: multiply-accumulates per sample that were spent until here.
    """

    name: str
    module: str
    type: str
    shape: tuple[int, ...]
    depth: float
    stage: str = ""
    side: Literal["output", "input"] = "output"
    macs: int = 0


def discover(model: nn.Module, task: Task) -> tuple[Layer, ...]:
    """Every layer of `model`, in the order in which the outputs are ready.

    One rehearsed forward in eval mode on the model's own device: convolutions and matrix products
    are not computed.  Parameters, batch-norm statistics and training modes stay as they are.

    A module that runs several times appears once, as of its last run.  Left out are modules that
    did not run, those that return no tensor or one without the batch, and those whose output a
    later module overwrites in place.  `stages.py` says how the stages are found; the classifier's
    input comes as a layer of its own, `embedding`.
    """
    return survey(model, task)[0]


def survey(model: nn.Module, task: Task) -> tuple[tuple[Layer, ...], int]:
    """The layers, as `discover` finds them, and the multiply-accumulates of a whole forward."""
    probe = _Probe(model)
    inputs = blank_inputs(task, _PROBE_BATCH, _device(model))
    rehearsal = Rehearsal()
    with (
        evaluating(model),
        torch.no_grad(),
        without_fused_attention(),
        rehearsal,
        probe.watching(rehearsal),
    ):
        output = first_tensor(model(inputs))
    layers = probe.layers()
    ends = stage_ends(layers, tuple(output.shape[1:]) if output is not None else ())
    stages = {module: f"stage{number}" for number, module in enumerate(ends, start=1)}
    named = [replace(layer, stage=stages.get(layer.module, "")) for layer in layers]
    return (*named, *probe.embedding(_width(output))), _macs(rehearsal)


def stage_aliases(layers: Iterable[Layer]) -> dict[str, Layer]:
    """The layers that bear an alias, by alias: `stage1`, `stage2`, ..., then `embedding`."""
    return {layer.stage: replace(layer, name=layer.stage) for layer in layers if layer.stage}


def resolve(layers: Sequence[Layer], name: str) -> Layer:
    """The layer called `name`, an alias or a dotted module name (an alias goes first).

    The layer that comes back bears the name asked for, so that a tap answers to it.

    Raises:
        ValueError: there is no such layer.
    """
    aliases = stage_aliases(layers)
    known = {layer.name: layer for layer in layers} | aliases
    if name in known:
        return known[name]
    raise ValueError(unknown_layer(name, known, aliases))


def blank_inputs(task: Task, batch: int, device: torch.device) -> Tensor | dict[str, Tensor]:
    """(batch, *input_shape) float32 zeros; for texts, as many of one token each."""
    if task.text is None:
        return torch.zeros(batch, *task.input_shape, device=device)
    held = {"input_ids": int(task.text.padding == 0), "attention_mask": 1}
    shape = (batch, *task.input_shape)
    return {key: torch.full(shape, held.get(key, 0), device=device) for key in task.text.inputs}


def random_inputs(task: Task, batch: int, device: torch.device) -> Tensor | dict[str, Tensor]:
    """Samples of the task's shape drawn at random, uniform from 0 to 1; for texts, of tokens."""
    if task.text is None:
        return torch.rand(batch, *task.input_shape, device=device)
    blank = blank_inputs(task, batch, device)
    assert isinstance(blank, dict), "texts are mappings"
    tokens = torch.randint(task.text.vocabulary, (batch, *task.input_shape), device=device)
    return {**blank, "input_ids": tokens}


class _Probe:
    """Writes down what each module gave in one forward."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = {name: module for name, module in model.named_modules() if name}
        self._runs: dict[str, _Run] = {}
        self._leaves = 0

    @contextmanager
    def watching(self, rehearsal: Rehearsal) -> Iterator[None]:
        handles = [
            module.register_forward_hook(self._hook(name, rehearsal), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, rehearsal: Rehearsal) -> Any:
        leaf = not any(True for _ in self._modules[name].children())

        def hook(module: nn.Module, args: tuple[Any, ...], more: dict[str, Any], out: Any) -> None:
            before = self._leaves
            self._leaves += leaf
            macs = _macs(rehearsal)
            tensor, given = first_tensor(out), first_tensor((*args, *more.values()))
            self._runs.pop(name, None)
            self._runs[name] = _Run(tensor, version(tensor), given, before, self._leaves, macs)

        return hook

    def layers(self) -> list[Layer]:
        return [
            self._layer(name, run, run.output, run.after)
            for name, run in self._runs.items()
            if _batched(run.output) and version(run.output) == run.version
        ]

    def embedding(self, classes: int) -> list[Layer]:
        """The input of the last linear layer, of those that give one value a class if any does."""
        linear = [name for name in self._runs if self._is_linear(name)]
        whole = [name for name in linear if _width(self._runs[name].output) == classes] or linear
        if not whole or not _batched(self._runs[whole[-1]].given):
            return []
        run = self._runs[whole[-1]]
        layer = self._layer(whole[-1], run, run.given, run.before)
        macs = run.macs - _linear_macs(run)
        return [replace(layer, name=EMBEDDING, stage=EMBEDDING, side="input", macs=macs)]

    def _is_linear(self, name: str) -> bool:
        return isinstance(self._modules[name], nn.Linear)

    def _layer(self, name: str, run: _Run, tensor: Tensor | None, leaves: int) -> Layer:
        assert tensor is not None
        return Layer(
            name=name,
            module=name,
            type=type(self._modules[name]).__name__,
            shape=tuple(tensor.shape[1:]),
            depth=leaves / max(1, self._leaves),
            macs=run.macs,
        )


@dataclass(frozen=True)
class _Run:
    """A module's run: its output and first input, the leaves run before and after, the cost."""

    output: Tensor | None
    version: int
    given: Tensor | None
    before: int
    after: int
    macs: int


def _macs(rehearsal: Rehearsal) -> int:
    return rehearsal.macs // _PROBE_BATCH


def _linear_macs(run: _Run) -> int:
    assert run.given is not None and run.output is not None
    return run.given.numel() * run.output.shape[-1] // _PROBE_BATCH


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


def _batched(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dim() > 1 and len(tensor) == _PROBE_BATCH


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module then has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
