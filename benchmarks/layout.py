"""Memory format of images and kernels: channels first or last.

    python benchmarks/layout.py [--repeats 3] [--only resnet-8 resnet-50] [--json FILE]

`Training` of a student alone, on random pictures that lie on the device, with what
`raykd.training.memory_format` decides set one way and the other, in float32 and in bfloat16.
`ratio` is innermost by outermost, the median over repeats; below 1 innermost is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from gpu import finished
from measuring import Findings, Times, arguments, in_turn, tell
from step import TrainsOnly

from raykd.data import SOURCES, Dataset
from raykd.data.loader import Placement
from raykd.data.splits import dataset_of_images
from raykd.models import MODELS, Model
from raykd.schemes import Alone
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train

Precision = Literal["fp32", "bf16"]

CLASSES = 10
LAYOUTS = {"outermost": False, "innermost": True}


@dataclass(frozen=True)
class Case:
    """A network, what it sees, and how many at a time."""

    model: Model
    channels: int
    size: int
    batch: int


def imagenet_resnet(depth: int, block: Any) -> Model:
    return MODELS["resnet"](stages=4, block=block, depth=depth, width=64, stem_type="imagenet")


CASES = {
    "resnet-8": Case(MODELS["resnet"](depth=8, width=16), 1, 28, 128),
    "resnet-8-large-batch": Case(MODELS["resnet"](depth=8, width=16), 1, 28, 1024),
    "resnet-20": Case(MODELS["resnet"](depth=20, width=32), 3, 32, 512),
    "vgg-8": Case(MODELS["vgg"](depth=8), 3, 32, 512),
    "resnet-18": Case(imagenet_resnet(18, "basic"), 3, 224, 128),
    "resnet-50": Case(imagenet_resnet(50, "bottleneck"), 3, 224, 128),
    "mobilenet-v2": Case(MODELS["mobilenet_v2"](variant="imagenet"), 3, 224, 128),
}


def random_pictures(case: Case, steps: int) -> Dataset:
    drawn = np.random.default_rng(0)
    train, all_of_them = case.batch * steps, case.batch * steps + 2
    pictures = drawn.integers(0, 256, (all_of_them, case.channels, case.size, case.size), np.uint8)
    targets = drawn.integers(0, CLASSES, all_of_them)
    rows = {
        "train": np.arange(train),
        "val": np.array([train]),
        "test": np.array([train + 1]),
    }
    names = tuple(map(str, range(CLASSES)))
    return dataset_of_images("random", pictures, targets, rows, names, "")


@contextmanager
def lying(innermost: bool) -> Iterator[None]:
    """Everything lies so, whatever raykd thinks better."""
    with (
        patch("raykd.data.batch.channels_last_for", lambda *_: innermost),
        patch("raykd.training.memory_format.channels_last_for", lambda *_: innermost),
    ):
        yield


def epoch_of(
    case: Case, data: Dataset, innermost: bool, precision: Precision, epochs: int
) -> Callable[[], object]:
    study = Study(
        name="layout",
        data=SOURCES["digits"](augment=()),
        student=Student(model=case.model),
        scheme=Alone(),
        train=Train(
            epochs=epochs, batch_size=case.batch, optimizer=SGD(lr=0.01), precision=precision
        ),
    )
    device = data.train.targets.device
    with lying(innermost):
        training = TrainsOnly(study, data, seed=0, placement=Placement(device))

    def epoch() -> None:
        with lying(innermost):
            training.run_epoch()

    return finished(epoch, device)


def measured(case: Case, steps: int, repeats: int, device: torch.device) -> dict[str, Times]:
    data = random_pictures(case, steps).to(device)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    arms = {
        f"{precision}, {name}": epoch_of(case, data, innermost, precision, repeats + 1)
        for precision in precisions
        for name, innermost in LAYOUTS.items()
    }
    return in_turn(arms, repeats)


def compare(cases: dict[str, Case], steps: int, repeats: int, device: torch.device) -> Findings:
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}
    for name, case in cases.items():
        tell(name)
        times = measured(case, steps, repeats, device)
        raw[name] = {arm: asdict(timing) for arm, timing in times.items()}
        rows += [_row(name, case, times, precision, steps) for precision in ("fp32", "bf16")]
    settings = {"steps": steps, "repeats": repeats, "device": device}
    return Findings("layout", settings, rows, raw=raw)


def _row(name: str, case: Case, times: dict[str, Times], precision: str, steps: int) -> Any:
    outer, inner = (times[f"{precision}, {layout}"] for layout in LAYOUTS)
    lines = f"{case.channels}x{case.size}x{case.size}"
    each = partial(_images_per_second, steps * case.batch)
    return {
        "network": name,
        "pictures": lines,
        "batch": case.batch,
        "precision": precision,
        "outermost images/s": each(outer),
        "innermost images/s": each(inner),
        "ratio": inner.over(outer),
    }


def _images_per_second(images: int, timing: Times) -> float:
    return images / median(timing.wall)


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--steps", type=int, default=12, help="of an epoch")
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.quick:
        args.only, args.steps, args.repeats = ["resnet-8"], 2, 1
    cases = {name: CASES[name] for name in args.only}
    compare(cases, args.steps, args.repeats, torch.device(args.device)).tell(args.json)


if __name__ == "__main__":
    main()
