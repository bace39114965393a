"""Store of teacher networks, and checks of the weights that a study loads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from raykd.data import Dataset
from raykd.errors import Problem, StudyError
from raykd.models import Model, Signature
from raykd.models.adapters.custom_code import STORED
from raykd.models.normalization import METADATA, Normalization, to_metadata
from raykd.models.preprocessing import set_normalization
from raykd.models.weights.files import weight_parts
from raykd.schemes import Teacher, TeacherSpec
from raykd.schemes.base import teacher_chain
from raykd.storage import Storage
from raykd.study.checks.rules import input_at, models_in
from raykd.study.config import Study
from raykd.study.open_study import OpenStudy
from raykd.study.yaml_file import Document, Place, dotted
from raykd.training.build import signature_of
from raykd.training.checkpoint import dump_network, dump_weights, weights_metadata, with_metadata
from raykd.training.normalization import normalization_notes
from raykd.training.stored_networks import find_damage, remove_network, save_network
from raykd.training.stored_outputs import (
    SUFFIX,
    check_samples,
    dump_outputs,
    fitted_outputs,
    read_outputs,
)
from raykd.training.teacher_keys import normalization_of, spec_key
from raykd.training.teacher_weights import check_weights, load_teacher_weights, reorder_network
from raykd.training.teachers import teacher_spec_of


class TeacherStore:
    """Teacher networks below the storage, shared by all studies with the same storage.

    A file's name is a key of everything that determines the network.

    Args:
        settings: fixed parts of the study.
        fingerprint: of its data.
        storage: of the files.
        signature: inputs and classes of the data; None: networks are stored unchanged.
        warn: called with the file and a sentence for each damaged network.

    Attributes:
        notes: sentences on changes to loaded networks, until `take_notes` returns them.
    """

    def __init__(
        self,
        settings: Study,
        fingerprint: str,
        storage: Storage,
        signature: Signature | None = None,
        warn: Callable[[str, str], None] = lambda file, text: None,
    ) -> None:
        self.notes: list[str] = []
        self._warn = warn
        self._signature = signature
        self._settings = settings
        self._fingerprint = fingerprint
        self._storage = storage
        self._there: set[str] = set()

    def file(self, prepared: TeacherSpec) -> str:
        """Return a network's file below the storage; equal networks have equal files."""
        names = self._signature.class_names if self._signature is not None else ()
        key = spec_key(prepared, self._settings, self._fingerprint, names)
        suffix = SUFFIX if prepared.outputs is not None else ".safetensors"
        return f"teachers/{key}{'.pt' if prepared.is_mlflow else suffix}"

    def has(self, file: str) -> bool:
        """Return True if a network is stored; a positive answer is remembered.

        Its checksum is compared first.  A damaged file is removed, so that the network is trained
        or loaded again.

        Raises:
            StudyError: a damaged file cannot be removed.
        """
        if file in self._there:
            return True
        if not self._storage.exists(file):
            return False
        damage = find_damage(self._storage, file)
        if damage:
            self._remove(file, damage)
            return False
        self._there.add(file)
        return True

    def _remove(self, file: str, damage: str) -> None:
        path = f"{self._storage.root}/{file}"
        try:
            remove_network(self._storage, file)
        except OSError as error:
            text = f"the teacher's network {path} is damaged ({damage}) and cannot be removed"
            fix = "remove it, then start again"
            raise StudyError(Problem(f"{text}: {error.strerror}", fix=fix)) from None
        text = f"the teacher's network {path} is damaged ({damage}); it is trained or loaded again"
        self._warn(file, text)

    def note(self, file: str) -> None:
        """Record that a training has written this file."""
        self._there.add(file)

    def fetch(self, prepared: TeacherSpec) -> None:
        """Store a network that is loaded, not trained.

        Notes on a whole network are stored in a second file, for later studies that read it.

        Raises:
            StudyError: its weights cannot be read.
        """
        file = self.file(prepared)
        if prepared.is_trained:
            return
        notes_file = file.removesuffix(".pt") + ".notes"
        if not self.has(file):
            count = len(self.notes)
            content = self._content(prepared)
            if len(self.notes) > count:
                self._storage.create(notes_file, "\n".join(self.notes[count:]).encode())
            save_network(self._storage, file, content)
        elif prepared.is_mlflow:
            self.notes += (self._storage.read(notes_file) or b"").decode().splitlines()

    def take_notes(self) -> str:
        """Return the notes, one per line, and forget them."""
        text = "\n".join(dict.fromkeys(self.notes))
        self.notes.clear()
        return text

    def _content(self, prepared: TeacherSpec) -> bytes:
        if prepared.outputs is not None:
            return self._outputs(prepared)
        try:
            if prepared.is_mlflow:
                return self._whole(prepared)
            return with_normalization(self._weights(prepared), normalization_of(prepared))
        except (OSError, ValueError) as error:
            text = f"cannot read the teacher's weights {prepared.weights}: {error}"
            raise StudyError(Problem(text, path="teacher.weights")) from None

    def _outputs(self, prepared: TeacherSpec) -> bytes:
        try:
            table = fitted_outputs(prepared, self._settings, self._signature)
        except ValueError as error:
            text = f"cannot use the teacher's outputs {prepared.outputs}: {error}"
            raise StudyError(Problem(text, path="teacher.outputs")) from None
        self.notes += table.notes
        return dump_outputs(table)

    def _weights(self, prepared: TeacherSpec) -> bytes:
        assert prepared.weights is not None
        if self._signature is None:
            return Path(prepared.weights).expanduser().read_bytes()
        loaded = load_teacher_weights(prepared, self._signature.as_input(prepared.input))
        if loaded.is_as_read:
            return weight_parts(prepared.weights)[0].read_bytes()
        return dump_weights(loaded.network, dict(loaded.metadata))

    def _whole(self, prepared: TeacherSpec) -> bytes:
        """Return a network from MLflow, with its outputs in the order of the data's classes."""
        from raykd.tracking.mlflow_models import load_model_uri

        uri = self._settings.tracking.uri
        network = load_model_uri(str(prepared.weights), tracking_uri=uri).cpu().eval()
        if self._signature is not None:
            network_signature = self._signature.as_input(prepared.input)
            self.notes += reorder_network(network, prepared, network_signature)
        network = set_normalization(network, prepared.normalization)
        return dump_network(network)


