"""`raykd compare` on 5,000 runs in MLflow: time and memory of the table, from sqlite and a server.

    python benchmarks/compare.py [--repeats 3] [--params 0] [--json FILE]

Five experiments with one study of 1,000 trainings each: 40 finalists with 3 replicates and 3
baselines, else trials.  The runs have the params, tags and metrics of raykd's own runs; `--params`
limits the params of each run.  They are written with SQL, since MLflow's client would take long.
The journal of each study is among the artifacts of its run, as after a study's end.
`raykd compare` runs as a command in a new process; other work on the machine disturbs its processor
time less than its wall time.  The server is MLflow's own on this machine, with the same database
behind it, and has answered one comparison before.  With a filter `raykd compare` reads all runs
from it instead of the journals.  `server alone` is the time in which it answers the requests for
all runs, two at a time as `raykd compare` sends them, to a client that does not read them; its
processor time is that of all of the server's processes.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from measuring import Demand, Findings, arguments, spread, tell

from raykd.report.comparison.sources import THREADS
from raykd.study.config import Study
from raykd.tracking.events import (
    DataLoaded,
    EpochFinished,
    RunEnded,
    RunStarted,
    StudyEnded,
    StudyStarted,
)
from raykd.tracking.journal import Journal
from raykd.tracking.mlflow_client import connect
from raykd.tracking.mlflow_values import clean_key, text
from tracking import server  # pyright: ignore[reportAttributeAccessIssue]

STUDIES = 5
FINALISTS = 40
SEEDS = 3

FILTER = ("--filter", "attributes.status = 'FINISHED'")
"""All runs."""

FILTERED = "server, with a filter"

LAUNCHER = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
sys.exit(code)
"""
"""Program that runs a command and prints its processor time in s and its peak memory in kB.

A process counts the peak memory of the process that started it, so a small one starts it.
"""

RUN_COLUMNS = (
    "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, "
    "end_time, source_version, lifecycle_stage, artifact_uri, experiment_id"
)


@dataclass(frozen=True)
class Store:
    """A database with the runs of several studies.

    Attributes:
        file: the database.
        experiments: names of its experiments.
        runs: number of runs.
        params: mean number of params of a run.
    """

    file: Path
    experiments: Sequence[str]
    runs: int
    params: float


