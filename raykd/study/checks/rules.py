"""Rules of a concrete study beyond the types of its values."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from statistics import median
from typing import Any, TypeVar

import torch

from raykd.arguments import near
from raykd.compat.packages import is_installed
from raykd.data import AUGMENTATIONS, Augment
from raykd.errors import Problem
from raykd.losses import LOSSES, Loss
from raykd.metrics import AGREEMENT, METRICS, Direction
from raykd.models import MODELS, CompressedModel, Model, Signature
from raykd.models.introspection.layers import random_inputs
from raykd.models.proxies import PROXIES, NetworkProxy, Proxy, ProxyContext, RankingProxy
from raykd.registry import Registry
from raykd.schemes import SCHEMES, BornAgain, Scheme, Teacher
from raykd.study.checks.input_rules import input_issues
from raykd.study.checks.label_rules import label_issues
from raykd.study.checks.messages import Issue
from raykd.study.config import Search, Study
from raykd.study.costs import latency_issues
from raykd.study.objectives import OBJECTIVES, objectives_of
from raykd.study.open_study import BoundStudy, OpenStudy
from raykd.study.space.space import Space
from raykd.study.yaml_file import Place, dotted, parse_place
from raykd.tasks import KINDS, TASKS, Kind, Task
from raykd.tasks.user_metrics import build_user_metric, try_user_metric
from raykd.user_code import ALLOW, is_user_code

T = TypeVar("T")


def models_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, Model]]:
    """Yield every model in a concrete study, or in a part of it, with its place."""
    return _parts_of(value, Model, place)


def _parts_of(value: Any, kind: type[T], place: Place = ()) -> Iterator[tuple[Place, T]]:
    """Yield every part of a concrete study that is of one class, with its place."""
    if isinstance(value, kind):
        yield place, value
    if dataclasses.is_dataclass(value):
        for child in dataclasses.fields(value):
            yield from _parts_of(getattr(value, child.name), kind, (*place, child.name))
    elif isinstance(value, tuple):
        for number, child in enumerate(value):
            yield from _parts_of(child, kind, (*place, number))


def import_issues(study: Study) -> Iterator[Issue]:
    """Yield an issue for each model, and each teacher in MLflow, that runs custom code."""
    for place, model in models_in(study):
        if model.runs_code and not is_user_code(model.name):  # that was checked before
            message = f"'{model.name}' would run code from outside raykd"
            yield Issue((*place, "name"), message, ALLOW)
    for place, teacher in _parts_of(study, Teacher):
        if teacher.is_mlflow:
            message = f"loading {teacher.weights} runs the code that it was saved with"
            yield Issue((*place, "weights"), message, ALLOW)
    if study.search.sampler.runs_code:
        message = f"sampler '{study.search.sampler.name}' would run code from outside raykd"
        yield Issue(("search", "sampler"), message, ALLOW)


def needs_import(study: Study) -> bool:
    """Return whether a study needs `--allow-import`."""
    return next(import_issues(study), None) is not None


def derived_issues(study: Study) -> Iterator[Issue]:
    """Yield an issue for each compressed model without a base model."""
    for place, model in models_in(study):
        if not isinstance(model, CompressedModel) or model.base is not None:
            continue
        fix = "name the teacher's `model`, or name a model under `base`"
        if place[0] == "teacher":
            reason, fix = "it is the teacher itself", "name a model under `base`"
        elif study.teacher is None:
            reason = "the study has no teacher"
        else:
            reason = "the teacher is given by `weights` alone, without a `model`"
        message = f"nothing says what '{model.name}' is derived from: `base` is null, and {reason}"
        yield Issue((*place, "base"), message, fix)


def check_models(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Check that the initial weights of models are available, and download them (a `Check`)."""
    for place, model in models_in(study) if signature is not None else ():
        assert signature is not None
        reason = _missing_weights(model, signature.as_input(input_at(study, place)))
        if reason:
            yield Problem(reason, path=dotted(place))


def input_at(study: Study, place: Place) -> str | None:
    """Return the input of the network that a place of a study belongs to."""
    part, name = study, None
    for step in place:
        part = part[step] if isinstance(step, int) else getattr(part, step)  # type: ignore[index]
        name = getattr(part, "input", name)
    return name


@lru_cache(maxsize=256)
def _missing_weights(model: Model, signature: Signature) -> str:
    try:
        model.prepare(signature)
    except ValueError as error:
        return str(error)
    return ""


PLACE = ("search", "proxy")


