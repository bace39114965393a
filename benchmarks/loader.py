"""Pictures from disk: how fast they are read, and whether training waits for them.

    python benchmarks/loader.py [--pictures 8192] [--size 224] [--batch 128] [--json FILE]

A folder of JPEG files (500 x 400 pixels, smooth noise) is written first.  Then, an epoch each:

- `read, raykd` takes the batches of `image_folder` onto the device, normalized, the files decoded
  by worker processes; `augmented` crops and mirrors them there.
- `read, torchvision` is the usual ImageFolder in a DataLoader of as many workers: short side to
  `--size`, the middle of it, ToTensor, Normalize; pinned where there is a GPU.
- `train, raykd` trains a ResNet-18 on them; `in memory` is the same on pictures decoded before,
  what the reader could reach at most.

`waits` is the part of an epoch that is lost to the reader, against the training in memory.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from gpu import busy_seconds, finished
from measuring import Findings, Times, arguments, in_turn, spread, tell
from step import TrainsOnly

from raykd.data import (
    AUGMENTATIONS,
    SOURCES,
    BatchLoader,
    Dataset,
    Placement,
    ViewOptions,
    to_memory_format,
)
from raykd.data.image_folder import ImageFolder
from raykd.models import Resnet
from raykd.schemes import Alone
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train

CLASSES = 10
SIZE = (500, 400)
QUALITY = 90
HELD_OUT = 20
"""Pictures of the validation and of the test folder; nothing is evaluated."""


def write_pictures(folder: Path, count: int) -> None:
    """Write `count` training images and some for other splits, in class folders."""
    names = [("train", number) for number in range(count)]
    names += [(part, number) for part in ("val", "test") for number in range(HELD_OUT)]
    for part in ("train", "val", "test"):
        for label in range(CLASSES):
            (folder / part / f"class-{label}").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda each: _write(folder, *each), names):
            pass


def _write(folder: Path, part: str, number: int) -> None:
    from PIL import Image

    width, height = SIZE
    drawn = np.random.default_rng(number)
    coarse = Image.fromarray(drawn.integers(0, 256, (height // 20, width // 20, 3), np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
    grain = drawn.integers(-6, 7, smooth.shape, np.int16)
    lines = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
    file = folder / part / f"class-{number % CLASSES}" / f"{number:06}.jpg"
    lines.save(file, quality=QUALITY)


@dataclass(frozen=True)
class Bench:
    """Sizes and data of all arms."""

    folder: Path
    size: int
    batch: int
    workers: int
    epochs: int
    precision: Literal["fp32", "bf16"]
    device: torch.device
    model: Resnet

    @property
    def source(self) -> ImageFolder:
        return SOURCES["image_folder"](
            root=str(self.folder), size=self.size, workers=self.workers, resident_limit_mb=0
        )

    @cached_property
    def on_disk(self) -> Dataset:
        return self.source.load()

    @cached_property
    def in_memory(self) -> Dataset:
        tell("decoding all pictures")
        return replace(self.source, resident_limit_mb=1e6).load().to(self.device)

    @property
    def augment(self) -> Any:
        crop = AUGMENTATIONS["random_crop"](padding=max(1, self.size // 8))
        return crop, AUGMENTATIONS["horizontal_flip"]()


def raykd_reads(bench: Bench, augment: Any = ()) -> Callable[[], object]:
    batches = BatchLoader(
        bench.on_disk.train,
        bench.on_disk,
        batch_size=bench.batch,
        shuffle_seed=0,
        views=ViewOptions(augment),
        placement=Placement(bench.device),
    )
    numbers = iter(range(bench.epochs))
    return lambda: sum(len(to_memory_format(batch)) for batch in batches.epoch(next(numbers)))


def torchvision_reads(bench: Bench) -> Callable[[], object]:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    data = bench.on_disk
    steps = transforms.Compose(
        [
            transforms.Resize(bench.size),
            transforms.CenterCrop(bench.size),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    on_gpu = bench.device.type == "cuda"
    loader: Any = DataLoader(
        datasets.ImageFolder(str(bench.folder / "train"), steps),
        batch_size=bench.batch,
        shuffle=True,
        num_workers=bench.workers,
        persistent_workers=bench.workers > 0,
        pin_memory=on_gpu,
    )

    def moved() -> Iterator[int]:
        for pictures, targets in loader:
            pictures.to(bench.device, non_blocking=True)
            yield len(targets.to(bench.device, non_blocking=True))

    return lambda: sum(moved())


def raykd_trains(bench: Bench, data: Dataset, augment: Any = ()) -> Callable[[], object]:
    study = Study(
        name="loader",
        data=replace(bench.source, augment=augment),
        student=Student(model=bench.model),
        scheme=Alone(),
        train=Train(
            epochs=bench.epochs,
            batch_size=bench.batch,
            optimizer=SGD(lr=0.01),
            precision=bench.precision,
        ),
    )
    return TrainsOnly(study, data, seed=0, placement=Placement(bench.device)).run_epoch


MEMORY = "train, raykd, in memory"
"""The training that waits for no reader."""


def build_arms(bench: Bench) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return the builder of each arm, by name."""
    return {
        "read, torchvision": lambda: torchvision_reads(bench),
        "read, raykd": lambda: raykd_reads(bench),
        "read, raykd, augmented": lambda: raykd_reads(bench, bench.augment),
        "train, raykd": lambda: raykd_trains(bench, bench.on_disk),
        "train, raykd, augmented": lambda: raykd_trains(bench, bench.on_disk, bench.augment),
        MEMORY: lambda: raykd_trains(bench, bench.in_memory),
    }


