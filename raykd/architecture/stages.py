"""Where a network's stages end, found from the shapes of its layers' outputs.

The aliases `stage1`, `stage2` ... let a pairing outlive a change of depth or width.  Three rules,
the first that finds anything holds:

1. The network says it: its own children are called `stage1`, `stage2`, ...  raykd's families do.
2. Pictures that shrink: a stage is a run of layers of one picture size.  Its end is the last
   module of that size, at the outermost level of nesting at which (nearly) all runs have an end.
3. Repeated blocks (perceptrons, transformers): each block ends a stage; of more than
   `BLOCK_STAGES` blocks, those at equal distances do, so that the aliases outlive the depth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from math import prod
from typing import Protocol

BLOCK_STAGES = 4
"""At most so many stages are made of repeated blocks."""

_NO_STAGE = re.compile(r"Pool|Flatten|Identity|Dropout|DropPath|Softmax")
"""Modules of such types end no stage."""


class Output(Protocol):
    """A module's output."""

    @property
    def module(self) -> str:
        """Its dotted name."""
        ...

    @property
    def type(self) -> str:
        """Its class's name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its output, without the batch."""
        ...


def stage_ends(outputs: Sequence[Output], logits: tuple[int, ...]) -> tuple[str, ...]:
    """The dotted names of the modules that end stage 1, 2, ...; () where there are none.

    Args:
        outputs: the modules' outputs, in the order in which they were ready.
        logits: the shape of the network's own output; a module of that shape ends no stage.
    """
    fit = [
        output
        for output in outputs
        if output.module
        and _without_ones(output.shape) != _without_ones(logits)
        and not _NO_STAGE.search(output.type)
    ]
    return _declared(outputs) or _by_picture_size(fit) or _by_repetition(fit)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _declared(outputs: Sequence[Output]) -> tuple[str, ...]:
    names = {output.module for output in outputs}
    count = 0
    while f"stage{count + 1}" in names:
        count += 1
    return tuple(f"stage{number}" for number in range(1, count + 1))


def _by_picture_size(outputs: Sequence[Output]) -> tuple[str, ...]:
    runs = _runs([output for output in outputs if len(output.shape) == 3])
    if len(runs) < 2:
        return ()
    parents = _parents(outputs)
    ends = _ends([[output for output in run if output.module in parents] for run in runs])
    return ends if len(ends) >= 2 else _ends(runs)


def _runs(pictures: Sequence[Output]) -> list[list[Output]]:
    """Runs of one picture size; detours (a squeeze to 1x1 that comes back) are left out."""
    largest, trunk = 0, []
    for output in reversed(pictures):
        area = prod(_size(output))
        if area >= largest:
            largest = area
            trunk.append(output)
    trunk.reverse()
    return [list(run) for _, run in groupby(trunk, key=_size)]


def _ends(runs: Sequence[Sequence[Output]]) -> tuple[str, ...]:
    """Each run's last module at the outermost level of nesting that leaves out one run at most.

    A deeper level may have ends in more runs only because a block's first layers still see the
    size of the stage before.
    """
    levels = [{_level(output) for output in run} for run in runs]
    covered = {
        level: sum(level in found for found in levels) for level in sorted(set().union(*levels))
    }
    if not covered:
        return ()
    enough = min(max(covered.values()), max(2, max(covered.values()) - 1))
    best = next(level for level, count in covered.items() if count >= enough)
    at_best = ([output.module for output in run if _level(output) == best] for run in runs)
    return tuple(names[-1] for names in at_best if names)


def _by_repetition(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Ends of blocks at equal distances; the blocks are the numbered siblings (`layer.0`,
    `layer.1` ...) of one type that hold most of the network, or else those that are the most."""
    siblings: dict[tuple[str, str], list[str]] = {}
    for output in outputs:
        parent = output.module.rpartition(".")[0]
        siblings.setdefault((parent, output.type), []).append(output.module)
    if not siblings:
        return ()
    held = Counter(
        parent for output in outputs for parent in accumulate(output.module.split("."), _joined)
    )
    numbered = [names for names in siblings.values() if names[0][-1].isdigit()]
    whole = [
        names for names in numbered if len(names) > 1 and _share(names, held) > len(outputs) / 2
    ]
    blocks = max(
        whole or numbered or siblings.values(),
        key=lambda names: (
            _share(names, held) if numbered else 0,
            len(names),
            -names[0].count("."),
        ),
    )
    if len(blocks) == 1:  # the sequence that holds the one block ends where it does
        parent = blocks[0].rpartition(".")[0]
        blocks = [output.module for output in outputs if output.module == parent] or blocks
    stages = min(len(blocks), BLOCK_STAGES)
    return tuple(blocks[-(-number * len(blocks) // stages) - 1] for number in range(1, stages + 1))


def _share(blocks: Sequence[str], held: Mapping[str, int]) -> int:
    """How many of the outputs are those of the blocks and of what they hold."""
    return sum(held[block] for block in blocks)


def _joined(parent: str, child: str) -> str:
    return f"{parent}.{child}"


def _size(picture: Output) -> tuple[int, ...]:
    """The height and width of (C, H, W)."""
    return picture.shape[1:]


def _level(output: Output) -> int:
    return output.module.count(".")


def _parents(outputs: Iterable[Output]) -> set[str]:
    return {output.module.rpartition(".")[0] for output in outputs}
