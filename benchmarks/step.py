"""One epoch of distillation: raykd, live and cached, against a plain loop and torchdistill.

    python benchmarks/step.py [--repeats 5] [--only alone kd hint] [--json FILE]
    python benchmarks/step.py --images 30000 --precision bf16 --compile graph reduce-overhead
    uv run --with torchdistill==1.1.5 python benchmarks/step.py

A resnet of depth 20 and width 32 teaches one of depth 8 and width 16: 6,000 Fashion-MNIST images,
batch 128, SGD with momentum under a cosine schedule, no augmentation, no evaluation.  `kd` is
Hinton's loss at T = 4 beside the labels'; `hint` compares the second stages, through a 1x1
convolution with batch norm, beside the labels'.

- `plain` is what one writes by hand: a resident tensor, laid out as torch lays it, the teacher run
  in eval mode without gradients at each step, or its outputs (float16) read from a tensor.
  `plain, channels last` is the same with the channels innermost, as raykd lays them on a CPU.
- `raykd` is its `Training` with all its bookkeeping; cached, it reads a built cache from disk.
- `torchdistill` runs its DistillationBox over its DataLoader of pictures with torchvision's
  ToTensor and Normalize; the teacher stays in training mode, as that framework leaves it.  `teacher
  in eval mode` is the same with the teacher put right by hand.  Where torchdistill is not
  installed, its rows lack.

Epochs of all arms alternate in one process.  Ratios are medians over repeats of an arm's epoch by
that of `plain` alone in the same repeat.  On a GPU `GPU busy` is the part of an epoch in which it
computes or copies anything.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from gpu import busy_seconds
from measuring import Demand, Findings, Times, arguments, in_turn, spread, tell
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.data import SOURCES, Dataset, Placement, Split
from raykd.losses import KD, Hint, Term
from raykd.losses.terms import Pair
from raykd.models import Resnet, Signature, profile_model
from raykd.schemes import Alone, LiveTeacher, Offline, Teacher
from raykd.storage import Storage
from raykd.study.config import Cache, Student, Study
from raykd.train_config import SGD, Train
from raykd.training import Training
from raykd.training.memory_format import to_device
from raykd.training.metrics import autocast_for
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

Method = Literal["alone", "kd", "hint"]
Epoch = Callable[[], float]
"""Trains one epoch; returns its mean loss."""

METHODS: tuple[Method, ...] = ("alone", "kd", "hint")
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
TEMPERATURE, KD_WEIGHT, HINT_WEIGHT = 4.0, 0.9, 10.0
PLAIN = "alone, plain"
"""The arm that the others are compared with."""


@dataclass(frozen=True)
class Bench:
    """Sizes, data and networks of all arms."""

    data: Dataset
    teacher_model: Resnet
    student_model: Resnet
    batch: int
    epochs: int
    precision: Literal["fp32", "bf16"]
    device: torch.device
    folder: Path
    loader_workers: int
    compile: Sequence[str] = ()

    @property
    def signature(self) -> Signature:
        return Signature(input_shape=self.data.input_shape, classes=self.data.classes)

    @property
    def train(self) -> Split:
        assert isinstance(self.data.train, Split)
        return self.data.train

    @property
    def steps(self) -> int:
        return self.epochs * math.ceil(len(self.train) / self.batch)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Of the teacher, after one epoch alone."""
        tell("training the teacher for one epoch")
        mine = replace(self, student_model=self.teacher_model, precision="fp32")
        loop = ByHand(mine, "alone")
        loop.epoch()
        return {name: tensor.cpu() for name, tensor in loop.student.state_dict().items()}

    def teacher(self) -> nn.Module:
        """Return the teacher, in training mode, on the device; a fresh copy each time."""
        network = self.teacher_model.build(self.signature)
        network.load_state_dict(self.weights)
        return network.to(self.device)

    def optimizer(self, *modules: nn.Module) -> torch.optim.SGD:
        names = [parameter for module in modules for parameter in module.parameters()]
        return torch.optim.SGD(names, RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True)

    def autocast(self) -> AbstractContextManager[object]:
        return autocast_for(self.precision, self.device)()

    def regressor(self) -> nn.Module:
        """From the student's second stage to the teacher's."""
        arguments_, names = (2 * model.width for model in (self.student_model, self.teacher_model))
        layer = nn.Conv2d(arguments_, names, 1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(names)).to(self.device)


# By hand


