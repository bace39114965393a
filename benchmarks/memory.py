"""Memory growth of a slot with the number of its trials.

    python benchmarks/memory.py [--trials 50] [--repeats 5] [--json FILE]
    python benchmarks/memory.py --ray

In a process of its own for each repeat, a seat (what each worker of a slot is) has to train one
student after another, as a slot tells it: students and losses as a search draws them, an offline
teacher, run live or read from the cache in turn.  After each trial is written down how much memory
the process holds (its resident set, less what it maps from the cache's files).  With `--ray` a
whole search is run, and the worker of its one slot is looked at from outside.

Ten different trials come again and again, under new seeds.  What the largest of them needs at its
peak the allocator keeps, so memory rises until all have been seen; the growth is that from the end
of the first round to the end of the last trial.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Demand, Findings, arguments, tell

from raykd.tracking.events import Event, RunEnded

STUDY = """\
name: memory
data: {name: fashion_mnist, limit: 512, val_limit: 256}
teacher:
  model: {name: resnet, depth: 14, width: 16}
  train: {epochs: 1, batch_size: 128}
student:
  model:
    choice:
      - {name: resnet, depth: {choice: [8, 14]}, width: {int: [4, 16], step: 4}}
      - {name: vgg, depth: 8, width: {choice: [4, 8]}}
knowledge:
  - loss: {choice: [{name: kd, temperature: {loguniform: [1, 16]}}, dkd, dist, rkd]}
  - loss: {choice: [null, hint, crd]}
    weight: 0.1
train: {epochs: 2, batch_size: 64, optimizer: {name: sgd, lr: {loguniform: [0.01, 0.1]}}}
search: {sampler: random, replicates: 0}
cache: {use: always}
"""

SLOT = ("ray::Slot", "ray::ResourceTrainable")
"""What the process of a search's slot calls itself, between and during calls of Tune."""

LIMIT_MB = 50.0
ROUND = 10
"""Number of different trials."""


def held_mb(pid: int | str = "self") -> float:
    """Return the memory of a process without mapped files, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("the system does not say what a process holds")


def served(trials: int) -> list[float]:
    """Return the memory of this process after each trial, in MB."""

    from raykd.data import Placement
    from raykd.runtime.jobs import TrainJob
    from raykd.runtime.worker import Worker, WorkerContext
    from raykd.storage import Storage
    from raykd.study.config import plain
    from raykd.training.build import signature_of
    from raykd.training.teachers import teacher_spec_of, teacher_study
    from raykd.tuning.study_input import load_or_use
    from raykd.tuning.teacher_store import TeacherStore

    memory_mb: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.yaml"
        file.write_text(STUDY)
        study = load_or_use(file, [f"cluster.storage={folder}"])
        data, storage = study.settings.data.load(), Storage(folder)
        context = WorkerContext(storage, data, Placement())
        worker = Worker(context)
        store = TeacherStore(study.settings, data.fingerprint, storage)
        weights = store.file(teacher_spec_of(study.settings))
        teacher = plain(teacher_study(study.settings))
        job = TrainJob("teacher-0", "teacher", teacher, 0, 1, folder="s", keep=weights)
        conduct(worker, job)
        cache_jobs = outputs_of(study, data, storage)
        for number in range(trials):
            drawn = cache_jobs.fixed(study.bind(signature_of(data)).sample(number % ROUND).resolved)
            trial = TrainJob(
                f"trial-{number}",
                "trial",
                plain(drawn),
                seed=number,
                epochs=drawn.train.epochs,
                folder="s",
                teachers=(weights,),
            )
            if number % 2:
                trial, builds = cache_jobs.assign(trial)
                for build in builds:
                    cache_jobs.start(build)
                    conduct(worker, build)
                    cache_jobs.finish(build.id)
            conduct(worker, trial)
            for file in trial.state_files:
                storage.remove(file)
            memory_mb.append(held_mb())
    return memory_mb


def outputs_of(study: Any, data: Any, storage: Any) -> Any:
    """Describe the outputs of the teacher."""
    from raykd.training.build import signature_of
    from raykd.training.teacher_cache.plan import CachePlan
    from raykd.tuning.cache_jobs import CacheJobs

    rows = len(data.train)
    return CacheJobs(CachePlan(study, signature_of(data), rows), storage, data.fingerprint, rows)


def conduct(worker: Any, job: Any) -> None:
    """Run a job, as a slot does."""
    from raykd.runtime.jobs import JobFailure

    for outcome in worker.outcomes(job):
        if isinstance(outcome, JobFailure):
            raise RuntimeError(f"{job.id}: {outcome.reason}\n{outcome.traceback}")
    worker.stop()


def served_on_ray(trials: int) -> list[float]:
    """Return the memory of the worker of a search with one slot after each trial, in MB."""
    import psutil

    from raykd.tuning.search_run import search

    memory_mb: list[float] = []

    def hear(event: Event) -> None:
        if not isinstance(event, RunEnded) or not event.id.startswith("trial"):
            return
        workers = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if " ".join(process.info["cmdline"] or ()).startswith(SLOT)
        ]
        memory_mb.append(max(map(held_mb, workers)))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.yaml"
        file.write_text(STUDY)
        settings = [f"cluster.storage={folder}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        settings += ["cluster.slots=1", f"search.trials={trials}"]
        search(file, overrides=settings, listeners=[hear])
    return memory_mb


def in_a_process(trials: int, *, ray: bool) -> list[float]:
    """Return the figures of a fresh process of this file."""
    command = [sys.executable, __file__, "--trials", str(trials), "--one"]
    run = subprocess.run(command + ["--ray"] * ray, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--ray", action="store_true", help="a whole search, on a Ray")
    parser.add_argument("--one", action="store_true", help="one repeat, here; its figures alone")
    args = parser.parse_args()
    trials = 6 if args.quick else args.trials
    repeats = 1 if args.quick else args.repeats
    if args.one:
        print(json.dumps(served_on_ray(trials) if args.ray else served(trials)))
        return
    rows, raw = [], []
    for repeat in range(repeats):
        memory_mb = in_a_process(trials, ray=args.ray)
        first = min(ROUND, len(memory_mb)) - 1
        raw.append(memory_mb)
        rows.append(
            {
                "repeat": str(repeat + 1),
                "after the first MB": memory_mb[0],
                "most MB": max(memory_mb),
                "after the last MB": memory_mb[-1],
                f"after {first + 1} MB": memory_mb[first],
                "growth MB": memory_mb[-1] - memory_mb[first],
            }
        )
        tell(f"repeat {repeat + 1} of {repeats} done")
    worst = max(row["growth MB"] for row in rows)
    claim = f"memory growth over {trials} trials, the first round apart (the worst)"
    demands = [Demand(claim, LIMIT_MB, worst, unit=" MB")]
    settings = {"trials": trials, "repeats": repeats, "ray": args.ray}
    Findings("memory", settings, rows, demands, {"held_mb": raw}).tell(args.json)


if __name__ == "__main__":
    main()
