"""Tests of teachers that are a file of outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner

from raykd.cli.commands import app
from raykd.data import Dataset
from raykd.errors import StudyError
from raykd.report.summary import summarize
from raykd.study.checks.load import load_study
from raykd.study.config import Study
from raykd.training.stored_outputs import (
    OutputsTable,
    check_samples,
    dump_outputs,
    fit_outputs,
    load_outputs,
    read_outputs,
)
from raykd.training.teachers import train_teachers
from raykd.training.trainer import Training
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import read_result
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use

STUDY = """\
name: outputs
data: {name: digits, limit: 300, val_limit: 100}
teacher: {outputs: FOLDER/outputs.parquet}
student: {model: {name: mlp, depth: 1, width: {int: [8, 32]}}}
knowledge: [{loss: {name: kd, temperature: 3}}]
train: {epochs: 2, batch_size: 32}
search: {objectives: {val_accuracy: max, params: min}, trials: 2, replicates: 1, finalists: 1}
cluster: {storage: FOLDER/studies}
tracking: {uri: 'sqlite:///FOLDER/mlflow.db'}
"""

LIVE = """\
name: live
data: {name: digits, limit: 300, val_limit: 100}
teacher: {model: {name: mlp, depth: 1, width: 32}}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: {name: kd, temperature: 3}}]
train: {epochs: 2, batch_size: 32}
"""


def study_of(text: str, folder: Path) -> Study:
    file = folder / "concrete.yaml"
    file.write_text(text.replace("FOLDER", str(folder)))
    return load_study(file).settings


def all_outputs(network: torch.nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """Return the numbers of all samples and the outputs of a network for them."""
    samples, values = [], []
    for part in ("train", "val", "test"):
        split = data.split(part)
        inputs = split.take(torch.arange(len(split)))
        assert isinstance(inputs, Tensor)
        if inputs.dtype == torch.uint8:
            mean, std = (torch.tensor(each)[:, None, None] * 255 for each in (data.mean, data.std))
            inputs = (inputs.float() - mean) / std
        with torch.no_grad():
            values.append(network(inputs))
        samples.append(split.index)
    return torch.cat(samples), torch.cat(values)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Dataset, torch.nn.Module]:
    """A study whose teacher is a network, its data, and the network."""
    study = study_of(LIVE, tmp_path_factory.mktemp("live"))
    data = study.data.load()
    (network,) = train_teachers(study, data)
    return study, data, network


@pytest.fixture(scope="module")
def folder(
    live: tuple[Study, Dataset, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with the study and the outputs of the network."""
    _, data, network = live
    root = tmp_path_factory.mktemp("outputs")
    samples, values = all_outputs(network, data)
    table = pd.DataFrame({"sample": samples.numpy(), "logits": values.tolist()})
    table.sample(frac=1, random_state=0).to_parquet(root / "outputs.parquet")
    (root / "study.yaml").write_text(STUDY.replace("FOLDER", str(root)))
    return root


def trained(study: Study, data: Dataset) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    training = Training(study, data, seed=3, teacher=train_teachers(study, data))
    metrics = [training.run_epoch() for _ in range(training.epochs)]
    return metrics, training.student.state_dict()


def test_student_learns_the_same_as_from_the_network(
    live: tuple[Study, Dataset, torch.nn.Module], folder: Path
) -> None:
    study, data, _ = live
    text = LIVE.replace("{model: {name: mlp, depth: 1, width: 32}}", "{outputs: FOLDER/o.parquet}")
    stored = study_of(text.replace("FOLDER/o", str(folder / "outputs")), folder)
    metrics, weights = trained(study, data)
    same_metrics, same_weights = trained(stored, data)
    for epoch, same in zip(metrics, same_metrics, strict=True):
        assert same["val_loss"] == pytest.approx(epoch["val_loss"], rel=1e-5)
    for name, values in weights.items():
        torch.testing.assert_close(same_weights[name], values, rtol=1e-4, atol=1e-5)