def write_store(file: Path, runs: int, params: int) -> Store:
    """Write studies of `runs` trainings in all.

    Args:
        file: database to create.
        runs: number of runs below the studies' runs.
        params: maximum number of params of a run; 0: all of them.
    """
    client = connect(f"sqlite:///{file}")
    names = [f"study-{number}" for number in range(STUDIES)]
    ids = [client.create_experiment(name) for name in names]
    rows: dict[str, list[tuple[Any, ...]]] = {"runs": [], "params": [], "tags": [], "metrics": []}
    for number, (name, experiment) in enumerate(zip(names, ids, strict=True)):
        written = list(study_runs(name, number, runs // STUDIES))
        for run in written:
            add(rows, run, experiment, params)
        study = file.parent / "artifacts" / experiment / written[0]["id"] / "artifacts" / "study"
        write_journal(study / "journal.jsonl", written)
    with sqlite3.connect(file) as base:
        marks = ", ".join("?" * 13)
        base.executemany(f"INSERT INTO runs ({RUN_COLUMNS}) VALUES ({marks})", rows["runs"])
        for table in ("params", "tags"):
            base.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows[table])
        columns = "key, value, timestamp, step, is_nan, run_uuid"
        base.executemany(
            f"INSERT INTO latest_metrics ({columns}) VALUES (?, ?, 1000, 1, 0, ?)", rows["metrics"]
        )
    base.close()
    return Store(file, names, len(rows["runs"]), len(rows["params"]) / len(rows["runs"]))


def add(
    rows: Mapping[str, list[tuple[Any, ...]]], run: Mapping[str, Any], experiment: str, params: int
) -> None:
    """Append the rows of a run."""
    id = run["id"]
    fixed = ("LOCAL", "raykd", "", "bench", "FINISHED", 1000, 1000 + run["ms"], "", "active")
    rows["runs"].append(
        (id, run["name"], *fixed, f"mlflow-artifacts:/{experiment}/{id}/artifacts", int(experiment))
    )
    chosen = list(run["params"].items())[: params or None]
    rows["params"].extend((key, value, id) for key, value in chosen)
    rows["tags"].extend((key, value, id) for key, value in run["tags"].items())
    rows["metrics"].extend((key, value, id) for key, value in run["metrics"].items())


def write_journal(file: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write the journal of a study with the values of its runs, the study's own run first."""
    from raykd.runtime.jobs import TrainJob
    from raykd.study.config import plain
    from raykd.study.short_names import training_names

    study, *trainings = runs
    with Journal(file) as journal:
        settings = study["study"]
        name, id = settings.name, study["tags"]["raykd.study"]
        journal.append(StudyStarted(id, name=name, resolved=plain(settings), seed=0))
        journal.append(DataLoaded("digits", "", "f" * 64, {"train": 1222}, 10, [1, 8, 8]))
        for run in trainings:
            id = run["tags"]["raykd.id"].partition("/")[2]
            written, role = plain(run["study"]), run["tags"]["raykd.role"]
            parent = None if role == "trial" else id.partition("/")[0]
            job = TrainJob(
                id=id,
                role=role,
                study=written,
                names=training_names(written),
                seed=int(run["params"]["seed"]),
                epochs=run["study"].train.epochs,
                folder=name,
                parent=parent,
            ).plain()
            start = RunStarted(
                *(id, role, parent, run["params"], {}, job["seed"], job), name=run["name"]
            )
            journal.append(start)
            for epoch in range(1, job["epochs"] + 1):
                journal.append(EpochFinished(id, epoch, run["metrics"]))
            journal.append(RunEnded(id, "finished", metrics=run["metrics"]))
        journal.append(StudyEnded())


def study_runs(name: str, number: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the runs of a study: its own, and `count` trainings."""
    from raykd.models import Signature
    from raykd.study.checks.load import load_study

    rng = random.Random(number)
    study_id = uuid.UUID(int=rng.getrandbits(128)).hex
    study = load_study("search_spaces/quickstart.yaml", overrides=[f"name={name}"])
    bound = study.bind(Signature(input_shape=(1, 8, 8), classes=10))
    points = [bound.sample(seed).resolved for seed in range(50)]
    values = [{clean_key(k): text(v) for k, v in study.flat(point).items()} for point in points]

    def run(
        id: str,
        role: str,
        parent: str,
        params: Mapping[str, str],
        accuracy: float,
        point: Study = study.settings,
    ) -> dict[str, Any]:
        tags = {f"raykd.version.{package}": "1.0.0" for package in range(12)}
        tags |= {"raykd.study": study_id, "raykd.role": role, "raykd.status": "finished"}
        tags |= {"raykd.id": f"{study_id}/{id}" if id else study_id}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        tags |= {"raykd.data_fingerprint": "f" * 64} if role == "study" else {}
        metrics = {f"metric_{i}": rng.random() for i in range(10)}
        metrics |= {"val_accuracy": accuracy + rng.gauss(0, 0.01), "params": rng.uniform(1e3, 1e5)}
        metrics |= {"test_accuracy": accuracy + rng.gauss(0, 0.01)} if "/" in id else {}
        run_id = uuid.UUID(int=rng.getrandbits(128)).hex
        ms = rng.randrange(5000, 60000)
        return {
            "id": run_id,
            "name": f"{id or name} of {name}",
            "params": params,
            "tags": tags,
            "metrics": metrics if role != "study" else {},
            "ms": ms,
            "study": point,
        }

    parent = run("", "study", "", {}, 0.0)
    yield parent
    trials = count - FINALISTS * 2 * SEEDS if count > FINALISTS * 2 * SEEDS else count
    left = count - trials
    for trial in range(trials):
        params, accuracy = values[trial % len(values)], rng.uniform(0.8, 0.95)
        point = points[trial % len(points)]
        first = run(f"trial-{trial:04d}", "trial", parent["id"], params, accuracy, point)
        yield first
        for seed in range(1, SEEDS + 1):
            for role, kind in (("replicate", "seed"), ("alone", "alone")):
                if left > 0:
                    left -= 1
                    seeded = {**params, "seed": str(seed)}
                    id = f"trial-{trial:04d}/{kind}-{seed}"
                    lower = 0.01 * (kind == "alone")
                    yield run(id, role, first["id"], seeded, accuracy - lower, point)


def measure(store: Store, uri: str, *options: str) -> dict[str, float]:
    """Run the command once; return its wall and processor time in s and its peak memory in MB."""
    command = [sys.executable, "-m", "raykd", "compare", *store.experiments, *options]
    began = time.perf_counter()
    launched = [sys.executable, "-c", LAUNCHER, *command, "--tracking-uri", uri]
    answer = subprocess.run(
        launched, check=False, capture_output=True, text=True, cwd=store.file.parent
    )
    wall = time.perf_counter() - began
    if answer.returncode:
        raise RuntimeError(f"raykd compare failed: {answer.stderr.strip()[-300:]}")
    processor, kilobytes = json.loads(answer.stdout)
    return {"seconds": wall, "processor": processor, "MB": kilobytes / 1024}


def server_alone(address: str, process: int) -> dict[str, float]:
    """Return the wall and processor time in s that the server needs for one comparison."""

    def post(experiment: int) -> int:
        content = {"experiment_ids": [str(experiment)], "max_results": 1000}
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/runs/search",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return len(answer.read())

    began, before = time.perf_counter(), processor_time(process)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(post, range(1, STUDIES + 1)))
    wall = time.perf_counter() - began
    return {"seconds": wall, "processor": processor_time(process) - before}


def processor_time(process: int) -> float:
    """Return the processor time in s of a process and its children."""
    first = psutil.Process(process)
    times = [each.cpu_times() for each in (first, *first.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def measured(args: Any, folder: Path) -> Findings:
    """Both stores, `repeats` times each."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
        store = writer.submit(write_store, folder / "server.db", args.runs, args.params).result()
    tell(
        f"{store.runs} runs of {store.params:.0f} params, {store.file.stat().st_size / 1e6:.0f} MB"
    )
    raw: dict[str, list[dict[str, float]]] = {}
    uri = f"sqlite:///{store.file}"
    raw["sqlite"] = [measure(store, uri) for _ in range(args.repeats)]
    with server(folder, args.server_workers) as (address, process):
        measure(store, address)
        raw["server"] = [measure(store, address) for _ in range(args.repeats)]
        raw["server, with a filter"] = [
            measure(store, address, *FILTER) for _ in range(args.repeats)
        ]
        alone = [server_alone(address, process) for _ in range(args.repeats)]
    rows = [
        {
            "store": name,
            **spread([each["seconds"] for each in times]),
            "processor s": statistics.median(each["processor"] for each in times),
            "peak MB": max(each["MB"] for each in times),
        }
        for name, times in raw.items()
    ]
    processor = statistics.median(each["processor"] for each in alone)
    waited = spread([each["seconds"] for each in alone])
    rows.append({"store": "server alone", **waited, "processor s": processor})
    demands = [
        Demand(f"table from {name}, {unit}", limit, statistics.median(t[key] for t in times))
        for name, times in raw.items()
        if name != FILTERED
        for key, unit, limit in (("seconds", "s", 10.0), ("MB", "MB", 500.0))
    ]
    settings = {"runs": store.runs, "params": round(store.params), "repeats": args.repeats}
    return Findings("compare", settings, rows, demands, {**raw, "server alone": alone})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--params", type=int, default=0, help="of each run; 0: raykd's")
    parser.add_argument("--server-workers", type=int, default=4, help="4: as MLflow starts it")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.repeats, args.server_workers = 50, 1, 1
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        measured(args, Path(folder)).tell(args.json)


if __name__ == "__main__":
    main()