class ByHand:
    """The loop one would write.

    Args:
        cached: read the teacher's outputs instead of running it.
        layout: of pictures and kernels in memory.
    """

    def __init__(
        self,
        bench: Bench,
        method: Method,
        cached: bool = False,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.bench, self.method, self.layout = bench, method, layout
        data, split = bench.data, bench.train
        pixels = split.inputs
        assert isinstance(pixels, Tensor)
        scaled = pixels.float().div(255).sub(data.mean[0]).div(data.std[0])
        laid = torch.empty(scaled.shape, memory_format=layout).copy_(scaled)
        self.inputs, self.targets = laid.to(bench.device), split.targets.to(bench.device)
        self.student = self._laid(bench.student_model.build(bench.signature))
        self.regressor = self._laid(bench.regressor()) if method == "hint" else nn.Identity()
        self.teacher = None if method == "alone" else self._laid(bench.teacher().eval())
        self.kept = self._all_outputs() if cached else None
        self.optimizer = bench.optimizer(self.student, self.regressor)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, bench.steps)

    def epoch(self) -> float:
        self.student.train()
        total = torch.zeros((), device=self.bench.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.bench.device)
        order = torch.randperm(len(self.targets)).to(self.bench.device)
        for rows in order.split(self.bench.batch):
            targets = self.targets[rows]
            with self.bench.autocast():
                logits, loss = self._forward(rows, targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach() * len(rows)
            hits += (logits.detach().argmax(1) == targets).sum()
        assert hits.item() >= 0
        return total.item() / len(self.targets)

    def _forward(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pictures = self.inputs[rows]
        logits, middle = forward_parts(self.student, pictures)
        loss = F.cross_entropy(logits.float(), targets)
        if self.method == "kd":
            taught = self._taught(rows, pictures, 0)
            loss = loss + KD_WEIGHT * softened(logits.float(), taught)
        elif self.method == "hint":
            taught = self._taught(rows, pictures, 1)
            loss = loss + HINT_WEIGHT * F.mse_loss(self.regressor(middle).float(), taught)
        return logits, loss

    def _taught(self, rows: Tensor, pictures: Tensor, which: int) -> Tensor:
        if self.kept is not None:
            return self.kept[rows].float()
        assert self.teacher is not None
        with torch.no_grad():
            return forward_parts(self.teacher, pictures)[which].float()

    @torch.no_grad()
    def _all_outputs(self) -> Tensor:
        assert self.teacher is not None
        which = 0 if self.method == "kd" else 1
        parts = [forward_parts(self.teacher, part)[which].half() for part in self.inputs.split(256)]
        return torch.cat(parts)

    def _laid(self, network: nn.Module) -> nn.Module:
        network.to(self.bench.device)
        return network.to(memory_format=self.layout)  # type: ignore[call-overload]


def forward_parts(network: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return a resnet's logits, and what its second stage gives."""
    middle = network.stage2(network.stage1(network.stem(pictures)))
    return network.classifier(network.flatten(network.pool(network.stage3(middle)))), middle


def softened(logits: Tensor, taught: Tensor) -> Tensor:
    """T^2 KL, mean over the batch; Hinton 2015 (arXiv:1503.02531)."""
    mine = F.log_softmax(logits / TEMPERATURE, dim=1)
    other = F.softmax(taught / TEMPERATURE, dim=1)
    return F.kl_div(mine, other, reduction="batchmean") * TEMPERATURE**2


# raykd


class TrainsOnly(Training):
    """Does not evaluate."""

    def evaluate(self, split: Literal["train", "val", "test"]) -> dict[str, float]:
        return {f"{split}_loss": 0.0, f"{split}_accuracy": 0.0}


def study_of(bench: Bench, method: Method, mode: Any = "none") -> Study:
    """Return the concrete study of an arm."""
    terms = {
        "alone": (),
        "kd": (Term(loss=KD(temperature=TEMPERATURE), weight=KD_WEIGHT),),
        "hint": (
            Term(
                loss=Hint(),
                weight=HINT_WEIGHT,
                pairs=(Pair(hint="stage2", guided="stage2"),),
            ),
        ),
    }
    return Study(
        name="step",
        data=SOURCES["fashion_mnist"](augment=()),
        teacher=Teacher(model=bench.teacher_model),
        student=Student(model=bench.student_model),
        scheme=Alone() if method == "alone" else Offline(),
        knowledge=terms[method],
        train=Train(
            epochs=bench.epochs,
            batch_size=bench.batch,
            optimizer=SGD(lr=RATE, momentum=MOMENTUM, weight_decay=DECAY),
            precision=bench.precision,
            compile=mode,
        ),
        cache=Cache(use="always"),
    )


def raykd_epoch(bench: Bench, method: Method, cached: bool = False, mode: Any = "none") -> Epoch:
    """`Training.run_epoch` with all its bookkeeping, but without its evaluation.

    Args:
        mode: what `train.compile` takes.
    """
    study = study_of(bench, method, mode)
    data = bench.data.to(bench.device)
    teacher = None
    if method != "alone":
        network = bench.teacher().eval()
        outputs = built_outputs(bench, study, method, network, data) if cached else None
        teacher = TeacherHandle(network, outputs)
    training = TrainsOnly(study, data, seed=0, teacher=teacher, placement=Placement(bench.device))
    return lambda: training.run_epoch()["train_loss"]


def built_outputs(
    bench: Bench, study: Study, method: Method, network: nn.Module, data: Dataset
) -> Any:
    """Return the teacher's outputs, computed, put on disk and opened."""
    stages = profile_model(bench.teacher_model, bench.signature).resolve(["stage2"])
    layers = {layer.name: layer.shape for layer in stages} if method == "hint" else {}
    teacher = TeacherOutputs(repr(bench.teacher_model), network_digest(network), layers)
    description = cache_spec(study, teacher, TrainingSamples.of(data), views=1)
    store = CacheStore(Storage(str(bench.folder)))
    build = CacheBuilder(
        description,
        study,
        lambda: LiveTeacher(to_device(network, bench.device), tuple(layers), bench.signature),
        data,
        store,
        Placement(bench.device),
    )
    while build.advance(math.inf):
        pass
    build.finish()
    outputs = open_cached_outputs(store, description.key, data, device=bench.device)
    assert outputs is not None, "it was just built"
    return outputs


# torchdistill


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The training pictures as torchvision's FashionMNIST shows them: one PIL image a sample."""

    def __init__(self, bench: Bench) -> None:
        from torchvision import transforms

        inputs = bench.train.inputs
        assert isinstance(inputs, Tensor)
        self._pixels, self._targets = inputs[:, 0].numpy(), bench.train.targets.tolist()
        self._transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(bench.data.mean, bench.data.std)]
        )

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        from PIL import Image

        lines: Any = self._transform(Image.fromarray(self._pixels[row]))
        return lines, self._targets[row]


def torchdistill_epoch(bench: Bench, method: Method, eval_mode: bool = False) -> Epoch:
    """Return an epoch of torchdistill's box over its own data loader, as its examples drive it.

    Raises:
        ImportError: torchdistill is not installed.
    """
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found]

    _register_guided()
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    teacher, student = bench.teacher(), bench.student_model.build(bench.signature).to(bench.device)
    box = get_distillation_box(
        teacher,
        student,
        {"train": Pictures(bench)},
        _box_settings(bench, method),
        bench.device,
        None,
        False,
        1,
    )
    if eval_mode:
        box.teacher_model.eval()
    numbers = iter(range(bench.epochs))
    return lambda: _box_epoch(box, bench, next(numbers))


