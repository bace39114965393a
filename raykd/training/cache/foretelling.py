"""How long a teacher's outputs take to compute, guessed before there is a teacher."""

from __future__ import annotations

import time

import torch

from raykd.architecture import Model, Task, anatomy
from raykd.architecture.layers import blank_inputs
from raykd.training.cache.planning import OVERHEAD, Kept
from raykd.training.layout import lay_out

PROBE_MACS = 2e9
"""Multiply-accumulates of the forward that is timed, about; one sample's where that has more."""

FORWARDS = 4

MOST = 64
"""Samples of that forward."""


def seconds_to_build(kept: Kept, task: Task, device: torch.device | str = "cpu") -> float | None:
    """Seconds one worker like this process takes, about; None where too little is known."""
    if kept.prepared.model is None or kept.rows is None:
        return None
    forward = seconds_a_sample(kept.prepared.model, task, torch.device(device))
    return forward * kept.rows * kept.views * OVERHEAD


def seconds_a_sample(model: Model, task: Task, device: torch.device) -> float:
    """Of an untrained network's forward, in float32: the quickest of a few of a small batch."""
    macs = max(1, anatomy(model, task).macs)
    samples = max(1, min(MOST, int(PROBE_MACS / macs)))
    with torch.random.fork_rng(devices=[]):
        network = lay_out(model.blueprint(task), device).eval()
    inputs = blank_inputs(task, samples, device)
    taken = []
    with torch.inference_mode():
        for _ in range(FORWARDS):
            began = time.perf_counter()
            network(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
    return min(taken) / samples
