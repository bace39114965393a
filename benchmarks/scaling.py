"""Effect of a second slot, a second worker and a large cluster.

    python benchmarks/scaling.py [--repeats 5] [--only slots workers cluster] [--json FILE]

- `slots`: the same search in one slot and in two, a CPU each: trials an hour, from the first
  trial's first step to the last one's end.
- `workers`: the same trials with one worker and with two (data parallel, a CPU each), one slot:
  images/s of the training, and the time of a trial.
- `cluster`: the driver alone with as many slots as a cluster of 100 nodes of four GPUs has, made up
  as in driver.py: how many trials it can begin in a second, and what that allows a trial to last
  until slots idle.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Findings, arguments, spread, tell

STUDY = """\
name: scaling
data: {name: fashion_mnist, limit: 6000, val_limit: 1000}
teacher:
  model: {name: resnet, depth: 14, width: 16}
  train: {epochs: 1}
student:
  model: {name: resnet, depth: 8, width: 16}
knowledge:
  - loss: {name: kd, temperature: {loguniform: [1, 16]}}
    weight: {uniform: [0.1, 2.0]}
train: {epochs: 2, batch_size: 128, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.1]}}}
search: {sampler: random, replicates: 0}
"""

PARTS = ("slots", "workers", "cluster")


def searched(settings: Sequence[str]) -> dict[str, float]:
    """One search on a Ray of its own: trials an hour, images/s and seconds of its trials."""
    from raykd.tuning.search_run import search

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "scaling.yaml"
        file.write_text(STUDY)
        mine = [f"cluster.storage={folder}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        result = search(file, overrides=[*mine, *settings])
        lines = (result.folder / "journal.jsonl").read_text().splitlines()
    epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
    trials = [event for event in epochs if event["id"].startswith("trial")]
    start = min(event["clock"]["first_step"] for event in trials)
    ended = max(event["clock"]["end"] for event in trials)
    count = len({event["id"] for event in trials})
    speed = statistics.median(event["metrics"]["images_per_second"] for event in trials)
    return {
        "trials/h": 3600 * count / (ended - start),
        "images/s": speed,
        "s a trial": (ended - start) / count,
    }


def on_ray(part: str, trials: int, images: int, repeats: int) -> list[dict[str, Any]]:
    """One and two of something, in turn."""
    field = "slots" if part == "slots" else "workers_per_trial"
    fixed = [f"search.trials={trials}", f"data.limit={images}"]
    fixed += ["cluster.slots=1"] if part == "workers" else []
    values: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(repeats):
        for count in (1, 2) if repeat % 2 == 0 else (2, 1):
            values[count].append(searched([*fixed, f"cluster.{field}={count}"]))
        tell(f"{part}: repeat {repeat + 1} of {repeats} done")
    rows = []
    for count, results in values.items():
        row: dict[str, Any] = {"what": f"{part}: {count}"}
        for name in ("trials/h", "images/s"):
            row |= spread([item[name] for item in results], name)
        row["trials/h of one"] = statistics.median(
            two["trials/h"] / item["trials/h"] for item, two in zip(values[1], results, strict=True)
        )
        rows.append(row)
    return rows


def cluster(slots: int, trials: int, repeats: int) -> list[dict[str, Any]]:
    """Return the driver alone, with the slots of a large cluster."""
    from driver import per_trial, starts

    rows = []
    for count in (8, slots):
        start = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as name:
                start.append(starts(trials, count, Path(name), tune=False, tracking=True))
        each = [statistics.fmean(per_trial(item)["late"]) for item in start]
        row: dict[str, Any] = {"what": f"cluster: driver with {count} slots"}
        row |= spread([1 / item for item in each], "trials/s")
        row["no slot idles from s a trial"] = count * statistics.median(each)
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--trials", type=int, default=12, help="of each search")
    parser.add_argument("--slots", type=int, default=400, help="of the made-up cluster")
    args = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    repeats = 1 if args.quick else args.repeats
    trials, images, many = (2, 256, 60) if args.quick else (args.trials, 6000, 1000)
    slots = 40 if args.quick else args.slots
    rows: list[dict[str, Any]] = []
    for part in args.only:
        if part == "cluster":
            rows += cluster(slots, many, repeats)
        else:
            rows += on_ray(part, trials, images, repeats)
    settings = {"trials": trials, "images": images, "repeats": repeats, "slots": slots}
    Findings("scaling", settings, rows).tell(args.json)


if __name__ == "__main__":
    main()
