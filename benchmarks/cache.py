"""A teacher's kept outputs: what they take to compute, to open, to read, and to hold in memory.

    python benchmarks/cache.py [--repeats 5] [--json FILE]

A resnet of depth 20 and width 32, 6,000 Fashion-MNIST images; logits and the second and third
stages are kept.  `build` computes and writes one view, from nothing to the manifest; `forward` is
the teacher's forward over the same images, layers tapped, nothing kept.  `read` gathers one epoch
in random batches of 128.  A reader is a process of its own that reads two epochs and then says
what it holds: `own` is memory that no other process shares (Private_Dirty), `shared out` its part
of all memory, shared pages counted in parts (PSS), of the outputs' files alone.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Findings, arguments, in_turn, spread, tell

from raykd.data import SOURCES, BatchLoader, Dataset
from raykd.models import Resnet, Signature, profile_model
from raykd.schemes import LiveTeacher, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache import (
    LOGITS,
    CacheBuilder,
    CachedOutputs,
    CacheSpec,
    CacheStore,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    network_digest,
    open_cached_outputs,
)
from raykd.training.teacher_cache.builder import view_loader

TEACHER = Resnet(depth=20, width=32)
LAYERS = ("stage2", "stage3")
BATCH = 128


class Bench:
    """Sizes, data and networks of all arms."""

    def __init__(self, images: int, folder: Path) -> None:
        self.source = SOURCES["fashion_mnist"](limit=images, augment=())
        self.data: Dataset = self.source.load()
        self.signature = Signature(input_shape=self.data.input_shape, classes=self.data.classes)
        torch.manual_seed(0)
        self.network = TEACHER.build(self.signature).eval()
        self.folder = folder

    def study(self, dtype: str = "fp16") -> Study:
        return Study(
            name="cache",
            data=self.source,
            teacher=Teacher(model=TEACHER),
            student=Student(model=Resnet(depth=8, width=16)),
            cache=Cache(dtype=dtype),  # type: ignore[arg-type]
        )

    def description(self, layers: tuple[str, ...], dtype: str = "fp16") -> CacheSpec:
        shapes = profile_model(TEACHER, self.signature).layers
        outputs = TeacherOutputs(
            "resnet", network_digest(self.network), {name: shapes[name] for name in layers}
        )
        return cache_spec(self.study(dtype), outputs, TrainingSamples.of(self.data), views=1)

    def store(self) -> CacheStore:
        return CacheStore(Storage(str(self.folder)))

    def build(self, layers: tuple[str, ...], dtype: str = "fp16") -> str:
        """Compute the outputs; return their key."""
        description, store = self.description(layers, dtype), self.store()
        store.remove(description.key)
        build = CacheBuilder(
            description,
            self.study(dtype),
            lambda: LiveTeacher(
                to_device(self.network, torch.device("cpu")), layers, self.signature
            ),
            self.data,
            store,
        )
        while build.advance():
            pass
        assert build.finish()
        return description.key

    def forward(self, layers: tuple[str, ...]) -> None:
        """Return the teacher over all images once."""
        description = self.description(layers)
        teacher = LiveTeacher(to_device(self.network, torch.device("cpu")), layers, self.signature)
        batches = view_loader(description, self.study(), self.data)
        with torch.inference_mode():
            for batch in batches.read_rows(torch.arange(description.rows).split(256), 0):
                teacher(batch)

    def open(self, key: str) -> CachedOutputs:
        results = open_cached_outputs(self.store(), key, self.data)
        assert results is not None
        return results

    def batches(self) -> BatchLoader:
        return BatchLoader(self.data.train, self.data, batch_size=BATCH, shuffle_seed=0)


def read(outputs: CachedOutputs, batches: BatchLoader, names: tuple[str, ...]) -> None:
    """One epoch's outputs, and nothing else."""
    for batch in batches.epoch(0):
        for name in names:
            outputs.take(name, batch).sum()


def bare(batches: BatchLoader) -> None:
    """Return the same batches without them."""
    for batch in batches.epoch(0):
        batch.targets.sum()