def _box_epoch(box: Any, bench: Bench, number: int) -> float:
    box.pre_epoch_process(epoch=number)
    total, samples = 0.0, 0
    for lines, labels, more in box.train_data_loader:
        pictures, targets = lines.to(bench.device), labels.to(bench.device)
        with bench.autocast():
            loss = box.forward_process(pictures, targets, more)
        box.post_forward_process(loss=loss)
        total += loss.item() * len(targets)
        samples += len(targets)
    box.post_epoch_process()
    return total / samples


def _box_settings(bench: Bench, method: Method) -> dict[str, Any]:
    """Return a training of torchdistill, as its configuration files write one down."""
    kd = {
        "criterion": {
            "key": "KDLoss",
            "kwargs": {
                "student_module_path": ".",
                "student_module_io": "output",
                "teacher_module_path": ".",
                "teacher_module_io": "output",
                "temperature": TEMPERATURE,
                "alpha": 1.0,
                "beta": KD_WEIGHT,
            },
        },
        "weight": 1.0,
    }
    labels = _wrapped("CrossEntropyLoss", ".", {"uses_label": True})
    stage = {"is_from_teacher": True, "module_path": "stage2", "io": "output"}
    hint = _wrapped("MSELoss", "regressor", stage, HINT_WEIGHT)
    terms: dict[str, Any] = {"kd": kd} if method == "kd" else {"labels": labels, "hint": hint}
    forward = {"wrapper": None, "forward_proc": "forward_batch_only"}
    teacher: dict[str, Any] = {"requires_grad": False, **forward}
    student: dict[str, Any] = dict(forward)
    if method == "hint":
        teacher["forward_hook"] = {"output": ["stage2"]}
        student |= {
            "auxiliary_model_wrapper": {"key": "GuidedForBenchmark", "kwargs": {"bench": bench}},
            "forward_hook": {"output": [GUIDED, "regressor"]},
        }
    return {
        "num_epochs": bench.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {
                "batch_size": bench.batch,
                "num_workers": bench.loader_workers,
                "pin_memory": bench.device.type == "cuda",
                "drop_last": False,
            },
        },
        "teacher": teacher,
        "student": student,
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY},
        },
        "scheduler": {
            "key": "CosineAnnealingLR",
            "kwargs": {"T_max": bench.steps},
            "scheduling_step": 1,
        },
    }


