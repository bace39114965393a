"""What the adapters to other libraries share."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from raykd.models.adapters.logits import with_logits
from raykd.models.adapters.values import Values
from raykd.models.base import Model, Task
from raykd.models.introspection.flops import SkipInit
from raykd.models.weights.class_order import UnmatchedClasses, class_rows, reorder_classes
from raykd.models.weights.files import read_weight_file, weight_class_names, weight_parts
from raykd.models.weights.transfer import fill, keeps_classifier
from raykd.registry import option

Pretrained = Annotated[
    bool,
    Field(description="Start from the pretrained weights of the library (downloaded if needed)"),
]
Weights = Annotated[
    str | None, Field(description="Start from this weights file (safetensors or state_dict)")
]

_REFUSED = re.compile(r"got (?:an unexpected|multiple values for) (?:keyword )?argument '(\w+)'")


@option
class LibraryModel(Model):
    """Base of the models that another library builds.

    Class attributes:
        extra: the optional dependency of raykd that brings the library; empty: it is required.
    """

    foreign = True
    extra: ClassVar[str] = ""

    name: str
    pretrained: Pretrained = False
    weights: Weights = None

    @property
    def called(self) -> str:
        """The model's name in its library."""
        return self.name.partition("/")[2]

    def build(self, task: Task) -> nn.Module:
        """The network: (B, *input_shape) -> (B, classes), with the weights it is to start from.

        A classifier for other classes gets new weights; a stem for other channels gets new or
        derived ones.  A classifier for the data's classes in another order is reordered by name.

        Raises:
            ValueError: there is no such model, it cannot be built so, or its weights are not
                available.
        """
        return self._started(task)[0]

    def remarks(self, task: Task) -> tuple[str, ...]:
        return self._started(task)[1] if self.weights is not None or self.pretrained else ()

    def head_classes(self) -> tuple[str, ...]:
        if self.weights is not None:
            return weight_class_names(self.weights)
        return self._pretrained_classes() if self.pretrained else ()

    def _started(self, task: Task) -> tuple[nn.Module, tuple[str, ...]]:
        """The network with the weights it starts from, and what was done to them."""
        if self.weights is not None:
            network = self.blueprint(task)
            fitted = fill(network, read_weight_file(self.weights), task)
            notes = (*fitted.notes, *fitted.warnings)
            if not keeps_classifier(network, fitted, task):
                said = f"the final layer gets new weights, for {task.classes} classes"
                return network, (*notes, f"{self.weights}: {said}")
            return network, (*notes, *self._reordered(network, task))
        if not self.pretrained:
            return self.blueprint(task), ()
        network = self._downloaded(task)
        return network, self._reordered(network, task)

    def _reordered(self, network: nn.Module, task: Task) -> tuple[str, ...]:
        """Put the outputs of a classifier that it starts with into the order of the data."""
        theirs = self.head_classes()
        if len(theirs) != task.classes:
            return ()
        try:
            rows, note = class_rows(theirs, task.class_names, self.weights or self.name)
        except UnmatchedClasses as error:
            return (f"{error}; training starts from that final layer",)
        if rows is None:
            return ()
        reorder_classes(network, rows, task, self.name)
        return (note,)

    def _downloaded(self, task: Task) -> nn.Module:
        """The network with the library's own weights.

        Raises:
            ValueError: they are not available.
        """
        try:
            return self._pretrained(task)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the pretrained weights of {self.name} are not available ({_line(error)}); write "
                "`pretrained: false`, or give a file with the weights: `weights: FILE`"
            ) from error

    def files(self) -> tuple[Path, ...]:
        if self.weights is None:
            return ()
        try:
            return weight_parts(self.weights)
        except ValueError:  # `prepare` reports it
            return (Path(self.weights).expanduser(),)

    def prepare(self, task: Task) -> None:
        if self.pretrained or self.weights is not None:
            self.build(task)

    def _pretrained(self, task: Task) -> nn.Module:
        """The network with the library's own weights."""
        raise NotImplementedError

    def _pretrained_classes(self) -> tuple[str, ...]:
        """Class names of the library's own weights, in the order of the outputs."""
        return ()


def library(name: str, extra: str, model: str) -> ModuleType:
    """The library called `name`.

    Raises:
        ValueError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != name:
            raise
        raise ValueError(
            f"{model} needs the package {name}, which is not installed; install raykd[{extra}]"
        ) from None


def constructed(
    model: str,
    make: Callable[..., nn.Module],
    args: Values,
    reserved: Iterable[str] = (),
) -> nn.Module:
    """What `make(**args)` builds.

    Args:
        model: its name, for messages.
        make: takes keyword arguments.
        args: what the study gives.
        reserved: arguments that follow from the data and cannot be given.

    Raises:
        ValueError: an argument that is reserved or unknown, or that the library refuses.
    """
    for key in args:
        if key in reserved:
            raise ValueError(f"args: `{key}` of {model} follows from the data; leave it out")
    try:
        return make(**args.plain())
    except TypeError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise ValueError(_cannot(model, args, error)) from error
        raise ValueError(_unknown(model, make, refused[1], reserved)) from None
    except (ValueError, AssertionError, RuntimeError, KeyError, IndexError) as error:
        raise ValueError(_cannot(model, args, error)) from error


def only_logits(model: str, network: nn.Module, task: Task) -> nn.Module:
    """The network, in place, made to return logits alone (`outputs.py`).

    Raises:
        ValueError: it cannot be trained on such samples; names the model.
    """
    try:
        return with_logits(network, task)
    except ValueError as error:
        raise type(error)(f"{model}: {error}") from error


def unknown_name(model: str, known: Iterable[str], what: str) -> str:
    """The message for a name that `what` does not know."""
    prefix, _, name = model.partition("/")
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(f'{prefix}/{one}' for one in close)}?" if close else ""
    return f"{what} has no model {name!r}{guess}"


def check_patches(model: str, patch: object, height: int, width: int) -> None:
    """See that pictures can be cut into whole patches.

    Args:
        model: its name, for messages.
        patch: the side of a patch, or both sides; anything else: the model has none.

    Raises:
        ValueError: a rest would be left out of sight.
    """
    sides = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(sides):
        return
    if height % sides[0] or width % sides[1]:
        raise ValueError(
            f"{model} cuts pictures into patches of {sides[0]}x{sides[1]}, which pictures of "
            f"{height}x{width} are no multiple of; set `patch_size`"
        )


def _unknown(
    model: str, make: Callable[..., nn.Module], argument: str, reserved: Iterable[str]
) -> str:
    known = [name for name in _arguments(make) if name not in reserved]
    if argument in known:
        return f"args: `{argument}` of {model} is fixed by its name; leave it out"
    close = get_close_matches(argument, known, n=1, cutoff=0.6)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    listed = f"; there are {', '.join(known)}" if known else ""
    return f"args: {model} has no argument `{argument}`{listed}{guess}"


def _arguments(make: Callable[..., nn.Module]) -> list[str]:
    """The arguments of the class that `make` builds a network of."""
    with SkipInit():
        network = make()
    parameters = inspect.signature(type(network).__init__).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.name != "self" and p.kind in named]


def _cannot(model: str, args: Mapping[str, Any], error: Exception) -> str:
    given = f" with args {dict(args)}" if args else ""
    return f"{model} cannot be built{given}: {_line(error)}"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