WRITERS: dict[str, Callable[[Path, list[int], list[list[float]]], object]] = {
    "columns.parquet": lambda file, samples, values: pd.DataFrame(
        {"sample": samples, "a": [row[0] for row in values], "b": [row[1] for row in values]}
    ).to_parquet(file),
    "lists.parquet": lambda file, samples, values: pd.DataFrame(
        {"sample": samples, "logits": values}
    ).to_parquet(file),
    "table.csv": lambda file, samples, values: pd.DataFrame(
        {"a": [row[0] for row in values], "sample": samples, "b": [row[1] for row in values]}
    ).to_csv(file, index=False),
    "lines.jsonl": lambda file, samples, values: file.write_text(
        "".join(
            json.dumps({"sample": s, "logits": v}) + "\n"
            for s, v in zip(samples, values, strict=True)
        )
    ),
    "tensors.safetensors": lambda file, samples, values: safetensors.torch.save_file(
        {"samples": torch.tensor(samples), "values": torch.tensor(values).double()}, file
    ),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format_is_read_by_sample_number(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [2, 0, 3], [[1.5, -2.0], [0.25, 4.0], [-1.0, 0.0]])
    table = read_outputs(str(tmp_path / name))
    assert table.samples.tolist() == [0, 2, 3]
    assert table.values.tolist() == [[0.25, 4.0], [1.5, -2.0], [-1.0, 0.0]]


def test_columns_with_names_of_classes_are_put_in_their_order() -> None:
    table = OutputsTable(torch.arange(2), torch.tensor([[1.0, 5.0], [7.0, -3.0]]), ("cat", "ant"))
    fitted = fit_outputs(table, "softmax", 2, ("ant", "cat"))
    assert fitted.values.tolist() == [[5.0, 1.0], [-3.0, 7.0]]
    assert "order of the data" in fitted.notes[0]
    other = fit_outputs(table, "softmax", 2, ("x", "y"))
    assert other.values.tolist() == table.values.tolist() and not other.notes


def test_probabilities_become_logits() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.25, 0.75]])
    table = OutputsTable(torch.arange(2), probabilities)
    softmax = fit_outputs(table, "softmax", 2)
    torch.testing.assert_close(softmax.values.softmax(1), probabilities)
    assert "logarithms" in softmax.notes[0]
    sigmoid = fit_outputs(table, "sigmoid", 2)
    torch.testing.assert_close(sigmoid.values.sigmoid(), probabilities)
    assert fit_outputs(table, "real", 2).values is probabilities
    zero = fit_outputs(OutputsTable(torch.arange(1), torch.tensor([[1.0, 0.0]])), "softmax", 2)
    assert bool(zero.values.isfinite().all())


def test_real_values_are_standardized_as_the_targets(tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": range(40), "y": [100 + 7 * (n % 5) for n in range(40)]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    text = (
        f"name: t\ndata: {{name: table, file: {tmp_path}/t.csv, target: y}}\nscheme: alone\n"
        "student: {model: {name: mlp, width: 4}}\n"
    )
    data = study_of(text, tmp_path).data.load()
    exact = OutputsTable(torch.arange(40), torch.tensor(rows.y.tolist())[:, None].float())
    network = load_outputs(dump_outputs(exact), data)
    torch.testing.assert_close(network(data.val.index), data.val.targets)


def frame(**columns: object) -> Callable[[Path], object]:
    return lambda file: pd.DataFrame(columns).to_csv(file, index=False)


TEN = {f"c{place}": [0.0, 1.0] for place in range(10)}

WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: None, "there is no file"),
    "no column sample": (frame(**TEN), "no column 'sample'"),
    "no values": (frame(sample=[0, 1]), "no column of values"),
    "text": (frame(**TEN | {"sample": [0, 1], "c3": ["1.0", "n.b."]}), "line 3 holds 'n.b.'"),
    "sample is no number": (frame(**TEN, sample=["a.png", "b.png"]), "holds 'a.png'"),
    "sample twice": (frame(**TEN, sample=[4, 4]), "two rows for sample 4"),
    "negative sample": (frame(**TEN, sample=[-1, 0]), "sample number -1"),
    "nan": (frame(**TEN | {"sample": [0, 1], "c3": ["nan", "1"]}), "NaN or infinite"),
    "too few values": (frame(sample=[0, 1], a=[0, 1], b=[2, 3]), "2 values a sample"),
    "samples are missing": (frame(**TEN, sample=[0, 1]), "no outputs for"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_file_is_refused_before_anything_starts(
    name: str, folder: Path, tmp_path: Path
) -> None:
    write, message = WRONG[name]
    file = tmp_path / "outputs.csv"
    write(file)
    for command in ("validate", "search"):
        arguments = [command, str(folder / "study.yaml"), "--set", f"teacher.outputs={file}"]
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2, refused.output
        text = " ".join(refused.output.split())
        assert message in text and "teacher.outputs" in text, text
    assert not (folder / "studies").exists() or not list((folder / "studies").glob("outputs-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{outputs: ", "{model: {name: mlp}, outputs: "), "has no `model`"),
        (("{outputs: ", "{weights: w.pt, outputs: "), "has no `weights`"),
        (("{outputs: ", "{train: {epochs: 1}, outputs: "), "has no `train`"),
        (("{name: kd, temperature: 3}", "hint"), "use kd"),
        (("{name: kd, temperature: 3}", "simkd"), "a teacher is a file of outputs"),
        (("{name: kd, temperature: 3}", "bounded_regression"), "does not fit task"),
        (("{outputs: FOLDER/outputs.parquet}", "{}"), "`outputs` are missing"),
    ],
)
def test_study_that_needs_a_network_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    assert change[0] in STUDY
    file.write_text(STUDY.replace(*change).replace("FOLDER", str(tmp_path)))
    with pytest.raises(StudyError) as caught:
        load_study(file)
    assert message in str(caught.value)


def test_broken_tensors_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "o.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_outputs(str(file))
    safetensors.torch.save_file({"logits": torch.zeros(3, 2)}, file)
    with pytest.raises(ValueError, match="logits \\(3, 2\\)"):
        read_outputs(str(file))
    safetensors.torch.save_file({"values": torch.zeros(3, 2)}, file)
    with pytest.raises(ValueError, match="`samples` is missing"):
        read_outputs(str(file))


def test_samples_outside_of_the_data_are_ignored(
    live: tuple[Study, Dataset, torch.nn.Module],
) -> None:
    _, data, network = live
    samples, values = all_outputs(network, data)
    more = OutputsTable(
        torch.cat([samples, torch.tensor([10**6])]), torch.cat([values, values[:1]])
    )
    check_samples(more, data)
    looked_up = load_outputs(dump_outputs(more), data)(data.test.index)
    torch.testing.assert_close(looked_up, values[-len(data.test) :])
    with pytest.raises(ValueError, match="no outputs for 1 of the"):
        check_samples(OutputsTable(samples[1:], values[1:]), data)


@pytest.fixture(scope="module")
def searched(folder: Path) -> Path:
    return SearchRun(load_or_use(folder / "study.yaml")).run(LocalExecutor()).folder


def test_search_evaluates_the_outputs_and_names_their_file(
    searched: Path, live: tuple[Study, Dataset, torch.nn.Module]
) -> None:
    _, data, network = live
    [teacher] = summarize(read_result(searched)).teachers
    samples, values = all_outputs(network, data)
    rows = torch.isin(samples, data.test.index)
    accuracy = float((values[rows].argmax(1) == data.test.targets).float().mean())
    assert teacher.test_value == pytest.approx(accuracy)
    assert (teacher.name, teacher.weights) == ("outputs.parquet", "")
    folder = searched / "page"
    printed = CliRunner().invoke(app, ["report", str(searched), "-o", str(folder)]).output
    assert "wrote" in printed
    text = CliRunner().invoke(app, ["report", str(searched)]).output
    assert "Teacher outputs.parquet" in text and "weights:" not in text
    page = (folder / "report.html").read_text()
    assert "same class as the teacher" in page


def test_study_is_not_extended_with_other_outputs(searched: Path, folder: Path) -> None:
    file = folder / "outputs.parquet"
    content = file.read_bytes()
    try:
        table = pd.read_parquet(file)
        table.iloc[:-1].to_parquet(file)
        refused = CliRunner().invoke(app, ["extend", str(searched), "--trials", "+1"])
        assert refused.exit_code == 2 and "outputs.parquet" in refused.output
    finally:
        file.write_bytes(content)
