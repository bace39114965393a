"""Layers of models that can be hint or guided layers, for `raykd layers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from raykd.errors import Problem, StudyError
from raykd.models import Model, ModelProfile, Signature, Text, profile_model
from raykd.models.base import format_option
from raykd.models.introspection.layers import Layer
from raykd.study.checks.layer_pairs import layers_for
from raykd.study.checks.load import check_shapes, import_user_code
from raykd.study.checks.messages import InvalidStudy, Issue, parse_study
from raykd.study.checks.rules import import_issues
from raykd.study.config import Study
from raykd.study.open_study import OpenStudy, signature_of
from raykd.study.space.domains import Pairing
from raykd.study.space.pairing import WIDE, Wide
from raykd.study.space.space import read_space
from raykd.study.yaml_file import Document, dotted, parse_document
from raykd.training.build import signature_of as signature_of_data
from raykd.tuning.study_input import load_data, load_or_use, located_problems

MAX_STUDENTS = 3
"""Maximum number of a study's students that are listed, from the smallest to the largest."""

DEFAULT_SIGNATURE = Signature((3, 32, 32), 10)
"""Default input shape and number of classes of a model."""

Role = Literal["model", "teacher", "student"]
LayerNames = Mapping[Wide, Sequence[str]]


@dataclass(frozen=True)
class ListedModel:
    """A model whose layers are listed.

    Attributes:
        role: "model"; in a study "teacher" or "student".
        name: the model as a study file writes it.
        profile: its layers and costs.
        input_shape: shape of its input, if it takes one input of the samples.
    """

    role: Role
    name: str
    profile: ModelProfile
    input_shape: tuple[int, ...] = ()

    def layers(self, *, stages: bool) -> tuple[Layer, ...]:
        """Return all layers in execution order; with `stages`, only those with an alias."""
        layers = self.profile.ordered_layers
        return tuple(layer for layer in layers if layer.stage or not stages)

    def plain(self, *, stages: bool) -> dict[str, Any]:
        return {
            "role": self.role,
            "model": self.name,
            "params": self.profile.params,
            "macs": self.profile.macs,
            **({"input_shape": list(self.input_shape)} if self.input_shape else {}),
            "layers": [_plain_layer(layer) for layer in self.layers(stages=stages)],
        }


def _plain_layer(layer: Layer) -> dict[str, Any]:
    """Return the layer as JSON; `layout` is empty if the module's own tensor has `shape`."""
    layout = "" if layer.layout is None else layer.layout.name
    return {**asdict(replace(layer, layout=None)), "layout": layout, "raw_shape": layer.raw_shape}


@dataclass(frozen=True)
class PairingLayers:
    """Layers that an open pairing of a study samples.

    Attributes:
        reading: form in which the study gives the layers of each side, hint side first: `auto`,
            `blocks`, `all` or `list`.
        hint, guided: names of the layers of each side.
    """

    reading: tuple[str, str]
    hint: tuple[str, ...]
    guided: tuple[str, ...]


@dataclass(frozen=True)
class LayerList:
    """Layers of one model, or of the models of a study.

    Attributes:
        signature: input shape and number of classes of the models.
        models: the model; for a study the teachers and some students, smallest first.
        is_study: True for the models of a study.
        more_students: number of other students of the study.
        pairings: layers of each open pairing of the study, by parameter.
        excluded: pairs that are never sampled, with the reasons.
    """

    signature: Signature
    models: tuple[ListedModel, ...]
    is_study: bool = False
    more_students: int = 0
    pairings: Mapping[str, PairingLayers] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()

    def json(self, *, stages: bool) -> str:
        """Return the list as one JSON object."""
        plain = {
            "input_shape": list(self.signature.input_shape),
            "classes": self.signature.classes,
            "models": [model.plain(stages=stages) for model in self.models],
        }
        if self.is_study:
            plain |= {
                "more_students": self.more_students,
                "pairings": {name: asdict(layers) for name, layers in self.pairings.items()},
                "left_out": list(self.excluded),
            }
        return json.dumps(plain, indent=2)


