"""Training steps in several threads on a CPU, by how long the threads wait busily for each other.

    uv run python benchmarks/threads.py [--steps 40] [--repeats 3] [--json FILE]

A resnet of depth 14 and width 32 trains on batches of 64 random images of digits' size, with one
thread per core: the quickstart's teacher.  Each setting of GOMP_SPINCOUNT runs in a process of its
own, because GNU OpenMP reads it once: alone on the machine, and beside one busy process per core.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from measuring import Findings, arguments, tell

from raykd.runtime.cluster import SPIN_SETTING, usable_cpus

SETTING, CHOSEN = SPIN_SETTING

DEFAULT = "300000"
"""OpenMP's own value where no waiting policy is set."""

STEPS = """
import sys, time, torch
from torch.nn.functional import cross_entropy
from raykd.models import Resnet, Signature
torch.set_num_threads(int(sys.argv[2]))
network = Resnet(depth=14, width=32).build(Signature((1, 8, 8), 10))
optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
for step in range(3 + int(sys.argv[1])):
    if step == 3:
        began = time.perf_counter()
    optimizer.zero_grad()
    cross_entropy(network(images), labels).backward()
    optimizer.step()
print(time.perf_counter() - began)
"""


def milliseconds_of_step(spins: str, steps: int) -> float:
    """Return the mean time of a step in a process of its own."""
    command = [sys.executable, "-c", STEPS, str(steps), str(usable_cpus())]
    environment = os.environ | {SETTING: spins}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout) * 1e3 / steps


def _keep_busy() -> None:
    while True:
        sum(range(10**6))


@contextmanager
def busy_machine(busy: bool) -> Iterator[None]:
    """Keep every core busy with another process."""
    count = usable_cpus() if busy else 0
    others = [multiprocessing.Process(target=_keep_busy, daemon=True) for _ in range(count)]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.kill()


def compare(settings: list[str], steps: int, repeats: int) -> Findings:
    times: dict[tuple[str, bool], list[float]] = {}
    for repeat in range(repeats):
        for busy in (False, True):
            with busy_machine(busy):
                for spins in settings if repeat % 2 == 0 else settings[::-1]:
                    time = milliseconds_of_step(spins, steps)
                    times.setdefault((spins, busy), []).append(time)
        tell(f"repeat {repeat + 1} of {repeats} done")
    findings = Findings("threads", {"steps": steps, "repeats": repeats, "threads": usable_cpus()})
    findings.raw = {
        f"{spins}, {'busy' if busy else 'idle'}": t for (spins, busy), t in times.items()
    }
    for spins in settings:
        row: dict[str, Any] = {SETTING: spins}
        for busy, name in ((False, "idle"), (True, "busy")):
            ratios = zip(times[spins, busy], times[DEFAULT, busy], strict=True)
            row[f"{name} ms"] = median(times[spins, busy])
            row[f"{name}, by default's"] = median(mine / rest for mine, rest in ratios)
        findings.rows.append(row)
    return findings


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--spins", nargs="+", default=["0", "1000", CHOSEN, "20000"])
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats, args.spins = 2, 1, [CHOSEN]
    compare([DEFAULT, *args.spins], args.steps, args.repeats).tell(args.json)


if __name__ == "__main__":
    main()
