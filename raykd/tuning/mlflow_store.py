"""MLflow tracking store of a study: from its file, else from MLflow's environment variable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from raykd.errors import Problem, StudyError
from raykd.study.config import Tracking
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import Document
from raykd.tracking.events import Event, StudyStarted
from raykd.tracking.store_uri import HIDDEN, TRACKING, absolute, holds_password, masked, unusable

PLACE = ("tracking", "uri")


def tracking_store_of(document: Document) -> str:
    """Return the tracking URI of a study.

    It is `tracking.uri` of the file, else MLFLOW_TRACKING_URI, else the default.

    Raises:
        StudyError: MLflow cannot store runs there, or the file contains a password.
    """
    written = document.get(PLACE)
    if not isinstance(written, str):
        uri = os.environ.get(TRACKING) or Tracking().uri
        reason, fix = unusable(uri)
        if reason:
            source = TRACKING if os.environ.get(TRACKING) else "tracking.uri"
            remedy = f"correct {TRACKING}, or {fix} as `tracking.uri` of the study"
            raise StudyError(Problem(f"{source}: {reason}", fix=remedy))
        return absolute(uri)
    if holds_password(written):
        text = f"{masked(written)} contains a password, and the study's folder would store it"
        fix = f"set {TRACKING} and leave `tracking.uri` out, or set MLFLOW_TRACKING_USERNAME and "
        raise StudyError(document.problem(PLACE, text, fix + "MLFLOW_TRACKING_PASSWORD"))
    reason, fix = unusable(written)
    if reason:
        raise StudyError(document.problem(PLACE, reason, fix))
    return absolute(written)


def with_tracking_store(study: OpenStudy) -> OpenStudy:
    """Return the study with the absolute URI of its tracking store.

    Raises:
        StudyError: as `tracking_store_of`.
    """
    return _moved(study, tracking_store_of(study.document))


def with_recorded_store(study: OpenStudy, history: Sequence[Event]) -> OpenStudy:
    """Return a resumed study with the tracking store of its first run.

    Args:
        study: as it is now.
        history: events of the journal.

    Raises:
        StudyError: the password of the store is missing.
    """
    start = next((event for event in history if isinstance(event, StudyStarted)), None)
    if start is None or isinstance(study.document.get(PLACE), str):
        return study
    if start.store_from != TRACKING:
        return _moved(study, absolute(Tracking().uri))
    uri = start.resolved["tracking"]["uri"]
    full = absolute(uri)
    if HIDDEN in full:
        text = f"the study's runs are at {uri}; its password is not stored"
        fix = f"set {TRACKING} to the same address, with its password"
        raise StudyError(Problem(text, fix=fix))
    return _moved(study, full)


def without_password(study: OpenStudy) -> OpenStudy:
    """Return the study with the password of its tracking store masked.

    Its settings are sent to workers and written to the journal.  `absolute` restores the password
    from MLFLOW_TRACKING_URI.
    """
    return _moved(study, masked(study.settings.tracking.uri))


def store_source(study: OpenStudy) -> str:
    """Return MLFLOW_TRACKING_URI if the store comes from that variable, else ""."""
    written = isinstance(study.document.get(PLACE), str)
    default = study.settings.tracking.uri == absolute(Tracking().uri)
    return "" if written or default else TRACKING


def store_notice(study: OpenStudy) -> str:
    """Return a notice on MLFLOW_TRACKING_URI; "" if it is not set or agrees with the study."""
    variable, used = os.environ.get(TRACKING, ""), study.settings.tracking.uri
    if not variable:
        return ""
    if absolute(variable) == used:
        written = study.document.get(PLACE) is not None
        return "" if written else f"runs go to {masked(used)} ({TRACKING})"
    return f"{TRACKING} ({masked(variable)}) is not used: this study's runs go to {masked(used)}"


def _moved(study: OpenStudy, uri: str) -> OpenStudy:
    if study.settings.tracking.uri == uri:
        return study
    tracking = replace(study.settings.tracking, uri=uri)
    return replace(study, settings=replace(study.settings, tracking=tracking))
