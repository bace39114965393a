"""A network's layers: what they are called, their shapes, how deep they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from raykd.architecture.axes import Axes, AxisTracker
from raykd.architecture.layouts import Layout, layout_of
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
        name: the module's dotted name, or an alias.
        module: the dotted name of the module to tap.
        type: the module's class.
        shape: the shape that losses read, without the batch: (C, H, W), (tokens, D) or (D,).  Four
            axes or more where it is not known which of them holds the channels.
        depth: the share of the network's leaf modules that have run, 0 to 1.
        stage: the alias it bears (`stage1`, ..., `embedding`), or empty.
        side: whether the module's output or its first input is meant.
        macs: multiply-accumulates per sample that were spent until here.
        layout: how the module's tensor is brought to `shape`; None where it has that shape.
        overwritten: whether a later module writes over the tensor in place.
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
        """The shape of the module's own tensor, without the batch."""
        return self.shape if self.layout is None else self.layout.raw

    @property
    def shape_text(self) -> str:
        """The shape for users, such as "192x7x7" or "7x7x192 channels last"."""
        raw = "x".join(map(str, self.raw_shape))
        if self.layout is None:
            return raw
        read = "x".join(map(str, self.shape))
        moved = self.layout.name.startswith("channels") or not self.layout.is_clear
        return f"{raw} {self.layout.name}" + ("" if moved else f", read as {read}")

    def arranged(self, tensor: Tensor) -> Tensor:
        """The module's tensor with the axes of `shape`."""
        return tensor if self.layout is None else self.layout.arranged(tensor)

    def restored(self, tensor: Tensor) -> Tensor:
        """A tensor with the axes of `shape`, with those of the module's own."""
        return tensor if self.layout is None else self.layout.restored(tensor)


class Layers(tuple[Layer, ...]):
    """A network's layers.

    Attributes:
        unreadable: modules that are no layers -> the reason.
    """

    unreadable: Mapping[str, str]

    def __new__(cls, layers: Iterable[Layer] = (), unreadable: Mapping[str, str] | None = None):
        made = super().__new__(cls, layers)
        made.unreadable = unreadable or {}
        return made


def discover(model: nn.Module, task: Task) -> Layers:
    """Every layer of `model`, in the order in which the outputs are ready.

    One rehearsed forward in eval mode on the model's own device: convolutions and matrix products
    are not computed.  Parameters, batch-norm statistics and training modes stay as they are.

    A module that runs several times appears once, as of its last run.  Of a module that returns
    several tensors the first is taken.  Modules that did not run, and those that return no tensor
    with a batch axis, are in `Layers.unreadable`.  `stages.py` says how the stages are found; the
    classifier's input comes as a layer of its own, `embedding`.
    """
    return survey(model, task)[0]


def survey(model: nn.Module, task: Task) -> tuple[Layers, int]:
    """The layers, as `discover` finds them, and the multiply-accumulates of a whole forward."""
    axes = AxisTracker()
    probe = _Probe(model, axes)
    inputs = blank_inputs(task, _PROBE_BATCH, _device(model))
    axes.begin(inputs)
    rehearsal = Rehearsal(axes)
    with (
        evaluating(model),
        torch.no_grad(),
        without_fused_attention(),
        rehearsal,
        probe.watching(rehearsal),
    ):
        output = first_tensor(model(inputs))
    layers = probe.layers()
    fixed = [layer for layer in layers if not layer.overwritten]
    ends = stage_ends(fixed, tuple(output.shape[1:]) if output is not None else ())
    stages = {module: f"stage{number}" for number, module in enumerate(ends, start=1)}
    named = [replace(layer, stage=stages.get(layer.module, "")) for layer in layers]
    found = Layers((*named, *probe.embedding(_width(output))), probe.unreadable())
    return found, _macs(rehearsal)


def stage_aliases(layers: Iterable[Layer]) -> dict[str, Layer]:
    """The layers that bear an alias, by alias: `stage1`, `stage2`, ..., then `embedding`."""
    return {layer.stage: replace(layer, name=layer.stage) for layer in layers if layer.stage}


def resolve(layers: Sequence[Layer], name: str) -> Layer:
    """The layer called `name`, an alias or a dotted module name (an alias goes first).

    The layer that comes back bears the name asked for, so that a tap answers to it.

    Raises:
        ValueError: there is no such layer, or the module's output cannot be read; says why.
    """
    aliases = stage_aliases(layers)
    known = {layer.name: layer for layer in layers} | aliases
    if name in known:
        return known[name]
    reason = layers.unreadable.get(name) if isinstance(layers, Layers) else None
    if reason:
        raise ValueError(f"module {name!r} cannot be read as a layer: {reason}")
    raise ValueError(unknown_layer(name, known, aliases))


def blank_inputs(task: Task, batch: int, device: torch.device) -> Tensor | dict[str, Tensor]:
    """(batch, *input_shape) float32 zeros; for texts, a text of the data as often.

    Some networks of texts look for the tokens that a tokenizer always adds, so a made-up text does
    not do.  Where no text is at hand, it is one token throughout.
    """
    if task.text is None:
        return torch.zeros(batch, *task.input_shape, device=device)
    sample = dict(task.text.sample)
    if any(len(row) != task.input_shape[0] for row in sample.values()):
        sample = {}
    made = _one_token(task, batch, device)
    real = {key: torch.tensor([row] * batch, device=device) for key, row in sample.items()}
    return {key: real.get(key, made[key]) for key in made}