def compare(bench: Bench, repeats: int) -> Findings:
    """All arms, in turn."""
    arms = {name: finished(make(), bench.device) for name, make in build_arms(bench).items()}
    times = in_turn(arms, repeats)
    busy: dict[str, float] = {}
    if bench.device.type == "cuda":
        busy = {name: busy_seconds(arm) for name, arm in arms.items() if "train" in name}
    pictures = len(bench.on_disk.train)
    rows = [_row(name, times, busy, pictures) for name in times]
    settings = {"pictures": pictures, "size": bench.size, "batch": bench.batch}
    settings |= {"workers": bench.workers, "precision": bench.precision, "device": bench.device}
    raw = {"times": {name: asdict(timing) for name, timing in times.items()}, "GPU busy": busy}
    return Findings("loader", settings, rows, raw=raw, notes=["images/s: of the median epoch"])


def _row(
    name: str, times: dict[str, Times], busy: dict[str, float], pictures: int
) -> dict[str, Any]:
    timing = times[name]
    row = {"epoch": name, **spread(timing.wall), "images/s": pictures / median(timing.wall)}
    if name.startswith("train") and name != MEMORY:
        row["waits"] = max(0.0, 1 - times[MEMORY].over(timing))
    if name in busy:
        row["GPU busy"] = busy[name] / median(timing.wall)
    return row


def bench_of(args: Namespace, folder: Path) -> Bench:
    """Return the sizes that were asked for."""
    quick, device = args.quick, torch.device(args.device)
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    imagenet = Resnet(stages=4, depth=18, width=64, stem_type="imagenet")
    return Bench(
        folder=folder,
        size=32 if quick else args.size,
        batch=16 if quick else args.batch,
        workers=args.workers,
        epochs=args.repeats + 2,
        precision=precision,
        device=device,
        model=Resnet(depth=8, width=8) if quick else imagenet,
    )


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=_default_workers())
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="bf16 on a GPU, else fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.pictures = min(args.repeats, 2), 64
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell(f"writing {args.pictures} pictures")
        write_pictures(folder, args.pictures)
        compare(bench_of(args, folder), args.repeats).tell(args.json)


def _default_workers() -> int:
    """As many as raykd starts where a study does not say."""
    return ImageFolder()._workers()


if __name__ == "__main__":
    main()
