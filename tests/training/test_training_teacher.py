from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from helpers.training_cases import DIGITS, taught, train_of, weights
from raykd.models import Mlp, Resnet, Signature
from raykd.models.adapters import Imported
from raykd.schemes import Alone
from raykd.study.config import Search, Student, Study, Teacher
from raykd.train_config import SGD, Train
from raykd.training.checkpoint import dump_weights
from raykd.training.teacher_cache.spec import model_digest
from raykd.training.teacher_weights import check_weights, load_teacher_weights
from raykd.training.teachers import (
    read_network,
    teacher_key,
    teacher_spec_of,
    teacher_study,
)

TASK = Signature(input_shape=(1, 8, 8), classes=10)
STUDY = taught()


def changed(**fields: object) -> Study:
    return dataclasses.replace(STUDY, **fields)  # type: ignore[arg-type]


def test_teacher_is_trained_without_teacher_and_with_its_own_options() -> None:
    train = Train(epochs=7)
    study = changed(teacher=Teacher(model=Resnet(depth=14, width=8), train=train))
    result = teacher_study(study)
    assert result.student.model == Resnet(depth=14, width=8)
    assert result.scheme == Alone() and result.knowledge == () and result.teacher is None
    assert result.train == train and result.data == study.data and result.seed == study.seed
    assert teacher_study(STUDY).train == STUDY.train


def test_missing_teacher_or_model_raises() -> None:
    with pytest.raises(ValueError, match="has no teacher"):
        teacher_study(changed(teacher=None))
    with pytest.raises(ValueError, match=r"teacher\.model"):
        teacher_study(changed(teacher=Teacher(weights="models:/a@b")))


TEACHER = Resnet(depth=8, width=8)


@pytest.mark.parametrize(
    "other",
    [
        changed(teacher=Teacher(model=Resnet(depth=14, width=8))),
        changed(teacher=Teacher(model=Mlp())),
        changed(teacher=Teacher(model=TEACHER, train=Train(epochs=9))),
        changed(teacher=Teacher(model=TEACHER, weights="teacher.safetensors")),
        changed(train=dataclasses.replace(STUDY.train, optimizer=SGD(lr=0.011))),
        changed(train=dataclasses.replace(STUDY.train, label_smoothing=0.1)),
        changed(seed=1),
    ],
)
def test_key_depends_on_teacher(other: Study) -> None:
    assert teacher_key(other, "data") != teacher_key(STUDY, "data")


def test_key_depends_on_data() -> None:
    assert teacher_key(STUDY, "data") != teacher_key(STUDY, "other data")


def test_key_is_independent_of_other_fields() -> None:
    base = changed(teacher=Teacher(model=TEACHER, train=Train(epochs=3)))
    for same in (
        dataclasses.replace(base, name="other"),
        dataclasses.replace(base, student=Student(model=Mlp())),
        dataclasses.replace(base, knowledge=()),
        dataclasses.replace(base, search=Search(trials=99)),
        dataclasses.replace(base, train=Train(epochs=50)),  # the teacher has its own
    ):
        assert teacher_key(same, "data") == teacher_key(base, "data")


def test_key_depends_on_content_of_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    study = changed(teacher=Teacher(model=TEACHER, weights=str(path)))
    path.write_bytes(dump_weights(TEACHER.build(TASK)))
    first = teacher_key(study, "data")
    assert teacher_key(study, "data") == first
    path.write_bytes(dump_weights(TEACHER.build(TASK)))
    assert teacher_key(study, "data") != first


def test_key_depends_on_imported_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_a_user").mkdir()
    code = {"__init__": "", "models": "from .parts import act\n", "parts": "act = 1\n", "other": ""}
    for name, text in code.items():
        (tmp_path / "nets_of_a_user" / f"{name}.py").write_text(text)
    model = Imported(name="nets_of_a_user.models:build")
    study = changed(teacher=Teacher(model=model))
    first, built = teacher_key(study, "data"), model_digest(model)
    (tmp_path / "nets_of_a_user" / "other.py").write_text("unused = 1\n")
    assert teacher_key(study, "data") == first and model_digest(model) == built
    (tmp_path / "nets_of_a_user" / "parts.py").write_text("act = 2\n")
    assert teacher_key(study, "data") != first and model_digest(model) != built


def test_trained_teacher_round_trip(tmp_path: Path) -> None:
    training = train_of(teacher_study(STUDY))
    training.run_epoch()
    path = tmp_path / "teacher.safetensors"
    content = dump_weights(training.student)
    path.write_bytes(content)

    spec = dataclasses.replace(teacher_spec_of(STUDY), weights=str(path))
    loaded = load_teacher_weights(spec, TASK).network
    assert not loaded.training
    expected = weights(training.student)
    for network in (loaded, read_network(TEACHER, TASK, content)):
        for name, tensor in network.state_dict().items():
            assert torch.equal(expected[name], tensor)


def test_weights_are_checked_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(dump_weights(TEACHER.build(TASK)))
    check_weights(path, TEACHER, TASK)
    with pytest.raises(ValueError, match="of another shape"):
        check_weights(path, Resnet(depth=8, width=16), TASK)
    with pytest.raises(ValueError, match="missing"):
        check_weights(path, Resnet(depth=14, width=8), TASK)
    with pytest.raises(ValueError, match="does not exist"):
        check_weights(tmp_path / "none", TEACHER, TASK)
    with pytest.raises(ValueError, match=r"is a classifier of 10 classes .* the data have 100"):
        check_weights(path, TEACHER, Signature(input_shape=(1, 8, 8), classes=100))


def test_key_depends_on_augmentation() -> None:
    from raykd.data import AUGMENTATIONS

    data = dataclasses.replace(DIGITS, augment=(AUGMENTATIONS["random_crop"](padding=1),))
    assert teacher_key(changed(data=data), "data") != teacher_key(STUDY, "data")
