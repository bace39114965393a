"""Teachers trained with a normalization other than the data's."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.training_cases import DIGITS
from raykd.data import Dataset
from raykd.data.splits import dataset_of_images
from raykd.losses import KD, Term
from raykd.models import Mlp, Model
from raykd.models.adapters.huggingface import Hf
from raykd.models.adapters.timm import Timm
from raykd.models.adapters.torchvision import Torchvision
from raykd.models.compression import COMPRESSED_MODELS
from raykd.models.normalization import NORMALIZATIONS, Normalization, expected_normalization
from raykd.schemes import Alone, MultiTeacher, Teacher
from raykd.storage import Storage
from raykd.study.config import Student, Study
from raykd.train_config import SGD, Train
from raykd.training.build import signature_of
from raykd.training.checkpoint import dump_weights, weights_metadata
from raykd.training.metrics import evaluate_split
from raykd.training.normalization import adapt_teacher, normalization_notes
from raykd.training.stored_networks import load_stored_network, raw_samples, with_preprocessing
from raykd.training.teacher_keys import normalization_of, spec_key
from raykd.training.teachers import teacher_spec_of, train_teachers
from raykd.training.trainer import Training
from raykd.tuning.teacher_store import TeacherStore, check_teacher_weights, with_normalization

MODEL = Mlp(depth=1, width=16)
IMAGENET = NORMALIZATIONS["imagenet"]


@lru_cache
def pictures(brightness: int = 110) -> Dataset:
    """Four classes that differ only in brightness."""
    generator = np.random.default_rng(0)
    targets = np.arange(240) % 4
    levels = brightness - 30 + 20 * targets[:, None, None, None]
    pixels = np.clip(generator.normal(levels, 12, (240, 3, 4, 4)), 0, 255).astype(np.uint8)
    order = generator.permutation(240)
    rows = {"train": order[:140], "val": order[140:180], "test": order[180:]}
    return dataset_of_images("made", pixels, targets, rows, list("abcd"), "this test")


def by_hand(pixels: Tensor, normalization: Normalization) -> Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (normalization.mean, normalization.std))
    return (pixels.float() / 255 - mean) / std


@lru_cache
def trained_elsewhere() -> nn.Module:
    """Network of MODEL trained in a plain loop with ImageNet's mean and deviation."""
    data = pictures()
    torch.manual_seed(0)
    network = MODEL.build(signature_of(data))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    inputs = by_hand(torch.as_tensor(data.train.take(torch.arange(140))), IMAGENET)
    for _ in range(80):
        loss = nn.functional.cross_entropy(network(inputs), data.train.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def accuracy_by_hand() -> float:
    data = pictures()
    inputs = by_hand(torch.as_tensor(data.test.take(torch.arange(60))), IMAGENET)
    return (trained_elsewhere()(inputs).argmax(1) == data.test.targets).double().mean().item()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(trained_elsewhere().state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def study(teacher: Teacher, **fields: object) -> Study:
    return Study(
        **{
            "name": "small",
            "data": DIGITS,
            "teacher": teacher,
            "student": Student(model=Mlp(depth=1, width=8)),
            "knowledge": (Term(loss=KD()),),
            "train": Train(epochs=1, batch_size=35, optimizer=SGD(lr=0.01)),
            **fields,
        }
    )


def accuracy(network: nn.Module, data: Dataset) -> float:
    return evaluate_split(network, data, "test")["test_accuracy"]


@pytest.mark.parametrize(
    "normalization",
    [
        "imagenet",
        IMAGENET,
        Normalization(
            mean=tuple(255 * m for m in IMAGENET.mean),
            std=tuple(255 * s for s in IMAGENET.std),
            maximum=255,
        ),
    ],
)
def test_teacher_accuracy_is_that_of_its_own_normalization(
    normalization: Normalization | str, file: Path
) -> None:
    data = pictures()
    teacher = Teacher(model=MODEL, weights=str(file), normalization=normalization)  # type: ignore[arg-type]
    (network,) = train_teachers(study(teacher), data)
    assert accuracy_by_hand() > 0.6
    assert accuracy(network, data) == pytest.approx(accuracy_by_hand(), abs=1e-12)
    (plain,) = train_teachers(study(Teacher(model=MODEL, weights=str(file))), data)
    assert accuracy(plain, data) < accuracy_by_hand()


def test_stored_teacher_file_keeps_normalization(file: Path, tmp_path: Path) -> None:
    data, storage = pictures(), Storage(str(tmp_path / "studies"))
    imagenet_study = study(Teacher(model=MODEL, weights=str(file), normalization="imagenet"))
    store = TeacherStore(imagenet_study, data.fingerprint, storage)
    store.fetch(teacher_spec_of(imagenet_study))
    name = store.file(teacher_spec_of(imagenet_study))
    content = storage.read(name)
    assert content is not None and name.endswith(".safetensors")
    network = load_stored_network(name, content, MODEL, data)
    assert accuracy(network, data) == pytest.approx(accuracy_by_hand(), abs=1e-12)
    assert load_file(Path(storage.root, name)).keys() == trained_elsewhere().state_dict().keys()


def test_teacher_keys_change_only_if_normalization_is_set(file: Path) -> None:
    def key(**fields: object) -> str:
        study_ = study(Teacher(model=MODEL, weights=str(file), **fields))  # type: ignore[arg-type]
        return spec_key(teacher_spec_of(study_), study_, "abc")

    assert key() == key(normalization="data") != key(normalization="imagenet")
    assert key(normalization="imagenet") == key(normalization=IMAGENET) != key(normalization="half")


def test_each_teacher_of_scheme_has_its_own_normalization(file: Path) -> None:
    data = pictures()
    first = Teacher(model=MODEL, weights=str(file), normalization="imagenet")
    second = Teacher(model=MODEL, weights=str(file), normalization="half")
    both = train_teachers(study(first, scheme=MultiTeacher(others=(second,))), data)
    assert [expected_normalization(spec) for spec in both] == [IMAGENET, NORMALIZATIONS["half"]]


# Known without being asked


def test_weight_files_of_raykd_contain_normalization(tmp_path: Path) -> None:
    from raykd.models.normalization import to_metadata
    from raykd.training.normalization import training_normalization

    bright, dark = pictures(140), pictures(100)
    raykd_study = study(
        Teacher(model=MODEL, train=Train(epochs=6, batch_size=20, optimizer=SGD(lr=0.1)))
    )
    (network,) = train_teachers(raykd_study, bright)
    expected = training_normalization(network, bright)
    assert expected == Normalization(mean=bright.mean, std=bright.std)
    assert expected is not None
    path = tmp_path / "kept.safetensors"
    path.write_bytes(dump_weights(network, {"id": "teacher-0", **to_metadata(expected)}))
    spec = Teacher(model=MODEL, weights=str(path))
    assert normalization_of(teacher_spec_of(study(spec))) == expected
    (same,) = train_teachers(study(spec), bright)
    assert expected_normalization(same) is None  # nothing to correct, bit for bit
    (other,) = train_teachers(study(spec), dark)
    moved = dataclasses.replace(dark, mean=bright.mean, std=bright.std)
    assert accuracy(other, dark) == pytest.approx(accuracy(network, moved), abs=1e-12)
    forced = teacher_spec_of(study(dataclasses.replace(spec, normalization="data")))
    assert normalization_of(forced) is None


def test_transformers_folder_contains_normalization(tmp_path: Path) -> None:
    model = Hf(name=f"hf/{tmp_path}")
    for config, expected in (
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}, (0.5, 0.4, 0.3)),
        ({"image_mean": [1, 2, 3], "image_std": [1, 1, 1], "do_rescale": False}, None),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0.0,)),
    ):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({**config, "size": {"height": 224, "width": 224}})
        )
        pretraining_images = model.pretraining_images()
        assert pretraining_images is not None and pretraining_images.size == (224, 224)
        mean, _ = pretraining_images.normalization.statistics(3)
        assert tuple(mean.tolist()) == pytest.approx(
            tuple(torch.tensor(expected or (1 / 255, 2 / 255, 3 / 255)).expand(3).tolist())
        )
    (tmp_path / "model.safetensors").write_bytes(dump_weights(nn.Linear(1, 1)))
    beside = teacher_spec_of(
        study(Teacher(model=model, weights=str(tmp_path / "model.safetensors")))
    )
    assert normalization_of(beside) == pretraining_images.normalization
    notes, warnings = normalization_notes(beside, "teacher", signature_of(pictures()))
    assert "mean 0, std 255 of pixels up to 255" in notes[0]
    assert "224x224" in warnings[0] and "4x4" in warnings[0]
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable"):
        normalization_of(beside)


