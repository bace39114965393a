"""A whole study of short distillations: raykd, Ray's nesting, Optuna with a loop, a plain loop.

    python benchmarks/search.py [--trials 24] [--repeats 5] [--only raykd optuna] [--json FILE]

A resnet of depth 20 and width 32 is trained for three epochs on 6,000 Fashion-MNIST images, and
teaches 24 residual networks of depth 8 and width 16, three epochs each, whose temperature, weight
and learning rate are searched.  All trials run whole.  Each way is a process of its own, timed from
its start to its end, the teacher and the start of everything included:

- `raykd`: `raykd search`, its slots and its cache as they come, runs sent to MLflow (sqlite).
- `optuna`: Optuna's TPE around a hand-written loop in one process; the teacher is run at each step.
- `plain`: the same loop with random draws.
- `nested`: a Tune function that calls `TorchTrainer.fit()` for each trial, as Ray's guide has it;
  as many trials side by side as there are CPUs, draws by OptunaSearch.  It is slow:
  `--nested-trials` gives it fewer, and its total is then that of fewer trials (the column `trials`
  says how many).

The hand-written loops are those of a careful person: data resident, channels innermost on a CPU,
fused optimizer, teacher in eval mode without gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import Demand, Findings, Times, arguments, spread, tell
from nesting import run_nested

STUDY = """\
name: search
data: {{name: fashion_mnist, limit: {images}, val_limit: 1000}}
teacher:
  model: {{name: resnet, depth: {teacher_depth}, width: {teacher_width}}}
  train: {{epochs: {epochs}, batch_size: 128, optimizer: {{name: sgd, lr: 0.05}}}}
student:
  model: {{name: resnet, depth: 8, width: {student_width}}}
knowledge:
  - loss: {{name: kd, temperature: {{loguniform: [1, 16]}}}}
    weight: {{uniform: [0.1, 2.0]}}
train:
  epochs: {epochs}
  batch_size: 128
  optimizer: {{name: sgd, lr: {{loguniform: [0.01, 0.1]}}}}
search: {{sampler: tpe, trials: {trials}, replicates: 0}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""


@dataclass(frozen=True)
class Size:
    """Size of the study."""

    trials: int = 24
    images: int = 6000
    epochs: int = 3
    teacher_depth: int = 20
    teacher_width: int = 32
    student_width: int = 16


QUICK = Size(2, 256, 1, 8, 8, 4)


# By hand


def tensors(size: Size) -> tuple[Any, Any, Any, Any]:
    """Training and validation pictures and labels, normalized, where they are trained on."""
    import torch

    from raykd.data import SOURCES

    data = SOURCES["fashion_mnist"](limit=size.images, val_limit=1000).load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    outcomes = []
    for split in (data.train, data.val):
        pictures = split.inputs.float().div(255).sub(data.mean[0]).div(data.std[0])  # type: ignore[union-attr]
        laid = torch.empty(pictures.shape, memory_format=torch.channels_last).copy_(pictures)
        outcomes += [laid.to(device), split.targets.to(device)]
    return tuple(outcomes)  # type: ignore[return-value]


def network(depth: int, width: int) -> Any:
    """Return an untrained resnet, laid out for speed."""
    import torch

    from raykd.models import Resnet, Signature

    arms = Resnet(depth=depth, width=width).build(Signature(input_shape=(1, 28, 28), classes=10))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return arms.to(device).to(memory_format=torch.channels_last)


def trained(
    model: Any, data: tuple[Any, Any, Any, Any], epochs: int, setup: dict[str, float], teacher: Any
) -> float:
    """Train by hand; the accuracy on the validation split after the last epoch."""
    import torch
    from torch.nn import functional as F

    inputs, targets, val_inputs, val_targets = data
    optimizer = torch.optim.SGD(
        model.parameters(), setup["lr"], momentum=0.9, weight_decay=5e-4, fused=True
    )
    steps = epochs * -(-len(targets) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = 0.0
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(targets), device=targets.device).split(128):
            logits = model(inputs[rows])
            loss = F.cross_entropy(logits, targets[rows])
            if teacher is not None:
                heat = setup["temperature"]
                with torch.no_grad():
                    taught = F.softmax(teacher(inputs[rows]) / heat, 1)
                mine = F.log_softmax(logits / heat, 1)
                soft = F.kl_div(mine, taught, reduction="batchmean") * heat**2
                loss = loss + setup["weight"] * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            accuracy = (model(val_inputs).argmax(1) == val_targets).float().mean().item()
    return accuracy


def taught_by(size: Size, data: tuple[Any, Any, Any, Any]) -> Any:
    """Return the teacher, trained by hand."""
    teacher = network(size.teacher_depth, size.teacher_width)
    trained(teacher, data, size.epochs, {"lr": 0.05}, None)
    return teacher.eval().requires_grad_(False)


def plain(size: Size) -> list[float]:
    """Random draws around the loop; each trial's seconds."""
    import math
    import random

    data = tensors(size)
    teacher, draws, seconds = taught_by(size, data), random.Random(0), []
    for _ in range(size.trials):
        start = time.perf_counter()
        setup = {
            "lr": math.exp(draws.uniform(math.log(0.01), math.log(0.1))),
            "temperature": math.exp(draws.uniform(0, math.log(16))),
            "weight": draws.uniform(0.1, 2.0),
        }
        trained(network(8, size.student_width), data, size.epochs, setup, teacher)
        seconds.append(time.perf_counter() - start)
    return seconds


def optuna(size: Size) -> list[float]:
    """Optuna around the loop; each trial's seconds."""
    import optuna as library

    data = tensors(size)
    teacher, seconds = taught_by(size, data), []

    def objective(trial: Any) -> float:
        start = time.perf_counter()
        setup = {
            "lr": trial.suggest_float("lr", 0.01, 0.1, log=True),
            "temperature": trial.suggest_float("temperature", 1, 16, log=True),
            "weight": trial.suggest_float("weight", 0.1, 2.0),
        }
        outcomes = trained(network(8, size.student_width), data, size.epochs, setup, teacher)
        seconds.append(time.perf_counter() - start)
        return outcomes

    library.logging.set_verbosity(library.logging.ERROR)
    study = library.create_study(
        storage="sqlite:///optuna.db",
        direction="maximize",
        sampler=library.samplers.TPESampler(seed=0),
    )
    study.optimize(objective, n_trials=size.trials)
    return seconds


# Ray's nesting


def nested(size: Size) -> list[float]:
    """Each trial its own `TorchTrainer.fit()`; each trial's seconds from start to report."""
    import torch
    from ray import train, tune
    from ray.tune.search.optuna import OptunaSearch

    here = Path.cwd()
    weights = here / "teacher.pt"
    torch.save(taught_by(size, tensors(size)).state_dict(), weights)

    def train_student(setup: dict[str, Any]) -> None:
        teacher = network(size.teacher_depth, size.teacher_width)
        teacher.load_state_dict(torch.load(weights))
        teacher.eval().requires_grad_(False)
        student = network(8, size.student_width)
        train.report({"accuracy": trained(student, tensors(size), size.epochs, setup, teacher)})

    space = {
        "lr": tune.loguniform(0.01, 0.1),
        "temperature": tune.loguniform(1, 16),
        "weight": tune.uniform(0.1, 2.0),
    }
    results = run_nested(
        train_student,
        space,
        here,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(),
            num_samples=size.trials,
            max_concurrent_trials=1 if torch.cuda.is_available() else os.cpu_count(),
        ),
        scaling_config=train.ScalingConfig(
            num_workers=1,
            use_gpu=torch.cuda.is_available(),
            resources_per_worker={"CPU": 0.9},
        ),
    )
    return [float(metrics["time_total_s"]) for metrics in results]