@dataclass(frozen=True)
class ModelInputs:
    """Command-line options that describe the input of a model.

    Attributes:
        data: name of a data source, or a YAML mapping of one; if empty, `shape`
            or the data of the study is used.
        shape: "3,32,32"; if empty, that of the data.
        classes: number of classes; if None, that of the data, else 10.
        text: "LENGTH,VOCABULARY" for text input; empty for images.
    """

    data: str = ""
    shape: str = ""
    classes: int | None = None
    text: str = ""

    @property
    def signature(self) -> Signature | None:
        """Signature of the options without data, or None if the data define it.

        Raises:
            StudyError: a shape is invalid.
        """
        classes = self.classes or DEFAULT_SIGNATURE.classes
        if self.text:
            length, vocabulary = _parse_numbers("--text", self.text, "LENGTH,VOCABULARY", 2)
            return Signature((length,), classes, Text(vocabulary))
        if self.shape:
            return Signature(_parse_numbers("--input", self.shape, "3,32,32"), classes)
        return replace(DEFAULT_SIGNATURE, classes=classes) if not self.data else None


def _parse_numbers(option: str, text: str, form: str, count: int | None = None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or (count is not None and len(numbers) != count):
        raise StudyError(Problem(f"{option} takes {form}; got {text!r}"))
    return numbers


def list_layers(
    source: str, overrides: Sequence[str], inputs: ModelInputs, *, allow_import: bool = False
) -> LayerList:
    """Return the layers of a model, or of the models of a study file.

    Args:
        source: name of a model, a YAML mapping of a model, or the path of a study file.
        overrides: `a.b=value` arguments for the model (`depth=20`) or the study.
        inputs: description of the input; a study file has its own.
        allow_import: let models run code of their own.

    Raises:
        StudyError: there is no such model, or it cannot be built for this input.
    """
    if Path(source).suffix in (".yaml", ".yml") or Path(source).is_file():
        if inputs != ModelInputs():
            fix = "remove --data, --input, --classes and --text"
            raise StudyError(
                Problem("a study file already defines the inputs of its models", fix=fix)
            )
        return _study_layers(load_or_use(source, overrides, (), allow_import=allow_import))
    study = _model_study(source, overrides, inputs, allow_import=allow_import)
    signature = inputs.signature or _data_signature(study)
    model = study.student.model
    try:
        signature, profile = _profiled(model, signature)
    except (ValueError, RuntimeError) as error:  # a forward that fails raises RuntimeError
        fix = "" if "--input" in str(error) else "give the input shape: --input 3,224,224"
        raise StudyError(Problem(str(error), fix=fix)) from None
    return LayerList(signature, (ListedModel("model", format_option(model), profile),))


# One model


def _profiled(model: Model, signature: Signature) -> tuple[Signature, ModelProfile]:
    """Profile a model for the first of the responses that it gives and that can be built."""
    responses = {
        "sample": signature,
        "position": replace(signature, dense=True),
        "anchor": replace(signature, boxes=True),
    }
    first: ValueError | None = None
    for response in model.gives:
        fitting = responses[response]
        try:
            return fitting, profile_model(model, fitting)
        except ValueError as error:
            first = first or error
    assert first is not None, "a model gives a response"
    raise first


def _model_study(
    model: str, overrides: Sequence[str], inputs: ModelInputs, *, allow_import: bool
) -> Study:
    """Return a study that contains only the model, so that it is parsed like any other."""
    data = {
        "name": "layers",
        "data": _parse_option("--data", inputs.data) if inputs.data else "digits",
        "student": {"model": _parse_option("MODEL", model)},
        "scheme": "alone",
    }
    document = parse_document(yaml.safe_dump(data))
    try:
        document = document.with_overrides(f"student.model.{override}" for override in overrides)
        return _concrete_study(document, allow_import=allow_import)
    except StudyError as error:
        raise StudyError([_model_problem(problem) for problem in error.problems]) from None


def _parse_option(option: str, text: str) -> Any:
    """Parse an option in the form used in a study file: a name or a mapping."""
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        fix = "write for example '{name: resnet, depth: 20}'"
        raise StudyError(Problem(f"{option} is not YAML: {text}", fix=fix)) from None


def _concrete_study(document: Document, *, allow_import: bool) -> Study:
    import_user_code(document, allow_import=allow_import)
    space, problems, _ = read_space(document)
    if not problems and space.dimensions:
        fix = "give one value; of a study file with domains, name the file"
        problems = [
            Problem(f"left open: {dimension.text}", dimension.path, fix)
            for dimension in space.dimensions
        ]
    if problems:
        raise StudyError(problems)
    try:
        study = parse_study(document.data)
    except InvalidStudy as error:
        raise StudyError(_problems(error.issues)) from None
    issues = [] if allow_import else list(import_issues(study))
    if issues:
        raise StudyError(_problems(issues))
    return study


def _problems(issues: Iterable[Issue]) -> list[Problem]:
    return [Problem(issue.message, dotted(issue.place), issue.fix) for issue in issues]


def _model_problem(problem: Problem) -> Problem:
    """Convert a problem of the generated study to a problem of the model."""
    path = problem.path.removeprefix("student.model").removeprefix(".")
    return replace(problem, path=path, file="", line=0)


def _data_signature(study: Study) -> Signature:
    try:
        signature = signature_of(study)
    except ValueError as error:
        raise StudyError(Problem(str(error), path="data")) from None
    return signature if signature is not None else signature_of_data(load_data(study))


# The models of a study


def _study_layers(study: OpenStudy) -> LayerList:
    signature = study.signature
    if signature is None:
        with located_problems(study):
            signature = signature_of_data(load_data(study.settings))
            check_shapes(study, signature)
    teachers = _profile_networks(study.networks("teacher"), "teacher", signature)
    students = _profile_networks(study.networks("student"), "student", signature)
    students.sort(key=lambda model: model.profile.params)
    guided = layers_for([model.profile for model in students])
    hint = layers_for([model.profile for model in teachers]) if teachers else guided
    listed = _spread(students)
    return LayerList(
        signature,
        (*teachers, *listed),
        is_study=True,
        more_students=len(students) - len(listed),
        pairings={
            node.parameter: _pairing_layers(node, hint, guided) for node in study.space.pairings
        },
        excluded=study.bind(signature).filtered.lines,
    )


def _profile_networks(
    networks: Iterable[tuple[Model, str | None]], role: Role, signature: Signature
) -> list[ListedModel]:
    """Return each network once, without those that cannot be built (reported elsewhere)."""
    listed: dict[str, ListedModel] = {}
    for model, input_name in networks:
        name = format_option(model) + ("" if input_name is None else f" on {input_name}")
        try:
            theirs = signature.as_input(input_name)
            shape = () if input_name is None else theirs.input_shape
            entry = ListedModel(role, name, profile_model(model, theirs), shape)
        except (ValueError, RuntimeError):
            continue
        listed.setdefault(entry.name, entry)
    return list(listed.values())


def _pairing_layers(node: Pairing, hint: LayerNames, guided: LayerNames) -> PairingLayers:
    """Return the layers that a pairing samples.

    Args:
        node: pairing of a study.
        hint, guided: names of the layers that `auto`, `blocks` and `all` mean on each side.
    """
    domain = node.domain.filled(hint, guided)
    named = domain.pairs is not None or domain.sets is not None
    first, second = (side if side in WIDE and not named else "list" for side in node.domain.sides)
    hints, guided_layers = domain.layers
    return PairingLayers((first, second), tuple(hints), tuple(guided_layers))


def _spread(students: Sequence[ListedModel]) -> list[ListedModel]:
    """Return at most `MAX_STUDENTS` students, evenly spread over their order."""
    if len(students) <= MAX_STUDENTS:
        return list(students)
    last = len(students) - 1
    return [students[last * i // (MAX_STUDENTS - 1)] for i in range(MAX_STUDENTS)]
