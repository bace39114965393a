"""Every loss and every scheme with its defaults, against the student alone and against kd.

    python benchmarks/field.py [--seeds 3] [--processes 2] [--only losses|schemes] [--out FILE]

Fashion-MNIST, 2,000 training pictures, no augmentation.  Teacher: resnet of depth 14 and width 16,
8 epochs.  Student: resnet of depth 8 and width 8, 6 epochs of SGD at 0.05 for every arm, so that
arms differ only in what is taught.  A loss stands alone beside the labels' loss, at its
default weight and on its default pairs; many of those weights were chosen on the validation split
of this very setting (`raykd list losses` says which), so it flatters them.  Each figure is the
accuracy on all 10,000 test pictures after the last epoch.  Gains are paired by seed, with 95%
intervals (Student's t).  Networks that a scheme trains before the student (assistants, earlier
generations) are counted in `more`, in epochs.

Results are in FILE (one line a training): a run that is broken off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from raykd.data import SOURCES
from raykd.losses import KD, LOSSES, Term
from raykd.models import Resnet, Vgg
from raykd.schemes import SCHEMES, Alone, Scheme, Teacher
from raykd.schemes.base import teacher_chain
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train
from raykd.training import Diverged, Training
from raykd.training.teachers import train_teachers
from raykd.tuning.estimates import Estimate, estimate, paired_gain

OPTIMIZER = SGD(lr=0.05)
TEACHER = Teacher(
    model=Resnet(depth=14, width=16), train=Train(epochs=8, batch_size=64, optimizer=OPTIMIZER)
)
BETWEEN = Teacher(model=Resnet(depth=8, width=16))
OTHER = Teacher(model=Vgg(depth=8, width=8))
BASE = Study(
    name="field",
    data=SOURCES["fashion_mnist"](limit=2000, val_limit=1000),
    teacher=TEACHER,
    student=Student(model=Resnet(depth=8, width=8)),
    train=Train(epochs=6, batch_size=64, optimizer=OPTIMIZER),
)
KD_TERM = Term(loss=KD())
EXAMPLES: dict[str, dict[str, Any]] = {
    "assistant": {"chain": (BETWEEN,)},
    "multi_teacher": {"others": (OTHER,)},
}
"""What schemes without defaults are given."""


def arms() -> Iterator[tuple[str, Study]]:
    """(name, concrete study) of everything that is compared."""
    yield "alone", replace(BASE, scheme=Alone())
    for name, loss in LOSSES.members.items():
        yield f"loss {name}", replace(BASE, knowledge=(Term(loss=loss()),))
    for name, cls in SCHEMES.members.items():
        if name not in ("offline", "alone"):
            scheme: Scheme = cls(**EXAMPLES.get(name, {}))
            terms = (KD_TERM,) if scheme.takes_knowledge and scheme.needs_teacher else ()
            yield f"scheme {name}", replace(BASE, scheme=scheme, knowledge=terms)


def trained(job: tuple[str, int]) -> dict[str, Any]:
    """One arm under one seed."""
    torch.set_num_threads(1)
    name, seed = job
    study = replace(dict(arms())[name], seed=seed)
    data = BASE.data.load()
    teachers = train_teachers(study, data, seed=0, cache=_TEACHERS)
    training = Training(study, data, seed=seed, teacher=teachers)
    try:
        while training.epoch < training.epochs:
            training.run_epoch()
        accuracy = training.evaluate("test")["test_accuracy"]
    except Diverged as error:
        accuracy, name = float("nan"), f"{name} ({error})"
    return {
        "arm": job[0],
        "seed": seed,
        "accuracy": accuracy,
        "more_epochs": sum(
            each.train.epochs
            for each in teacher_chain(study.teacher_specs(0))
            if each.model != TEACHER.model
        ),
    }


_TEACHERS: dict[str, nn.Module] = {}
"""Teachers trained in this process."""


def reached(out: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Read finished trainings: arm -> seed -> line."""
    results: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in out.read_text().splitlines() if out.exists() else ():
        each = json.loads(line)
        results.setdefault(each["arm"], {})[each["seed"]] = each
    return results


def table(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[str]:
    """Return a line an arm, the best first; * marks a gain that is significant."""
    accuracy = {
        arm: {seed: 100 * each["accuracy"] for seed, each in by.items() if each["accuracy"] >= 0}
        for arm, by in results.items()
    }
    yield f"{'arm':<22}{'test accuracy':>15}{'over alone':>16}{'over kd':>16}{'more':>6}"
    best_first = sorted(results, key=lambda arm: -mean(accuracy[arm].values() or [0]))
    for arm in best_first:
        diverged = len(results[arm]) - len(accuracy[arm])
        if diverged:
            yield f"{arm:<22}  {diverged} of {len(results[arm])} diverged"
            continue
        gains = [
            "" if arm == other else _gain(paired_gain(accuracy[arm], accuracy[other]))
            for other in ("alone", "loss kd")
        ]
        more = next(iter(results[arm].values()))["more_epochs"]
        yield (
            f"{arm:<22}{_interval(estimate([*accuracy[arm].values()])):>15}{gains[0]:>16}"
            f"{gains[1]:>16}{more or '':>6}"
        )


def _interval(results: Estimate) -> str:
    return f"{results.mean:.1f} ± {results.half_width:.1f}"


def _gain(results: Estimate | None) -> str:
    if results is None or results.count < 2:
        return ""
    return f"{results.mean:+.1f} ± {results.half_width:.1f} {'*' if results.clear_of_zero else ' '}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=["losses", "schemes"])
    parser.add_argument("--out", type=Path, default=Path("field.jsonl"))
    args = parser.parse_args()
    done = reached(args.out)
    first = {"losses": "loss", "schemes": "scheme"}.get(args.only, "")
    names = [name for name, _ in arms() if name in ("alone", "loss kd") or name.startswith(first)]
    jobs = [(name, seed) for name in names for seed in range(1, args.seeds + 1)]
    jobs = [(name, seed) for name, seed in jobs if seed not in done.get(name, {})]
    with (
        multiprocessing.get_context("spawn").Pool(args.processes) as pool,
        args.out.open("a") as out,
    ):
        for line in pool.imap_unordered(trained, jobs):
            out.write(json.dumps(line) + "\n")
            out.flush()
            print(f"{line['arm']}, seed {line['seed']}: {line['accuracy']:.2%}", flush=True)
    print("\n".join(table(reached(args.out))))


if __name__ == "__main__":
    main()