# raykd


def raykd(size: Size) -> list[float]:
    """`raykd search`; each trial's seconds from first step to end."""
    Path("search.yaml").write_text(STUDY.format(**asdict(size)))
    with open("events.jsonl", "w") as out:
        subprocess.run(
            [sys.executable, "-m", "raykd", "search", "search.yaml", "--json"],
            stdout=out,
            check=True,
        )
    journal = next(Path().glob("studies/search-*/journal.jsonl"))
    epochs = [json.loads(line) for line in journal.read_text().splitlines()]
    clocks: dict[str, list[float]] = {}
    for event in epochs:
        if event["event"] == "epoch" and event["id"].startswith("trial"):
            clock = event["clock"]
            clocks.setdefault(event["id"], []).extend((clock["first_step"], clock["end"]))
    return [max(clock) - min(clock) for clock in clocks.values()]


ARMS: dict[str, Callable[[Size], list[float]]] = {
    "raykd": raykd,
    "optuna": optuna,
    "plain": plain,
    "nested": nested,
}


# Measuring


def in_a_process(arm: str, size: Size) -> tuple[float, list[float]]:
    """Seconds of a whole process, and of each of its trials."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, __file__, "--arm", arm, "--size", json.dumps(asdict(size))]
        run = subprocess.run(
            command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
        )
        return time.perf_counter() - start, json.loads(run.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}


def measured(args: argparse.Namespace, size: Size) -> Findings:
    """All ways, forwards and backwards in turn."""
    times = {arm: Times() for arm in args.only}
    trials: dict[str, list[list[float]]] = {arm: [] for arm in args.only}
    sizes = dict.fromkeys(args.only, size)
    if "nested" in sizes and args.nested_trials:
        sizes["nested"] = Size(**{**asdict(size), "trials": args.nested_trials})
    for repeat in range(args.repeats):
        for arm in args.only if repeat % 2 == 0 else list(reversed(args.only)):
            whole, each = in_a_process(arm, sizes[arm])
            times[arm].wall.append(whole)
            trials[arm].append(each)
            tell(f"repeat {repeat + 1} of {args.repeats}: {arm} took {whole:.1f} s")
    rows = []
    for arm in args.only:
        each = [seconds for entry in trials[arm] for seconds in entry]
        row = {"way": arm, "trials": sizes[arm].trials, **spread(times[arm].wall)}
        row["median s a trial"] = statistics.median(each)
        if "raykd" in times and sizes[arm].trials == size.trials:
            row["x raykd"] = times[arm].over(times["raykd"])
        rows.append(row)
    ratio = None
    if {"raykd", "optuna"} <= set(times):
        ratio = times["optuna"].over(times["raykd"])
    demands = [Demand("Optuna + hand-written loop / raykd, whole study", 2.0, ratio, at_least=True)]
    raw = {"seconds": {arm: entry.wall for arm, entry in times.items()}, "trials": trials}
    settings = {**asdict(size), "repeats": args.repeats}
    return Findings("search", settings, rows, demands, raw)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--nested-trials", type=int, default=0, help="0: as many as the others")
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--arm", choices=list(ARMS), help="one way, here: its trials' seconds")
    parser.add_argument("--size", default="{}", help="of that, as JSON")
    args = parser.parse_args()
    if args.arm:
        outcomes = ARMS[args.arm](Size(**json.loads(args.size)))
        print(json.dumps(outcomes))
        return
    if args.quick:
        args.repeats = 1
    size = QUICK if args.quick else Size(trials=args.trials)
    measured(args, size).tell(args.json)


if __name__ == "__main__":
    main()