def _one_token(task: Task, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Texts of one token throughout."""
    assert task.text is not None
    held = {"input_ids": int(task.text.padding == 0), "attention_mask": 1}
    shape = (batch, *task.input_shape)
    return {key: torch.full(shape, held.get(key, 0), device=device) for key in task.text.inputs}


def random_inputs(task: Task, batch: int, device: torch.device) -> Tensor | dict[str, Tensor]:
    """Samples of the task's shape drawn at random, uniform from 0 to 1; for texts, of tokens.

    Where the data's last token of a text is known, each text ends in it and has it nowhere else:
    BART and its like classify by that token and need the same number of them in each text.
    """
    if task.text is None:
        return torch.rand(batch, *task.input_shape, device=device)
    blank = _one_token(task, batch, device)
    tokens = torch.randint(task.text.vocabulary, (batch, *task.input_shape), device=device)
    last = task.text.last
    if last is not None:
        other = next(n for n in range(3) if n not in (last, task.text.padding))
        tokens = tokens.where(tokens != last, other)
        tokens[:, -1] = last
    return {**blank, "input_ids": tokens}


class _Probe:
    """Records the output of each module in one forward."""

    def __init__(self, model: nn.Module, axes: AxisTracker) -> None:
        self._axes = axes
        self._model = model
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
            self._runs[name] = _Run(
                output=tensor,
                version=version(tensor),
                given=given,
                before=before,
                after=self._leaves,
                macs=macs,
                axes=(self._axes_of(tensor), self._axes_of(given)),
                returned=type(out).__name__,
            )

        return hook

    def _axes_of(self, tensor: Tensor | None) -> Axes:
        return () if tensor is None else self._axes.of(tensor)

    def layers(self) -> list[Layer]:
        found = []
        for name, run in self._runs.items():
            layer = self._layer(name, run, "output")
            if layer is not None:
                found.append(replace(layer, overwritten=version(run.output) != run.version))
        return found

    def unreadable(self) -> dict[str, str]:
        """The modules that are no layers, with the reason."""
        return {
            name: _why_unreadable(module, self._runs.get(name), self._is_scripted(name))
            for name, module in self._modules.items()
            if name not in self._runs or self._layer(name, self._runs[name], "output") is None
        }

    def _is_scripted(self, name: str) -> bool:
        """Whether it lies inside a scripted or traced module, which calls no hooks."""
        parents = accumulate(name.split("."), lambda parent, child: f"{parent}.{child}")
        above = [*parents][:-1]
        whole = [self._model, *(self._modules[one] for one in above)]
        return any(isinstance(one, torch.jit.ScriptModule) for one in whole)

    def embedding(self, classes: int) -> list[Layer]:
        """The input of the last linear layer, of those that give one value a class if any does."""
        linear = [name for name in self._runs if self._is_linear(name)]
        whole = [name for name in linear if _width(self._runs[name].output) == classes] or linear
        layer = self._layer(whole[-1], self._runs[whole[-1]], "input") if whole else None
        if layer is None:
            return []
        run = self._runs[whole[-1]]
        macs = run.macs - _linear_macs(run)
        return [replace(layer, name=EMBEDDING, stage=EMBEDDING, side="input", macs=macs)]

    def _is_linear(self, name: str) -> bool:
        return isinstance(self._modules[name], nn.Linear)

    def _layer(self, name: str, run: _Run, side: Literal["output", "input"]) -> Layer | None:
        """The module's output or input as a layer; None where it has no batch axis."""
        tensor = run.output if side == "output" else run.given
        if tensor is None:
            return None
        axes = run.axes[0 if side == "output" else 1]
        batched, layout = layout_of(axes, tensor.shape, _PROBE_BATCH)
        if not batched:
            return None
        return Layer(
            name=name,
            module=name,
            type=type(self._modules[name]).__name__,
            shape=tuple(tensor.shape[1:]) if layout is None else layout.shape,
            depth=(run.after if side == "output" else run.before) / max(1, self._leaves),
            macs=run.macs,
            layout=layout,
        )


@dataclass(frozen=True)
class _Run:
    """A module's run.

    Attributes:
        output, given: the first tensor that it returned, and the first that it took.
        version: how often the output had been written in place.
        before, after: the leaves that had run.
        macs: spent until then, over the batch.
        axes: of the output and of the input.
        returned: the type of what it returned.
    """

    output: Tensor | None
    version: int
    given: Tensor | None
    before: int
    after: int
    macs: int
    axes: tuple[Axes, Axes]
    returned: str


def _why_unreadable(module: nn.Module, run: _Run | None, scripted: bool) -> str:
    if run is None and scripted:
        return (
            "it is part of a scripted or traced module, whose parts call no hooks; name the whole "
            "scripted module, or build the model without scripting"
        )
    if run is None and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList):
        return f"a {type(module).__name__} only holds other modules; name one of these"
    if run is None:
        return (
            "the model does not call it in evaluation (it may run in training only, or its "
            "weights are used without calling it); name a module that runs"
        )
    if run.output is None:
        return f"it returns {run.returned}, in which there is no tensor; name a module inside it"
    shape = tuple(run.output.shape)
    return (
        f"its output, {shape} for {_PROBE_BATCH} samples, has no axis for the samples (it is a "
        "weight or holds windows of all samples); name a module further out"
    )


def _macs(rehearsal: Rehearsal) -> int:
    return rehearsal.macs // _PROBE_BATCH


def _linear_macs(run: _Run) -> int:
    assert run.given is not None and run.output is not None
    return run.given.numel() * run.output.shape[-1] // _PROBE_BATCH


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


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
