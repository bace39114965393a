"""One epoch of `Training` (student alone) against a plain PyTorch loop with the same model.

    python benchmarks/loop.py [--repeats 7] [--threads 1] [--json FILE]

Resnet of depth 8 and width 16, 6,000 Fashion-MNIST images, batch 128, float32.  Both loops train
from a resident tensor with SGD and momentum under a cosine schedule and count hits; neither
evaluates.  Epochs alternate between the two loops, each pair in turn first, and the medians are
compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from raykd.architecture import Resnet, Task
from raykd.data import SOURCES, Dataset
from raykd.schemes import Alone
from raykd.study.schema import Student, Study
from raykd.study.train import SGD, Train
from raykd.training import Training

BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
MODEL = Resnet(depth=8, width=16)


def plain_loop(data: Dataset, epochs: int, device: torch.device) -> Callable[[], None]:
    """What one would write by hand; the returned function trains one epoch."""
    assert isinstance(data.train.inputs, torch.Tensor)  # type: ignore[union-attr]
    model = MODEL.build(Task(input_shape=data.input_shape, classes=data.classes)).to(device)
    inputs = data.train.inputs.float().div(255).sub(data.mean[0]).div(data.std[0]).to(device)  # type: ignore[union-attr]
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
        loss_sum.item(), hits.item()

    return epoch


def raykd_loop(data: Dataset, epochs: int, device: torch.device) -> Callable[[], None]:
    """The training part of `Training.run_epoch`, with its bookkeeping, without the evaluation."""
    source = dataclasses.replace(SOURCES["fashion_mnist"](limit=6000), augment=())
    study = Study(
        name="loop",
        data=source,
        student=Student(model=MODEL),
        scheme=Alone(),
        train=Train(
            epochs=epochs,
            batch_size=BATCH,
            optimizer=SGD(lr=RATE, momentum=MOMENTUM, weight_decay=DECAY),
            precision="fp32",
        ),
    )
    training = Training(study, data.to(device), seed=0, device=device)
    training.evaluate = lambda split: {f"{split}_loss": 0.0, f"{split}_accuracy": 0.0}  # type: ignore[method-assign]

    def epoch() -> None:
        training.run_epoch()

    return epoch


def seconds(epoch: Callable[[], None]) -> float:
    begun = time.perf_counter()
    epoch()
    return time.perf_counter() - begun


def compare(repeats: int, device: torch.device) -> dict[str, object]:
    data = dataclasses.replace(SOURCES["fashion_mnist"](limit=6000), augment=()).load()
    epochs = repeats + 1
    loops = {
        "plain": plain_loop(data, epochs, device),
        "raykd": raykd_loop(data, epochs, device),
    }
    for epoch in loops.values():
        epoch()  # warms up
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats):
        names = list(loops) if repeat % 2 == 0 else list(reversed(loops))
        for name in names:
            times[name].append(seconds(loops[name]))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    ratios = [ours / plain for ours, plain in zip(times["raykd"], times["plain"], strict=True)]
    return {
        "seconds": times,
        "medians": medians,
        "ratio": medians["raykd"] / medians["plain"],
        "ratio_of_pairs": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    found = compare(asked.repeats, torch.device(asked.device))
    medians = found["medians"]
    assert isinstance(medians, dict)
    for name, median in medians.items():
        print(f"{name:6} {median:8.3f} s an epoch (median of {asked.repeats})")
    print(f"ratio  {found['ratio']:8.3f}   median of paired ratios {found['ratio_of_pairs']:.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
