"""Arms of a comparison: trainings that differ by the seed alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raykd.errors import Problem, StudyError
from raykd.report.comparison.members import Member, Training
from raykd.tuning.estimates import Estimate, estimate, paired_gain

KINDS = {
    "replicate": "finalist",
    "alone": "baseline",
    "trial": "trial",
    "teacher": "teacher",
    "run": "run",
}
"""Kind of an arm by the role of its trainings."""

LESS_IS_BETTER = re.compile(
    r"(loss|error|rmse|mse|mae|perplexity|latency|seconds|time|params|macs|memory)", re.IGNORECASE
)
"""Part of the name of a metric of which smaller values are better."""

LABEL_PARAMS = 4
"""Maximum number of params in the label of an arm of another program."""


@dataclass(frozen=True)
class Metric:
    """Metric that is compared.

    Attributes:
        name: name of the metric.
        smaller: True if smaller values are better.
        is_accuracy: True for fractions of samples, which are shown in percent.
    """

    name: str
    smaller: bool
    is_accuracy: bool

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the metric."""
        return (0.0, 1.0) if self.is_accuracy else (-math.inf, math.inf)

    def is_better(self, difference: float) -> bool:
        """Return True for a difference of a better value and a worse one."""
        return difference < 0 if self.smaller else difference > 0

    def rank(self, value: float) -> float:
        """Return a number that is smaller for better values."""
        return value if self.smaller else -value


@dataclass(frozen=True)
class Arm:
    """Trainings of a member that differ by the seed alone.

    Attributes:
        member: name of the member.
        id: ID within the member.
        kind: "finalist", "baseline", "trial", "arm" (of a layer study), "teacher" or "run".
        label: short description.
        values: the metric by seed; of trainings without a seed, by their number.
        is_seeded: True if the keys of `values` are seeds.
        mean: mean and 95% interval over the seeds.
        trainings: the trainings with a value.
        gain: gain over the same student without a teacher, paired by seed; None without one.
    """

    member: str
    id: str
    kind: str
    label: str
    values: Mapping[int, float]
    is_seeded: bool
    mean: Estimate
    trainings: tuple[Training, ...]
    gain: Estimate | None = None

    @property
    def params(self) -> Mapping[str, str]:
        """Values of all parameters but the seed."""
        return self.trainings[0].params

    def cost(self, name: str) -> float | None:
        """Return a cost of the network, as of its first training."""
        return self.trainings[0].metrics.get(name)

    @property
    def seconds(self) -> float | None:
        """Mean duration of a training."""
        seconds = [t.seconds for t in self.trainings if t.seconds is not None]
        return sum(seconds) / len(seconds) if seconds else None


def choose_metric(members: Sequence[Member], name: str | None, smaller: bool | None) -> Metric:
    """Return the metric to compare.

    Without a name it is `test_accuracy` if every member has it, else the first of the objectives,
    of `val_accuracy` and of the most frequent metrics that every member has, else the one that
    most members have.

    Args:
        members: members of the comparison.
        name: requested name; None: none.
        smaller: True if smaller values are better; None: known from objectives and name.

    Raises:
        StudyError: no member has the metric, or no training has any.
    """
    counts: Counter[str] = Counter()
    present: Counter[str] = Counter()
    for member in members:
        names = Counter(
            key
            for training in member.trainings
            if training.status == "finished"
            for key, value in training.metrics.items()
            if math.isfinite(value)
        )
        counts += names
        present.update(names.keys())
    if not counts:
        text = "no training has finished with a metric, so there is nothing to compare"
        raise StudyError(Problem(text, fix="compare again when the first training has ended"))
    if name is not None and name not in counts:
        listed = ", ".join(key for key, _ in counts.most_common(12))
        raise StudyError(
            Problem(f"no finished training has the metric {name!r}", fix=f"it can be: {listed}")
        )
    objectives = {key: way for member in members for key, way in member.objectives.items()}
    chosen = name or _usual_metric(counts, present, list(objectives))
    if smaller is None:
        way = objectives.get(chosen, objectives.get(re.sub("^test_", "val_", chosen)))
        smaller = way == "min" if way is not None else bool(LESS_IS_BETTER.search(chosen))
    values = [t.metrics.get(chosen, 0.0) for member in members for t in member.trainings]
    is_fraction = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return Metric(chosen, smaller, chosen.endswith("accuracy") and is_fraction)


def _usual_metric(counts: Counter[str], present: Counter[str], objectives: list[str]) -> str:
    accuracies = [name for name in objectives if not LESS_IS_BETTER.search(name)]
    scores = [name for name in counts if re.search(r"(acc|f1|auc|score)", name)]
    order = list(
        dict.fromkeys(["test_accuracy", *accuracies, "val_accuracy", *objectives, *scores])
    )
    last = len(order)

    def rank(name: str) -> tuple[int, int, int]:
        return -present[name], order.index(name) if name in order else last, -counts[name]

    return min(counts, key=rank)


def arms_of(member: Member, metric: Metric) -> list[Arm]:
    """Return the arms of a member, the best first.

    Only finished trainings count.  A trial and its replicates are two arms: the trial was selected
    by its result.
    """
    groups: dict[tuple[str, str], list[Training]] = {}
    for training in member.trainings:
        value = training.metrics.get(metric.name, math.nan)
        if training.status == "finished" and math.isfinite(value):
            groups.setdefault(_key(training), []).append(training)
    runs = [trainings for (kind, _), trainings in groups.items() if kind == "run"]
    varied = _varied([trainings[0].params for trainings in runs])
    arms = [
        _arm(member, kind, id, trainings, metric, varied)
        for (kind, id), trainings in groups.items()
    ]
    baselines = {arm.id: arm for arm in arms if arm.kind == "baseline"}
    arms = [_with_gain(arm, baselines.get(arm.id)) for arm in arms]
    return sorted(arms, key=lambda arm: metric.rank(arm.mean.mean))


def _key(training: Training) -> tuple[str, str]:
    if training.role == "run":
        return "run", repr(sorted(training.params.items()))
    kind = KINDS.get(training.role, training.role)
    if kind == "trial" and training.group:
        return "arm", training.group
    return kind, training.group or training.id


def _varied(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the params with more than one value, in their order; a missing one counts as one."""
    names = dict.fromkeys(name for each in params for name in each)
    return [name for name in names if len({each.get(name) for each in params}) > 1]


def _arm(
    member: Member,
    kind: str,
    id: str,
    trainings: Sequence[Training],
    metric: Metric,
    varied: Sequence[str],
) -> Arm:
    seeds = [training.seed for training in trainings]
    is_seeded = None not in seeds and len(set(seeds)) == len(seeds)
    keys: Iterable[int] = [s for s in seeds if s is not None] if is_seeded else range(len(seeds))
    measured = [training.metrics[metric.name] for training in trainings]
    first = trainings[0]
    if kind == "run":
        words = [f"{n.rpartition('.')[2]}={first.params.get(n, 'none')}" for n in varied]
        label = " ".join(words[:LABEL_PARAMS]) or first.name
        id = first.id
    else:
        label = re.sub(r" seed -?\d+$", "", first.name)
    return Arm(
        member=member.name,
        id=id,
        kind=kind,
        label=label,
        values=dict(zip(keys, measured, strict=True)),
        is_seeded=is_seeded,
        mean=estimate(measured, *metric.bounds),
        trainings=tuple(trainings),
    )


def _with_gain(arm: Arm, baseline: Arm | None) -> Arm:
    if baseline is None or arm.kind != "finalist":
        return arm
    return Arm(**{**vars(arm), "gain": paired_gain(arm.values, baseline.values)})
