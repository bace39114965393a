"""Models that run code outside raykd: import paths, and whole networks in MLflow.

A study with such a model needs `--allow-import` each time it is started.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from raykd.compat.network_files import read_network
from raykd.models.adapters.find_logits import find_logits, no_logits_message, select_logits
from raykd.models.adapters.library import only_logits
from raykd.models.adapters.torchvision import Args
from raykd.models.adapters.values import Values
from raykd.models.base import Model, Signature
from raykd.models.introspection.layers import blank_inputs
from raykd.models.preprocessing import strip_preprocessing
from raykd.registry import names_like, option
from raykd.source_files import source_files
from raykd.user_code import find_object, importable, is_user_code

IMPORTED = r"^([A-Za-z_][\w.]*|[^\s:]+\.py):[A-Za-z_]\w*$"
"""Names of functions in modules or files."""

STORED = r"^(models|runs|mlflow-artifacts):/.+"
"""URIs of models in MLflow."""


@option
class Imported(Model):
    """A network of your own code: `my_package.models:build`, or a file, `networks.py:build`.

    A function is called as `build(signature, **args)` and returns a `torch.nn.Module` from the
    signature's inputs, (B, *signature.input_shape) or a mapping of tensors, to
    (B, *signature.response_shape): (B, classes), or (B, classes, H, W) for segmentation.  A class
    derived from `torch.nn.Module` is called as `Network(**args)`.
    If the network returns a tuple, a mapping or a dataclass, the logits are its `logits` or the
    first tensor of that shape.  Modules in the current folder can be imported; the path of a file
    is relative to the study file.  Needs `--allow-import`.
    """

    foreign = True
    takes_text = True
    runs_code = True
    gives = ("sample", "position")

    name: Annotated[str, names_like("MODULE:FUNCTION", IMPORTED)]
    args: Args = Values()

    def build(self, signature: Signature) -> nn.Module:
        try:
            function, args = self._function(), self.args.plain()
            network = function(**args) if _is_network(function) else function(signature, **args)
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{self.name} failed: {type(error).__name__}: {text}") from error
        return _checked(network, signature, self.name)

    def files(self) -> tuple[Path, ...]:
        """Return the file of the module, then the files that it imports from the same project.

        Files that are named as such belong to the code of the study (`raykd.user_code`).
        """
        if is_user_code(self.name):
            return ()
        module = self.name.partition(":")[0]
        with importable(Path.cwd()):
            spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return ()
        return _sources_of(Path(spec.origin), module)

    def _function(self) -> Callable[..., object]:
        path, _, name = self.name.rpartition(":")
        if is_user_code(self.name):
            function = find_object(self.name)
        else:
            with importable(Path.cwd()):
                function = getattr(importlib.import_module(path), name, None)
        if not callable(function):
            raise ValueError(f"{path} has no function {name!r}")
        return function


_sources_of = lru_cache(maxsize=64)(source_files)


def _is_network(function: Callable[..., object]) -> bool:
    """Return whether it is a class of networks that is built without a signature."""
    if not isinstance(function, type) or not issubclass(function, nn.Module):
        return False
    return "signature" not in inspect.signature(function).parameters


@option
class Stored(Model):
    """A network stored in MLflow, with its weights: `models:/NAME@ALIAS`, `runs:/ID/NAME`.

    It is downloaded once, when the study starts; a resumed study uses the same download.  Loading
    it runs the code it was saved with, so it needs `--allow-import`.
    """

    foreign = True
    takes_text = True
    runs_code = True
    gives = ("sample", "position")

    name: Annotated[str, names_like("models:/NAME", STORED)]
    pretrained: Annotated[
        bool, Field(description="Start from the stored weights; false: random initialization")
    ] = True
    file: Annotated[
        str | None, Field(description="Local path of the downloaded network, set by raykd")
    ] = None

    def build(self, signature: Signature) -> nn.Module:
        if self.file is None:
            raise ValueError(
                f"{self.name} has not been downloaded; pass the path of the study to a command "
                "of raykd or to `raykd.search`, which download it from the tracking server"
            )
        network = read_network(_read(self.file), self.file, allow_code=True)
        network, _ = strip_preprocessing(network)  # batches are already normalized
        if not self.pretrained:
            _reset_parameters(network, self.name)
        return _checked(network, signature, self.name)


def _read(file: str) -> bytes:
    try:
        if "://" not in file:
            return Path(file).read_bytes()
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(file)
        with system.open_input_stream(path) as stream:
            return stream.read()
    except OSError as error:
        raise ValueError(f"the file {file} of the network is not readable: {error}") from None


def _reset_parameters(network: nn.Module, name: str) -> None:
    for path, module in network.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"{name}: module {path!r} ({type(module).__name__}) has parameters but no "
                "`reset_parameters`, so it cannot be reinitialized; set `pretrained: true`"
            )


def _checked(network: object, signature: Signature, name: str) -> nn.Module:
    """Return the network in training mode, with logits as its output.

    Raises:
        ValueError: it is not a network for this signature.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, not a {type(network).__name__}")
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(blank_inputs(signature, 2, torch.device("cpu")))
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{name} cannot take samples of shape {signature.input_shape}: {text}"
        ) from error
    finally:
        network.train(training)
    if not isinstance(logits, torch.Tensor):
        output, dense = logits, signature.dense
        logits = find_logits(output, signature.classes, dense=dense)
        if logits is None:
            message = no_logits_message(output, signature.classes, dense=dense)
            raise ValueError(f"{name}: {message}")
        select_logits(network, signature)
    shape = tuple(logits.shape)
    expected = (2, *signature.response_shape)
    if shape != expected:
        each = "class and position" if signature.dense else "class"
        raise ValueError(
            f"{name} returns {shape} for 2 samples; it must return {expected}, one logit per {each}"
        )
    return only_logits(name, network, signature).train()
