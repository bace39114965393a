"""Teachers from files: class order, common checkpoint formats."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from raykd.data import Dataset
from raykd.errors import StudyError
from raykd.models import Mlp, Signature
from raykd.models.weights.files import weight_class_names
from raykd.report.space import explain_file
from raykd.storage import Storage
from raykd.study.checks.load import load_study
from raykd.tracking.events import Note
from raykd.tracking.journal import events
from raykd.training import Training
from raykd.training.build import signature_of
from raykd.training.metrics import evaluate_split
from raykd.training.teachers import read_network, teacher_key, teacher_spec_of, train_teachers
from raykd.tuning.executors import LocalExecutor
from raykd.tuning.result import StudyResult
from raykd.tuning.search_run import SearchRun
from raykd.tuning.study_input import load_or_use
from raykd.tuning.teacher_store import TeacherStore

TEXT = """\
name: weights
data: {name: digits}
teacher: {model: {name: mlp, depth: 1, width: 32}, weights: FILE}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: kd}]
train: {epochs: 1}
search: {trials: 1, replicates: 0, finalists: 1}
"""
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
"""The digit that each output of the reordered teacher stands for."""


@cache
def data() -> Dataset:
    from raykd.data.digits import Digits

    return Digits().load()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a teacher trained on digits in their original order."""
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    trained = "train: {epochs: 3}"
    file.write_text(TEXT.replace("weights: FILE", trained))
    study = load_study(file).settings
    [teacher] = train_teachers(study, data())
    return {name: tensor.detach().clone() for name, tensor in teacher.state_dict().items()}


