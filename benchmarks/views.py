"""Students trained with cached outputs against students trained with a live teacher.

    python benchmarks/views.py [--repeats 5] [--json FILE]

Fashion-MNIST, 2,000 training pictures, randomly cropped and flipped.  Teacher: resnet of depth 14
and width 16, 8 epochs.  Student: resnet of depth 8 and width 8, 12 epochs of SGD at 0.05 with
Hinton's loss at T = 4 beside the labels'; every arm under the same seeds, one a repeat.

- `live` runs the teacher on fresh views, others in each epoch and under each seed.
- `kept` reads its outputs, float16.  As in a search, one set of views serves all seeds: one for
  each epoch, 4 (in turn), or 1 (the same crop of a sample, ever again).
- `alone` has no teacher.

Each figure is the accuracy on all 10,000 test pictures after the last epoch, in per cent.
Differences to `live` are paired by seed, with 95% intervals (Student's t).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from measuring import Demand, Findings, arguments, tell
from torch import nn

from raykd.data import AUGMENTATIONS, SOURCES, Dataset
from raykd.losses import KD, Term
from raykd.models import Resnet, Signature
from raykd.schemes import Alone, LiveTeacher, Offline, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.train_config import SGD, Train
from raykd.training import Training
from raykd.training.memory_format import to_device
from raykd.training.teacher_cache import (
    CacheBuilder,
    CacheStore,
    TeacherHandle,
    TeacherOutputs,
    TrainingSamples,
    cache_spec,
    network_digest,
    open_cached_outputs,
)
from raykd.tuning.estimates import Estimate, estimate, paired_gain

LIVE, ALONE = "live", "alone"
SHARED_SEED = 1000
"""Of the views that are kept."""


@dataclass(frozen=True)
class Bench:
    """Sizes and data of all arms."""

    data: Dataset
    source: Any
    epochs: int
    teacher_epochs: int
    folder: Path

    @cached_property
    def teacher(self) -> nn.Module:
        """Trained alone on the same pictures."""
        tell("training the teacher")
        mine = self.study(ALONE)
        train = replace(mine.train, epochs=self.teacher_epochs)
        student = Student(model=Resnet(depth=14, width=16))
        training = Training(replace(mine, student=student, train=train), self.data, seed=0)
        while training.epoch < training.epochs:
            training.run_epoch()
        return training.student.eval()

    def views(self, arm: str) -> int:
        """Return the number of views that an arm caches; 0: none."""
        return {"kept, a view for each epoch": self.epochs, "kept, 4 views": 4}.get(
            arm, 1 if arm == "kept, 1 view" else 0
        )

    def study(self, arm: str) -> Study:
        """Return the concrete study of an arm."""
        views = self.views(arm)
        return Study(
            name="views",
            data=self.source,
            teacher=Teacher(model=Resnet(depth=14, width=16)),
            student=Student(model=Resnet(depth=8, width=8)),
            scheme=Alone() if arm == ALONE else Offline(),
            knowledge=() if arm == ALONE else (Term(loss=KD(temperature=4)),),
            train=Train(epochs=self.epochs, batch_size=64, optimizer=SGD(lr=0.05)),
            cache=Cache(use="always", views=views, seed=SHARED_SEED) if views else Cache(),
        )

    def accuracy(self, arm: str, seed: int) -> float:
        """Of the student on the test split, 0 to 100."""
        study = self.study(arm)
        teacher = None if arm == ALONE else TeacherHandle(self.teacher, self._outputs(arm, study))
        training = Training(study, self.data, seed=seed, teacher=teacher)
        while training.epoch < training.epochs:
            training.run_epoch()
        return 100 * training.evaluate("test")["test_accuracy"]

    def _outputs(self, arm: str, study: Study) -> Any:
        if not self.views(arm):
            return None
        data = self.data
        teacher = TeacherOutputs(repr(study.teacher), network_digest(self.teacher))
        samples = TrainingSamples.of(data)
        description = cache_spec(study, teacher, samples, views=self.views(arm))
        store = CacheStore(Storage(str(self.folder)))
        if store.manifest(description.key) is None:
            signature = Signature(input_shape=data.input_shape, classes=data.classes)
            network = to_device(self.teacher, torch.device("cpu"))
            build = CacheBuilder(
                description, study, lambda: LiveTeacher(network, (), signature), data, store
            )
            while build.advance(math.inf):
                pass
            build.finish()
        outputs = open_cached_outputs(store, description.key, data)
        assert outputs is not None, "it was just built"
        return outputs


ARMS = (LIVE, "kept, a view for each epoch", "kept, 4 views", "kept, 1 view", ALONE)


def compare(bench: Bench, repeats: int) -> Findings:
    """All arms under each seed."""
    results: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    for seed in range(1, repeats + 1):
        for arm in ARMS:
            results[arm][seed] = bench.accuracy(arm, seed)
        tell(f"seed {seed} of {repeats} done")
    rows = [
        {
            "student": arm,
            "test accuracy": _figure(estimate([*by.values()]), ""),
            "over live": "" if arm == LIVE else _figure(paired_gain(by, results[LIVE]), "+"),
        }
        for arm, by in results.items()
    ]
    settings = {"images": len(bench.data.train), "epochs": bench.epochs, "seeds": repeats}
    return Findings(
        "views",
        settings,
        rows,
        [_demand(results)],
        {"accuracy": results},
        ["± 95% interval over seeds"],
    )


def _demand(results: Mapping[str, Mapping[int, float]]) -> Demand:
    gain = paired_gain(dict(results[ARMS[1]]), dict(results[LIVE]))
    ratio = None
    if gain is not None and gain.half_width > 0:
        ratio = abs(gain.mean) / gain.half_width
    return Demand("kept, a view for each epoch, to live: difference / half its interval", 1, ratio)


def _figure(results: Estimate | None, sign: str) -> str:
    assert results is not None
    return f"{results.mean:{sign}.2f} ± {results.half_width:.2f}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    quick = args.quick
    augment = (AUGMENTATIONS["random_crop"](), AUGMENTATIONS["horizontal_flip"]())
    source = SOURCES["fashion_mnist"](
        limit=200 if quick else args.images, val_limit=100, augment=augment
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(source.load(), source, 2 if quick else 12, 1 if quick else 8, Path(folder))
        compare(bench, 2 if quick else args.repeats).tell(args.json)


if __name__ == "__main__":
    main()
