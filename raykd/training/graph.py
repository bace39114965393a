"""A step's forward and backward as one CUDA graph."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raykd.data import Batch, Inputs
from raykd.schemes import StepOutput

log = logging.getLogger("raykd")

Work = Callable[[Batch], StepOutput]
"""Gives every parameter its gradient, as of this batch alone; what comes back holds no graph."""

Shapes = tuple[object, ...]


class Replay:
    """Does the work of a step, from an epoch's third step on by replaying its second.

    The processor needs longer to launch the some hundred kernels of a small network's step than a
    GPU to run them; of a replay it launches all at once.  An epoch's first step runs as it is
    written, and with it all that is done once an epoch; the second is recorded.  Batches of
    another shape (an epoch's last) run as written.  So does everything where recording fails
    because the work waits for the device.

    Args:
        parameters: those that the work gives gradients.
        device: a CUDA device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._parameters = parameters
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: tuple[Batch, StepOutput, list[Tensor | None]] | None = None
        self._warm = self._refused = False

    def begin_epoch(self) -> None:
        """What was recorded no longer holds: weights of terms, teachers' tables may be others."""
        self._recorded, self._warm = None, False

    def __call__(self, work: Work, batch: Batch) -> StepOutput:
        if self._recorded is None and self._warm and not self._refused:
            self._record(work, batch)
        if self._recorded is None or _shapes(self._recorded[0]) != _shapes(batch):
            self._warm = True
            return work(batch)
        return self._replay(batch)

    def _replay(self, batch: Batch) -> StepOutput:
        assert self._graph is not None and self._recorded is not None
        held, output, gradients = self._recorded
        for place, tensor in zip(_tensors(held), _tensors(batch), strict=True):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return output

    def _record(self, work: Work, batch: Batch) -> None:
        held = _map(batch, torch.clone)
        for parameter in self._parameters:
            parameter.grad = None
        graph, pool = torch.cuda.CUDAGraph(), self._graph.pool() if self._graph else None
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    output = work(held)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            log.warning("the steps cannot be recorded and run as written: %s", error)
            self._refused = True
            return
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graph = graph
        self._recorded = held, output, [parameter.grad for parameter in self._parameters]


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor changed."""

    def inputs(given: Inputs) -> Inputs:
        if isinstance(given, Tensor):
            return change(given)
        return {key: change(value) for key, value in given.items()}

    targets, index = change(batch.targets), change(batch.index)
    return dataclasses.replace(batch.map(inputs), targets=targets, index=index)


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    _map(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _shapes(batch: Batch) -> Shapes:
    return tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in _tensors(batch))