@pytest.mark.parametrize(
    "model", [Timm(name="timm/resnet18"), Torchvision(name="torchvision/vgg11")]
)
def test_library_normalization_is_used_only_on_request(model: Model, file: Path) -> None:
    spec = teacher_spec_of(study(Teacher(model=model, weights=str(file), normalization="model")))
    assert normalization_of(spec) == IMAGENET
    prepared = teacher_spec_of(study(Teacher(model=model, weights=str(file))))
    assert normalization_of(prepared) is None
    (note,), _ = normalization_notes(prepared, "teacher", signature_of(pictures()))
    assert "teacher.normalization" in note and "normalization: model" in note and "0.485" in note


def test_delivered_student_as_teacher_is_normalized_once() -> None:
    bright, dark = pictures(140), pictures(100)
    alone = dataclasses.replace(study(Teacher()), teacher=None, scheme=Alone(), knowledge=())
    training = Training(alone, bright, seed=0)
    training.run_epoch()
    student = training.student.eval()
    moved = dataclasses.replace(dark, mean=bright.mean, std=bright.std)
    for data, same_statistics in ((bright, bright), (dark, moved)):
        expected = accuracy(student, same_statistics)
        raw = torch.as_tensor(raw_samples(data, torch.arange(60)))
        answers = with_preprocessing(student, bright)(raw).argmax(1)
        assert (answers == data.test.targets).double().mean().item() == pytest.approx(expected)
        teacher = adapt_teacher(with_preprocessing(student, bright), data)
        assert accuracy(teacher, data) == pytest.approx(expected, abs=1e-12)
    taught = Training(study(Teacher()), dark, seed=0, teacher=with_preprocessing(student, bright))
    assert taught.run_epoch()["train_loss"] > 0


