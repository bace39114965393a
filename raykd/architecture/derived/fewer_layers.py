"""Students with some of the teacher's blocks left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture.derived.derived import Derived
from raykd.architecture.layers import blank_inputs, evaluating
from raykd.architecture.macs import Rehearsal, without_fused_attention
from raykd.architecture.model import Task
from raykd.architecture.taps import first_tensor
from raykd.option import option

Rule = Literal["evenly", "first", "last", "magnitude"]


@option
class LayerPruning(Derived):
    """The teacher with some of its repeated blocks removed.

    Blocks are the numbered parts of one kind that follow one another (residual blocks, transformer
    layers), or else the convolutions or linear layers of a plain sequence, each with the norm and
    activation after it.  Only those whose output has their input's shape can go: the first block of
    a stage that changes it stays, and counts.  Of each run of blocks a share of `keep` stays, one
    at least (DistilBERT's initialisation, Sanh 2019, arXiv:1910.01108, is `keep: 0.5`); `magnitude`
    keeps those of the largest weights (L2 norm), as Li 2017 (arXiv:1608.08710) does filters.
    """

    paper = "Sanh 2019, arXiv:1910.01108"

    name: Literal["layer_pruning"] = "layer_pruning"
    keep: Annotated[
        float,
        Field(gt=0, le=1, description="Fraction of the blocks to keep in each run of equal blocks"),
    ] = 0.5
    rule: Annotated[Rule, Field(description="Rule that selects the blocks to keep")] = "evenly"

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        runs = runs_of(network, task)
        if not runs:
            raise ValueError(
                f"{self.source.name} has no blocks that could be left out: none follows another of "
                "its kind and gives the shape it takes; take a deeper one, or derive the student "
                "in another way, such as `channel_pruning`"
            )
        for run in runs:
            stay = run.kept(self.keep)
            run.reduce(_chosen(run.blocks, stay, self.rule, weighed))
        return network


@dataclass(frozen=True)
class Block:
    """Neighbouring children of a container that come and go together.

    Attributes:
        names: of the children.
        modules: the children themselves.
        stays: whether the output's shape differs from the input's.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    stays: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """Alike in blocks of one make."""
        return tuple(map(type, self.modules))

    @property
    def signature(self) -> tuple[Any, ...]:
        """Alike in blocks that can take one another's place."""
        tensors = (module.state_dict().items() for module in self.modules)
        shapes = tuple((name, tuple(t.shape)) for found in tensors for name, t in found)
        return (self.kind, self.stays, shapes)

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere sequence: others after one of their kind may be anything."""
        return self.kind == (nn.Sequential,)

    @property
    def holds_blocks(self) -> bool:
        """Whether it is a sequence of modules that hold others: a stage, and no block."""
        return self.is_plain and any(
            True for part in self.modules[0].children() for _ in part.children()
        )

    @property
    def norm(self) -> float:
        """L2, of all parameters together."""
        parts = [p.detach() for module in self.modules for p in module.parameters()]
        return float(sum(part.double().square().sum() for part in parts)) ** 0.5


@dataclass(frozen=True)
class Run:
    """Blocks alike that follow one another in a container, and can be left out.

    Attributes:
        container: the sequence, by its dotted name, and the module.
        blocks: those that can be left out.
        led: whether one of their kind, which stays, is right before them.
    """

    path: str
    container: nn.Module
    blocks: tuple[Block, ...]
    led: bool

    def kept(self, share: float) -> int:
        """How many of the blocks stay of a share of them all, the leading one included."""
        whole = max(1, int(share * (len(self.blocks) + self.led) + 0.5))
        return whole - self.led

    def reduce(self, stay: Sequence[int]) -> None:
        """Keep these blocks, in the places of the first ones; what follows keeps its name.

        The names that stay do not depend on which blocks do.  Lists, which are asked for their
        n-th item, are numbered anew.
        """
        for place, number in enumerate(stay):
            for name, module in zip(
                self.blocks[place].names, self.blocks[number].modules, strict=True
            ):
                self.container.add_module(name, module)
        for block in self.blocks[len(stay) :]:
            for name in block.names:
                delattr(self.container, name)
        if isinstance(self.container, nn.ModuleList):
            modules = list(self.container.children())
            self.container._modules.clear()
            self.container.extend(modules)


def runs_of(network: nn.Module, task: Task) -> list[Run]:
    """The runs of blocks that can be left out, the outermost first; none lies within another."""
    shapes = _shapes(network, task)
    found: list[Run] = []
    containers = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
    ]
    containers.sort(key=lambda held: held[0].count(".") + bool(held[0]))
    kinds: set[type] = set()
    inside: set[nn.Module] = set()
    for path, module in containers:
        if module in inside:
            continue
        runs = list(_runs(path, module, list(_parts(path, module, shapes))))
        found += runs
        kinds |= {type(block.modules[0]) for run in runs for block in run.blocks}
        inside |= {
            inner for held in network.modules() if type(held) in kinds for inner in held.modules()
        }
    if not found:
        for path, module in containers:
            if isinstance(module, nn.Sequential):
                found += _runs(path, module, list(_layers(path, module, shapes)))
    return found


def _parts(path: str, container: nn.Module, shapes: Shapes) -> Iterator[Block]:
    """A container's numbered children that hold others."""
    for name, module in container.named_children():
        if name.isdigit() and any(True for _ in module.children()):
            yield Block((name,), (module,), stays=not _keeps_shape(shapes, [_joined(path, name)]))
        else:
            yield Block((name,), (module,), stays=True)


def _layers(path: str, container: nn.Sequential, shapes: Shapes) -> Iterator[Block]:
    """A sequence's convolutions and linear layers, each with what follows and keeps its shape."""
    children = list(container.named_children())
    while children:
        taken = [children.pop(0)]
        if isinstance(taken[0][1], nn.Conv2d | nn.Linear):
            while children and _follows(path, children[0], shapes):
                taken.append(children.pop(0))
        names, modules = zip(*taken, strict=True)
        weighs = isinstance(modules[0], nn.Conv2d | nn.Linear) and len(modules) > 1
        keeps = weighs and _keeps_shape(shapes, [_joined(path, name) for name in names])
        yield Block(names, modules, stays=not keeps)


def _follows(path: str, child: tuple[str, nn.Module], shapes: Shapes) -> bool:
    name, module = child
    leaf = not any(True for _ in module.children())
    keeps = _keeps_shape(shapes, [_joined(path, name)])
    return leaf and keeps and not isinstance(module, nn.Conv2d | nn.Linear)


def _runs(path: str, container: nn.Module, blocks: Sequence[Block]) -> Iterator[Run]:
    """Two alike and more; or one right after one of its kind that changes the shape."""
    before: Block | None = None
    for _, alike in groupby(blocks, key=lambda block: block.signature):
        held = tuple(alike)
        led = before is not None and before.stays and before.kind == held[0].kind
        alone = len(held) == 1 and (not led or held[0].is_plain)
        if not held[0].stays and not alone and not held[0].holds_blocks:
            yield Run(path, container, held, led)
        before = held[-1]


def _chosen(blocks: Sequence[Block], stay: int, rule: Rule, weighed: bool) -> list[int]:
    """The numbers of the blocks that stay, in order."""
    count = len(blocks)
    if rule == "first" or (rule == "magnitude" and not weighed):
        return list(range(stay))
    if rule == "last":
        return list(range(count - stay, count))
    if rule == "magnitude":
        norms = [block.norm for block in blocks]
        return sorted(sorted(range(count), key=lambda number: -norms[number])[:stay])
    if stay == 1:
        return [0]
    return [round(number * (count - 1) / (stay - 1)) for number in range(stay)]


Shapes = dict[str, list[tuple[Any, Any]]]
"""For each module by its dotted name, the shapes it took and gave, a pair a run."""


def _shapes(network: nn.Module, task: Task) -> Shapes:
    found: Shapes = {}

    def hook(path: str) -> Any:
        def see(module: nn.Module, args: Any, more: dict[str, Any], output: Any) -> None:
            taken, given = first_tensor((*args, *more.values())), first_tensor(output)
            found.setdefault(path, []).append((_shape(taken), _shape(given)))

        return see

    handles = [
        module.register_forward_hook(hook(path), with_kwargs=True)
        for path, module in network.named_modules()
    ]
    try:
        with evaluating(network), torch.no_grad(), without_fused_attention(), Rehearsal():
            network(blank_inputs(task, 2, torch.device("cpu")))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _keeps_shape(shapes: Shapes, paths: Sequence[str]) -> bool:
    """Whether modules that run once, one after the other, give the shape that they take."""
    if any(len(shapes.get(path, ())) != 1 for path in paths):
        return False
    taken, given = shapes[paths[0]][0][0], shapes[paths[-1]][0][1]
    return taken is not None and taken == given


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
