"""Students with fewer blocks than the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel
from raykd.models.introspection.flops import FlopCounter, without_fused_attention
from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import blank_inputs, evaluating
from raykd.registry import option

Rule = Literal["evenly", "first", "last", "magnitude"]


@option
class LayerPruning(CompressedModel):
    """The teacher with some of its repeated blocks removed.

    Blocks are consecutive numbered children of one type (residual blocks, transformer layers), or
    else the convolutions or linear layers of a plain sequence, each with the norm and activation
    after it.  Only blocks that keep the shape can be removed: a stage's first block, which changes
    the shape, is kept and counted.  Each run of blocks keeps the fraction `keep`, at least one
    (`keep: 0.5` is DistilBERT's initialization, Sanh 2019, arXiv:1910.01108); rule `magnitude`
    keeps those with the largest weights (L2 norm), as Li 2017 (arXiv:1608.08710) does for filters.
    """

    paper = "Sanh 2019, arXiv:1910.01108"

    name: Literal["layer_pruning"] = "layer_pruning"
    keep: Annotated[
        float,
        Field(gt=0, le=1, description="Fraction of the blocks to keep in each run of equal blocks"),
    ] = 0.5
    rule: Annotated[Rule, Field(description="Rule that selects the blocks to keep")] = "evenly"

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        runs = find_runs(network, signature)
        if not runs:
            raise ValueError(
                f"{self.base_model.name} has no blocks to remove: no block follows another of its "
                "type and keeps the shape; choose a deeper model, or another compression, such as "
                "`channel_pruning`"
            )
        for run in runs:
            run.keep(_select(run.blocks, run.count(self.keep), self.rule, with_weights))
        return network


@dataclass(frozen=True)
class Block:
    """Consecutive children of a container that are kept or removed together.

    Attributes:
        names: names of the children.
        modules: the children.
        is_fixed: whether the shapes of input and output differ, so that it cannot be removed.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    is_fixed: bool

    @property
    def kind(self) -> tuple[type[nn.Module], ...]:
        """Types of the modules."""
        return tuple(map(type, self.modules))

    @property
    def signature(self) -> tuple[object, ...]:
        """Key that interchangeable blocks share."""
        tensors = (module.state_dict().items() for module in self.modules)
        shapes = tuple((name, tuple(t.shape)) for items in tensors for name, t in items)
        return (self.kind, self.is_fixed, shapes)

    @property
    def is_plain(self) -> bool:
        """Return whether it is a bare sequence: others of that type may do anything."""
        return self.kind == (nn.Sequential,)

    @property
    def is_stage(self) -> bool:
        """Return whether it is a sequence of modules that contain others: a stage, not a block."""
        return self.is_plain and any(
            True for part in self.modules[0].children() for _ in part.children()
        )

    @property
    def norm(self) -> float:
        """L2 norm of all parameters."""
        parts = [p.detach() for module in self.modules for p in module.parameters()]
        return float(sum(part.double().square().sum() for part in parts)) ** 0.5


@dataclass(frozen=True)
class Run:
    """Consecutive interchangeable blocks of a container that can be removed.

    Attributes:
        path: dotted name of the container.
        container: the sequence.
        blocks: the removable blocks.
        has_leader: whether a block of the same type that must stay comes right before them.
    """

    path: str
    container: nn.Module
    blocks: tuple[Block, ...]
    has_leader: bool

    def count(self, fraction: float) -> int:
        """Return how many of the blocks to keep, of a fraction that includes the leader."""
        total = max(1, int(fraction * (len(self.blocks) + self.has_leader) + 0.5))
        return total - self.has_leader

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these blocks under the names of the first ones; later modules keep their names.

        The remaining names do not depend on which blocks are kept.  The items of a list, which are
        accessed by index, are renumbered.
        """
        for place, number in enumerate(indices):
            for name, module in zip(
                self.blocks[place].names, self.blocks[number].modules, strict=True
            ):
                self.container.add_module(name, module)
        for block in self.blocks[len(indices) :]:
            for name in block.names:
                delattr(self.container, name)
        if isinstance(self.container, nn.ModuleList):
            modules = list(self.container.children())
            del self.container[:]
            self.container.extend(modules)


def find_runs(network: nn.Module, signature: Signature) -> list[Run]:
    """Find the runs of removable blocks, outermost first; none lies inside another."""
    shapes = _record_shapes(network, signature)
    runs: list[Run] = []
    containers = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
    ]
    containers.sort(key=lambda item: item[0].count(".") + bool(item[0]))
    kinds: set[type] = set()
    inside: set[nn.Module] = set()
    # Numbered children that contain other modules.
    for path, container in containers:
        if container in inside:
            continue
        new = list(_runs(path, container, list(_child_blocks(path, container, shapes))))
        runs += new
        kinds |= {type(block.modules[0]) for run in new for block in run.blocks}
        inside |= {
            inner
            for module in network.modules()
            if type(module) in kinds
            for inner in module.modules()
        }
    # Without any: the layers of plain sequences.
    if not runs:
        for path, container in containers:
            if isinstance(container, nn.Sequential):
                runs += _runs(path, container, list(_layer_blocks(path, container, shapes)))
    return runs


def _child_blocks(path: str, container: nn.Module, shapes: Shapes) -> Iterator[Block]:
    """Yield the children of a container; numbered ones that contain others may be removable."""
    for name, module in container.named_children():
        if name.isdigit() and any(True for _ in module.children()):
            keeps = _keeps_shape(shapes, [_joined(path, name)])
            yield Block((name,), (module,), is_fixed=not keeps)
        else:
            yield Block((name,), (module,), is_fixed=True)


def _layer_blocks(path: str, container: nn.Sequential, shapes: Shapes) -> Iterator[Block]:
    """Yield a sequence's convolutions and linear layers, with the modules after that keep shape."""
    children = list(container.named_children())
    while children:
        group = [children.pop(0)]
        if isinstance(group[0][1], nn.Conv2d | nn.Linear):
            while children and _belongs_to_previous(path, children[0], shapes):
                group.append(children.pop(0))
        names, modules = zip(*group, strict=True)
        is_layer = isinstance(modules[0], nn.Conv2d | nn.Linear) and len(modules) > 1
        keeps = is_layer and _keeps_shape(shapes, [_joined(path, name) for name in names])
        yield Block(names, modules, is_fixed=not keeps)


def _belongs_to_previous(path: str, child: tuple[str, nn.Module], shapes: Shapes) -> bool:
    """Return whether a child belongs to the layer before it, such as a norm or an activation."""
    name, module = child
    is_leaf = not any(True for _ in module.children())
    keeps = _keeps_shape(shapes, [_joined(path, name)])
    return is_leaf and keeps and not isinstance(module, nn.Conv2d | nn.Linear)


def _runs(path: str, container: nn.Module, blocks: Sequence[Block]) -> Iterator[Run]:
    """Yield runs of two or more blocks, or of one right after a fixed one of its type."""
    previous: Block | None = None
    for _, equal in groupby(blocks, key=lambda block: block.signature):
        run = tuple(equal)
        first = run[0]
        has_leader = previous is not None and previous.is_fixed and previous.kind == first.kind
        is_single = len(run) == 1 and (not has_leader or first.is_plain)
        if not first.is_fixed and not is_single and not first.is_stage:
            yield Run(path, container, run, has_leader)
        previous = run[-1]


def _select(blocks: Sequence[Block], keep: int, rule: Rule, with_weights: bool) -> list[int]:
    """Return the indices of the blocks to keep, in order."""
    count = len(blocks)
    if rule == "first" or (rule == "magnitude" and not with_weights):
        return list(range(keep))
    if rule == "last":
        return list(range(count - keep, count))
    if rule == "magnitude":
        norms = [block.norm for block in blocks]
        return sorted(sorted(range(count), key=lambda index: -norms[index])[:keep])
    if keep == 1:
        return [0]
    return [round(number * (count - 1) / (keep - 1)) for number in range(keep)]


Shape = tuple[int, ...] | None

Shapes = dict[str, list[tuple[Shape, Shape]]]
"""Input and output shapes of each module, by dotted name, one pair per call."""


def _record_shapes(network: nn.Module, signature: Signature) -> Shapes:
    """Record the shapes of all modules in one forward without arithmetic."""
    shapes: Shapes = {}

    def hook_for(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            inputs, outputs = first_tensor((*args, *kwargs.values())), first_tensor(output)
            shapes.setdefault(path, []).append((_shape(inputs), _shape(outputs)))

        return record

    handles = [
        module.register_forward_hook(hook_for(path), with_kwargs=True)
        for path, module in network.named_modules()
    ]
    try:
        with evaluating(network), torch.no_grad(), without_fused_attention(), FlopCounter():
            network(blank_inputs(signature, 2, torch.device("cpu")))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _shape(tensor: Tensor | None) -> Shape:
    return None if tensor is None else tuple(tensor.shape)


def _keeps_shape(shapes: Shapes, paths: Sequence[str]) -> bool:
    """Return whether modules that each run once, in order, output the shape of their input."""
    if any(len(shapes.get(path, ())) != 1 for path in paths):
        return False
    before, after = shapes[paths[0]][0][0], shapes[paths[-1]][0][1]
    return before is not None and before == after


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
