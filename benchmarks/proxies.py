"""Value of the proxies: Kendall's tau with accuracies, beside the number of parameters.

    python benchmarks/proxies.py [--batch 32] [--repeats 3] [--out FILE]
    python benchmarks/proxies.py --train

Two tables of students are ranked by every proxy:

- `diswot`: the 64 CIFAR-100 students of Dong et al. 2023 (data/diswot_students.csv), accuracies
  with and without a teacher as they published them.  CIFAR-100 is not read: the networks are shown
  noise, or Fashion-MNIST scaled to 3x32x32 (of whose 10 classes the labels are).  The teacher is
  an untrained ResNet-110.
- `fashion`: students of raykd's own macro space `cnn`, trained from a teacher for a few epochs on
  2,000 pictures of Fashion-MNIST; `--train` computes it again (data/fashion_students.jsonl: a line
  a student; an interrupted run is continued).  Proxies see one batch of the training split.

For each: tau-b with its 95% bootstrap interval over students; the difference to the tau of `params`
on the same resamples; and tau among pairs of students whose parameters differ by a tenth at most,
which is what a proxy tells beyond size.  * marks a difference whose interval leaves zero out.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch.nn.functional import interpolate

from raykd.data import SOURCES, Dataset
from raykd.models import Cnn, Model, Resnet, Signature, profile_model
from raykd.models.proxies import PROXIES, NetworkProxy, ProxyContext, RankingProxy
from raykd.models.zoo.cnn import CnnStage
from raykd.models.zoo.cnn_blocks import Basic
from raykd.study.checks.load import open_study
from raykd.study.config import plain, read_study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import parse_document
from raykd.tuning.proxy_ranking import draw_students, training_batch

HERE = Path(__file__).parent / "data"
CIFAR = Signature((3, 32, 32), 100)
RESAMPLES = 2000
CLOSE = 1.1
"""Two students are of similar size if the ratio of their parameters is at most this."""

FASHION = """\
name: proxies
seed: 0
data: {name: fashion_mnist, limit: 2000, val_limit: 4000}
teacher:
  model: {name: resnet, depth: 14, width: 16}
  train: {epochs: 8, batch_size: 64, optimizer: {name: sgd, lr: 0.05}}
student:
  model:
    name: cnn
    stages:
      - &stage
        width: {choice: [4, 8, 12, 16]}
        depth: {int: [1, 3]}
        kernel: {choice: [3, 5]}
        block:
          choice:
            - plain
            - basic
            - depthwise
            - {name: inverted_residual, expansion: 3}
            - {name: group, groups: 4}
      - *stage
      - *stage
knowledge: [{loss: {name: kd}}]
train: {epochs: 5, batch_size: 64, optimizer: {name: sgd, lr: 0.05}}
search:
  constraints: {macs: {max: 2_000_000}}
  proxy: {name: params, candidates: 32, per_cost: none}
"""


@dataclass(frozen=True)
class Students:
    """A table of students whose accuracies are known.

    Attributes:
        name: of the table and of what the networks are shown.
        models: the students.
        accuracies: in per cent, one column for each way of training.
        about: what the proxies may look at.
    """

    name: str
    models: Sequence[Model]
    accuracies: Mapping[str, NDArray[np.float64]]
    about: ProxyContext

    @property
    def params(self) -> NDArray[np.float64]:
        return np.array(
            [profile_model(each, self.about.signature).params for each in self.models], float
        )


class Tau(NamedTuple):
    """A rank correlation with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Return whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]{'*' if self.clear else ' '}"


# Statistics


def signs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, n): 1 where the first is the larger, -1 where it is the smaller, 0 for ties."""
    return np.sign(values[:, None] - values[None, :])


def weighted_tau(
    ones: NDArray[np.float64], rest: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Kendall's tau-b over pairs (n, n) of signs, each pair counted `weights` (n, n) times."""
    both = (weights * ones * rest).sum()
    scale = (weights * ones**2).sum() * (weights * rest**2).sum()
    return float(both / np.sqrt(scale)) if scale else float("nan")


