"""Rules of studies whose training samples have few labels or none (`data.labels_per_class`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raykd.losses import LOSSES, Loss
from raykd.models.proxies import PROXIES
from raykd.schemes import SCHEMES
from raykd.schemes.base import teacher_chain
from raykd.study.checks.messages import Issue
from raykd.study.config import Study
from raykd.study.yaml_file import Place
from raykd.tasks import Classification

RAISE = "raise data.labels_per_class"
ALL_LABELS = "remove data.labels_per_class"


def label_issues(study: Study, losses: Iterable[tuple[Place, Loss]]) -> Iterator[Issue]:
    """Yield the issues of options that need more labels than the study leaves.

    Args:
        study: concrete, with `data.labels_per_class`.
        losses: of the study, with their places.
    """
    task = study.learning_task
    place = ("data", "labels_per_class")
    if not isinstance(task, Classification):
        message = f"counts labels of classes, and task '{task.name}' has none"
        yield Issue(place, message, "remove it")
        return
    for key, default in (("class_weights", "none"), ("sampling", "shuffle")):
        if getattr(task, key) != default:
            message = "every class has equally many labels with data.labels_per_class"
            yield Issue(("task", key), message, f"remove `{key}`, or {ALL_LABELS}")
    yield from _reading_issues(study, losses)
    if study.data.labels_per_class == 0:
        yield from _label_free_issues(study)


def _reading_issues(study: Study, losses: Iterable[tuple[Place, Loss]]) -> Iterator[Issue]:
    """Yield the issues of options that read the label of every training sample."""
    reason = "needs the label of every training sample, and data.labels_per_class hides labels"
    if study.scheme.unlabeled == "refused":
        names = [name for name, cls in SCHEMES.members.items() if cls.unlabeled != "refused"]
        message = f"scheme '{study.scheme.name}' {reason}"
        yield Issue(("scheme",), message, f"use {', '.join(names)}, or {ALL_LABELS}")
    for place, loss in losses:
        if loss.reads_labels:
            message = f"loss '{loss.name}' {reason}"
            yield Issue(place, message, f"use {_fitting_losses(loss)}, or {ALL_LABELS}")
    proxy = study.search.proxy
    if proxy.reads_labels:
        names = [name for name, cls in PROXIES.members.items() if not cls.reads_labels]
        message = f"proxy '{proxy.name}' {reason}"
        yield Issue(("search", "proxy"), message, f"use {', '.join(names)}, or {ALL_LABELS}")


def _label_free_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of options that need a label, if there are none."""
    reason = "data.labels_per_class is 0"
    if study.scheme.unlabeled == "left_out":
        message = f"scheme '{study.scheme.name}' learns from labels alone, and {reason}"
        fix = f"use `scheme: offline` with a teacher that has `weights` or `outputs`, or {RAISE}"
        yield Issue(("scheme",), message, fix)
        return
    for spec in teacher_chain(study.teacher_specs()):
        if spec.is_trained and spec.scheme is None:
            message = f"the study would train a teacher on labels, and {reason}"
            place = ("teacher",) if study.teacher is not None else ("scheme",)
            fix = f"give a teacher with `weights` or `outputs`, or {RAISE}"
            yield Issue(place, message, fix)
            break
    metric = f"train_{study.learning_task.train_metric}"
    if metric in study.search.objectives:
        message = f"is not measured: {reason}"
        yield Issue(("search", "objectives", metric), message, f"use val_accuracy, or {RAISE}")


def _fitting_losses(loss: Loss) -> str:
    """Return the names of losses on classes that read no labels, those like `loss` first."""
    members = [
        (name, cls)
        for name, cls in LOSSES.members.items()
        if not cls.reads_labels and "softmax" in cls.kinds
    ]
    members.sort(key=lambda item: item[1].knowledge != loss.knowledge)
    return ", ".join(name for name, _ in members)
