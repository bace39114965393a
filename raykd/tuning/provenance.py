"""Provenance of a run: the study, the data, the commit and the versions that it starts with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace

from raykd.data import Dataset
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.tasks.base import TARGETS
from raykd.tracking.events import DataLoaded, Note, StudyStarted, WarningIssued
from raykd.tracking.journal import EventBus
from raykd.tracking.store_uri import absolute, masked
from raykd.tuning.mlflow_store import store_notice, store_source
from raykd.tuning.resume import other_versions
from raykd.tuning.session import Prepared
from raykd.tuning.study_description import describe_start
from raykd.tuning.study_dir import StudyFolder

PACKAGES = (
    *("raykd", "ray", "torch", "torchvision", "optuna", "mlflow", "numpy", "pydantic"),
    *("pillow", "scikit-learn", "timm", "transformers", "datasets"),
)


def write_provenance(bus: EventBus, prepared: Prepared, folder: StudyFolder) -> None:
    """Write the study, its data and the software that it runs with to the journal.

    A resumed run keeps its id; changes of package versions are noted.
    """
    study, history = prepared.study, prepared.history
    bus.publish(_study_started(prepared, folder))
    bus.publish(_data_loaded(prepared.study, prepared.data))
    bus.publish(describe_start(study, folder.verb, prepared.data.name))
    changed = other_versions(history, versions())
    if changed:
        text = f"resumed with other versions than before ({', '.join(changed)})"
        bus.publish(WarningIssued(f"{text}: results may differ in last digits"))
        _note(bus, {"resumed_with": ", ".join(changed)})
    if prepared.extension is not None:
        bus.publish(prepared.extension)
    left_out = () if history else study.bind(prepared.signature).filtered.lines
    if left_out:
        _note(bus, {"pairs_left_out": "\n".join(left_out)})
    if notice := store_notice(study):
        bus.publish(WarningIssued(notice))
    if not history:
        remarks = prepared.weights
        texts = {"weights_notes": remarks.notes, "warning_weights": remarks.warnings}
        tags = {name: "\n".join(lines) for name, lines in texts.items() if lines}
        if tags:
            _note(bus, tags)


def _study_started(prepared: Prepared, folder: StudyFolder) -> StudyStarted:
    """Return the event of a study's start; a resumed run has the id of the first one."""
    study, settings = prepared.study, prepared.study.settings
    starts = (event.id for event in prepared.history if isinstance(event, StudyStarted))
    uri = masked(absolute(settings.tracking.uri))
    return StudyStarted(
        id=next(starts, None) or uuid.uuid4().hex,
        name=settings.name,
        experiment=settings.tracking.experiment or settings.name,
        register=settings.tracking.register,
        text=study.text,
        overrides=list(study.overrides),
        resolved=plain(replace(settings, tracking=replace(settings.tracking, uri=uri))),
        file=str(folder.study_file),
        argv=sys.argv,
        git=git_commit(),
        versions=versions(),
        store_from=store_source(study),
        content=dict(prepared.digests),
        seed=settings.seed,
    )


def _data_loaded(study: OpenStudy, data: Dataset) -> DataLoaded:
    """Return the event that describes the data."""
    return DataLoaded(
        name=data.name,
        origin=data.origin,
        fingerprint=data.fingerprint,
        sizes=dict(data.sizes),
        classes=data.classes,
        input_shape=list(data.input_shape),
        class_names=list(data.class_names),
        targets=TARGETS[study.settings.learning_task.kind],
        notes=list(data.notes),
        warnings=list(data.warnings),
    )


def _note(bus: EventBus, tags: Mapping[str, str]) -> None:
    bus.publish(Note(None, dict(tags)))


def git_commit() -> str | None:
    """Return the commit of the working folder; None outside a repository."""
    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect what a training computes."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