def scipys_tau(each: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kendall's tau-b."""
    results: Any = kendalltau(each, other)
    return float(results.statistic)


def resamples(count: int, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Of `RESAMPLES` draws with replacement, how often each pair is drawn, (n, n)."""
    drawer = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        times = np.bincount(drawer.integers(count, size=count), minlength=count).astype(float)
        yield np.outer(times, times)


def compared(
    score: NDArray[np.float64],
    params: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    close: NDArray[np.bool_],
) -> dict[str, Tau]:
    """tau of a score, its difference to that of params, and both among close pairs."""
    mine, size, true = signs(score), signs(params), signs(accuracy)
    everyone = np.ones_like(mine)

    def all_of(weights: NDArray[np.float64]) -> list[float]:
        near = weights * close
        tau, null = weighted_tau(mine, true, weights), weighted_tau(size, true, weights)
        beyond, null_beyond = weighted_tau(mine, true, near), weighted_tau(size, true, near)
        return [tau, tau - null, beyond, beyond - null_beyond]

    results = all_of(everyone)
    assert abs(results[0] - scipys_tau(score, accuracy)) < 1e-9
    drawn = np.array([all_of(weights) for weights in resamples(len(score))])
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    names = ("tau", "over_params", "of_like_size", "of_like_size_over_params")
    return {
        name: Tau(float(v), float(a), float(b))
        for name, v, a, b in zip(names, results, low, high, strict=True)
    }


def close_pairs(params: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n, n): which students are of like size, themselves left out."""
    ratio = params[:, None] / params[None, :]
    return (ratio <= CLOSE) & (ratio >= 1 / CLOSE) & ~np.eye(len(params), dtype=bool)


# The tables


def diswot_rows() -> list[dict[str, str]]:
    """Return the published table, a row a student."""
    with open(HERE / "diswot_students.csv", newline="") as file:
        return list(csv.DictReader(file))


def diswot_model(row: Mapping[str, str]) -> Cnn:
    """Return the student of a row: a residual network of 16, 32 and 64 channels."""
    stages = [
        CnnStage(width=16 << number, depth=int(row[f"depth{number + 1}"]), block=Basic())
        for number in range(3)
    ]
    return Cnn(stages=tuple(stages))


def diswot_students(batch: int) -> Iterator[Students]:
    """Yield the published table, on noise and then on scaled images of Fashion-MNIST."""
    rows = diswot_rows()
    models = [diswot_model(row) for row in rows]
    networks = {key: np.array([float(row[key]) for row in rows]) for key in ("acc_kd", "acc_ce")}
    drawer = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, *CIFAR.input_shape, generator=drawer)
    classes = torch.randint(CIFAR.classes, (batch,), generator=drawer)
    pictures, targets = training_batch(SOURCES["fashion_mnist"](limit=2000).load(), batch, 0)
    scaled = interpolate(pictures, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    for name, inputs, labels in (("noise", noise, classes), ("pictures", scaled, targets)):
        about = ProxyContext(CIFAR, inputs.contiguous(), labels, Resnet(depth=110), seed=0)
        yield Students(f"diswot, {name}", models, networks, about)


def fashion_study() -> OpenStudy:
    return open_study(parse_document(FASHION, "proxies.yaml"))


def fashion_students(batch: int) -> Iterator[Students]:
    """Our own table, once it is made."""
    study = fashion_study()
    results = [json.loads(line) for line in (HERE / "fashion_students.jsonl").open()]
    models = [read_student(study, each["student"]) for each in results]
    accuracy = np.array([100 * each["val_accuracy"] for each in results])
    inputs, targets = training_batch(study.settings.data.load(), batch, 0)
    teacher = study.settings.teacher
    assert study.signature is not None and teacher is not None
    about = ProxyContext(study.signature, inputs, targets, teacher.model, seed=0)
    yield Students("fashion", models, {"acc_kd": accuracy}, about)


def read_student(study: OpenStudy, model: Mapping[str, Any]) -> Model:
    return read_study({**plain(study.settings), "student": {"model": dict(model)}}).student.model


def train(out: Path) -> None:
    """Train the students of our own table that are not trained yet."""
    from raykd.training.teachers import train_teachers

    torch.set_num_threads(1)
    study = fashion_study()
    assert study.signature is not None and isinstance(study.settings.search.proxy, RankingProxy)
    done = [json.loads(line)["student"] for line in out.open()] if out.exists() else []
    data = study.settings.data.load()
    teachers = train_teachers(study.settings, data, seed=0)
    for each in draw_students(
        study, study.signature, study.settings.search.proxy, study.settings.search
    ):
        if plain(each.model) not in done:
            line = trained(study, each.model, data, teachers)
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{line['val_accuracy']:.2%} {line['params']} {each.model}", flush=True)


def trained(study: OpenStudy, model: Model, data: Dataset, teachers: Any) -> dict[str, Any]:
    """One student's line: what it is, what it costs, and its accuracy after the last epoch."""
    from raykd.training import Training

    assert study.signature is not None
    networks = {**plain(study.settings), "student": {"model": plain(model)}}
    start = time.perf_counter()
    training = Training(read_study(networks), data, seed=1, teacher=teachers)
    while training.epoch < training.epochs:
        training.run_epoch()
    return {
        "student": plain(model),
        "params": profile_model(model, study.signature).params,
        "macs": profile_model(model, study.signature).macs,
        "val_accuracy": training.evaluate("val")["val_accuracy"],
        "seconds": round(time.perf_counter() - start, 1),
    }


# What is printed


def scored(students: Students, batch: int, repeats: int) -> Iterator[tuple[str, Any, float]]:
    """(proxy, scores, seconds a student) of every proxy."""
    for name, cls in PROXIES.members.items():
        if issubclass(cls, RankingProxy):
            fields: dict[str, Any] = {"batch": batch, "repeats": repeats}
            proxy = cls(**(fields if issubclass(cls, NetworkProxy) else {}))
            start = time.perf_counter()
            score = proxy.scorer(students.about)
            scores = np.array([score(model) for model in students.models])
            yield name, scores, (time.perf_counter() - start) / len(scores)


def lines(students: Students, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    """One line for each proxy and way of training."""
    params = students.params
    close = close_pairs(params)
    for proxy, scores, seconds in scored(students, batch, repeats):
        for way, accuracy in students.accuracies.items():
            yield {
                "students": students.name,
                "count": len(scores),
                "close_pairs": int(close.sum()) // 2,
                "proxy": proxy,
                "accuracy": way,
                "seconds_a_student": seconds,
                "scores": scores.tolist(),
                **compared(scores, params, accuracy, close),
            }


def text(line: Mapping[str, Any]) -> str:
    null = line["proxy"] == "params"
    over = "" if null else str(line["over_params"])
    beyond_over = "" if null else str(line["of_like_size_over_params"])
    tau, beyond = str(line["tau"]).rstrip("*"), str(line["of_like_size"]).rstrip("*")
    return (
        f"{line['proxy']:<8}{line['accuracy']:<8}{tau:<24}{over:<24}{beyond:<24}"
        f"{beyond_over:<24}{line['seconds_a_student']:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="make the table of our own students")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["diswot", "fashion"])
    parser.add_argument("--out", type=Path, default=Path("proxies.json"))
    args = parser.parse_args()
    if args.train:
        train(HERE / "fashion_students.jsonl")
        return
    results: list[dict[str, Any]] = []
    for name, tables in (("diswot", diswot_students), ("fashion", fashion_students)):
        for students in tables(args.batch) if args.only in (None, name) else ():
            close = int(close_pairs(students.params).sum()) // 2
            print(
                f"\n{students.name}: {len(students.models)} students, {close} pairs of like size\n"
                f"{'proxy':<8}{'against':<8}{'tau':<24}{'over params':<24}{'of like size':<24}"
                f"{'over params':<24}s a student"
            )
            for line in lines(students, args.batch, args.repeats):
                results.append(line)
                print(text(line), flush=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