def with_normalization(content: bytes, normalization: Normalization | None) -> bytes:
    """Return a safetensors file with the normalization that its network expects in its metadata.

    Args:
        content: of any safetensors file.
        normalization: None: the data's.
    """
    metadata = weights_metadata(content)
    if normalization is None and METADATA not in metadata:
        return content
    rest = {key: value for key, value in metadata.items() if key != METADATA}
    return with_metadata(content, rest | (to_metadata(normalization) if normalization else {}))


def check_teacher_weights(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Check that each teacher's weights file exists and fits its model."""
    yield from _normalization_problems(study, signature)
    yield from _outputs_problems(study, signature)
    study_teacher = study.teacher
    for teacher in _from_files(study) if signature is not None else ():
        assert signature is not None
        problem = _file(teacher, signature.as_input(teacher.input)).problem
        if problem:
            is_own = study_teacher and teacher.weights == study_teacher.weights
            yield Problem(problem, path="teacher.weights" if is_own else "scheme")


def _outputs_problems(study: Study, signature: Signature | None) -> Iterator[Problem]:
    for place, prepared in _prepared(study):
        if prepared.outputs is None:
            continue
        try:
            fitted_outputs(prepared, study, signature)
        except ValueError as error:
            path = "teacher.outputs" if place == "teacher" else "scheme"
            yield Problem(f"cannot use {prepared.outputs}: {error}", path=path)


def check_outputs_of_samples(study: OpenStudy, data: Dataset) -> None:
    """Check that each file of a teacher's outputs has those of every sample of the data.

    Raises:
        StudyError: samples are missing.
    """
    for candidate in study.bind(signature_of(data)).corners():
        for place, prepared in _prepared(candidate.study):
            if prepared.outputs is None:
                continue
            try:
                check_samples(read_outputs(prepared.outputs), data)
            except ValueError as error:
                path = "teacher.outputs" if place == "teacher" else "scheme"
                raise StudyError(
                    Problem(f"cannot use {prepared.outputs}: {error}", path=path)
                ) from None


def check_started_models(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Check that the local weights files of models fit them; downloads nothing."""
    for place, model in _starting(study) if signature is not None else ():
        assert signature is not None
        network_signature = signature.as_input(input_at(study, place))
        problem = _started(model, network_signature, signature.class_names).problem
        if problem:
            yield Problem(problem, path=dotted(place))


@dataclass(frozen=True)
class Remarks:
    """Remarks on the weights that a study loads, in sentences.

    Attributes:
        notes: changes to them.
        warnings: conditions that may make results wrong.
        problem: reason why they cannot be loaded; "" if they can.
    """

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""


def remarks_on_weights(study: OpenStudy, signature: Signature) -> Remarks:
    """Return all remarks on the weights that a study's teachers and models load from files.

    Raises:
        StudyError: they cannot be loaded.
    """
    if not re.search(r"weights|pretrained|outputs", str(study.document.data)):
        return Remarks()
    notes: dict[str, None] = {}
    warnings: dict[str, None] = {}
    for candidate in study.bind(signature).corners():
        concrete = candidate.study
        problems = [
            *check_teacher_weights(concrete, signature),
            *check_started_models(concrete, signature),
        ]
        if problems:
            raise StudyError(problems)
        remarks = [
            _file(teacher, signature.as_input(teacher.input)) for teacher in _from_files(concrete)
        ]
        for _, prepared in _prepared(concrete):
            if prepared.outputs is not None:
                remarks.append(Remarks(fitted_outputs(prepared, concrete, signature).notes))
        remarks += [
            _started(model, signature.as_input(input_at(concrete, place)), signature.class_names)
            for place, model in _starting(concrete)
        ]
        for place, prepared in _prepared(concrete):
            network_signature = signature.as_input(prepared.input)
            remarks.append(Remarks(*normalization_notes(prepared, place, network_signature)))
        for remark in remarks:
            notes |= dict.fromkeys(remark.notes)
            warnings |= dict.fromkeys(remark.warnings)
    return Remarks(tuple(notes), tuple(warnings))


def _from_files(study: Study) -> list[Teacher]:
    """Return the teachers whose weights are files."""
    teachers = [] if study.teacher is None else [study.teacher]
    teachers += [each.as_teacher for each in teacher_chain(study.teacher_specs())]
    return [each for each in teachers if each.weights and each.model and not each.is_mlflow]


def _starting(study: Study) -> list[tuple[Place, Model]]:
    """Return the models that are initialized from local files, each with its place."""
    loaded = {teacher.model for teacher in _from_files(study)}
    return [
        (place, model)
        for place, model in models_in(study)
        if not (place[0] in ("teacher", "scheme") and model in loaded)
        if getattr(model, "weights", None) is not None
        or (getattr(model, "pretrained", False) and model.files() and not model.runs_code)
    ]


def _file(teacher: Teacher, signature: Signature) -> Remarks:
    assert teacher.weights is not None and teacher.model is not None
    classes = tuple(map(str, teacher.classes or ()))
    return _checked_file(teacher.weights, teacher.model, classes, signature, signature.class_names)


@lru_cache(maxsize=64)
def _checked_file(
    weights: str, model: Model, classes: tuple[str, ...], signature: Signature, _: tuple[str, ...]
) -> Remarks:
    try:
        return Remarks(*check_weights(weights, model, signature, classes))
    except ValueError as error:
        return Remarks(problem=str(error))


def _prepared(study: Study) -> list[tuple[str, TeacherSpec]]:
    """Return all teacher networks, each with its place in the study."""
    study_teachers = [] if study.teacher is None else [teacher_spec_of(study)]
    rest = [each for each in teacher_chain(study.teacher_specs()) if each not in study_teachers]
    return [("teacher", each) for each in study_teachers] + [("scheme", each) for each in rest]


def _normalization_problems(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Check that the normalization of each teacher is known and fits the images."""
    for place, prepared in _prepared(study):
        path = "teacher.normalization" if place == "teacher" else "scheme"
        theirs = None if signature is None else signature.as_input(prepared.input)
        try:
            if prepared.normalization != "auto":
                _check_use(prepared, theirs)
            normalization = normalization_of(prepared)
            if normalization is not None and theirs is not None and theirs.text is None:
                normalization.check(theirs.input_shape[0])
        except ValueError as error:
            yield Problem(str(error), path=path)


def _check_use(prepared: TeacherSpec, signature: Signature | None) -> None:
    if prepared.weights is None:
        raise ValueError(
            "`normalization` is for loaded `weights`; a teacher that the study trains uses the "
            "mean and standard deviation of the data; remove it"
        )
    if signature is not None and (signature.text is not None or len(signature.input_shape) != 3):
        raise ValueError("`normalization` is for images, and the data are not images; remove it")


@lru_cache(maxsize=64)
def _started(model: Model, signature: Signature, _: tuple[str, ...]) -> Remarks:
    try:
        with torch.random.fork_rng(devices=[]):
            return Remarks(model.remarks(signature))
    except ValueError as error:
        return Remarks(problem=str(error))


def resolve_mlflow_models(document: Document) -> Document:
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


def resolve_model_versions(document: Document) -> Document:
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
    from raykd.tracking.mlflow_models import pinned
    from raykd.tuning.mlflow_store import tracking_store_of

    return pinned(uri, tracking_uri=tracking_store_of(document))


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
    from raykd.study.config import Cluster
    from raykd.tracking.mlflow_models import load_model_uri
    from raykd.training.checkpoint import dump_network
    from raykd.tuning.mlflow_store import tracking_store_of

    content = dump_network(load_model_uri(uri, tracking_uri=tracking_store_of(document)))
    storage = Storage(str(document.get(("cluster", "storage")) or Cluster().storage))
    name = f"networks/{hashlib.sha256(content).hexdigest()[:32]}.pt"
    if storage.read(name) != content:  # it is missing or damaged
        storage.write(name, content)
    return f"{storage.root}/{name}"
