"""Saving, registering and loading of networks as MLflow models."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from raykd.tracking.events import ModelSaved
from raykd.tracking.mlflow_client import connect, quoted
from raykd.tracking.store_uri import absolute, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model, ModelSignature
    from torch import nn


class Preprocessing(Protocol):
    """Type, shape and names of a network's raw inputs."""

    dtype: str
    keys: tuple[str, ...]

    @property
    def signature_shape(self) -> tuple[int, ...]: ...


@runtime_checkable
class RawInputs(Protocol):
    """Network that takes raw samples and provides its preprocessing and classes.

    Attributes:
        preprocessing: type and shape of the raw samples; see `raykd.models.preprocessing`.
        class_names: one name per class, in the order of the logits.
        metrics: metrics of the network.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    metrics: dict[str, float]

    def __call__(self, inputs: Any) -> Any: ...

    def facts(self) -> dict[str, Any]: ...


MODEL_NAME = "model"
NETWORK = "network.pt"
"""File of the whole network in a model whose main file is a program of `torch.export`."""

MAX_NAME = 120
MAX_TAG = 5000
MAX_EXAMPLE = 1 << 30
SCHEMES = ("models", "runs", "mlflow-artifacts")


def send_model(
    client: MlflowClient,
    event: ModelSaved,
    folder: Path,
    *,
    experiment_id: str,
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    allow_code: bool = False,
) -> str:
    """Log a model of the journal in run `run_id`, and register it if requested.

    Equivalent to `mlflow.pytorch.log_model(..., name="model")`, but performed step by step on
    `client`.  That function uses the process-wide tracking URI, which belongs to the user, and
    logs a second model when called again.  Here, steps that are already done are skipped.

    A network with a program is saved as that program, which MLflow loads without raykd, and once
    more whole (with pickle): a teacher needs layers with names, and `.train()`.  A network without
    a program is saved whole only, and loading it requires raykd.  A network with `RawInputs` takes
    raw samples; its preprocessing and class names are in the signature, the metadata and the tags.

    Args:
        event: the `model` event; `folder`: folder of the journal, for relative paths.
        params, tags: values shown with the model.
        allow_code: the network may run code of its file.

    Returns:
        URI of the model, `models:/m-...`.

    Raises:
        ValueError: the file is missing or does not contain a network.
    """
    from mlflow.entities import LoggedModelStatus

    model = _logged(client, experiment_id, run_id) or client.create_logged_model(
        experiment_id,
        name=logged_name(event.name or MODEL_NAME),
        source_run_id=run_id,
        tags=dict(tags),
        params=dict(params),
        model_type="student" if tags.get("raykd.role") != "teacher" else "teacher",
    )
    if model.status != LoggedModelStatus.READY:
        try:
            _upload(client, model, event, folder, allow_code=allow_code)
        except Exception:
            with contextlib.suppress(Exception):
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    _link(client, run_id, model.model_id)
    if event.register:
        version = create_version(client, event.register, model, run_id, tags)
        _name(client, version, tuple(event.aliases))
    return f"models:/{model.model_id}"


def logged_name(name: str) -> str:
    """Return `name` in the form that MLflow accepts for a logged model."""
    return re.sub(r"[/:.%\"'\s]+", "-", name).strip("-")[:MAX_NAME] or MODEL_NAME


def load_model_uri(uri: str, *, tracking_uri: str | None = None) -> nn.Module:
    """Return the whole network at an MLflow model URI, on the CPU in eval mode.

    Loading a model runs the code it was saved with, so load only models that you trust.

    Args:
        uri: `models:/name@alias`, `models:/name/version`, `models:/m-id`, `runs:/run/model`.
        tracking_uri: URI of the store; None: MLflow's default (MLFLOW_TRACKING_URI).

    Raises:
        ValueError: the model does not exist, is not a PyTorch model, or cannot be read here.
    """
    if uri.partition(":")[0] not in SCHEMES:
        raise ValueError(
            f"{uri!r} is no MLflow model URI; allowed are models:/name@alias, "
            "models:/name/version and runs:/run_id/model"
        )
    with tempfile.TemporaryDirectory() as folder:
        return _read(_download(uri, tracking_uri, folder), uri)


def pinned(uri: str, *, tracking_uri: str | None = None) -> str:
    """Return a model URI with its alias replaced by the alias's current version.

    Args:
        uri: `models:/name@alias`; any other URI is returned unchanged.
        tracking_uri: see `load_model_uri`.

    Raises:
        ValueError: the alias does not exist, or the store does not respond.
    """
    scheme, _, path = uri.partition(":")
    name, _, alias = path.strip("/").rpartition("@")
    if scheme != "models" or not name:
        return uri
    import mlflow

    store = absolute(tracking_uri or mlflow.get_tracking_uri())
    try:
        version = connect(store).get_model_version_by_alias(name, alias)
    except Exception as error:
        raise _no_model(uri, store, error) from error
    return f"models:/{name}/{version.version}"


def _no_model(uri: str, store: str, error: Exception) -> ValueError:
    return ValueError(
        f"{uri}: no such model in {masked(store)} ({masked(str(error))}); see the registered "
        "models and their aliases in MLflow's UI under Models"
    )


def _download(uri: str, tracking_uri: str | None, folder: str) -> str:
    import mlflow
    from mlflow.artifacts import download_artifacts

    store = absolute(tracking_uri or mlflow.get_tracking_uri())
    try:
        return download_artifacts(
            artifact_uri=_place(connect(store), uri),
            dst_path=folder,
            tracking_uri=store,
            registry_uri=store,
        )
    except Exception as error:
        raise _no_model(uri, store, error) from error


def _place(client: MlflowClient, uri: str) -> str:
    """Return the location of a model URI's files.

    MLflow's own resolution always uses the process-wide tracking URI.
    """
    scheme, _, path = uri.partition(":")
    name, _, suffix = path.strip("/").partition("/")
    if scheme == "runs":
        return _place_in_run(client, name, suffix)
    if scheme != "models":
        return uri
    if "@" in name:
        version = client.get_model_version_by_alias(*name.rsplit("@", 1))
    elif suffix.isdigit():
        version = client.get_model_version(name, suffix)
    elif suffix:
        raise ValueError(f"{suffix!r} is neither a version nor, as in {name}@champion, an alias")
    else:
        return client.get_logged_model(name).artifact_location
    place = client.get_model_version_download_uri(version.name, str(version.version))
    return _place(client, place)


def _place_in_run(client: MlflowClient, run_id: str, name: str) -> str:
    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        model = client.get_logged_model(output.model_id)
        if name in (model.name, MODEL_NAME):
            return model.artifact_location
    return f"{run.info.artifact_uri}/{name}"  # layout of models in MLflow before version 3


def _read(path: str, uri: str) -> nn.Module:
    from mlflow.pytorch import load_model
    from torch import fx, nn

    from raykd.compat.network_files import read_network

    whole = Path(path, "extra_files", NETWORK)
    try:
        if whole.is_file():
            model = read_network(whole, uri, allow_code=True).eval()
        else:
            model = load_model(path, map_location="cpu")
    except ModuleNotFoundError as error:
        raise ValueError(f"{uri}: needs the package {error.name!r}; install it") from error
    except Exception as error:
        raise ValueError(
            f"{uri}: cannot be read as a PyTorch model ({error}); raykd loads what "
            "mlflow.pytorch.log_model has written"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{uri}: holds a {type(model).__name__}, not a torch.nn.Module")
    if isinstance(model, fx.GraphModule):
        raise ValueError(
            f"{uri}: holds a program of torch.export, which has no layers to learn from and cannot "
            "be trained; log the network with serialization_format='pickle'"
        )
    return model


def _logged(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    """Return the run's model, complete or partly uploaded by a process that died."""
    models = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = {quoted(run_id)}", max_results=1
    )
    return models[0] if models else None


