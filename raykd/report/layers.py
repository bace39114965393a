"""Layers of models, as shown by `raykd layers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.text import Text as RichText

from raykd.errors import Problem, StudyError
from raykd.models import Model, ModelProfile, Task, Text, profile_model
from raykd.models.base import format_option
from raykd.models.introspection.layers import Layer
from raykd.study.checks.layer_pairs import layers_for
from raykd.study.checks.load import check_shapes
from raykd.study.checks.messages import InvalidStudy, Issue, parse_study
from raykd.study.checks.rules import import_issues
from raykd.study.config import Study
from raykd.study.open_study import OpenStudy, task_of
from raykd.study.space.pairing import WIDE
from raykd.study.space.space import read_space
from raykd.study.yaml_file import Document, dotted, parse_document
from raykd.terminal_tables import Column, Grid, unbroken
from raykd.training.build import task_of as task_of_data
from raykd.tuning.number_format import compact
from raykd.tuning.study_input import load_data, load_or_use, located_problems

MOST_STUDENTS = 3
"""Maximum number of a study's students that are shown, from the smallest to the largest."""

USUAL = Task((3, 32, 32), 10)
"""Default input shape and number of classes of a model."""


@dataclass(frozen=True)
class Shown:
    """A model whose layers are shown.

    Attributes:
        role: "model", or in a study "teacher" or "student".
        name: as a study file writes it.
    """

    role: str
    name: str
    model_profile: ModelProfile

    def layers(self, *, stages: bool) -> tuple[Layer, ...]:
        """Return all layers in execution order, or only those with an alias."""
        layers = self.model_profile.ordered_layers
        return tuple(layer for layer in layers if layer.stage or not stages)

    def plain(self, *, stages: bool) -> dict[str, Any]:
        return {
            "role": self.role,
            "model": self.name,
            "params": self.model_profile.params,
            "macs": self.model_profile.macs,
            "layers": [_plain(layer) for layer in self.layers(stages=stages)],
        }


def _plain(layer: Layer) -> dict[str, Any]:
    """Return the layer as JSON; `layout` is empty if the module's own tensor has `shape`."""
    layout = "" if layer.layout is None else layer.layout.name
    return {**asdict(replace(layer, layout=None)), "layout": layout, "raw_shape": layer.raw_shape}


@dataclass(frozen=True)
class Layers:
    """Contents of the output of `raykd layers`.

    Attributes:
        task: input shape and number of classes of the models.
        models: the model; for a study the teachers and some students, smallest first.
        more: number of other students of the study.
        pairings: for a study, the candidates of each open pairing by parameter: the `hint` and
            `guided` layers, and the `reading` of each side (`auto`, `blocks`, `all` or `list`).
        left_out: pairs that are never sampled, with the reasons.
    """

    task: Task
    models: tuple[Shown, ...]
    more: int = 0
    pairings: Mapping[str, Mapping[str, Any]] | None = None
    left_out: tuple[str, ...] = ()

    def json(self, *, stages: bool) -> str:
        """Return the contents as one JSON object."""
        told = {
            "input_shape": list(self.task.input_shape),
            "classes": self.task.classes,
            "models": [model.plain(stages=stages) for model in self.models],
        }
        if self.pairings is not None:
            told |= {
                "more_students": self.more,
                "pairings": dict(self.pairings),
                "left_out": list(self.left_out),
            }
        return json.dumps(told, indent=2)


@dataclass(frozen=True)
class Inputs:
    """Command-line options that describe the input of a model.

    Attributes:
        data: a data source's name, or a YAML mapping of one; if empty, `shape`
            or the data of the study is used.
        shape: "3,32,32"; empty if not given.
        classes: number of classes; if None, that of the data, else 10.
        text: "LENGTH,VOCABULARY" for text input; empty for images.
    """

    data: str = ""
    shape: str = ""
    classes: int | None = None
    text: str = ""

    @property
    def task(self) -> Task | None:
        """Task given by the options without data, or None if the data define it.

        Raises:
            StudyError: a shape is invalid.
        """
        classes = self.classes or USUAL.classes
        if self.text:
            length, vocabulary = _numbers("--text", self.text, "LENGTH,VOCABULARY", 2)
            return Task((length,), classes, Text(vocabulary))
        if self.shape:
            return Task(_numbers("--input", self.shape, "3,32,32"), classes)
        return replace(USUAL, classes=classes) if not self.data else None


