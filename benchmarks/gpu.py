"""Activity of a GPU during a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def finished(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return the same run, over when the device is done."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def busy_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of a run in which the GPU computes or copies anything.

    Put against the run's time without a profiler: watching slows the processor, not the kernels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one cycle only
        with profile(activities=[ProfilerActivity.CUDA]) as forward_parts:
            run()
            torch.cuda.synchronize()
    results = forward_parts.profiler.kineto_results if forward_parts.profiler is not None else None
    assert results is not None
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.events()
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    ]
    return covered(spans) / 1e9


def covered(spans: list[tuple[int, int]]) -> int:
    """Return the length of the union of spans."""
    total, reached = 0, 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
