"""Model card of an exported student, in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raykd.export.formats import input_names
from raykd.export.report import ExportResult
from raykd.export.student import SavedStudent
from raykd.models.preprocessing import Preprocessing
from raykd.study.short_names import model_name

Row = tuple[str, str]

TASKS = {"pictures": "image-classification", "texts": "text-classification"}


def model_card(student: SavedStudent, result: ExportResult) -> str:
    """Return the model card of an export as Markdown.

    Args:
        student: the exported student.
        result: the exported files with their measurements.
    """
    about = student.network.preprocessing
    task = str((student.study.get("task") or {}).get("name", "classification"))
    head = [
        "---",
        "license: other",
        "license_name: to-be-filled-in",
        f"pipeline_tag: {_pipeline(about, task)}",
        "tags: [knowledge-distillation, raykd]",
        "---",
        "",
        f"# {student.name}",
        "",
        "A student network, trained by knowledge distillation with raykd.",
        "",
    ]
    parts = [
        *head,
        *_table("Network", ("", ""), _network(student)),
        *_table("Accuracy", ("", ""), _accuracies(student, result)),
        *_table(
            "Files",
            ("file", "size", "test accuracy", "latency", "largest difference of a logit"),
            list(_files(result)),
        ),
        *_inputs(about),
        *_outputs(about, student.network.class_names, task),
        *_usage(student, result),
        "## License",
        "",
        "Fill in before publishing: the license of the training data, of the teacher's weights,",
        "and of this network.",
        "",
    ]
    return "\n".join(parts)


def _pipeline(about: Preprocessing, task: str) -> str:
    """Return the hub's name of the task of a network."""
    if task == "embedding":
        return "feature-extraction"
    if task == "segmentation":
        return "image-segmentation"
    usual = "tabular-regression" if about.output_scale else "tabular-classification"
    return TASKS.get(about.kind, usual)


def _network(student: SavedStudent) -> list[Row]:
    study = student.study
    names = student.names()
    rows: list[Row] = []
    if names:
        rows += [
            ("student", names["student"]),
            ("teacher", _teacher(study.get("teacher"))),
            ("data", str(study["data"]["name"])),
            ("scheme", str(study["scheme"]["name"])),
            ("learns from", names["learns_from"]),
        ]
        if names["pairs"]:
            rows.append(("layer pairs (hint > guided)", names["pairs"]))
        rows.append(("epochs, seed", f"{study['train']['epochs']}, {study['seed']}"))
    for name, text in (("params", "parameters"), ("macs", "multiply-accumulates")):
        if name in student.metrics:
            rows.append((text, f"{student.metrics[name]:,.0f}"))
    rows.append(("training", f"{student.id} of {student.origin}"))
    return rows


def _teacher(teacher: Mapping[str, Any] | None) -> str:
    if not teacher:
        return "none"
    name = model_name(teacher["model"]) if teacher.get("model") else "stored weights"
    return f"{name} on {teacher['input']}" if teacher.get("input") else name


def _accuracies(student: SavedStudent, result: ExportResult) -> list[Row]:
    rows: list[Row] = []
    if "accuracy" in student.about:
        rows.append(("test accuracy in the study", str(student.about["accuracy"])))
    if "val_accuracy" in student.metrics:
        rows.append(("validation accuracy", f"{student.metrics['val_accuracy']:.2%}"))
    if result.accuracy is not None:
        text = f"{result.accuracy:.2%} ({result.test_samples:,} samples)"
        rows.append(("test accuracy of the original, measured at export", text))
    rows += [(f"test accuracy of the teacher {name}", f"{a:.2%}") for name, a in student.teachers]
    return rows