def _numbers(option: str, text: str, form: str, count: int | None = None) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or (count is not None and len(found) != count):
        raise StudyError(Problem(f"{option} takes {form}; got {text!r}"))
    return found


def layers_of(
    what: str, overrides: Sequence[str], inputs: Inputs, *, allow_import: bool = False
) -> Layers:
    """Return the layers of a model, or of the models of a study file.

    Args:
        what: a model's name, a YAML mapping of a model, or the path of a study file.
        overrides: `a.b=value` arguments for the model (`depth=20`) or the study.
        inputs: description of the input; a study has its own.
        allow_import: let models run code of their own.

    Raises:
        StudyError: there is no such model, or it cannot be built for this input.
    """
    if Path(what).suffix in (".yaml", ".yml") or Path(what).is_file():
        if inputs != Inputs():
            fix = "remove --data, --input, --classes and --text"
            raise StudyError(
                Problem("a study file already defines the inputs of its models", fix=fix)
            )
        return _of_study(load_or_use(what, overrides, (), allow_import=allow_import))
    study = _study_with(what, overrides, inputs, allow_import=allow_import)
    task = inputs.task or _task_of(study)
    return Layers(task, (_shown("model", study.student.model, task),))


# One model


def _study_with(
    what: str, overrides: Sequence[str], inputs: Inputs, *, allow_import: bool
) -> Study:
    """Return a study that contains only the model, so that it is parsed like any other."""
    data = {
        "name": "layers",
        "data": _option("--data", inputs.data) if inputs.data else "digits",
        "student": {"model": _option("MODEL", what)},
        "scheme": "alone",
    }
    document = parse_document(yaml.safe_dump(data))
    try:
        document = document.with_overrides(f"student.model.{one}" for one in overrides)
        return _concrete(document, allow_import=allow_import)
    except StudyError as error:
        raise StudyError([_renamed(problem) for problem in error.problems]) from None


def _option(what: str, text: str) -> Any:
    """Parse an option in the form used in a study file: a name or a mapping."""
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        fix = "write for example '{name: resnet, depth: 20}'"
        raise StudyError(Problem(f"{what} is not YAML: {text}", fix=fix)) from None


def _concrete(document: Document, *, allow_import: bool) -> Study:
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
        raise StudyError(_told(error.issues)) from None
    refused = [] if allow_import else list(import_issues(study))
    if refused:
        raise StudyError(_told(refused))
    return study


def _told(found: Iterable[Issue]) -> list[Problem]:
    return [Problem(one.message, dotted(one.place), one.fix) for one in found]


def _renamed(problem: Problem) -> Problem:
    """Convert a problem of the generated study to a problem of the model."""
    path = problem.path.removeprefix("student.model").removeprefix(".")
    return replace(problem, path=path, file="", line=0)


def _task_of(study: Study) -> Task:
    try:
        known = task_of(study)
    except ValueError as error:
        raise StudyError(Problem(str(error), path="data")) from None
    return known if known is not None else task_of_data(load_data(study))


def _shown(role: str, model: Model, task: Task) -> Shown:
    try:
        return Shown(role, format_option(model), profile_model(model, task))
    except (ValueError, RuntimeError) as error:  # a forward that fails raises RuntimeError
        fix = "" if "--input" in str(error) else "give the input shape: --input 3,224,224"
        raise StudyError(Problem(str(error), fix=fix)) from None


# The models of a study


def _of_study(study: OpenStudy) -> Layers:
    task = study.task
    if task is None:
        with located_problems(study):
            task = task_of_data(load_data(study.settings))
            check_shapes(study, task)
    teachers = _each(study.models("teacher"), "teacher", task)
    students = sorted(_each(study.models("student"), "student", task), key=_size)
    shown = _spread(students)
    narrowed = study.bind(task).filtered
    guided = layers_for([one.model_profile for one in students])
    hint = layers_for([one.model_profile for one in teachers]) if teachers else guided
    pairings = {}
    for node in study.space.pairings:
        domain = node.domain.filled(hint, guided)
        read = [side if side in WIDE else "list" for side in node.domain.sides]
        if not domain.is_known or domain.pairs is not None or domain.sets is not None:
            read = ["list", "list"]
        sides = zip(("hint", "guided"), domain.layers, strict=True)
        pairings[node.parameter] = {"reading": read, **{side: list(one) for side, one in sides}}
    models = (*teachers, *shown)
    return Layers(task, models, len(students) - len(shown), pairings, narrowed.lines)


