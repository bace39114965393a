"""Classes and functions that are handed over from Python: `raykd.search(study, losses=[Focal])`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from raykd.data import Augment, Source
from raykd.errors import Problem, StudyError
from raykd.losses import Loss
from raykd.models import Model
from raykd.python_objects import PREFIX, PythonObject, read_object
from raykd.schemes import Scheme
from raykd.study.yaml_file import Document
from raykd.user_code import user_names

ClassOrFunction = Callable[..., Any]
Objects = ClassOrFunction | Sequence[ClassOrFunction]


class PythonObjects(TypedDict, total=False):
    """Objects by kind; a study names each of them `python:NAME`.

    Keys:
        data: classes of data sources.
        models: functions `build(signature, **args)`, or classes of networks.
        losses: classes of losses.
        metrics: classes of metrics.
        schemes: classes of schemes.
        augmentations: classes of augmentations.
    """

    data: Objects
    models: Objects
    losses: Objects
    metrics: Objects
    schemes: Objects
    augmentations: Objects


def read_objects(objects: Mapping[str, Any], document: Document) -> dict[str, PythonObject]:
    """Return the source of objects, by their name in the study.

    Args:
        objects: those of `PythonObjects`.
        document: the study.

    Raises:
        StudyError: an object does not fit its keyword, has no source, or is not in the study, or
            two have the same name.
        TypeError: there is no such keyword.
    """
    unknown = sorted(objects.keys() - PythonObjects.__annotations__.keys())
    if unknown:
        names = ", ".join(PythonObjects.__annotations__)
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; objects are {names}")
    sources: dict[str, PythonObject] = {}
    values: dict[str, object] = {}
    problems: list[Problem] = []
    in_study = {name for _, name in user_names(document.data)}
    for kind, value in _values(objects):
        try:
            _check(kind, value)
            source = read_object(value)
            name = f"{PREFIX}:{source.name}"
            if values.setdefault(name, value) is not value:
                raise ValueError(f"two objects are called {source.name}; rename one of them")
        except ValueError as error:
            problems.append(Problem(f"{kind}: {error}"))
            continue
        if name not in in_study:
            text = f"{kind}: {source.name} was handed over, and the study does not name it"
            fix = f'write its name in the study, "{name}", or do not hand it over'
            problems.append(Problem(text, file=document.file, fix=fix))
        sources[name] = source
    if problems:
        raise StudyError(problems)
    return sources


def _values(objects: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for kind, values in objects.items():
        for value in values if isinstance(values, list | tuple) else [values]:
            yield kind, value


def _check(kind: str, value: object) -> None:
    """Raise ValueError if an object does not fit its keyword."""
    base, text = _base_of(kind)
    if isinstance(value, type):
        if not issubclass(value, base):
            raise ValueError(f"{value.__name__} is no {text}")
    elif isinstance(value, base):
        name = type(value).__name__
        raise ValueError(f"hand over the class {name} itself; the study sets its fields")
    elif not callable(value) or kind not in ("models", "metrics"):
        raise ValueError(f"{value!r} is no {text}")


def _base_of(kind: str) -> tuple[type | tuple[type, ...], str]:
    """Return the base class of objects, and their description in messages."""
    if kind == "metrics":
        from torchmetrics import Metric

        return Metric, "metric; derive it from torchmetrics.Metric"
    return {
        "data": (Source, "data source; derive it from raykd.data.Source"),
        "models": ((nn.Module, Model), "network; derive it from torch.nn.Module"),
        "losses": (Loss, "loss; derive it from raykd.losses.ResponseLoss or PairLoss"),
        "schemes": (Scheme, "scheme; derive it from raykd.schemes.Scheme"),
        "augmentations": (Augment, "augmentation; derive it from raykd.data.Augment"),
    }[kind]