GUIDED = "student_model.stage2"
"""The guided layer's name below the module that joins student and regressor."""


def _wrapped(loss: str, path: str, target: dict[str, Any], weight: float = 1.0) -> dict[str, Any]:
    """Return a loss of torch between what the student shows at `path` and `target`."""
    mine = {"is_from_teacher": False, "module_path": path, "io": "output"}
    return {
        "criterion": {"key": loss, "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {"input": mine, "target": target},
        },
        "weight": weight,
    }


def _register_guided() -> None:
    """Make known to torchdistill the student with its regressor."""
    from torchdistill.models.registry import register_auxiliary_model_wrapper  # type: ignore[import-not-found]
    from torchdistill.models.wrapper import AuxiliaryModelWrapper  # type: ignore[import-not-found]

    class GuidedForBenchmark(AuxiliaryModelWrapper):
        def __init__(self, student_model: nn.Module, bench: Bench, **more: Any) -> None:
            super().__init__()
            self.student_model = student_model
            self.regressor = bench.regressor()

        def forward(self, pictures: Tensor) -> Tensor:
            return self.student_model(pictures)

        def secondary_forward(self, io_dict: Any) -> None:
            self.regressor(io_dict[GUIDED]["output"])

    register_auxiliary_model_wrapper(GuidedForBenchmark)


# The comparison


def build_arms(bench: Bench, methods: Sequence[Method]) -> dict[str, Callable[[], Epoch]]:
    """Return the builder of each arm, by name; `alone, plain` is always included."""
    inner = torch.channels_last
    builders: dict[str, Callable[[], Epoch]] = {
        PLAIN: lambda: ByHand(bench, "alone").epoch,
        "alone, plain, channels last": lambda: ByHand(bench, "alone", layout=inner).epoch,
        "alone, raykd": lambda: raykd_epoch(bench, "alone"),
    }
    for mode in bench.compile:
        builders |= _compiled_arms(bench, mode)
    for method in methods:
        if method != "alone":
            builders |= _arms_of(bench, method)
    return builders


def _compiled_arms(bench: Bench, mode: str) -> dict[str, Callable[[], Epoch]]:
    torch._dynamo.config.recompile_limit = 64  # all arms' networks come of the same functions
    return {
        f"alone, raykd, {mode}": lambda: raykd_epoch(bench, "alone", mode=mode),
        f"kd, raykd, cached, {mode}": lambda: raykd_epoch(bench, "kd", cached=True, mode=mode),
    }


def _arms_of(bench: Bench, method: Method) -> dict[str, Callable[[], Epoch]]:
    inner = torch.channels_last
    return {
        f"{method}, plain": lambda: ByHand(bench, method).epoch,
        f"{method}, plain, channels last": lambda: ByHand(bench, method, layout=inner).epoch,
        f"{method}, plain, cached": lambda: ByHand(bench, method, cached=True).epoch,
        f"{method}, raykd, live": lambda: raykd_epoch(bench, method),
        f"{method}, raykd, cached": lambda: raykd_epoch(bench, method, cached=True),
        f"{method}, torchdistill": lambda: torchdistill_epoch(bench, method),
        f"{method}, torchdistill, teacher in eval mode": lambda: torchdistill_epoch(
            bench, method, eval_mode=True
        ),
    }