def _link(client: MlflowClient, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    linked = outputs.model_outputs if outputs else []
    if all(output.model_id != model_id for output in linked):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _upload(
    client: MlflowClient,
    model: LoggedModel,
    event: ModelSaved,
    folder: Path,
    *,
    allow_code: bool,
) -> None:
    import numpy as np
    from mlflow.models import Model

    from raykd.compat.network_files import read_network

    path = file_in(folder, event.path)
    network = read_network(path, str(path), allow_code=allow_code).eval()
    example: Any = _read_example(file_in(folder, event.example)) if event.example else None
    if (event.example or "").endswith(".npz"):
        example = dict(example)
    facts: dict[str, Any] = {}
    if isinstance(network, RawInputs):
        facts = {**network.facts(), "metrics": dict(event.metrics)}
        facts |= {**event.about, "format": _format(event)}
        if isinstance(example, Mapping):
            example = np.stack([example[key] for key in network.preprocessing.keys], axis=1)
        signature = _raw_signature(network, example)
    else:
        signature = _signature(network, event, example)
    description = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=model.source_run_id,
        model_id=model.model_id,
        metadata=facts or None,
        signature=signature,
    )
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary, MODEL_NAME)
        _write_files(network, local, description, event, folder, example)
        client.log_model_artifacts(model.model_id, str(local))
    if facts:
        client.set_logged_model_tags(model.model_id, _fact_tags(facts))


def _write_files(
    network: nn.Module,
    local: Path,
    description: Model,
    event: ModelSaved,
    folder: Path,
    example: Any,
) -> None:
    """Write the folder of an MLflow model.

    With a program, it is the folder that `save_model(serialization_format="pt2")` writes, and the
    network as another file.  MLflow would trace the network again, which no thread may do while
    another one runs a network.
    """
    from mlflow.pytorch import save_model

    program = file_in(folder, event.program) if event.program else None
    if program is not None and not program.is_file():
        raise ValueError(f"{program}: no such program of torch.export")
    input_example: Any = None if isinstance(example, Mapping) else example  # see `_signature`
    whole = shutil.copyfile(folder / event.path, local.with_name(NETWORK))
    save_model(
        network,
        str(local),
        mlflow_model=description,
        signature=description.signature,
        input_example=input_example,
        # without requirements, MLflow starts a process to determine them
        pip_requirements=_requirements(network, program=program is not None),
        extra_files=[str(whole)] if program else None,
        serialization_format="pickle",
    )
    if program is None:
        return
    data = local / "data"
    for name in ("model.pth", "pickle_module_info.txt"):
        (data / name).unlink()
    shutil.copyfile(program, data / "model.pt2")


