"""Folders that transformers and timm open by their own loaders."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from raykd.errors import first_line
from raykd.export.formats import Format, Written
from raykd.export.student import SavedStudent
from raykd.models.exported_program import ExportError
from raykd.models.preprocessing import PIXELS, Preprocessing, RawInputModel, strip_preprocessing

WEIGHTS = "model.safetensors"


class Statistics(NamedTuple):
    """Mean and standard deviation per channel of pixels in [0, 1]; empty if unknown."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class HubFolder(Format):
    """A folder in the layout of the Hugging Face hub, `hf/`, for models of transformers and timm.

    It holds the configuration with class names, the weights, and the preprocessing: mean, std and
    size of images, the tokenizer of texts.
    """

    def write(self, student: SavedStudent, inputs: tuple[Tensor, ...], folder: Path) -> Written:
        network, normalization = strip_preprocessing(deepcopy(student.network))
        library = type(network).__module__.partition(".")[0]
        if library not in ("transformers", "timm"):
            raise ExportError(
                "hf: only models of transformers (hf/...) and timm (timm/...) have this form, not "
                f"{type(network).__name__}; use onnx, pt2 or safetensors"
            )
        path = folder / "hf"
        path.mkdir()
        statistics = Statistics()
        if normalization is not None:
            channels = student.network.preprocessing.shape[0]
            mean, std = normalization.statistics(channels)
            statistics = Statistics(tuple(mean.tolist()), tuple(std.tolist()))
        write = _write_transformers if library == "transformers" else _write_timm
        try:
            opened = write(network, student, statistics, path)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"hf: {library} cannot open the folder: {first_line(error)}"
            ) from error
        expected = network.state_dict()
        for name, tensor in opened.state_dict().items():
            if name not in expected or not torch.equal(tensor, expected[name]):
                raise ExportError(f"hf: {library} opens other weights for {name!r}")
        inner = RawInputModel(
            opened.eval(), student.network.preprocessing, student.network.class_names
        ).eval()
        keys = student.network.preprocessing.keys

        def predict(tensors: tuple[Tensor, ...]) -> Tensor:
            if not keys:
                pixels = inner.preprocessed(tensors[0])
                assert isinstance(pixels, Tensor)
                output = opened(_as_normalized(pixels, student.network.preprocessing, statistics))
            else:
                output = opened(**dict(zip(keys, tensors, strict=True)))
            return output if isinstance(output, Tensor) else output.logits

        return Written(path, predict)


def _as_normalized(inputs: Tensor, data: Preprocessing, statistics: Statistics) -> Tensor:
    """Return images normalized for the network from images normalized for the data."""
    if not statistics.mean:
        return inputs
    shape = (1, -1, 1, 1)
    pixels = inputs
    if data.mean:
        pixels = inputs * torch.tensor(data.std).reshape(shape)
        pixels = pixels + torch.tensor(data.mean).reshape(shape)
    return (pixels - torch.tensor(statistics.mean).reshape(shape)) / torch.tensor(
        statistics.std
    ).reshape(shape)


def _write_transformers(
    network: nn.Module,
    student: SavedStudent,
    statistics: Statistics,
    path: Path,
) -> nn.Module:
    transformers = importlib.import_module("transformers")
    model: Any = network
    names = student.network.class_names
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(path)
    preprocessing = student.network.preprocessing
    if preprocessing.kind == "texts":
        tokenizer = tokenizer_of(student.study)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            str(path), local_files_only=True
        )
    _, height, width = preprocessing.shape
    images = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / PIXELS,
        "do_normalize": bool(statistics.mean),
        "image_mean": list(statistics.mean),
        "image_std": list(statistics.std),
    }
    (path / "preprocessor_config.json").write_text(json.dumps(images, indent=2))
    return transformers.AutoModelForImageClassification.from_pretrained(
        str(path), local_files_only=True
    )


def _write_timm(
    network: nn.Module,
    student: SavedStudent,
    statistics: Statistics,
    path: Path,
) -> nn.Module:
    timm = importlib.import_module("timm")
    model: Any = network
    options = student.study["student"]["model"]
    if options.get("stem", "own") != "own":
        raise ExportError("hf: timm cannot build `stem: small`; use onnx, pt2 or safetensors")
    channels, height, width = student.network.preprocessing.shape
    arguments = {**dict(options.get("args") or {}), "in_chans": channels}
    if timm.get_pretrained_cfg(model.default_cfg["architecture"]).fixed_input_size:
        arguments["img_size"] = [height, width]
    config = {
        "architecture": model.default_cfg["architecture"],
        "num_classes": len(student.network.class_names),
        "num_features": model.num_features,
        "model_args": arguments,
        "label_names": list(student.network.class_names),
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "num_classes": len(student.network.class_names),
            "mean": list(statistics.mean),
            "std": list(statistics.std),
            "first_conv": model.default_cfg.get("first_conv"),
            "classifier": model.default_cfg.get("classifier"),
            "label_names": list(student.network.class_names),
        },
    }
    (path / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path / WEIGHTS)
    return timm.create_model(f"local-dir:{path}", pretrained=True)


def tokenizer_of(study: Mapping[str, Any]) -> Any:
    """Return the tokenizer of the student's texts, or None if it has none or it is missing here."""
    data = study["data"]
    chosen = (data.get("inputs") or {}).get(study["student"].get("input")) or {}
    name = chosen.get("tokenizer") or data.get("tokenizer")
    folder = Path(str(name or "")).expanduser()
    if not name or not folder.is_dir():
        return None
    transformers = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
