"""Training samples without labels from another source, at a ratio a batch (`data.unlabeled`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from helpers.cache_cases import described
from helpers.training_cases import DIGITS, alone, taught, teacher, unnormalized, untimed
from raykd.data import BatchLoader, Dataset, Placement, Source, ViewOptions
from raykd.data.dataset import Split, Unlabeled
from raykd.data.unlabeled import check_unlabeled, epoch_targets, remove_unlabeled
from raykd.losses import LOSSES, Progress
from raykd.schemes import LiveTeacher, StepOutput
from raykd.storage import Storage
from raykd.study.config import Study
from raykd.tasks import TASKS, Task
from raykd.tasks.base import UNLABELED, is_labeled
from raykd.training.build import signature_of
from raykd.training.metrics import EpochMetrics
from raykd.training.teacher_cache import (
    CacheBuilder,
    CacheStore,
    TeacherHandle,
    open_cached_outputs,
)
from raykd.training.trainer import Training

OTHER = dataclasses.replace(DIGITS, limit=90, split_seed=3)


def mixed(ratio: float = 1.5, **changed: object) -> Source:
    settings = Unlabeled(data=OTHER, ratio=ratio)
    return dataclasses.replace(DIGITS, unlabeled=settings, **changed)  # type: ignore[arg-type]


def with_unlabeled(study: Study, ratio: float = 1.5, **changed: object) -> Study:
    return dataclasses.replace(study, data=mixed(ratio, **changed))


def trained(study: Study, data: Dataset) -> list[dict[str, float]]:
    training = Training(study, data, seed=0, teacher=teacher() if study.teacher else None)
    while training.epoch < training.epochs:
        training.run_epoch()
    return [untimed(metrics) for metrics in training.history]


# Data


def test_samples_of_the_other_source_follow_without_their_labels() -> None:
    data, plain = mixed().load(), DIGITS.load()
    assert data.unlabeled == 90 and len(data.train) == 290
    assert data.sizes == plain.sizes, "the unlabeled ones are counted apart"
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, Tensor)
    other = OTHER.load().train
    assert isinstance(other, Split) and isinstance(other.inputs, Tensor)
    assert torch.equal(data.train.inputs[200:], other.inputs)
    assert (data.train.targets[200:] == UNLABELED).all()
    assert torch.equal(data.train.targets[:200], plain.train.targets)
    assert data.train.index[200:].min() == plain.data_size
    assert data.mean == plain.mean, "normalized like the data"
    assert data.fingerprint not in (plain.fingerprint, mixed(limit=150).load().fingerprint)
    assert data.fingerprint == mixed(ratio=9).load().fingerprint, "the ratio is of a training"
    assert "90 training samples without labels from 'digits'" in data.notes[-1]
    assert torch.equal(remove_unlabeled(data).train.index, plain.train.index)


def test_folder_of_images_in_any_folders(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for number, name in enumerate(["a/b/x.png", "y.png", ".hidden.png"]):
        Image.new("L", (8, 8), 100 + number).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    settings = Unlabeled(folder=str(tmp_path))
    data = dataclasses.replace(DIGITS, unlabeled=settings).load()
    assert data.unlabeled == 2
    assert isinstance(data.train, Split) and isinstance(data.train.inputs, Tensor)
    assert data.train.inputs[-2:, 0, 0, 0].tolist() == [100, 101]


def test_link_out_of_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "images/x.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"is a link to .*secret\.png, outside of"):
        check_unlabeled(Unlabeled(folder=str(tmp_path / "images")))


def test_limit_chooses_samples() -> None:
    settings = Unlabeled(data=OTHER, limit=20)
    assert dataclasses.replace(DIGITS, unlabeled=settings).load().unlabeled == 20


def test_evaluated_samples_among_unlabeled_ones_are_reported() -> None:
    leaking = dataclasses.replace(DIGITS, split_seed=5, limit=None)
    data = dataclasses.replace(DIGITS, unlabeled=Unlabeled(data=leaking)).load()
    assert "test samples are also among the unlabeled samples" in data.warnings[-1]


# Batches


def loader(data: Dataset, ratio: float, rank: int = 0, world: int = 1) -> BatchLoader:
    views = ViewOptions(unlabeled=ratio)
    place = Placement("cpu", rank, world)
    return BatchLoader(
        data.train, data, batch_size=37, shuffle_seed=4, views=views, placement=place
    )


@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.5])
def test_every_batch_has_unlabeled_samples_at_the_ratio(ratio: float) -> None:
    data = mixed().load()
    batches = loader(data, ratio)
    seen: list[int] = []
    for epoch in range(4):
        labeled = 0
        for step, batch in enumerate(batches.epoch(epoch)):
            count = int((batch.targets != UNLABELED).sum())
            assert len(batch) == batches.global_size(step)
            assert abs((len(batch) - count) - ratio * count) <= 1
            labeled += count
            seen += batch.index[batch.targets == UNLABELED].tolist()
        assert labeled == 200, "an epoch sees each sample of the data once"
    assert len(seen) == 4 * round(200 * ratio)
    counts = torch.tensor(seen).unique(return_counts=True)[1]
    assert len(counts) == 90 and counts.max() - counts.min() <= 1, "each equally often"


def test_ratio_below_one_sample_in_an_epoch_adds_none() -> None:
    batches = loader(mixed().load(), 0.001)
    assert sum(len(batch) for batch in batches.epoch(0)) == 200
    assert batches.global_size(0) == 37


def test_workers_share_the_batches() -> None:
    data = mixed().load()
    whole = [batch.index for batch in loader(data, 1.5).epoch(1)]
    shares = [[batch.index for batch in loader(data, 1.5, rank, 2).epoch(1)] for rank in (0, 1)]
    for step, index in enumerate(whole):
        assert torch.equal(index[0::2], shares[0][step])
        assert torch.equal(index[1::2], shares[1][step])


# Losses


LABELED = 40


def response_and_targets(task: Task) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    response, values = (torch.randn(100, 6, generator=generator) for _ in range(2))
    if task.kind == "softmax":
        targets = values.argmax(1)
        targets[LABELED:] = UNLABELED
        return response, targets
    targets = (values > 0).float() if task.kind == "sigmoid" else values
    targets[LABELED:] = float("nan")
    return response, targets


TASKS_AND_LOSSES = [
    TASKS["classification"](),
    TASKS["multi_label"](),
    TASKS["multi_label"](positive_weights="balanced"),
    TASKS["regression"](),
    TASKS["regression"](loss="huber", delta=0.5),
    TASKS["regression"](loss="l1"),
    TASKS["embedding"](),
    TASKS["embedding"](loss="mse"),
]


@pytest.mark.parametrize("task", TASKS_AND_LOSSES, ids=lambda task: str(task)[:50])
def test_label_loss_and_its_gradient_are_those_of_labeled_samples(task: Task) -> None:
    response, targets = response_and_targets(task)
    response.requires_grad_()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    loss = task.label_loss(targets, 6)
    parts = [loss(response[row], targets[row]) * len(row) / 100 for row in order.split(30)]
    total = torch.stack(parts).sum()
    plain = task.label_loss(targets[:LABELED], 6)(response[:LABELED], targets[:LABELED])
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    [ours], [theirs] = (torch.autograd.grad(each, [response]) for each in (total, plain))
    torch.testing.assert_close(ours, theirs)
    assert not ours[LABELED:].any()


@pytest.mark.parametrize("name", [name for name in TASKS.members if TASKS[name].takes_unlabeled])
def test_metric_of_training_samples_is_of_labeled_ones(name: str) -> None:
    task = TASKS[name]()
    response, targets = response_and_targets(task)
    values = []
    for rows, unlabeled in ((slice(None), True), (slice(0, LABELED), False)):
        metrics = EpochMetrics(torch.device("cpu"), task, unlabeled=unlabeled)
        output = StepOutput(torch.zeros(()), {}, response[rows])
        metrics.update(output, targets[rows])
        values.append(metrics.compute(1)[f"train_{task.train_metric}"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_gradient_is_that_of_labels_and_of_kd_on_all_samples() -> None:
    study, data = with_unlabeled(unnormalized(), 1.0), mixed(1.0).load()
    training = Training(study, data, seed=0, teacher=teacher())
    batch = next(iter(training.loader.epoch(0)))
    labeled = is_labeled(batch.targets)
    assert len(batch) == 64 and labeled.sum() == 32
    training.forward_backward(batch, Progress(0, 2, 0, 7))
    actual = [each.grad for each in training.student.parameters() if each.grad is not None]
    logits = training.student(batch.inputs)
    labels = functional.cross_entropy(logits[labeled], batch.targets[labeled])
    kd = LOSSES["kd"]()(logits, teacher()(batch.inputs).detach(), batch.targets)
    expected = torch.autograd.grad(labels + 0.9 * kd, list(training.student.parameters()))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# Trainings


def test_student_alone_is_that_without_unlabeled_samples() -> None:
    data = mixed().load()
    assert trained(with_unlabeled(alone()), data) == trained(alone(), DIGITS.load())
    few = with_unlabeled(alone(), labels_per_class=3)
    plain = dataclasses.replace(alone(), data=dataclasses.replace(DIGITS, labels_per_class=3))
    assert trained(few, few.data.load()) == trained(plain, plain.data.load())


def test_taught_student_learns_from_unlabeled_samples() -> None:
    study = with_unlabeled(taught(epochs=1))
    history = trained(study, mixed().load())
    assert history != trained(taught(epochs=1), DIGITS.load())
    assert history != trained(with_unlabeled(taught(epochs=1), 0.5), mixed().load())


def test_cached_outputs_equal_live_ones(tmp_path: Path) -> None:
    study = with_unlabeled(taught(epochs=2))
    study = dataclasses.replace(study, cache=dataclasses.replace(study.cache, dtype="fp32"))
    data = study.data.load()
    spec = described(study, fingerprint=data.fingerprint, rows=len(data.train))
    store = CacheStore(Storage(str(tmp_path)))
    live = LiveTeacher(teacher(), (), signature_of(data))
    build = CacheBuilder(spec, study, lambda: live, data, store)
    while build.advance():
        pass
    assert build.finish()
    outputs = open_cached_outputs(store, spec.key, data)
    assert outputs is not None

    def never() -> torch.nn.Module:
        raise AssertionError("the teacher's network was asked for")

    histories = []
    for each in (TeacherHandle(never, outputs), teacher()):
        training = Training(study, data, seed=5, teacher=each)
        while training.epoch < training.epochs:
            training.run_epoch()
        histories.append([untimed(metrics) for metrics in training.history])
    for cached, now in zip(*histories, strict=True):
        assert cached == pytest.approx(now, rel=1e-5)


def test_targets_of_an_epoch() -> None:
    data = mixed().load()
    targets = epoch_targets(data, 1.5)
    assert len(targets) == 500 and int(is_labeled(targets).sum()) == 200
