"""Models whose study runs code of others: import paths, and networks kept whole in MLflow.

A study that names one is refused unless whoever starts it allows it (`--allow-import`), each time.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from raykd.models.adapters.library import only_logits
from raykd.models.adapters.logits import logits_of, no_logits, picking
from raykd.models.adapters.source_files import source_files
from raykd.models.adapters.torchvision import Args
from raykd.models.adapters.values import Values
from raykd.models.base import Model, Task
from raykd.models.introspection.layers import blank_inputs
from raykd.models.preprocessing import strip_preprocessing
from raykd.registry import names_like, option

STORED = r"^(models|runs|mlflow-artifacts):/.+"
"""URIs of models that MLflow keeps."""


@option
class Imported(Model):
    """A network built by an imported function: `my_package.models:build`.

    It is called as `build(task, **args)` and returns a `torch.nn.Module` that takes the task's
    inputs, (B, *task.input_shape) or a mapping of tensors, and gives (B, task.classes).  Where it
    gives a tuple, a mapping or a dataclass, the logits are its `logits` or the first tensor of that
    shape.  Modules of
    the folder the study is started in are found, too.  Needs `--allow-import`.
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
        """Return the module's own file, then the files that it imports from the same project."""
        module = self.name.partition(":")[0]
        with _modules_here():
            found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            return ()
        return source_files(Path(found.origin), module)

    def _function(self) -> Any:
        module, _, function = self.name.partition(":")
        with _modules_here():
            found = importlib.import_module(module)
        if not callable(getattr(found, function, None)):
            raise ValueError(f"{found.__name__} has no function {function!r}")
        return getattr(found, function)


@option
class Stored(Model):
    """A network stored in MLflow, with its weights: `models:/NAME@ALIAS`, `runs:/ID/NAME`.

    It is downloaded once, at the start of the study; a resumed study uses the same download.
    Loading it runs the code it was saved with, so it needs `--allow-import`.
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
                f"{self.name} has not been fetched; give the study's path to raykd's verbs (or to "
                "`raykd.search`), which fetch it from the study's tracking store"
            )
        network = torch.load(io.BytesIO(_content(self.file)), "cpu", weights_only=False)
        network, _ = strip_preprocessing(network)  # batches are normalized already
        if not self.pretrained:
            _draw_anew(network, self.name)
        return _checked(network, task, self.name)


def _content(file: str) -> bytes:
    try:
        if "://" not in file:
            return Path(file).read_bytes()
        from pyarrow.fs import FileSystem

        system, path = FileSystem.from_uri(file)
        with system.open_input_stream(path) as stream:
            return stream.read()
    except OSError as error:
        raise ValueError(f"the network's file {file} cannot be read: {error}") from None


def _draw_anew(network: nn.Module, name: str) -> None:
    for place, module in network.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"{name}: module {place!r} ({type(module).__name__}) has parameters but no "
                "`reset_parameters`, so it cannot be reinitialized; write `pretrained: true`"
            )


def _checked(network: Any, task: Task, name: str) -> nn.Module:
    """See that it is a network for this task."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
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
        found = logits_of(logits, task.classes)
        if found is None:
            raise ValueError(f"{name}: {no_logits(logits, task.classes)}")
        logits = found
        picking(network, task)
    shape = tuple(logits.shape)
    if shape != (2, task.classes):
        raise ValueError(
            f"{name} gives {shape} for 2 samples; it must give {(2, task.classes)}, one logit a "
            "class"
        )
    return only_logits(name, network, task).train()


@contextmanager
def _modules_here() -> Iterator[None]:
    """Modules of the working folder can be imported, after all others."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)
