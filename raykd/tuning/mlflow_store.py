"""The MLflow store of a study: from its file, else from MLflow's environment variable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raykd.errors import Problem, StudyError
from raykd.study.config import Tracking
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import Document
from raykd.tracking.mlflow_client import (
    HIDDEN,
    TRACKING,
    absolute,
    holds_password,
    masked,
    unusable,
)

PLACE = ("tracking", "uri")


def tracking_store_of(document: Document) -> str:
    """The tracking URI of a study: `tracking.uri` where it is written, else MLFLOW_TRACKING_URI,
    else the default.

    Raises:
        StudyError: MLflow cannot keep runs there, or the file holds a password.
    """
    written = document.get(PLACE)
    if not isinstance(written, str):
        uri = os.environ.get(TRACKING) or Tracking().uri
        why, fix = unusable(uri)
        if why:
            source = TRACKING if os.environ.get(TRACKING) else "tracking.uri"
            remedy = f"correct {TRACKING}, or {fix} as `tracking.uri` of the study"
            raise StudyError(Problem(f"{source}: {why}", fix=remedy))
        return absolute(uri)
    if holds_password(written):
        message = f"{masked(written)} holds a password, which the study's folder would keep"
        fix = f"set {TRACKING} and leave `tracking.uri` out, or set MLFLOW_TRACKING_USERNAME and "
        raise StudyError(document.problem(PLACE, message, fix + "MLFLOW_TRACKING_PASSWORD"))
    why, fix = unusable(written)
    if why:
        raise StudyError(document.problem(PLACE, why, fix))
    return absolute(written)


def with_tracking_store(study: OpenStudy) -> OpenStudy:
    """The study with the store that its runs go to, by a URI that holds from any folder.

    Raises:
        StudyError: as `tracking_store_of`.
    """
    return _moved(study, tracking_store_of(study.document))


def with_recorded_store(study: OpenStudy, known: Sequence[Mapping[str, Any]]) -> OpenStudy:
    """A resumed study with the store that it began with.

    Args:
        study: as it is now.
        known: the journal.

    Raises:
        StudyError: the store's password is not at hand.
    """
    begun = next((event for event in known if event["event"] == "study"), None)
    if begun is None or isinstance(study.document.get(PLACE), str):
        return study
    if begun.get("store_from") != TRACKING:
        return _moved(study, absolute(Tracking().uri))
    uri = begun["resolved"]["tracking"]["uri"]
    full = absolute(uri)
    if HIDDEN in full:
        message = f"the study's runs are at {uri}, whose password is kept nowhere"
        fix = f"set {TRACKING} to the same address, with its password"
        raise StudyError(Problem(message, fix=fix))
    return _moved(study, full)


def store_source(study: OpenStudy) -> str:
    """MLFLOW_TRACKING_URI where the store comes from it, else an empty text."""
    written = isinstance(study.document.get(PLACE), str)
    default = study.settings.tracking.uri == absolute(Tracking().uri)
    return "" if written or default else TRACKING


def store_notice(study: OpenStudy) -> str:
    """A sentence on MLFLOW_TRACKING_URI where it is set; empty where it agrees with the study."""
    given, used = os.environ.get(TRACKING, ""), study.settings.tracking.uri
    if not given:
        return ""
    if absolute(given) == used:
        written = study.document.get(PLACE) is not None
        return "" if written else f"runs go to {masked(used)} ({TRACKING})"
    return f"{TRACKING} ({masked(given)}) is not used: the runs of this study go to {masked(used)}"


def _moved(study: OpenStudy, uri: str) -> OpenStudy:
    if study.settings.tracking.uri == uri:
        return study
    tracking = replace(study.settings.tracking, uri=uri)
    return replace(study, settings=replace(study.settings, tracking=tracking))
