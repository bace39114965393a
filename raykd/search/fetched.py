"""Networks that MLflow keeps, fetched for a study that names them as models."""

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
    """The study with the file of each network that it names by an MLflow URI.

    The files lie below the study's storage, which every node must reach; they become overrides of
    the study, so that a resumed search uses the same networks.

    Raises:
        StudyError: a network cannot be fetched; names its place.
    """
    overrides: list[str] = []
    files: dict[str, str] = {}
    problems: list[Problem] = []
    for place, named in _named(document.data, ()):
        if named.get("file") is not None:
            continue
        uri = named["name"]
        try:
            files[uri] = files.get(uri) or _fetched(uri, document)
        except ValueError as error:
            problems.append(document.problem(place, str(error)))
            continue
        overrides.append(f"{dotted(place)}={json.dumps({**named, 'file': files[uri]})}")
    if problems:
        raise StudyError(problems)
    return document.with_overrides(overrides)


def with_versions(document: Document) -> Document:
    """The study with the version of each teacher that it names by an alias in MLflow.

    A teacher is kept under the name of its weights: under an alias, an alias that moves to another
    version would still mean the teacher it meant first.

    Raises:
        StudyError: there is no such alias; names its place.
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
    """Every place where `weights` name a registered model by an alias."""
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


def _named(value: Any, place: Place) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every place where a model is named by a URI, with what is written there."""
    if isinstance(value, str) and _stands_for_model(place) and re.search(STORED, value):
        yield place, {"name": value}
    elif isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str) and re.search(STORED, name):
            yield place, value
        for key, held in value.items():
            yield from _named(held, (*place, key))
    elif isinstance(value, list):
        for number, held in enumerate(value):
            yield from _named(held, (*place, number))


def _stands_for_model(place: Place) -> bool:
    """Whether a bare name at `place` is a model's, be it an option of a choice."""
    keys = [step for step in place if isinstance(step, str) and step != "choice"]
    return bool(keys) and keys[-1] == "model"


def _fetched(uri: str, document: Document) -> str:
    """The network's file below the storage, put there now."""
    from raykd.search.stores import store_of
    from raykd.study.schema import Cluster
    from raykd.tracking.models import load_model_uri
    from raykd.training.checkpoint import dump_object

    content = dump_object(load_model_uri(uri, tracking_uri=store_of(document)))
    storage = Storage(document.get(("cluster", "storage")) or Cluster().storage)
    name = f"networks/{hashlib.sha256(content).hexdigest()[:32]}.pt"
    storage.create(name, content)
    return f"{storage.root}/{name}"