def file_in(folder: Path, path: str) -> Path:
    """Return the file of an event, which must lie in the folder of its journal.

    Raises:
        ValueError: it lies elsewhere, so that the journal of somebody else cannot have any file of
            this machine uploaded.
    """
    file = folder / path
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: lies outside of {folder}; raykd uploads files of that folder")
    return file


def _read_example(file: Path) -> Any:
    """Read example samples; an archive must not unpack to more than `MAX_EXAMPLE` bytes."""
    import numpy as np

    if file.suffix == ".npz":
        with zipfile.ZipFile(file) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > MAX_EXAMPLE:
            raise ValueError(f"{file}: unpacks to {size:,} bytes; at most {MAX_EXAMPLE:,} are read")
    return np.load(file)


def _signature(network: nn.Module, event: ModelSaved, example: Any) -> ModelSignature:
    """Return the signature of a network: its inputs (-1, *input_shape) and its output.

    Several inputs are listed by name.  The output is included if it is a single tensor.  MLflow
    stores no example of named inputs because its `predict` accepts none for PyTorch models.
    """
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    dtype = np.dtype(event.input_dtype)
    shape = tuple(event.input_shape)
    if isinstance(example, Mapping):
        inputs = Schema([TensorSpec(dtype, (-1, *shape), name=key) for key in example])
        batch: Any = {key: torch.from_numpy(value) for key, value in example.items()}
    else:
        inputs = Schema([TensorSpec(dtype, (-1, *shape))])
        batch = torch.from_numpy(np.zeros((2, *shape), dtype) if example is None else example)
    with torch.no_grad():
        logits = network(batch)
    if not isinstance(logits, torch.Tensor):
        return ModelSignature(inputs)
    spec = TensorSpec(logits.numpy().dtype, (-1, *logits.shape[1:]))
    return ModelSignature(inputs, Schema([spec]))


def _raw_signature(network: RawInputs, example: Any) -> ModelSignature:
    """Return the signature of raw samples: one tensor, as MLflow's `predict` requires."""
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    dtype, shape = np.dtype(network.preprocessing.dtype), network.preprocessing.signature_shape
    batch = torch.from_numpy(np.zeros((2, *shape), dtype) if example is None else example)
    with torch.no_grad():
        logits = network(batch)
    output = TensorSpec(logits.numpy().dtype, (-1, *logits.shape[1:]), name="logits")
    return ModelSignature(Schema([TensorSpec(dtype, (-1, *shape))]), Schema([output]))


def _fact_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags for a model's page: its inputs, classes and accuracy."""
    raw = dict(facts["input"])
    tags = {
        "raykd.input": f"{raw['kind']}, {raw['dtype']} (batch, "
        + ", ".join(map(str, raw["shape"]))
        + ")",
        "raykd.preprocessing": json.dumps(raw),
        "raykd.output": facts["output"],
        "raykd.classes": json.dumps(facts["classes"]),
        "raykd.format": facts["format"],
    }
    if "accuracy" in facts:
        tags["raykd.accuracy"] = facts["accuracy"]
    return {key: value[:MAX_TAG] for key, value in tags.items()}


def _format(event: ModelSaved) -> str:
    """Return the format of a model, and what it needs to load."""
    if event.program is not None:
        return "torch.export (pt2); loads without raykd"
    reason = f" ({event.pickle_reason})" if event.pickle_reason else ""
    return f"pickle; needs raykd to load{reason}"


def _requirements(network: nn.Module, *, program: bool) -> list[str]:
    modules = {type(module).__module__.partition(".")[0] for module in network.modules()}
    names = ["torch", "numpy"]
    if not program:
        names += ["pydantic", "cloudpickle"]
        names += [name for name in ("torchvision", "timm", "transformers") if name in modules]
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def create_version(
    client: MlflowClient, name: str, model: LoggedModel, run_id: str, tags: Mapping[str, str]
) -> ModelVersion:
    """Register the model of a run, and return its version; a second one is never created."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = {quoted(name)}"):
        if version.run_id == run_id:
            return version
    # The source is the model's location, not models:/m-..., which MLflow would resolve with the
    # process-wide tracking URI.
    return client.create_model_version(
        name, model.artifact_location, run_id=run_id, tags=dict(tags), model_id=model.model_id
    )


def _name(client: MlflowClient, version: ModelVersion, aliases: tuple[str, ...]) -> None:
    """Move aliases to `version`, but not from a newer one: journals may be replayed."""
    if not aliases:
        return
    versions = client.get_registered_model(version.name).aliases
    for alias in aliases:
        if int(versions.get(alias, 0)) < int(version.version):
            client.set_registered_model_alias(version.name, alias, str(version.version))