def _files(result: ExportResult) -> Iterator[tuple[str, ...]]:
    for file in result.files:
        batch = f", batch size {file.batch} only" if file.batch else ""
        yield (
            f"`{file.path.name}`{batch}",
            f"{file.bytes:,} bytes",
            "" if file.accuracy is None else f"{file.accuracy:.2%}",
            "" if file.milliseconds is None else f"{file.milliseconds:.3g} ms",
            f"{file.difference:.2g} of {file.largest:.3g}, {file.samples} samples",
        )
    yield (
        "original in PyTorch",
        "",
        _percent(result.accuracy),
        f"{result.milliseconds:.3g} ms",
        "",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _inputs(about: Preprocessing) -> Iterator[str]:
    facts: Mapping[str, Any] = about.facts()
    yield "## Inputs and outputs"
    yield ""
    shape = ", ".join(map(str, about.raw_shape or about.shape))
    if about.kind == "texts":
        yield f"Inputs are {', '.join(about.keys)}, int64 of shape (batch, {shape}), padded with "
        yield f"token {about.padding}."
    elif about.kind == "pictures":
        yield f"Inputs are raw {facts.get('color', '')} images, {about.dtype} of shape"
        yield f"(batch, {shape}), values 0 to {about.maximum:g}."
        statistics = f"mean {_rounded(about.mean)}, std {_rounded(about.std)} of pixels in [0, 1]"
        yield f"Scaling and normalization ({statistics}) are part of `model.onnx` and `model.pt2`."
    else:
        yield f"Inputs are {about.dtype} of shape (batch, {shape})."
    if about.preparation:
        yield f"Preparation of the files: {about.preparation}."
    yield ""


def _outputs(about: Preprocessing, classes: Sequence[str], task: str) -> Iterator[str]:
    if task == "embedding":
        yield f"Outputs are vectors of shape (batch, {len(classes)})."
    elif task == "multi_label":
        yield f"Outputs are logits of shape (batch, {len(classes)}); a sigmoid gives probabilities."
        yield f"Labels in order: {', '.join(classes)}."
    elif about.output_scale:
        yield f"Outputs are values of shape (batch, {len(classes)}) in the units of the data."
        yield f"Values in order: {', '.join(classes)}."
    else:
        sides = (*map(str, about.shape[1:]),) if task == "segmentation" else ()
        sizes = ", ".join(["batch", str(len(classes)), *sides])
        yield f"Outputs are logits of shape ({sizes}); a softmax gives probabilities."
        yield f"Classes in order: {', '.join(classes)}."
    yield ""


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _usage(student: SavedStudent, result: ExportResult) -> Iterator[str]:
    names = input_names(student.network)
    yield "## Use"
    yield ""
    yield "`example.npz` holds eight samples and their logits."
    yield ""
    for file in result.files:
        code = _code(file.format, names, student)
        if code:
            yield from ("```python", *code, "```", "")


def _code(form: str, names: Sequence[str], student: SavedStudent) -> list[str]:
    if form == "onnx":
        feed = ", ".join(f'"{name}": example["{name}"]' for name in names)
        return [
            "import numpy as np",
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("model.onnx")',
            'example = np.load("example.npz")',
            "inputs = {node.name: example[node.name] for node in session.get_inputs()}"
            if len(names) > 1
            else f"inputs = {{{feed}}}",
            "[logits] = session.run(None, inputs)",
        ]
    if form == "pt2":
        feed = ", ".join(f'torch.from_numpy(example["{name}"])' for name in names)
        return [
            "import numpy as np",
            "import torch",
            "",
            'network = torch.export.load("model.pt2").module()',
            'example = np.load("example.npz")',
            f"logits = network({feed})",
        ]
    if form == "safetensors":
        return [
            "from safetensors.torch import load_file",
            "",
            'weights = load_file("model.safetensors")  # for network.load_state_dict(weights)',
        ]
    if str(student.study["student"]["model"]["name"]).startswith("timm/"):
        return [
            "import timm",
            "",
            'network = timm.create_model("local-dir:hf", pretrained=True)',
        ]
    auto = (
        "AutoModelForSequenceClassification"
        if student.network.preprocessing.kind == "texts"
        else "AutoModelForImageClassification"
    )
    return [f"from transformers import {auto}", "", f'network = {auto}.from_pretrained("hf")']


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"
    yield ""
