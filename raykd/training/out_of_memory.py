"""Batches in parts, for a GPU or host whose memory does not suffice for a whole batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from raykd.data import Batch
from raykd.data.batch import Inputs
from raykd.schemes import StepOutput
from raykd.study.config import Study

LEAST = 2
"""Minimum number of samples in a part; batch norm fails on one."""

Part = tuple[StepOutput, Tensor]
"""Output of a part of a batch, and the targets of its samples."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the GPU or of the host did not suffice."""
    host = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's text
    return host or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def may_split(study: Study, workers: int) -> bool:
    """Return whether the batches of a study may be split.

    Losses that relate samples to each other need the whole batch.  Several workers would have to
    split the same batch together.
    """
    losses = [term.loss for term in study.knowledge if term.loss is not None]
    relates = any(loss.knowledge == "relation" for loss in losses)
    return study.cluster.split_batches and workers == 1 and not relates


class SplitStep:
    """Forward and backward pass of a batch, in as many parts as the memory needs.

    The gradients of the parts add up to that of the mean over the batch.  Batch norm uses the
    statistics of each part.  Once a batch was split, the next ones are split alike.

    Attributes:
        parts: number of parts of a batch.
    """

    def __init__(self) -> None:
        self.parts = 1

    def run(
        self,
        batch: Batch,
        add_gradient: Callable[[Batch, float], StepOutput],
        clear_gradients: Callable[[], None],
    ) -> list[Part]:
        """Set the gradient of every parameter and return the outputs of the parts.

        Args:
            batch: to split.
            add_gradient: adds the gradient of a part, with its share of the batch.
            clear_gradients: removes the gradients of the step before.

        Raises:
            Exception: out of memory, even with the smallest parts.
        """
        while True:
            clear_gradients()
            try:
                return [
                    (add_gradient(part, len(part) / len(batch)), part.targets)
                    for part in split(batch, self.parts)
                ]
            except Exception as error:
                if not is_out_of_memory(error) or len(batch) < 2 * self.parts * LEAST:
                    raise
            # Only now: while it is handled, the exception holds the tensors of the failed step
            clear_gradients()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.parts *= 2


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split a batch into parts of nearly the same size, with at least `LEAST` samples."""
    parts = max(1, min(parts, len(batch) // LEAST))
    bounds = [len(batch) * number // parts for number in range(parts + 1)]
    for first, last in itertools.pairwise(bounds):
        rows = slice(first, last)

        def take(inputs: Inputs, rows: slice = rows) -> Inputs:
            if isinstance(inputs, Mapping):
                return {name: tensor[rows] for name, tensor in inputs.items()}
            return inputs[rows]

        yield dataclasses.replace(
            batch.map(take), targets=batch.targets[rows], index=batch.index[rows]
        )
