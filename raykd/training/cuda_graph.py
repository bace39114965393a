"""Forward and backward of a training step as one CUDA graph."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raykd.data import Batch, Inputs
from raykd.losses import Progress
from raykd.schemes import StepOutput

log = logging.getLogger("raykd")

ForwardBackward = Callable[[Batch, Progress], StepOutput]
"""Sets the gradient of every parameter to that of one batch; its output holds no autograd graph."""


class CudaGraphStep:
    """Forward and backward of a step, replayed as one CUDA graph from the third step of an epoch.

    For a small network the CPU needs longer to launch the hundreds of kernels of a step than the
    GPU to run them; a replay launches all of them at once.  The first step of an epoch runs as
    written, and with it all work that is done once per epoch.  The second is recorded.  Batches
    of another shape (the last of an epoch) run as written, and so does every batch if recording
    fails because the step waits for the device.

    A recording is dropped when an epoch ends: weights of terms and cached teacher outputs may be
    others in the next.

    Args:
        parameters: those that get gradients.
        device: a CUDA device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._parameters = parameters
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: tuple[Batch, StepOutput, list[Tensor | None]] | None = None
        self._epoch = -1
        self._failed = False

    def run(self, step: ForwardBackward, batch: Batch, progress: Progress) -> StepOutput:
        """Run or replay `step`, which must depend on the epoch and the batch alone."""
        if progress.epoch != self._epoch:
            self._recorded, self._epoch = None, progress.epoch
            return step(batch, progress)
        if self._recorded is None and not self._failed:
            self._record(step, batch, progress)
        if self._recorded is None or _shapes(self._recorded[0]) != _shapes(batch):
            return step(batch, progress)
        return self._replay(batch)

    def _replay(self, batch: Batch) -> StepOutput:
        assert self._graph is not None and self._recorded is not None
        static_batch, output, gradients = self._recorded
        for target, source in zip(_tensors(static_batch), _tensors(batch), strict=True):
            target.copy_(source, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return output

    def _record(self, step: ForwardBackward, batch: Batch, progress: Progress) -> None:
        static_batch = _map_tensors(batch, torch.clone)
        for parameter in self._parameters:
            parameter.grad = None
        graph, pool = torch.cuda.CUDAGraph(), self._graph.pool() if self._graph else None
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    output = step(static_batch, progress)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            log.warning("steps cannot be recorded as a CUDA graph and run without one: %s", error)
            self._failed = True
            return
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graph = graph
        self._recorded = static_batch, output, [parameter.grad for parameter in self._parameters]


def _map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the batch with every tensor changed."""

    def change_inputs(inputs: Inputs) -> Inputs:
        if isinstance(inputs, Tensor):
            return change(inputs)
        return {key: change(value) for key, value in inputs.items()}

    targets, index = change(batch.targets), change(batch.index)
    return dataclasses.replace(batch.map(change_inputs), targets=targets, index=index)


def _tensors(batch: Batch) -> list[Tensor]:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    _map_tensors(batch, collect)
    return tensors


def _shapes(batch: Batch) -> list[tuple[object, ...]]:
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in _tensors(batch)]
