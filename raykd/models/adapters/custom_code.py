"""Models that run code outside raykd: import paths, and whole networks in MLflow.

A study with such a model needs `--allow-import` each time it is started.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from raykd.models.adapters.find_logits import find_logits, no_logits_message, select_logits
from raykd.models.adapters.library import only_logits
from raykd.models.adapters.source_files import source_files
from raykd.models.adapters.torchvision import Args
from raykd.models.adapters.values import Values
from raykd.models.base import Model, Task
from raykd.models.introspection.layers import blank_inputs
from raykd.models.preprocessing import strip_preprocessing
from raykd.registry import names_like, option

STORED = r"^(models|runs|mlflow-artifacts):/.+"
"""URIs of models in MLflow."""


@option
class Imported(Model):
    """A network built by an imported function: `my_package.models:build`.

    It is called as `build(task, **args)` and returns a `torch.nn.Module` from the task's inputs,
    (B, *task.input_shape) or a mapping of tensors, to (B, task.classes).  If it returns a tuple, a
    mapping or a dataclass, the logits are its `logits` or the first tensor of that shape.  Modules
    in the current folder can be imported.  Needs `--allow-import`.
    """

    foreign = True
    takes_text = True
    runs_code = True

    name: Annotated[str, names_like("MODULE:FUNCTION", r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    args: Args = Values()

    def build(self, task: Task) -> nn.Module:
        try:
            network = self._function()(task, **self.args.plain())
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{self.name} failed: {type(error).__name__}: {text}") from error
        return _checked(network, task, self.name)

    def files(self) -> tuple[Path, ...]:
        """Return the file of the module, then the files that it imports from the same project."""
        module = self.name.partition(":")[0]
        with _current_folder_importable():
            spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return ()
        return source_files(Path(spec.origin), module)

    def _function(self) -> Callable[..., object]:
        path, _, name = self.name.partition(":")
        with _current_folder_importable():
            module = importlib.import_module(path)
        function = getattr(module, name, None)
        if not callable(function):
            raise ValueError(f"{module.__name__} has no function {name!r}")
        return function


@option
class Stored(Model):
    """A network stored in MLflow, with its weights: `models:/NAME@ALIAS`, `runs:/ID/NAME`.

    It is downloaded once, when the study starts; a resumed study uses the same download.  Loading
    it runs the code it was saved with, so it needs `--allow-import`.
    """

    foreign = True
    takes_text = True
    runs_code = True

    name: Annotated[str, names_like("models:/NAME", STORED)]
    pretrained: Annotated[
        bool, Field(description="Start from the stored weights; false: random initialization")
    ] = True
    file: Annotated[
        str | None, Field(description="Local path of the downloaded network, set by raykd")
    ] = None

    def build(self, task: Task) -> nn.Module:
        if self.file is None:
            raise ValueError(
                f"{self.name} has not been downloaded; pass the path of the study to a command "
                "of raykd or to `raykd.search`, which download it from the tracking server"
            )
        network = torch.load(io.BytesIO(_read(self.file)), "cpu", weights_only=False)
        network, _ = strip_preprocessing(network)  # batches are already normalized
        if not self.pretrained:
            _reset_parameters(network, self.name)
        return _checked(network, task, self.name)


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


def _checked(network: object, task: Task, name: str) -> nn.Module:
    """Return the network in training mode, with logits as its output.

    Raises:
        ValueError: it is not a network for this task.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, not a {type(network).__name__}")
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(blank_inputs(task, 2, torch.device("cpu")))
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{name} cannot take samples of shape {task.input_shape}: {text}"
        ) from error
    finally:
        network.train(training)
    if not isinstance(logits, torch.Tensor):
        output, logits = logits, find_logits(logits, task.classes)
        if logits is None:
            raise ValueError(f"{name}: {no_logits_message(output, task.classes)}")
        select_logits(network, task)
    shape = tuple(logits.shape)
    if shape != (2, task.classes):
        raise ValueError(
            f"{name} returns {shape} for 2 samples; it must return {(2, task.classes)}, one "
            "logit per class"
        )
    return only_logits(name, network, task).train()


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Allow imports from the current folder, with the lowest priority."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