def bin_cost(settings: RankingProxy, objectives: Mapping[str, str]) -> str:
    """Return the cost that bins the candidates before they are ranked; "" for no bins."""
    if settings.per_cost != "auto":
        return "" if settings.per_cost == "none" else settings.per_cost
    return next((cost for cost in ("params", "macs") if cost in objectives), "")


def number_kept(settings: RankingProxy, trials: int) -> int:
    """Return the number of the first trials that come from the ranking."""
    return max(1, trials // 2) if settings.keep is None else min(settings.keep, trials)


def teacher_model(opened: OpenStudy) -> Model | None:
    """Return the model of the study's teacher; None if there is no teacher, or only its weights."""
    teachers = opened.teachers()
    return teachers[0].model if teachers else None


def proxy_issues(search: Search) -> Iterator[Issue]:
    """Yield the issues of a proxy whose values have the right types."""
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
        return
    if search.sampler.needs_finite_space:
        fix = "remove `proxy`, or use another sampler"
        message = f"sampler '{search.sampler.name}' tries every point, so a ranking has no effect"
        yield Issue(PLACE, message, fix)
    if settings.keep is not None and settings.keep > search.trials:
        message = f"cannot keep {settings.keep} architectures for {search.trials} trials"
        yield Issue((*PLACE, "keep"), message, "lower it, or raise search.trials")
    if settings.keep is not None and settings.keep > settings.candidates:
        message = f"cannot keep {settings.keep} of {settings.candidates} candidates"
        yield Issue((*PLACE, "keep"), message, "lower it, or raise `candidates`")
    if settings.name == bin_cost(settings, search.objectives):
        message = (
            f"'{settings.name}' cannot rank students that are compared at equal {settings.name}"
        )
        fix = "use naswot, zen or diswot, or write `per_cost: none`"
        if settings.per_cost == "auto":
            message += f" (`{settings.name}` is an objective)"
        yield Issue(PLACE, message, fix)


def proxy_teacher_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of a proxy that compares students with the teacher."""
    settings = study.search.proxy
    if not settings.needs_teacher:
        return
    fix = "give `teacher: {model: ...}`, or use naswot, zen, params or macs"
    if study.teacher is None or study.teacher.model is None:
        message = f"'{settings.name}' compares students with the teacher's model, which is missing"
        yield Issue(PLACE, message, fix)


def proxy_space_issues(space: Space, search: Search) -> Iterator[Issue]:
    """Yield the issues of a proxy in this space."""
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
        return
    if space.dimensions and not space.part("student").dimensions:
        message = "this space has a single student, so there is nothing to rank"
        fix = "leave a value of `student.model` open, or remove `proxy`"
        yield Issue(PLACE, message, fix)
    teachers = space.part("teacher").size.combinations
    if settings.needs_teacher and teachers > 1:
        message = f"'{settings.name}' compares students with one teacher; this space has {teachers}"
        yield Issue(PLACE, message, "give the teacher one value, or use naswot, zen or params")


def proxy_signature_issues(search: Search, signature: Signature) -> Iterator[Issue]:
    """Yield the issues of a proxy for this signature."""
    if not isinstance(search.proxy, RankingProxy):
        return
    try:
        search.proxy.check(signature)
    except ValueError as error:
        yield Issue(PLACE, str(error))


def ranking_summary(bound: BoundStudy, sample: Study | None) -> str:
    """Describe the ranking before the first trial and its duration here; "" if there is none.

    Args:
        bound: the study.
        sample: one of its concrete studies; it is scored to estimate the duration.
    """
    search = bound.open_study.settings.search
    settings = search.proxy
    if not isinstance(settings, RankingProxy):
        return ""
    cost = bin_cost(settings, search.objectives)
    best = number_kept(settings, search.trials)
    bins = f" in {min(settings.bins, best)} bins of similar {cost}" if cost else ""
    points = bound.space.size.points
    count = settings.candidates if points is None else min(settings.candidates, points)
    text = (
        f"{settings.name}: students of {count} random points are ranked{bins}, the best {best} "
        "are tried first"
    )
    if sample is None:
        return text
    return f"{text}; about {_duration(count * _seconds(bound, settings, sample))}"


def _seconds(bound: BoundStudy, settings: RankingProxy, sample: Study) -> float:
    """Seconds for one score: the median of three, after one to warm up."""
    cpu, signature = torch.device("cpu"), bound.signature.as_input(sample.student.input)
    count = settings.batch if isinstance(settings, NetworkProxy) else 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, targets = (
            random_inputs(signature, count, cpu),
            torch.randint(signature.classes, (count,)),
        )
    score = settings.scorer(
        ProxyContext(signature, inputs, targets, teacher_model(bound.open_study), 0)
    )
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        score(sample.student.model)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1.0, seconds):.0f} s"


def study_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of a study whose values have the right types."""
    yield from search_issues(study.search, task_objectives(study.learning_task))
    yield from task_issues(study)
    if study.data.labels_per_class is not None or study.data.unlabeled is not None:
        yield from label_issues(study, _parts_of(study, Loss))
    if study.teacher is not None:
        yield from _teacher_part_issues(study.teacher)
    for place, teacher in _parts_of(study, Teacher):
        yield from _outputs_issues(place, teacher)
    yield from _scheme_issues(study)
    teachers = list(_parts_of(study, Teacher))
    names = (study.student.input, *(teacher.input for _, teacher in teachers))
    if study.data.needs_input or any(name is not None for name in names):
        yield from input_issues(study, teachers)
    yield from derived_issues(study)
    yield from proxy_teacher_issues(study)
    yield from _term_issues(study)


def task_objectives(task: Task) -> dict[str, Direction]:
    """Return the objectives of a study of this task."""
    objectives = objectives_of(task.metric_names, [task.train_metric])
    for name, text in zip(task.metric_names, task.metrics, strict=True):
        if is_user_code(text):
            with contextlib.suppress(ValueError):  # an issue of the task
                objectives[f"val_{name}"] = task.direction(name)
    return objectives


def task_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of options that do not fit the kind of the task's response."""
    task, default = study.learning_task, study.data.default_task()
    if task.kind != default.kind:
        message = (
            f"task '{task.name}' learns {KINDS[task.kind]}; data '{study.data.name}' have targets "
            f"of task '{default.name}': {KINDS[default.kind]}"
        )
        fix = f"remove `task`, or write `task: {_fitting(TASKS, default.kind)}`"
        yield Issue(("task",), message, fix)
        return
    if len(set(task.metrics)) < len(task.metrics):
        yield Issue(("task", "metrics"), "a metric is listed twice", "remove one of them")
    yield from _user_metric_issues(study)
    if AGREEMENT in task.metrics and study.teacher is None:
        message = f"'{AGREEMENT}' compares the student with the `teacher` of the study; it has none"
        fix = f"add `teacher: {{...}}`, or remove {AGREEMENT}"
        yield Issue(("task", "metrics"), message, fix)
    if study.train.label_smoothing and not task.takes_smoothing:
        message = f"task '{task.name}' has no label smoothing"
        yield Issue(("train", "label_smoothing"), message, "remove it")
    if task.package and not is_installed(task.package):
        message = f"task '{task.name}' needs the package {task.package}, which is not installed"
        fix = f"install it (uv pip install {task.package.replace('_', '-')})"
        yield Issue(("task",), message, fix)
    if study.train.compile == "graph" and not task.takes_graph:
        message = f"steps of task '{task.name}' differ by their labels, and a CUDA graph cannot"
        yield Issue(("train", "compile"), message, "use `compile: none`")
    yield from _response_issues(study)
    refused: list[Place] = []
    for place, option in _options_by_kind(study):
        if any(place[: len(outer)] == outer for outer in refused):
            continue  # the loss within a loss that does not fit
        if task.kind not in option.kinds:
            refused.append(place)
            noun = "loss" if isinstance(option, Loss) else place[-1]
            message = (
                f"{noun} '{option.name}' does not fit task '{task.name}': it needs "
                f"{' or '.join(KINDS[kind] for kind in option.kinds)}, and the task gives "
                f"{KINDS[task.kind]}"
            )
            yield Issue(place, message, f"use {_fitting_options(option, task.kind)}")


def _response_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of networks and augmentations that do not fit the shape of a response."""
    task = study.learning_task
    responses = {"dense": "position", "boxes": "anchor"}
    needed = responses.get(task.kind, "sample")
    for place, model in models_in(study):
        if needed not in model.gives:
            options = MODELS.members | MODELS.forms
            names = [name for name, cls in options.items() if needed in cls.gives]
            message = (
                f"model '{model.name}' gives a response for each {model.gives[0]}, and task "
                f"'{task.name}' needs one for each {needed}"
            )
            yield Issue((*place, "name"), message, f"use {', '.join(names)}")
    if needed == "anchor" and study.cache.use == "always":
        message = "outputs of detectors are not cached"
        yield Issue(("cache", "use"), message, "remove it; the teacher runs with every batch")
    if needed == "sample":
        return
    moved = "masks" if needed == "position" else "boxes"
    for place, augment in _parts_of(study, Augment):
        if getattr(augment, moved) == "refused":
            names = [n for n, c in AUGMENTATIONS.members.items() if getattr(c, moved) != "refused"]
            message = f"augmentation '{augment.name}' does not move {moved} along with their images"
            yield Issue(place, message, f"use {', '.join(names)}")
    form = "maps of scores" if needed == "position" else "predictions at anchors"
    for place, teacher in _parts_of(study, Teacher):
        if teacher.outputs is not None:
            message = f"a file has outputs of samples, and task '{task.name}' needs {form}"
            fix = "give the teacher a `model`, with or without `weights`"
            yield Issue((*place, "outputs"), message, fix)


def _user_metric_issues(study: Study) -> Iterator[Issue]:
    """Yield the issues of metrics of the user."""
    task = study.learning_task
    names = task.metric_names
    for number, text in enumerate(task.metrics):
        if not is_user_code(text):
            continue
        place, name = ("task", "metrics", number), names[number]
        if name in METRICS or names.count(name) > 1:
            message = f"another metric is called {name}, too"
            yield Issue(place, message, "rename the class")
            continue
        try:
            build_user_metric(text)
        except ValueError as error:
            yield Issue(place, str(error))
            continue
        if number == 0 and f"val_{name}" not in study.search.objectives:
            message = f"the first metric compares networks, and val_{name} is no objective"
            fix = f"add it to search.objectives, or list another metric before {text}"
            yield Issue(place, message, fix)


def check_user_metrics(study: Study, signature: Signature | None) -> Iterator[Problem]:
    """Try the metrics of the user on random responses (a `Check`)."""
    task = study.learning_task
    for number, text in enumerate(task.metrics):
        if signature is None or not is_user_code(text):
            continue
        try:
            try_user_metric(text, task.kind, signature.classes)
        except ValueError as error:
            yield Problem(str(error), path=f"task.metrics[{number}]")


def _options_by_kind(study: Study) -> Iterator[tuple[Place, Loss | Scheme | Proxy]]:
    """Yield the options that declare the kinds of responses they fit, with their places."""
    yield ("scheme",), study.scheme
    yield PLACE, study.search.proxy
    yield from _parts_of(study.knowledge, Loss, ("knowledge",))


def _fitting_options(option: Loss | Scheme | Proxy, kind: Kind) -> str:
    """Return the names of the options that fit a kind, those of the same knowledge first."""
    if isinstance(option, Loss):
        return _fitting(LOSSES, kind, option.knowledge)
    return _fitting(SCHEMES if isinstance(option, Scheme) else PROXIES, kind)


def _fitting(
    registry: Registry, kind: Kind, knowledge: str = "", *, needs_layers: bool = True
) -> str:
    """Return the names of the options that fit a kind.

    Args:
        registry: of the options.
        kind: of the response.
        knowledge: of the options that are listed first.
        needs_layers: False: only losses that need no layers.
    """

    def fits(cls: type) -> bool:
        if not needs_layers and getattr(cls, "takes_pairs", False):
            return False
        return kind in getattr(cls, "kinds", [getattr(cls, "kind", None)])

    members = [(name, cls) for name, cls in registry.members.items() if fits(cls)]
    members.sort(key=lambda item: getattr(item[1], "knowledge", "") != knowledge)
    return ", ".join(name for name, _ in members)


def search_issues(
    search: Search, objectives: Mapping[str, Direction] = OBJECTIVES
) -> Iterator[Issue]:
    """Yield the issues of the `search` part.

    Args:
        search: the part.
        objectives: metrics and costs that may be optimized.
    """
    metric = next(iter(objectives))
    for name, direction in search.objectives.items():
        place = ("search", "objectives", name)
        if name.startswith("test_"):
            message = (
                "test metrics cannot be objectives: the test split is held out for the final "
                "evaluation of the finalists"
            )
            yield Issue(place, message, f"use {metric} or val_loss")
        elif name not in objectives:
            names = ", ".join(objectives)
            yield Issue(
                place,
                f"unknown objective; must be one of {names}",
                _objective_fix(name, objectives),
            )
        elif direction != objectives[name]:
            goal = "maximized" if objectives[name] == "max" else "minimized"
            fix = f"write `{name}: {objectives[name]}`"
            yield Issue(place, f"got '{direction}'; {name} must be {goal}", fix)
    yield from latency_issues(search)
    for cost, bounds in search.constraints.items():
        place = ("search", "constraints", cost)
        for problem in bounds.conflicts():
            yield Issue(place, problem.message, problem.fix)
    yield from _sampler_issues(search)
    yield from proxy_issues(search)


def _objective_fix(name: str, objectives: Mapping[str, Direction]) -> str:
    """Return the way to use an objective that the task does not measure, or a similar name."""
    metric = name.removeprefix("val_")
    if name.startswith("val_") and metric in METRICS:
        return f"if the task has this metric, add it: `task: {{name: ..., metrics: [{metric}]}}`"
    return near(name, [*objectives])


def _sampler_issues(search: Search) -> Iterator[Issue]:
    place, sampler = ("search", "sampler"), search.sampler
    if sampler.package and not is_installed(sampler.package):
        message = f"sampler '{sampler.name}' needs the package {sampler.package}"
        fix = f"install it (uv pip install {sampler.package}), or use tpe"
        yield Issue(place, f"{message}, which is not installed", fix)
    if len(search.objectives) > 1 and not sampler.several_objectives:
        message = f"sampler '{sampler.name}' supports one objective; got {len(search.objectives)}"
        yield Issue(place, message, "use tpe, or keep one objective and bound the others")


def _teacher_part_issues(teacher: Teacher) -> Iterator[Issue]:
    place = ("teacher",)
    if teacher.outputs is not None:
        return
    if teacher.weights is None:
        if teacher.model is None:
            fix = "give a `model` for the study to train, `weights`, or a file of `outputs`"
            yield Issue(place, "`model`, `weights` and `outputs` are missing", fix)
        if teacher.classes is not None:
            message = "`classes` is the order of the outputs of `weights`, which are not given"
            fix = "remove `classes`: a trained teacher has the order of the data"
            yield Issue((*place, "classes"), message, fix)
        return
    if teacher.train is not None:
        fix = "remove `train`, or remove `weights` and let the study train the teacher"
        yield Issue((*place, "train"), "a teacher loaded from `weights` is not trained", fix)
    if teacher.model is None and not teacher.is_mlflow:
        fix = "give the `model` that the weights belong to"
        yield Issue(place, "`weights` without `model`", fix)


def _outputs_issues(place: Place, teacher: Teacher) -> Iterator[Issue]:
    for key in ("model", "weights", "train", "classes", "seed"):
        if teacher.outputs is not None and getattr(teacher, key) is not None:
            message = f"a teacher that is a file of `outputs` has no `{key}`"
            yield Issue((*place, key), message, f"remove `{key}`, or remove `outputs`")


def _has_outputs_only(study: Study) -> bool:
    """Return whether a teacher of the scheme is a file of outputs."""
    return any(each.outputs is not None for each in study.teacher_specs())


def _scheme_issues(study: Study) -> Iterator[Issue]:
    scheme = study.scheme
    asks = scheme.needs_teacher or (isinstance(scheme, BornAgain) and scheme.first == "teacher")
    if asks and study.teacher is None:
        fix = "add `teacher: {model: ...}`, or use `scheme: {name: alone}`"
        yield Issue((), f"`teacher` is missing; scheme '{scheme.name}' needs one", fix)
    if study.knowledge and not scheme.takes_knowledge:
        fix = "remove `knowledge`, or use another scheme"
        yield Issue(("knowledge",), f"scheme '{scheme.name}' uses no `knowledge`", fix)
    if scheme.needs_teacher and scheme.takes_knowledge and not study.knowledge:
        fix = "add `knowledge: [{loss: {name: kd}}]`, or use `scheme: {name: alone}`"
        message = f"`knowledge` is missing; scheme '{scheme.name}' needs it"
        yield Issue(("knowledge",), message, fix)


def _term_issues(study: Study) -> Iterator[Issue]:
    for number, term in enumerate(study.knowledge):
        place = ("knowledge", number)
        unknown = study.teacher is not None and study.teacher.model is None
        takes_pairs = term.loss is not None and term.loss.takes_pairs
        if term.loss is not None and takes_pairs and _has_outputs_only(study):
            message = f"loss '{term.loss.name}' compares layers, and a teacher is a file of outputs"
            fits = _fitting(LOSSES, study.learning_task.kind, needs_layers=False)
            yield Issue((*place, "loss"), message, f"use {fits}")
        elif takes_pairs and term.pairs is None and study.scheme.needs_teacher and unknown:
            fix = "name the `pairs`, or the teacher's `model`"
            message = (
                "the layers of a teacher given by `weights` alone are unknown before it is loaded"
            )
            yield Issue(place, message, fix)
        for problem in term.conflicts():
            yield Issue((*place, *parse_place(problem.path)), problem.message, problem.fix)