def _each(models: Iterable[Model], role: str, task: Task) -> list[Shown]:
    """Return each model once, without those that cannot be built (reported elsewhere)."""
    found: dict[str, Shown] = {}
    for model in models:
        try:
            shown = Shown(role, format_option(model), profile_model(model, task))
        except (ValueError, RuntimeError):
            continue
        found.setdefault(shown.name, shown)
    return list(found.values())


def _size(shown: Shown) -> int:
    return shown.model_profile.params


def _spread(students: Sequence[Shown]) -> list[Shown]:
    if len(students) <= MOST_STUDENTS:
        return list(students)
    last = len(students) - 1
    return [students[last * i // (MOST_STUDENTS - 1)] for i in range(MOST_STUDENTS)]


HEADINGS = ("stage", "layer", "type", "shape", "depth", "MACs")
FIGURES = ("depth", "MACs")


def tables(found: Layers, *, stages: bool) -> RenderableType:
    """Return tables of the layers for a terminal; rows that do not fit are stacked, not cut."""
    blocks: list[RenderableType] = []
    if len(found.models) > 1:
        blocks += [_table(*_side_by_side(found.models)), RichText()]
    for model in found.models if len(found.models) == 1 or not stages else ():
        rows = [_row(layer) for layer in model.layers(stages=stages)]
        blocks += [RichText(_title(model, found), style="bold"), _table(HEADINGS, rows), RichText()]
    blocks += [RichText(line) for line in _notes(found)]
    return unbroken(blocks)


def lines(found: Layers, *, stages: bool) -> Iterator[str]:
    """Yield the tables as plain text without colors, one line per layer of any length."""
    if len(found.models) > 1:
        yield from _aligned(*_side_by_side(found.models))
        yield ""
    for model in found.models if len(found.models) == 1 or not stages else ():
        yield _title(model, found)
        yield from _aligned(HEADINGS, [_row(layer) for layer in model.layers(stages=stages)])
        yield ""
    yield from _notes(found)


def _title(model: Shown, found: Layers) -> str:
    shape = "x".join(map(str, found.task.input_shape))
    cost = f"{model.model_profile.params:,} parameters, {compact(model.model_profile.macs)} MACs"
    role = "" if model.role == "model" else f"{model.role} "
    return f"{role}{model.name}: {cost}; input {shape}, {found.task.classes} classes"


def _row(layer: Layer) -> tuple[str, ...]:
    name = layer.module if layer.side == "output" else f"{layer.module} (its input)"
    shape = layer.shape_text
    return layer.stage, name, layer.type, shape, f"{layer.depth:.2f}", compact(layer.macs)


def _side_by_side(models: Sequence[Shown]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return the headings and rows of a table of aliases with their layer in each model."""
    held = [{layer.stage: layer for layer in one.layers(stages=True)} for one in models]
    order = {alias: None for one in held for alias in one if alias != "embedding"}
    aliases = [*sorted(order, key=lambda alias: int(alias.removeprefix("stage"))), "embedding"]
    rows = [(alias, *(_beside(one.get(alias)) for one in held)) for alias in aliases]
    return ["stage", *(f"{one.role} {one.name}" for one in models)], rows


def _beside(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    return f"{layer.module} {layer.shape_text} at {layer.depth:.2f}"


def _notes(found: Layers) -> Iterator[str]:
    if found.more:
        yield f"and {found.more} more students, all between these in size"
    for parameter, pairing in (found.pairings or {}).items():
        for side, reading in zip(("hint", "guided"), pairing["reading"], strict=True):
            of = f"{reading}: " if reading != "list" else ""
            yield f"{parameter} samples {side} from {of}{', '.join(pairing[side]) or 'nothing'}"
    yield from found.left_out


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    columns = [
        Column(
            heading,
            right=heading in FIGURES,
            whole=heading in FIGURES,
            style="cyan" if heading == "stage" else "",
        )
        for heading in headings
    ]
    grid = Grid(columns, header_style="bold", gap=1)
    for row in rows:
        grid.add(*row)
    return grid


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    told = [headings, *rows]
    widths = [max(len(row[i]) for row in told) for i in range(len(headings))]
    for row in told:
        cells = [
            cell.rjust(width) if heading in FIGURES else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        yield "  ".join(cells).rstrip()