# Students that inherit


@pytest.mark.parametrize("name", ["copy", "layer_pruning", "low_rank", "separable", "quantized"])
def test_compressed_student_has_teachers_normalization(name: str) -> None:
    from raykd.models import Resnet

    data, source = pictures(), Resnet(depth=14, width=4)
    kind = next(
        kind for kind in COMPRESSED_MODELS if kind.__name__.lower() == name.replace("_", "")
    )
    teacher = adapt_teacher(source.build(signature_of(data)).eval(), data, IMAGENET)
    compressed = study(
        Teacher(model=source, weights="x.safetensors", normalization="imagenet"),
        student=Student(model=kind(base=source, inherit_weights=True)),  # type: ignore[call-arg]
        scheme=Alone(),
        knowledge=(),
    )
    training = Training(compressed, data, seed=0, teacher=[teacher])
    assert expected_normalization(training.student) == IMAGENET
    training.run_epoch()
    student = training.student.eval()
    assert accuracy(student, data) == pytest.approx(
        (
            with_preprocessing(student, data)(
                torch.as_tensor(raw_samples(data, torch.arange(60)))
            ).argmax(1)
            == data.test.targets
        )
        .double()
        .mean()
        .item(),
        abs=1e-12,
    )


# Refused before anything starts


def problems(teacher: Teacher) -> list[str]:
    return [str(p) for p in check_teacher_weights(study(teacher), signature_of(pictures()))]


def test_invalid_normalization_raises(file: Path) -> None:
    (trained,) = problems(Teacher(model=MODEL, normalization="imagenet"))
    assert "teacher.normalization" in trained and "loaded `weights`" in trained
    two = Normalization(mean=(0.1, 0.2), std=(0.5,))
    (channels,) = problems(Teacher(model=MODEL, weights=str(file), normalization=two))
    assert "2 channels" in channels
    (unknown,) = problems(Teacher(model=MODEL, weights=str(file), normalization="model"))
    assert "needs a library configuration, which mlp does not have" in unknown
    assert not problems(Teacher(model=MODEL, weights=str(file), normalization="imagenet"))


def test_metadata_are_replaced() -> None:
    content = dump_weights(trained_elsewhere(), {"id": "x"})
    marked = with_normalization(content, IMAGENET)
    assert weights_metadata(marked)["id"] == "x" and len(weights_metadata(marked)) == 2
    assert weights_metadata(with_normalization(marked, None)) == {"id": "x"}
    assert with_normalization(content, None) == content
    network = load_stored_network("a.safetensors", marked, MODEL, pictures())
    for name, tensor in trained_elsewhere().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
