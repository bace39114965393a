"""Short names of networks, losses and layer pairs: for tables, tags and file names.

Option classes and torch are imported only when a name is built: the journal stores the names of
each training, so reading results needs neither.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykd.registry import Registry
    from raykd.schemes import TeacherSpec
    from raykd.study.config import Study

Plain = Mapping[str, Any]
"""An option, or a study, as plain data."""

MAX_NETWORK_NAME = 100

SIZES = {"depth": "d", "width": "w", "widen": "w"}
"""Fields of a model that are always part of its name, and their letters."""


def training_names(study: Plain) -> dict[str, str]:
    """Short names of a training.

    Args:
        study: the concrete study as plain data.

    Returns:
        `student`: the trained network; `learns_from`: its losses; `pairs`: its layer pairs.
    """
    return {
        "student": student_name(study["student"]),
        "learns_from": objective_name(study),
        "pairs": pairs_name(study),
    }


def student_name(student: Plain) -> str:
    """Short name of a student: that of its model, and its input: "mlp d1 w16 on 4x4".

    Args:
        student: part of a study as plain data.
    """
    return model_name(student["model"]) + _on(student.get("input"))


def _on(input_name: str | None) -> str:
    return "" if input_name is None else f" on {input_name}"


def model_name(model: Plain | None) -> str:
    """Short name of a model, "resnet d14 w12": its sizes, and values that are not the default.

    Args:
        model: the model's option as plain data.
    """
    if not model:
        return "a stored model"
    from raykd.models import MODELS

    usual = _defaults(MODELS, model["name"])
    parts = [
        f"{SIZES[key]}{value}" if key in SIZES else _field(key, value)
        for key, value in model.items()
        if key != "name" and (key in SIZES or value != usual.get(key))
    ]
    return " ".join([model["name"], *parts])


def objective_name(study: Plain) -> str:
    """Short name of the losses of a trial: "0.31 kd T=4.1 + 12 at"; else "labels" or "targets".

    Args:
        study: the concrete study as plain data.
    """
    terms = [_term(term) for term in study.get("knowledge") or () if _active(term)]
    return " + ".join(terms) or target_noun(study)


def target_noun(study: Plain) -> str:
    """Return the noun for the targets of a study: "labels", or "targets" for real values.

    Args:
        study: the concrete study as plain data; one of an older version classifies.
    """
    name = (study.get("task") or {}).get("name", "classification")
    if name in ("classification", "multi_label"):
        return "labels"
    from raykd.tasks import TASKS

    task = TASKS.find(name)
    return "targets" if getattr(task, "kind", "softmax") == "real" else "labels"


def pairs_name(study: Plain) -> str:
    """Short name of the layer pairs, hint to guided: "s3>s2" for stages; "" if there are none."""
    terms = [term for term in study.get("knowledge") or () if _active(term)]
    pairs = [pair for term in terms for pair in term.get("pairs") or ()]
    return " ".join(map(_pair, pairs))


def network_name(study: Study) -> str:
    """Return the name of a trained student: `digits-resnet-d8-w4-kd`.

    Args:
        study: concrete.
    """
    parts = [part for term in study.knowledge for part in term.parts]
    losses = [part.loss.name for part in parts if part.active and part.loss]
    scheme = study.scheme.name
    taught = losses if scheme == "offline" and losses else [scheme, *losses]
    from raykd.study.config import plain

    words = [study.data.name, student_name(plain(study.student)), *dict.fromkeys(taught)]
    text = re.sub(r"(?<=\d)\.(?=\d)", "_", "-".join(words))
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:MAX_NETWORK_NAME].strip("-")


def option_text(option: object) -> str:
    """Return an option in short: its name, and its fields that differ from their defaults."""
    fields = [
        f"{field.name}={option_text(value) if dataclasses.is_dataclass(value) else value}"
        for field in dataclasses.fields(option)  # type: ignore[arg-type]
        if field.name != "name" and (value := getattr(option, field.name)) != field.default
    ]
    name = getattr(option, "name", type(option).__name__)
    return f"{name}({', '.join(fields)})" if fields else name


def teacher_text(prepared: TeacherSpec) -> str:
    """Return a teacher in short, with its own teachers."""
    name = option_text(prepared.model) if prepared.model is not None else _source(prepared)
    name += _on(prepared.input)
    above = " + ".join(map(teacher_text, prepared.teachers))
    return f"{name} taught by {above}" if above else name


def _source(prepared: TeacherSpec) -> str:
    return str(prepared.weights) if prepared.outputs is None else Path(prepared.outputs).name


def trial_tags(study: Study, teachers: tuple[TeacherSpec, ...]) -> dict[str, str]:
    """Return the tags by which trials are filtered and compared in MLflow.

    Args:
        study: concrete.
        teachers: of its scheme.
    """
    parts = [part for term in study.knowledge for part in term.parts]
    losses = [term.loss.name for term in parts if term.active and term.loss]
    pairs = [f"{pair.hint}>{pair.guided}" for term in study.knowledge for pair in term.pairs or ()]
    return {
        "teacher": " + ".join(map(teacher_text, teachers)) or "none",
        "student": option_text(study.student.model) + _on(study.student.input),
        "scheme": study.scheme.name,
        "losses": "+".join(losses) or "none",
        "pairs": " ".join(pairs) or "none",
        "data": study.data.name,
    }


def significant(number: float) -> str:
    """Format a number with three significant digits: 0.31, 12.4, 1240; an exponent from 1e5."""
    return f"{number:.0f}" if 100 <= abs(number) < 1e5 else f"{number:.3g}"


def _pair(pair: Plain) -> str:
    """Short name of a pair, with its weight and loss if it has them: "s1>s2(0.5 at)"."""
    layers = f"{_layer(pair['hint'])}>{_layer(pair['guided'])}"
    weight, loss = pair.get("weight", 1), pair.get("loss")
    settings = [significant(weight)] if weight != 1 else []
    settings += [_loss(loss)] if loss is not None else []
    return f"{layers}({' '.join(settings)})" if settings else layers


def _active(term: Plain) -> bool:
    return term.get("loss") is not None and term.get("weight") != 0


def _term(term: Plain) -> str:
    weight = term.get("weight")
    loss = _loss(term["loss"])
    return loss if weight is None else f"{significant(weight)} {loss}"


def _loss(loss: Plain) -> str:
    from raykd.losses import LOSSES

    usual = _defaults(LOSSES, loss["name"])
    parts = [
        f"{'T' if key == 'temperature' else key}={_value(value)}"
        for key, value in loss.items()
        if key != "name" and (key == "temperature" or value != usual.get(key))
    ]
    return " ".join([loss["name"], *parts])


def _field(key: str, value: Any) -> str:
    """Return a field and its value; for arguments of another library, the value alone."""
    return _value(value) if key in ("args", "config") else f"{key}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, Mapping):
        text = " ".join(f"{key}={_value(item)}" for key, item in value.items())
        return str(value["name"]) if "name" in value else _part(value) or text
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _part(part: Plain) -> str:
    """Short name of a part of a model, "d2 w16 depthwise": its sizes and its options."""
    sizes = [f"{letter}{part[key]}" for key, letter in SIZES.items() if key in part]
    return " ".join(
        [*sizes, *(str(option["name"]) for option in part.values() if _has_name(option))]
    )


def _has_name(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value


def _layer(name: str) -> str:
    number = name.removeprefix("stage")
    return f"s{number}" if number.isdigit() else name


def _defaults(family: Registry, name: str) -> dict[str, Any]:
    """Return the defaults of an option as plain data; {} if it is not installed."""
    cls = family.find(name)
    return {} if cls is None else _plain_defaults(cls)


@cache
def _plain_defaults(cls: type) -> dict[str, Any]:
    from raykd.study.config import plain

    return {field.name: plain(field.default) for field in dataclasses.fields(cls)}
