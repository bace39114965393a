"""Rules of studies with unlabeled training samples (`labels_per_class`, `unlabeled`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raykd.data.dataset import Source, Unlabeled
from raykd.losses import LOSSES, Loss
from raykd.models.proxies import PROXIES
from raykd.schemes import SCHEMES
from raykd.schemes.base import teacher_chain
from raykd.study.checks.messages import Issue
from raykd.study.config import Study
from raykd.study.yaml_file import Place
from raykd.tasks import Classification, Kind

RAISE = "raise data.labels_per_class"


def label_issues(study: Study, losses: Iterable[tuple[Place, Loss]]) -> Iterator[Issue]:
    """Yield the issues of options that need more labels than the study leaves.

    Args:
        study: concrete, with `data.labels_per_class` or `data.unlabeled`.
        losses: of the study, with their places.
    """
    task, data = study.learning_task, study.data
    if data.labels_per_class is not None and not isinstance(task, Classification):
        message = f"counts labels of classes, and task '{task.name}' has none"
        yield Issue(("data", "labels_per_class"), message, "remove it")
        return
    if data.unlabeled is not None:
        issues = list(_unlabeled_issues(study, data.unlabeled))
        yield from issues
        if issues:
            return
    key, reason = "data.labels_per_class", "data.labels_per_class hides labels"
    if data.labels_per_class is None:
        key, reason = "data.unlabeled", "samples of data.unlabeled have none"
    for name, default in (("class_weights", "none"), ("sampling", "shuffle")):
        if getattr(task, name, default) != default:
            message = f"needs the class of every training sample, and {reason}"
            if data.labels_per_class is not None:
                message = "every class has equally many labels with data.labels_per_class"
            yield Issue(("task", name), message, f"remove `{name}`, or remove {key}")
    yield from _reading_issues(study, losses, reason, f"remove {key}")
    if data.labels_per_class == 0:
        yield from _label_free_issues(study)


def _unlabeled_issues(study: Study, unlabeled: Unlabeled) -> Iterator[Issue]:
    """Yield the issues of samples that come without labels."""
    place, source, inner = ("data", "unlabeled"), study.data, unlabeled.data
    if (inner is None) == (unlabeled.folder is None):
        message = "it is missing, and so is `folder`" if inner is None else "`folder` is given, too"
        fix = "give one of them: `data: {name: ...}`, a data source, or `folder: ...`, of images"
        yield Issue((*place, "data"), message, fix)
        return
    for each in (source, inner):
        if each is not None and not each.mixes:
            message = (
                f"samples of '{each.name}' are encoded by the training split of their own source "
                "and cannot be mixed with others"
            )
            fix = "put rows of both into one file, and hide labels by `labels_per_class`"
            yield Issue(place, message, fix)
            return
    for name, default in (("labels_per_class", None), ("unlabeled", None), ("augment", ())):
        if inner is not None and getattr(inner, name) != default:
            message = "has no effect on samples without labels"
            if name == "augment":
                message = "the augmentation of `data` holds for all samples"
            yield Issue((*place, "data", name), message, "remove it")
    if not study.learning_task.takes_unlabeled:
        message = f"task '{study.learning_task.name}' needs the label of every sample"
        fix = "remove data.unlabeled; a task of yours declares `takes_unlabeled = True`"
        yield Issue(place, message, fix)
    ours, theirs = source.declared_shape(), _shape(inner)
    if inner is not None and ours is not None and theirs is not None and ours[0] != theirs:
        message = f"samples of '{inner.name}' have shape {theirs}, those of the data {ours[0]}"
        yield Issue((*place, "data"), message, "use samples of the same shape")


def _shape(source: Source | None) -> tuple[int, ...] | None:
    declared = None if source is None else source.declared_shape()
    return None if declared is None else declared[0]


def _reading_issues(
    study: Study, losses: Iterable[tuple[Place, Loss]], cause: str, removal: str
) -> Iterator[Issue]:
    """Yield the issues of options that read the label of every training sample.

    Args:
        study: concrete.
        losses: of the study, with their places.
        cause: reason why labels are missing.
        removal: fix that gives all labels.
    """
    reason = f"needs the label of every training sample, and {cause}"
    if study.scheme.unlabeled == "refused":
        names = [name for name, cls in SCHEMES.members.items() if cls.unlabeled != "refused"]
        message = f"scheme '{study.scheme.name}' {reason}"
        yield Issue(("scheme",), message, f"use {', '.join(names)}, or {removal}")
    kind = study.learning_task.kind
    for place, loss in losses:
        if loss.reads_labels:
            message = f"loss '{loss.name}' {reason}"
            yield Issue(place, message, f"use {_fitting_losses(loss, kind)}, or {removal}")
    proxy = study.search.proxy
    if proxy.reads_labels:
        names = [name for name, cls in PROXIES.members.items() if not cls.reads_labels]
        message = f"proxy '{proxy.name}' {reason}"
        yield Issue(("search", "proxy"), message, f"use {', '.join(names)}, or {removal}")


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


def _fitting_losses(loss: Loss, kind: Kind) -> str:
    """Return the names of losses on this kind that read no labels, those like `loss` first."""
    members = [
        (name, cls)
        for name, cls in LOSSES.members.items()
        if not cls.reads_labels and kind in cls.kinds
    ]
    members.sort(key=lambda item: item[1].knowledge != loss.knowledge)
    return ", ".join(name for name, _ in members)
