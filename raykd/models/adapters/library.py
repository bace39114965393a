"""Base of the models of other libraries."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from raykd.models.adapters.find_logits import return_logits
from raykd.models.adapters.values import Values
from raykd.models.base import Model, Signature
from raykd.models.introspection.flops import SkipInit
from raykd.models.weights.class_order import UnmatchedClasses, class_rows, reorder_classes
from raykd.models.weights.files import read_weight_file, weight_class_names, weight_parts
from raykd.models.weights.load import keeps_classifier, load_matching
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
        extra: optional dependency group of raykd with the library; empty: always installed.
    """

    foreign = True
    extra: ClassVar[str] = ""

    name: str
    pretrained: Pretrained = False
    weights: Weights = None

    @classmethod
    def library_names(cls) -> Sequence[str]:
        """Return the names of the models that the library has, without those of a hub.

        Raises:
            ValueError: the library is not installed.
        """
        raise NotImplementedError

    @property
    def library_name(self) -> str:
        """Name of the model in its library."""
        return self.name.partition("/")[2]

    def build(self, signature: Signature) -> nn.Module:
        """Build the network, (B, *input_shape) -> (B, classes), with its initial weights.

        A classifier for other classes gets new weights; a stem for other channels gets new or
        converted ones.  A classifier whose classes are in another order is reordered by name.

        Raises:
            ValueError: the model does not exist, cannot be built with these arguments, or its
                weights are not available.
        """
        return self._initialized(signature)[0]

    def remarks(self, signature: Signature) -> tuple[str, ...]:
        return (
            self._initialized(signature)[1] if self.weights is not None or self.pretrained else ()
        )

    def head_classes(self) -> tuple[str, ...]:
        if self.weights is not None:
            return weight_class_names(self.weights)
        return self._pretrained_classes() if self.pretrained else ()

    def _initialized(self, signature: Signature) -> tuple[nn.Module, tuple[str, ...]]:
        """Return the network with its initial weights, and notes on what was done to them."""
        if self.weights is not None:
            network = self.blueprint(signature)
            matched = load_matching(network, read_weight_file(self.weights), signature)
            notes = (*matched.notes, *matched.warnings)
            if not keeps_classifier(network, matched, signature):
                note = f"the final layer gets new weights, for {signature.classes} classes"
                return network, (*notes, f"{self.weights}: {note}")
            return network, (*notes, *self._reorder(network, signature))
        if not self.pretrained:
            return self.blueprint(signature), ()
        network = self._download(signature)
        return network, self._reorder(network, signature)

    def _reorder(self, network: nn.Module, signature: Signature) -> tuple[str, ...]:
        """Reorder the outputs of a pretrained classifier as the classes of the data."""
        theirs = self.head_classes()
        if len(theirs) != signature.classes:
            return ()
        try:
            rows, note = class_rows(theirs, signature.class_names, self.weights or self.name)
        except UnmatchedClasses as error:
            return (f"{error}; training starts from that final layer",)
        if rows is None:
            return ()
        reorder_classes(network, rows, signature, self.name)
        return (note,)

    def _download(self, signature: Signature) -> nn.Module:
        """Build the network with the pretrained weights of the library.

        Raises:
            ValueError: the weights are not available.
        """
        try:
            return self._pretrained(signature)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"the pretrained weights of {self.name} are not available ({_line(error)}); set "
                "`pretrained: false`, or name a file with the weights: `weights: FILE`"
            ) from error

    def files(self) -> tuple[Path, ...]:
        if self.weights is None:
            return ()
        try:
            return weight_parts(self.weights)
        except ValueError:  # `prepare` reports it
            return (Path(self.weights).expanduser(),)

    def prepare(self, signature: Signature) -> None:
        if self.pretrained or self.weights is not None:
            self.build(signature)

    def _pretrained(self, signature: Signature) -> nn.Module:
        """Build the network with the pretrained weights of the library."""
        raise NotImplementedError

    def _pretrained_classes(self) -> tuple[str, ...]:
        """Return the class names of the pretrained weights, in output order."""
        return ()


def library(name: str, extra: str, model: str) -> ModuleType:
    """Import a library.

    Raises:
        ValueError: it is not installed; the message names the package to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != name:
            raise
        raise ValueError(
            f"{model} needs the package {name}, which is not installed; install raykd[{extra}]"
        ) from None


def construct(
    model: str,
    make: Callable[..., nn.Module],
    args: Values,
    reserved: Iterable[str] = (),
) -> nn.Module:
    """Return `make(**args)`.

    Args:
        model: name of the model, for messages.
        make: constructor of the library.
        args: keyword arguments in the study.
        reserved: arguments that raykd sets from the data.

    Raises:
        ValueError: an argument is reserved or unknown, or the library raises an error.
    """
    for key in args:
        if key in reserved:
            raise ValueError(f"args: `{key}` of {model} is set from the data; remove it")
    try:
        return make(**args.plain())
    except TypeError as error:
        match = _REFUSED.search(str(error))
        if match is None:
            raise ValueError(_build_error(model, args, error)) from error
        raise ValueError(_argument_error(model, make, match[1], reserved)) from None
    except (ValueError, AssertionError, RuntimeError, KeyError, IndexError) as error:
        raise ValueError(_build_error(model, args, error)) from error


def only_logits(model: str, network: nn.Module, signature: Signature) -> nn.Module:
    """Make a network, in place, return only logits (`return_logits`).

    Raises:
        ValueError: it cannot be trained on such samples; the message names the model.
    """
    try:
        return return_logits(network, signature)
    except ValueError as error:
        raise type(error)(f"{model}: {error}") from error


def unknown_model_message(model: str, names: Iterable[str], library_name: str) -> str:
    """Return the error message for a name that a library does not have."""
    prefix, _, name = model.partition("/")
    close = get_close_matches(name, list(names), n=3, cutoff=0.5)
    guess = (
        f"; did you mean {' or '.join(f'{prefix}/{match}' for match in close)}?" if close else ""
    )
    return f"{library_name} has no model {name!r}{guess}"


def check_patches(model: str, patch: object, height: int, width: int) -> None:
    """Check that the patch size divides the image size.

    Args:
        model: name of the model, for messages.
        patch: side of a patch, or both sides; anything else: the model has no patches.

    Raises:
        ValueError: it does not, so that the network would ignore a part of the image.
    """
    sides = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(sides):
        return
    if height % sides[0] or width % sides[1]:
        raise ValueError(
            f"{model} splits images into patches of {sides[0]}x{sides[1]}, which do not divide "
            f"images of {height}x{width}; set `patch_size`"
        )


def _argument_error(
    model: str, make: Callable[..., nn.Module], argument: str, reserved: Iterable[str]
) -> str:
    names = [name for name in _arguments(make) if name not in reserved]
    if argument in names:
        return f"args: `{argument}` of {model} is fixed by its name; remove it"
    close = get_close_matches(argument, names, n=1, cutoff=0.6)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    listed = f"; allowed are {', '.join(names)}" if names else ""
    return f"args: {model} has no argument `{argument}`{listed}{guess}"


def _arguments(make: Callable[..., nn.Module]) -> list[str]:
    """Return the constructor arguments of the network class that `make` builds."""
    with SkipInit():
        network = make()
    parameters = inspect.signature(type(network).__init__).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.name != "self" and p.kind in named]


def _build_error(model: str, args: Mapping[str, Any], error: Exception) -> str:
    with_args = f" with args {dict(args)}" if args else ""
    return f"{model} cannot be built{with_args}: {_line(error)}"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
