"""Idle time of a slot between two trials: raykd's warm slots against Ray's documented nesting.

Both train the same tiny student (an mlp on digits, one epoch a trial) one trial at a time on one
CPU.  Turn-around is the time from the end of one trial's training to the first step of the next.
In the nesting, as Ray's guide has it, each trial of a Tune function trainable calls
`TorchTrainer.fit()`.  Both alternate; medians and ranges are over all turn-arounds.

    python benchmarks/turnaround.py [--repeats 3] [--nested-trials 3] [--json FILE]
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Demand, Findings, arguments, spread, tell
from nesting import run_nested

from raykd.tracking.events import EpochFinished

WARM, NESTED = "raykd, warm slot", "Tune function + TorchTrainer.fit()"

STUDY = """
name: turnaround
data: {name: digits}
student:
  model: {name: mlp, depth: 1, width: {int: [8, 64]}}
scheme: {name: alone}
train: {epochs: 1, batch_size: 64, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.3]}}}
search: {sampler: random, trials: 12, replicates: 0}
cluster: {slots: 1}
"""


def warm_slots(folder: Path) -> list[float]:
    """Turn-arounds of one search in one slot, seconds."""
    from raykd.tuning.search_run import search

    file = folder / "turnaround.yaml"
    file.write_text(STUDY)
    clocks: list[dict[str, float]] = []

    def hear(event: Any) -> None:
        if isinstance(event, EpochFinished):
            assert event.clock is not None
            clocks.append(dataclasses.asdict(event.clock))

    overrides = [f"cluster.storage={folder}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    search(file, overrides=overrides, listeners=[hear])
    return [after["first_step"] - before["end"] for before, after in itertools.pairwise(clocks)]


def nested(folder: Path, trials: int) -> list[float]:
    """Turn-arounds of Ray's documented nesting, seconds."""
    from ray import train, tune

    def train_student(setup: dict[str, Any]) -> None:
        import torch
        from sklearn.datasets import load_digits
        from torch import nn

        pixels, labels = load_digits(return_X_y=True)
        inputs = torch.tensor(pixels, dtype=torch.float32) / 16
        targets = torch.tensor(labels)
        model = nn.Sequential(
            nn.Linear(64, setup["width"]), nn.ReLU(), nn.Linear(setup["width"], 10)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=setup["lr"])
        loss = torch.zeros(())
        first_step = time.time()
        for rows in torch.randperm(len(inputs)).split(64):
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with open(setup["clocks"], "a") as file:
            file.write(json.dumps({"first_step": first_step, "end": time.time()}) + "\n")
        train.report({"loss": float(loss)})

    clocks = folder / f"clocks-{time.time_ns()}.jsonl"
    space = {"lr": tune.loguniform(0.01, 0.3), "width": tune.randint(8, 65), "clocks": str(clocks)}
    run_nested(
        train_student,
        space,
        folder,
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
        scaling_config=train.ScalingConfig(num_workers=1),
    )
    times = [json.loads(line) for line in clocks.read_text().splitlines()]
    return [after["first_step"] - before["end"] for before, after in itertools.pairwise(times)]


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--nested-trials", type=int, default=3, help="of each repeat")
    args = parser.parse_args()
    repeats, trials = (1, 2) if args.quick else (args.repeats, args.nested_trials)
    warm: list[float] = []
    cold: list[float] = []
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            warm += warm_slots(Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            cold += nested(Path(folder), trials)
        tell(f"repeat {number + 1} of {repeats} done")
    rows = [{"turn-around": WARM, **spread(warm)}, {"turn-around": NESTED, **spread(cold)}]
    ratio = statistics.median(cold) / statistics.median(warm)
    demands = [
        Demand("warm slot, median", 0.03, statistics.median(warm), unit=" s"),
        Demand("nested / warm, medians", 500, ratio, at_least=True),
    ]
    settings = {"repeats": repeats, "nested_trials": trials}
    raw = {WARM: warm, NESTED: cold}
    Findings("turnaround", settings, rows, demands, raw).tell(args.json)


if __name__ == "__main__":
    main()
