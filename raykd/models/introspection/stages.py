"""Find the ends of a network's stages from the output shapes of its layers.

The aliases `stage1`, `stage2` ... keep a pairing valid when depth or width changes.  The first of
three rules that finds stages applies:

1. Names: the network's children are called `stage1`, `stage2`, ..., as in raykd's families.
2. Feature map sizes: a stage is a run of layers with maps of one size.  It ends with the last
   module of that size, at the outermost nesting level at which (nearly) all runs have an end.
3. Repeated blocks (MLPs, transformers): each block ends a stage; of more than `BLOCK_STAGES`
   blocks, equally spaced ones do, so that the aliases do not depend on the depth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from math import prod
from typing import Protocol

BLOCK_STAGES = 4
"""Maximum number of stages of repeated blocks."""

_NO_STAGE = re.compile(r"Pool|Flatten|Identity|Dropout|DropPath|Softmax")
"""Module types that do not end a stage."""


class Output(Protocol):
    """Output of a module."""

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        ...

    @property
    def type(self) -> str:
        """Class name of the module."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output, without the batch."""
        ...


def stage_ends(outputs: Sequence[Output], logits: tuple[int, ...]) -> tuple[str, ...]:
    """Return the dotted names of the modules that end stage 1, 2, ...; may be empty.

    Args:
        outputs: outputs of the modules, in order of completion.
        logits: output shape of the network; modules of that shape do not end a stage.
    """
    candidates = [
        output
        for output in outputs
        if output.module
        and _without_ones(output.shape) != _without_ones(logits)
        and not _NO_STAGE.search(output.type)
    ]
    return _declared(outputs) or _by_map_size(candidates) or _by_repetition(candidates)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _declared(outputs: Sequence[Output]) -> tuple[str, ...]:
    names = {output.module for output in outputs}
    count = 0
    while f"stage{count + 1}" in names:
        count += 1
    return tuple(f"stage{number}" for number in range(1, count + 1))


def _by_map_size(outputs: Sequence[Output]) -> tuple[str, ...]:
    runs = _runs([output for output in outputs if len(output.shape) == 3])
    if len(runs) < 2:
        return ()
    parents = _parents(outputs)
    ends = _ends([[output for output in run if output.module in parents] for run in runs])
    return ends if len(ends) >= 2 else _ends(runs)


def _runs(maps: Sequence[Output]) -> list[list[Output]]:
    """Group feature maps by size, without detours (such as a squeeze to 1x1)."""
    largest, main_path = 0, []
    for output in reversed(maps):
        area = prod(_size(output))
        if area >= largest:
            largest = area
            main_path.append(output)
    main_path.reverse()
    return [list(run) for _, run in groupby(main_path, key=_size)]


def _ends(runs: Sequence[Sequence[Output]]) -> tuple[str, ...]:
    """Return the last module of each run, at the outermost level that misses at most one run.

    A deeper level may have ends in more runs only because the first layers of a block have the
    size of the previous stage.
    """
    levels = [{_level(output) for output in run} for run in runs]
    counts = {
        level: sum(level in present for present in levels) for level in sorted(set().union(*levels))
    }
    if not counts:
        return ()
    most = max(counts.values())
    required = min(most, max(2, most - 1))
    best = next(level for level, count in counts.items() if count >= required)
    at_best = ([output.module for output in run if _level(output) == best] for run in runs)
    return tuple(names[-1] for names in at_best if names)


def _by_repetition(outputs: Sequence[Output]) -> tuple[str, ...]:
    """Return equally spaced blocks.

    Blocks are the numbered siblings (`layer.0`, `layer.1` ...) of one type that contain most of
    the network, or else the largest group of siblings.
    """
    siblings: dict[tuple[str, str], list[str]] = {}
    for output in outputs:
        parent = output.module.rpartition(".")[0]
        siblings.setdefault((parent, output.type), []).append(output.module)
    if not siblings:
        return ()
    sizes = Counter(
        parent for output in outputs for parent in accumulate(output.module.split("."), _joined)
    )
    numbered = [names for names in siblings.values() if names[0][-1].isdigit()]
    dominant = [
        names for names in numbered if len(names) > 1 and _total(names, sizes) > len(outputs) / 2
    ]
    blocks = max(
        dominant or numbered or siblings.values(),
        key=lambda names: (
            _total(names, sizes) if numbered else 0,
            len(names),
            -names[0].count("."),
        ),
    )
    if len(blocks) == 1:  # use the sequence that contains the single block
        parent = blocks[0].rpartition(".")[0]
        blocks = [output.module for output in outputs if output.module == parent] or blocks
    stages = min(len(blocks), BLOCK_STAGES)
    return tuple(blocks[-(-number * len(blocks) // stages) - 1] for number in range(1, stages + 1))


def _total(blocks: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Count the outputs of the blocks and of the modules inside them."""
    return sum(sizes[block] for block in blocks)


def _joined(parent: str, child: str) -> str:
    return f"{parent}.{child}"


def _size(output: Output) -> tuple[int, ...]:
    """Return the height and width of (C, H, W)."""
    return output.shape[1:]


def _level(output: Output) -> int:
    return output.module.count(".")


def _parents(outputs: Iterable[Output]) -> set[str]:
    return {output.module.rpartition(".")[0] for output in outputs}
