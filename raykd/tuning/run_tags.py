"""MLflow tags of a trial: its teacher, student, scheme, losses and pairs in short."""

from __future__ import annotations

import dataclasses

from raykd.schemes import TeacherSpec
from raykd.study.config import Study


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
    name = option_text(prepared.model) if prepared.model is not None else str(prepared.weights)
    above = " + ".join(map(teacher_text, prepared.teachers))
    return f"{name} taught by {above}" if above else name


def tags_of(study: Study, teachers: tuple[TeacherSpec, ...]) -> dict[str, str]:
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
        "student": option_text(study.student.model),
        "scheme": study.scheme.name,
        "losses": "+".join(losses) or "none",
        "pairs": " ".join(pairs) or "none",
        "data": study.data.name,
    }