def compare(bench: Bench, repeats: int, methods: Sequence[Method]) -> Findings:
    """All arms, in turn."""
    losses: dict[str, list[float]] = {}
    arms: dict[str, Callable[[], object]] = {}
    lacking: list[str] = []
    for name, make in build_arms(bench, methods).items():
        try:
            arms[name] = partial(_noted, make(), records := [])
            losses[name] = records
        except ImportError as error:
            lacking.append(f"not run: {name} ({error})")
    times = in_turn(arms, repeats)
    busy = {}
    if bench.device.type == "cuda":
        busy = {name: busy_seconds(arm) for name, arm in arms.items()}
    images = len(bench.train)
    rows = [
        {
            "epoch": name,
            **spread(timing.wall),
            "x plain alone": timing.over(times[PLAIN]),
            "x, processor": timing.over(times[PLAIN], "processor"),
            "images/s": images / min(timing.wall),
            **({"GPU busy": busy[name] / median(timing.wall)} if busy else {}),
            "last loss": losses[name][-1],
        }
        for name, timing in times.items()
    ]
    settings = {"images": images, "batch": bench.batch, "repeats": repeats}
    settings |= {"precision": bench.precision, "device": bench.device}
    settings |= {"threads": torch.get_num_threads(), "loader_workers": bench.loader_workers}
    return Findings(
        "step",
        settings,
        rows,
        demands_on(times),
        {
            "times": {name: asdict(timing) for name, timing in times.items()},
            "losses": losses,
            "GPU busy, seconds": busy,
        },
        [*lacking, "images/s: of the fastest repeat"],
    )


def _noted(epoch: Epoch, losses: list[float]) -> None:
    losses.append(epoch())
    assert math.isfinite(losses[-1])


def demands_on(times: dict[str, Times]) -> list[Demand]:
    """Return the rows that must be shown, as far as their arms were run."""

    def ratio(mine: str, other: str) -> float | None:
        return times[mine].over(times[other]) if {mine, other} <= set(times) else None

    tuned = f"{PLAIN}, channels last"
    kd, hint = "kd, raykd, cached", "hint, raykd, cached"
    return [
        Demand("cached KD / student alone, plain", 1.08, ratio(kd, PLAIN)),
        Demand("cached KD / student alone, plain, channels last", 1.08, ratio(kd, tuned)),
        Demand("cached hint / student alone, plain", 1.25, ratio(hint, PLAIN)),
        Demand("cached hint / student alone, plain, channels last", 1.25, ratio(hint, tuned)),
        Demand("live KD / hand-written KD", 1.03, ratio("kd, raykd, live", "kd, plain")),
        Demand(
            "live KD / hand-written KD, channels last",
            1.03,
            ratio("kd, raykd, live", "kd, plain, channels last"),
        ),
        Demand(
            "torchdistill KD / cached KD",
            3.5,
            ratio("kd, torchdistill", kd),
            at_least=True,
        ),
        Demand("alone / plain", 1.03, ratio("alone, raykd", PLAIN)),
        Demand("alone / plain, channels last", 1.03, ratio("alone, raykd", tuned)),
    ]


def bench_of(args: Any, folder: Path) -> Bench:
    """Return the sizes that were asked for."""
    quick = args.quick
    device = torch.device(args.device)
    workers = args.loader_workers
    if workers is None:
        workers = 4 if device.type == "cuda" else 0
    return Bench(
        data=SOURCES["fashion_mnist"](limit=256 if quick else args.images).load(),
        teacher_model=Resnet(depth=8 if quick else 20, width=16 if quick else 32),
        student_model=Resnet(depth=8, width=16),
        batch=64 if quick else args.batch,
        epochs=args.repeats + 2,
        precision=args.precision,
        device=device,
        folder=folder,
        loader_workers=workers,
        compile=args.compile,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--compile",
        nargs="*",
        default=(),
        metavar="MODE",
        help="what train.compile takes, each of two more arms, prepared first",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--loader-workers",
        type=int,
        help="of torchdistill's data loader; 0 on a CPU, where more are slower, 4 on a GPU",
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = min(args.repeats, 2)
    warnings.filterwarnings("ignore", module="torchdistill")
    with tempfile.TemporaryDirectory() as folder:
        compare(bench_of(args, Path(folder)), args.repeats, args.only).tell(args.json)


if __name__ == "__main__":
    main()
