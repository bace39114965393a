"""Seconds that raykd takes to start and to end.

    python benchmarks/startup.py [--repeats 5] [--json FILE]

Each figure is that of a fresh process: `raykd --help`, `raykd validate`, and `raykd search` of four
one-epoch trials of which the teacher (and its outputs) is there already: from the command to the
first step of the first trial, and from the last trial's end to the end of the process, by when
MLflow (sqlite) has got everything.  Beside them: an empty Python, one that imports torch, and a
plain loop that loads the same data and teacher and takes its first step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Demand, Findings, arguments, spread, tell

STUDY = """\
name: startup
data: {name: digits}
teacher:
  model: {name: resnet, depth: 14, width: 16}
  train: {epochs: 1, batch_size: 64}
student:
  model: {name: resnet, depth: 8, width: {choice: [4, 8]}}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
    weight: {uniform: [0.1, 2.0]}
train: {epochs: 1, batch_size: 64, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.3]}}}
search: {trials: 4, replicates: 0}
"""

RAYKD = [sys.executable, "-m", "raykd"]


def seconds_of(command: list[str], folder: Path) -> float:
    """Wall time of a command that ends well."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def searched(folder: Path) -> dict[str, float]:
    """Return a whole search: seconds from its start to its first trial's first step, from its last
    trial's end to its own, and in all."""
    command = [*RAYKD, "search", "startup.yaml", "--json"]
    start = time.time()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    ended = time.time()
    if process.returncode:
        raise RuntimeError(f"raykd search ended with {process.returncode}")
    roles = {event["id"]: event["role"] for event in events if event["event"] == "run"}
    clocks = [clock for event in journal_of(events) if (clock := event.get("clock"))]
    trials = [each for each in clocks if roles[each["id"]] == "trial"]
    tracked = next(event for event in events if event["event"] == "tracked")
    assert tracked["delivered"], tracked["status"]
    return {
        "to the first step": min(each["first_step"] for each in trials) - start,
        "from the last trial": ended - max(each["end"] for each in clocks),
        "in all": ended - start,
    }


def journal_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the epochs of a search, each clock with its training's id."""
    study = next(event for event in events if event["event"] == "study")
    lines = Path(study["file"]).with_name("journal.jsonl").read_text().splitlines()
    epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
    return [
        {"clock": {**event["clock"], "id": event["id"]}} for event in epochs if "clock" in event
    ]


def plain_loop(folder: Path) -> float:
    """Seconds from the start of a plain loop's process to its first step."""
    start = time.time()
    command = [sys.executable, __file__, "--plain", str(folder)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout) - start


def first_step(folder: Path) -> float:
    """Train in a plain loop; return the time of its first step."""
    import torch
    from safetensors.torch import load_file
    from sklearn.datasets import load_digits
    from torch.nn import functional as F

    from raykd.models import Resnet, Signature

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    signature = Signature(input_shape=(1, 8, 8), classes=10)
    teacher = Resnet(depth=14, width=16).build(signature)
    teacher.load_state_dict(load_file(next(folder.glob("studies/teachers/*.safetensors"))))
    student = Resnet(depth=8, width=8).build(signature)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with torch.no_grad():
        taught = teacher.eval()(inputs[:64])
    logits = student(inputs[:64])
    loss = F.cross_entropy(logits, targets[:64])
    loss = loss + F.kl_div(logits.log_softmax(1), taught.softmax(1), reduction="batchmean")
    loss.backward()
    optimizer.step()
    return time.time()


def measured(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each figure, the commands in turn."""
    (folder / "startup.yaml").write_text(STUDY)
    tell("preparing the teacher")
    searched(folder)
    results: dict[str, list[float]] = {}
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "raykd --help": [*RAYKD, "--help"],
        "raykd validate": [*RAYKD, "validate", "startup.yaml"],
    }
    for repeat in range(repeats):
        for name, command in commands.items():
            results.setdefault(name, []).append(seconds_of(command, folder))
        results.setdefault("plain loop, to the first step", []).append(plain_loop(folder))
        for name, value in searched(folder).items():
            results.setdefault(f"raykd search, {name}", []).append(value)
        tell(f"repeat {repeat + 1} of {repeats} done")
    return results


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plain", type=Path, metavar="FOLDER", help="the plain loop, here")
    args = parser.parse_args()
    if args.plain:
        print(first_step(args.plain))
        return
    repeats = 1 if args.quick else args.repeats
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        results = measured(Path(folder), repeats)
    rows = [{"what": name, **spread(values)} for name, values in results.items()]
    median = {row["what"]: row["median s"] for row in rows}
    limits = {
        "raykd --help": 0.4,
        "raykd validate": 2.0,
        "raykd search, to the first step": 20.0,
        "raykd search, from the last trial": 3.0,
    }
    demands = [Demand(name, limit, median[name], unit=" s") for name, limit in limits.items()]
    Findings("startup", {"repeats": repeats}, rows, demands, {"seconds": results}).tell(args.json)


if __name__ == "__main__":
    main()
