"""Models from MLflow: a study that names them by URI gets local files and fixed versions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raykd.architecture.adapters.own_code import STORED
from raykd.problems import Problem, StudyError
from raykd.study.files import Document
from raykd.study.place import Place, dotted
from raykd.training.storage import Storage


def with_fetched(document: Document) -> Document:
    """Download each network that a study names by an MLflow URI, and name its file in the study.

    The files are stored below the study's storage, which every node must reach.  They become
    overrides of the study, so that a resumed search uses the same networks.

    Raises:
        StudyError: a network cannot be downloaded; names its place.
    """
    overrides: list[str] = []
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for place, model in _models_by_uri(document.data, ()):
        if model.get("file") is not None:
            continue
        uri = model["name"]
        try:
            files[uri] = files.get(uri) or _download(uri, document)
        except ValueError as error:
            problems.append(document.problem(place, str(error)))
            continue
        overrides.append(f"{dotted(place)}={json.dumps({**model, 'file': files[uri]})}")
    if problems:
        raise StudyError(problems)
    return document.with_overrides(overrides)


def with_versions(document: Document) -> Document:
    """Replace the MLflow aliases of a study's teachers by version numbers.

    Teachers are cached by the name of their weights.  If that were an alias, moving the alias to
    another version would not change the cached teacher.

    Raises:
        StudyError: an alias does not exist; names its place.
    """
    overrides: list[str] = []
    problems: list[Problem] = []
    for place, uri in _aliases(document.data, ()):
        try:
            overrides.append(f"{dotted(place)}={json.dumps(_version_of(uri, document))}")
        except ValueError as error:
            problems.append(document.problem(place, str(error)))
    if problems:
        raise StudyError(problems)
    return document.with_overrides(overrides) if overrides else document


def _aliases(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Yield every place where `weights` name a registered model by an alias."""
    if isinstance(value, str):
        if "weights" in place and re.match(r"models:/[^/@]+@", value):
            yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _aliases(inner, (*place, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _aliases(inner, (*place, number))


def _version_of(uri: str, document: Document) -> str:
    from raykd.search.stores import store_of
    from raykd.tracking.models import pinned

    return pinned(uri, tracking_uri=store_of(document))


def _models_by_uri(value: Any, place: Place) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield every place where a model is named by a URI, with the value at that place."""
    if isinstance(value, str) and _is_model_place(place) and re.search(STORED, value):
        yield place, {"name": value}
    elif isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str) and re.search(STORED, name):
            yield place, value
        for key, inner in value.items():
            yield from _models_by_uri(inner, (*place, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _models_by_uri(inner, (*place, number))


def _is_model_place(place: Place) -> bool:
    """Return True if a bare name at `place` is a model's, possibly as an option of a choice."""
    keys = [step for step in place if isinstance(step, str) and step != "choice"]
    return bool(keys) and keys[-1] == "model"


def _download(uri: str, document: Document) -> str:
    """Download a network and return its file below the storage."""
    from raykd.search.stores import store_of
    from raykd.study.schema import Cluster
    from raykd.tracking.models import load_model_uri
    from raykd.training.checkpoint import dump_object

    content = dump_object(load_model_uri(uri, tracking_uri=store_of(document)))
    storage = Storage(document.get(("cluster", "storage")) or Cluster().storage)
    name = f"networks/{hashlib.sha256(content).hexdigest()[:32]}.pt"
    storage.create(name, content)
    return f"{storage.root}/{name}"