def reordered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Same network with its outputs in the order of `ORDER`."""
    return {n: t[ORDER] if t.shape[:1] == (10,) else t for n, t in weights.items()}


def study_file(folder: Path, weights: Path, more: str = "") -> Path:
    file = folder / "study.yaml"
    text = TEXT.replace("FILE", f"'{weights}'{more}")
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}\n"
    file.write_text(f"{text}cluster: {{storage: '{folder}/studies'}}\n{tracking}")
    return file


def distilled(file: Path) -> StudyResult:
    return SearchRun(load_or_use(file)).run(LocalExecutor())


def accuracy(weights: dict[str, Tensor]) -> float:
    network = Mlp(depth=1, width=32).build(signature_of(data()))
    network.load_state_dict(weights)
    return evaluate_split(network, data(), "val")["val_accuracy"]


def test_teacher_with_another_class_order_is_reordered(
    tmp_path: Path, weights: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher.pth"
    names = {str(digit): place for place, digit in enumerate(ORDER)}
    state = {f"module.{n}": t.double() for n, t in reordered(weights).items()}
    torch.save({"state_dict": state, "class_to_idx": names}, path)
    file = study_file(tmp_path, path)
    result = distilled(file)
    [teacher] = result.teachers
    assert teacher.metrics["val_accuracy"] == pytest.approx(accuracy(weights))
    assert accuracy(weights) > 0.5
    notes = "\n".join(
        event.tags.get("weights_notes", "")
        for event in events(result.folder / "journal.jsonl")
        if isinstance(event, Note)
    )
    for note in ("reordered by name: 3, 1, 4", "prefix 'module.'", "from float64 to float32"):
        assert note in notes
    from rich.console import Console

    Console(width=300).print(explain_file(str(file)))
    assert "reordered by name: 3, 1, 4" in capsys.readouterr().out


def test_stored_teacher_file_is_reordered(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    header = {"raykd.classes": json.dumps([str(digit) for digit in ORDER])}
    save_file(reordered(weights), tmp_path / "t.safetensors", header)
    save_file(weights, tmp_path / "same.safetensors")
    storage, signature = Storage(str(tmp_path)), signature_of(data())
    for name in ("t", "same"):
        study = load_study(study_file(tmp_path, tmp_path / f"{name}.safetensors")).settings
        store = TeacherStore(study, data().fingerprint, storage, signature)
        store.fetch(teacher_spec_of(study))
        content = storage.read(store.file(teacher_spec_of(study)))
        assert content is not None and study.teacher is not None
        assert study.teacher.model is not None
        network = read_network(study.teacher.model, signature, content)
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[key]), key
        nameless = TeacherStore(study, data().fingerprint, storage)
        same_key = nameless.file(teacher_spec_of(study)) == store.file(teacher_spec_of(study))
        assert same_key == (name == "same"), "the key changes only where the order does"
        if name == "same":  # it is kept byte for byte
            assert content == (tmp_path / "same.safetensors").read_bytes()


def test_python_api(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(reordered(weights), tmp_path / "t.pth")
    path = tmp_path / "t.pth"
    study = load_study(study_file(tmp_path, path, f", classes: {ORDER}")).settings
    [teacher] = train_teachers(study, data())
    assert evaluate_split(teacher, data(), "val")["val_accuracy"] == pytest.approx(
        accuracy(weights)
    )
    assert not teacher.training
    Training(study, data(), seed=0, teacher=[teacher])
    fingerprint = data().fingerprint
    unnamed = replace(study, teacher=replace(study.teacher, classes=None))  # type: ignore[type-var]
    keys = {teacher_key(variant, fingerprint, data().class_names) for variant in (study, unnamed)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ant", "bee", "cow"], "missing: cat; not in the data: cow"),
        (["ant", "bee"], "missing: cat"),
        (["ant", "bee", "cat", "background"], "not in the data: background"),
    ],
)
def test_other_classes_raise_before_anything_starts(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in ("ant", "bee", "cat"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            picture = Image.new("L", (8, 8), 10 * number)
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    tensors = Mlp(depth=1, width=32).build(Signature((1, 8, 8), 3)).state_dict()
    torch.save({"model": tensors, "classes": names}, tmp_path / "t.pth")
    file = study_file(tmp_path, tmp_path / "t.pth")
    data = f"{{name: image_folder, root: '{tmp_path}/pictures', size: 8, channels: 1}}"
    file.write_text(file.read_text().replace("{name: digits}", data))
    refusal = rf"study\.yaml:3: teacher\.weights: .*{message}"
    with pytest.raises(StudyError, match=refusal):
        distilled(file)
    with pytest.raises(StudyError, match=refusal):
        explain_file(str(file))
    assert not (tmp_path / "studies").exists()


def test_classes_that_are_not_permutation(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "t.pth")
    more = ", classes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]"
    with pytest.raises(StudyError, match=r"teacher\.classes must list each class .* missing: 9"):
        explain_file(str(study_file(tmp_path, tmp_path / "t.pth", more)))
    trained = TEXT.replace("weights: FILE", "classes: [0, 1]")
    (tmp_path / "other.yaml").write_text(trained)
    with pytest.raises(StudyError, match=r"other\.yaml:3: teacher\.classes: .*which are not given"):
        load_study(tmp_path / "other.yaml")


def test_students_and_assistants_are_checked_too(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    save_file(weights, tmp_path / "t.safetensors")
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pth")
    file = study_file(tmp_path, tmp_path / "t.safetensors")
    text = file.read_text()
    model = f"{{name: timm/resnet18, stem: small, weights: '{tmp_path}/other.pth'}}"
    file.write_text(text.replace("{name: mlp, depth: 1, width: 8}", model))
    with pytest.raises(StudyError, match=r"study\.yaml:4: student\.model: .*other\.pth does not"):
        explain_file(str(file))
    other = f"{{model: {{name: mlp}}, weights: '{tmp_path}/other.pth'}}"
    file.write_text(f"{text}scheme: {{name: multi_teacher, others: [{other}]}}\n")
    with pytest.raises(StudyError, match=r"scheme.*: .*other\.pth does not"):
        explain_file(str(file))


def test_class_names_are_stored_with_weights(tmp_path: Path) -> None:
    file = study_file(tmp_path, tmp_path / "none")
    text = file.read_text().replace(f"weights: '{tmp_path / 'none'}'", "train: {epochs: 1}")
    file.write_text(text)
    [teacher] = distilled(file).teachers
    weights_file = tmp_path / "studies" / str(teacher.job.network_file)
    assert weight_class_names(weights_file) == data().class_names
