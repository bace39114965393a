"""Rules of the inputs that networks take of each sample (`teacher.input`, `student.input`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raykd.models.proxies import PROXIES, RankingProxy
from raykd.schemes import Teacher
from raykd.schemes.base import origin_of, teacher_chain
from raykd.study.checks.messages import Issue
from raykd.study.config import Study
from raykd.study.yaml_file import Place

EQUAL = "give both the same `input`"


def input_issues(study: Study, teachers: Iterable[tuple[Place, Teacher]]) -> Iterator[Issue]:
    """Yield the issues of the inputs of a study's networks.

    Args:
        study: concrete.
        teachers: of the study and its scheme, with their places.
    """
    networks: list[tuple[Place, str | None]] = [(("student",), study.student.input)]
    for place, teacher in teachers:
        if teacher.outputs is None:
            networks.append((place, teacher.input))
        elif teacher.input is not None:
            message = "`outputs` is a file by sample number, which takes no input"
            yield Issue((*place, "input"), message, "remove it")
    issues = [issue for place, name in networks for issue in _name_issues(study, place, name)]
    yield from issues
    if not issues and len({name for _, name in networks}) > 1:
        yield from _same_input_issues(study)


def _name_issues(study: Study, place: Place, name: str | None) -> Iterator[Issue]:
    data = study.data
    if name is None:
        if data.needs_input:
            names = ", ".join(data.input_names() or ())
            message = f"it is missing, and a sample of data '{data.name}' has several: {names}"
            yield Issue((*place, "input"), message, "name one of them")
        return
    try:
        data.check_input(name)
    except ValueError as error:
        names = data.input_names()
        more = ", or declare `data.inputs`" if hasattr(data, "inputs") else ""
        fix = "" if names is None or names else f"remove it{more}"
        yield Issue((*place, "input"), str(error), fix)


def _same_input_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of options that run two networks on one input."""
    teacher, ours = study.teacher, study.student.input
    around = study.teacher_context()
    origin = origin_of(study.student.model, around)
    if origin is not None and origin.input != ours:
        message = "the student begins with weights of the teacher, so both take the same input"
        yield Issue(("student", "input"), message, f"{EQUAL}, or set `inherit_weights: false`")
        return
    for spec in teacher_chain(study.teacher_specs()):
        if spec.origin is not None and spec.origin.input != spec.input:
            message = "a network begins with weights of the teacher, so both take the same input"
            yield Issue(("scheme",), message, f"{EQUAL}, or set `inherit_weights: false`")
            return
    if teacher is None or teacher.input == ours:
        return
    for number, term in enumerate(study.knowledge):
        if term.active and term.loss is not None and term.loss.deploys:
            message = f"loss '{term.loss.name}' joins teacher and student to one network"
            yield Issue(("knowledge", number, "loss"), message, f"{EQUAL}, or use another loss")
    proxy = study.search.proxy
    if proxy.needs_teacher:
        names = [n for n, cls in PROXIES.members.items() if not cls.needs_teacher]
        message = f"proxy '{proxy.name}' compares teacher and student on the same input"
        fix = f"{EQUAL}, or use {', '.join(names)}"
        yield Issue(("search", "proxy"), message, fix)
    if not any(spec.input == teacher.input for spec in study.required_networks()):
        message = f"scheme '{study.scheme.name}' trains its networks on `student.input` alone"
        fix = "remove it, or use `scheme: offline`"
        yield Issue(("teacher", "input"), message, fix)


def open_input_issue(study: Study) -> Issue:
    """Return the issue of a proxy that ranks networks of different inputs."""
    assert isinstance(study.search.proxy, RankingProxy), "checked by the caller"
    message = f"proxy '{study.search.proxy.name}' ranks networks on one batch, of one input"
    return Issue(("student", "input"), message, "give one input, or remove `search.proxy`")
