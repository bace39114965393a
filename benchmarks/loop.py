"""One epoch of `Training` (student alone) against a plain PyTorch loop with the same model.

    python benchmarks/loop.py [--repeats 7] [--threads 1] [--json FILE]

Resnet of depth 8 and width 16, 6,000 Fashion-MNIST images, batch 128, float32.  All loops train
from a resident tensor with SGD and momentum under a cosine schedule and count hits; none
evaluates.  `plain` lies in memory as torch lays it by default, `tuned` with the channels
innermost, as raykd lays it on a CPU.  Epochs alternate between the loops, in turning order;
processor time is less disturbed by other work on the machine than wall time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from raykd.data import SOURCES, Dataset, Placement, Split
from raykd.models import Resnet, Task
from raykd.schemes import Alone
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train
from raykd.training import Training

BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
MODEL = Resnet(depth=8, width=16)


def plain_loop(
    data: Dataset, epochs: int, device: torch.device, layout: torch.memory_format
) -> Callable[[], object]:
    """What one would write by hand; the returned function trains one epoch."""
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, torch.Tensor)
    task = Task(input_shape=data.input_shape, classes=data.classes)
    model = MODEL.build(task).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    pixels = data.train.inputs.float().div(255).sub(data.mean[0]).div(data.std[0])
    inputs = torch.empty(pixels.shape, memory_format=layout).copy_(pixels).to(device)
    targets = data.train.targets.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True
    )
    steps = epochs * math.ceil(len(targets) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def epoch() -> None:
        model.train()
        loss_sum = torch.zeros((), device=device)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        for rows in torch.randperm(len(targets)).to(device).split(BATCH):
            logits = model(inputs[rows])
            loss = cross_entropy(logits, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(rows)
            hits += (logits.detach().argmax(1) == targets[rows]).sum()
        assert math.isfinite(loss_sum.item()) and hits.item() > 0

    return epoch


def raykd_loop(data: Dataset, epochs: int, device: torch.device) -> Callable[[], object]:
    """`Training.run_epoch` with all its bookkeeping, but without its evaluation."""
    study = Study(
        name="loop",
        data=SOURCES["fashion_mnist"](augment=()),
        student=Student(model=MODEL),
        scheme=Alone(),
        train=Train(
            epochs=epochs,
            batch_size=BATCH,
            optimizer=SGD(lr=RATE, momentum=MOMENTUM, weight_decay=DECAY),
            precision="fp32",
        ),
    )
    return TrainsOnly(study, data.to(device), seed=0, placement=Placement(device)).run_epoch


class TrainsOnly(Training):
    """Does not evaluate."""

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        return {f"{split}_loss": 0.0, f"{split}_accuracy": 0.0}


def seconds(epoch: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one epoch."""
    wall, processor = time.perf_counter(), time.process_time()
    epoch()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(images: int, repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Medians and ratios to each plain loop, by loop."""
    data = SOURCES["fashion_mnist"](limit=images).load()
    epochs = repeats + 1
    loops = {
        "plain": plain_loop(data, epochs, device, torch.contiguous_format),
        "tuned": plain_loop(data, epochs, device, torch.channels_last),
        "raykd": raykd_loop(data, epochs, device),
    }
    for epoch in loops.values():
        epoch()  # warms up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for repeat in range(repeats):
        names = list(loops) if repeat % 2 == 0 else list(reversed(loops))
        for name in names:
            times[name].append(seconds(loops[name]))
    found: dict[str, dict[str, float]] = {}
    for name, taken in times.items():
        wall, processor = (statistics.median(each) for each in zip(*taken, strict=True))
        found[name] = {"wall": wall, "processor": processor}
    ours = found["raykd"]
    for name in ("plain", "tuned"):
        for clock in ("wall", "processor"):
            ours[f"{clock}/{name}"] = ours[clock] / found[name][clock]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    found = compare(asked.images, asked.repeats, torch.device(asked.device))
    print(f"median of {asked.repeats} epochs of {asked.images} images, seconds:")
    for name, taken in found.items():
        print(f"  {name:6} wall {taken['wall']:8.3f}   processor {taken['processor']:8.3f}")
    for name in ("plain", "tuned"):
        wall, processor = (found["raykd"][f"{clock}/{name}"] for clock in ("wall", "processor"))
        print(f"  raykd / {name}: wall {wall:.3f}   processor {processor:.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