def errors(bench: Bench) -> list[dict[str, Any]]:
    """Return the error of each type against float32, relative to the largest value."""
    rows = []
    exact = bench.open(bench.build(LAYERS, "fp32"))
    every = torch.arange(exact.spec.rows)
    for dtype in ("fp16", "bf16"):
        near = bench.open(bench.build(LAYERS, dtype))
        for name in (LOGITS, *LAYERS):
            ours, theirs = near.stored(name, 0, every).float(), exact.stored(name, 0, every)
            worst = (ours - theirs).abs().max() / theirs.abs().max()
            results = {"arm": f"{dtype} {name.strip('@')}", "largest error": worst.item()}
            if name == LOGITS:
                results["KL at T 4"] = divergence(theirs / 4, ours / 4)
            rows.append(results)
        bench.store().remove(near.spec.key)
    bench.store().remove(exact.spec.key)
    return rows


def divergence(exact: torch.Tensor, near: torch.Tensor) -> float:
    """Mean KL from the softmax of one to that of the other, in nats."""
    mine, other = (logits.double().log_softmax(1) for logits in (exact, near))
    return (mine.exp() * (mine - other)).sum(1).mean().item()


def memory_mb(folder: str) -> dict[str, float]:
    """Megabytes of this process that belong to files below `folder`, and that are its own alone."""
    mapped = mine = 0.0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field, _, rest = line.partition(" ")
        if "-" in field and not field.endswith(":"):
            inside = folder in rest
        elif field == "Pss:" and inside:
            mapped += float(rest.split()[0]) / 1000
        elif field == "Private_Dirty:" and inside:
            mine += float(rest.split()[0]) / 1000
    return {"shared out": mapped, "own": mine}


def reader(folder: str, images: int, key: str, here: Any, results: Any) -> None:
    """Return a process that reads, waits until all others have, and says what it holds."""
    torch.set_num_threads(1)
    bench = Bench(images, Path(folder))
    outputs = bench.open(key)
    for _ in range(2):
        read(outputs, bench.batches(), (LOGITS, *LAYERS))
    here.wait()
    results.put(memory_mb(folder))
    here.wait()


def memory(bench: Bench, images: int, key: str, readers: int) -> dict[str, Any]:
    """Measure the memory of several readers together."""
    context = multiprocessing.get_context("spawn")
    here, results = context.Barrier(readers), context.Queue()
    inputs = (str(bench.folder), images, key, here, results)
    processes = [context.Process(target=reader, args=inputs) for _ in range(readers)]
    for process in processes:
        process.start()
    formatted = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "arm": f"{readers} reader(s)",
        "together MB": sum(each["shared out"] for each in formatted),
        "own MB": sum(each["own"] for each in formatted),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    images, repeats = (600, 2) if options.quick else (options.images, options.repeats)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        findings = measured(Bench(images, Path(folder)), images, repeats)
    findings.settings = {"images": images, "repeats": repeats, "threads": options.threads}
    findings.tell(options.json)


def measured(bench: Bench, images: int, repeats: int) -> Findings:
    findings = Findings("cache", {})
    findings.rows += errors(bench)
    tell("errors done")
    small, large = bench.build(()), bench.build(LAYERS)
    open_small, open_large = bench.open(small), bench.open(large)
    batches = bench.batches()
    arms: dict[str, Callable[[], object]] = {
        "forward": partial(bench.forward, LAYERS),
        "build logits": partial(bench.build, ()),
        "build logits + 2 layers": partial(bench.build, LAYERS),
        "open": partial(bench.open, large),
        "verify": partial(bench.store().verify, large),
        "batches alone": partial(bare, batches),
        "read logits": partial(read, open_small, batches, (LOGITS,)),
        "read logits + 2 layers": partial(read, open_large, batches, (LOGITS, *LAYERS)),
    }
    times = in_turn(arms, repeats)
    for name, timing in times.items():
        row: dict[str, Any] = {"arm": name, **spread(timing.wall)}
        row["/ forward"] = timing.over(times["forward"])
        findings.rows.append(row)
    for layers, name in (((), "logits"), (LAYERS, "logits + 2 layers")):
        size = bench.description(layers).bytes / 1e6
        findings.rows.append({"arm": f"size of {name}", "together MB": size})
    tell("times done")
    findings.rows += [memory(bench, images, large, readers) for readers in (1, 4)]
    findings.raw = {name: vars(timing) for name, timing in times.items()}
    return findings


if __name__ == "__main__":
    main()
