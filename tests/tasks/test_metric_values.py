"""Metrics equal those of scikit-learn and SciPy on a whole split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor

from raykd.data import Batch
from raykd.metrics import METRICS
from raykd.tasks import Classification, Embedding, MultiLabel, Regression, Task
from raykd.tasks.classification import STATISTICS
from raykd.training.metrics import evaluate

CLASSES, SAMPLES = 7, 200


def responses(outputs: int = CLASSES) -> Tensor:
    """Rounded, so that some scores of different samples are equal."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, outputs, generator=generator).mul(4).round().div(4)


def classes() -> Tensor:
    """The last class has no sample; the others are imbalanced."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(SAMPLES, generator=generator).square().mul(CLASSES - 1).long()


def measured(task: Task, response: Tensor, targets: Tensor, size: int = 32) -> dict[str, float]:
    """Evaluate a network that returns its input, in batches of `size`."""
    rows = torch.arange(len(targets)).split(size)
    batches = [Batch(response[row], targets[row], row) for row in rows]
    return evaluate(torch.nn.Identity(), batches, task=task)


def expected_of_classes(response: Tensor, targets: Tensor) -> dict[str, float]:
    scores, labels = response.double().softmax(1).numpy(), targets.numpy()
    predicted = scores.argmax(1)
    hits = np.argsort(-response.numpy(), axis=1, kind="stable")[:, :5] == labels[:, None]
    recalls = [(predicted[labels == c] == c).mean() for c in range(CLASSES - 1)]
    areas = [reference.roc_auc_score(labels == c, scores[:, c]) for c in range(CLASSES - 1)]
    place = np.clip(np.ceil(scores.max(1) * 15).astype(int) - 1, 0, 14)
    gaps = [
        abs((scores.max(1)[place == b] - (predicted == labels)[place == b]).sum())
        for b in range(15)
    ]
    return {
        "accuracy": float((predicted == labels).mean()),
        "top5_accuracy": float(hits.any(1).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "worst_class_accuracy": float(np.min(recalls)),
        "macro_f1": float(reference.f1_score(labels, predicted, average="macro")),
        "matthews": float(reference.matthews_corrcoef(labels, predicted)),
        "auroc": float(np.mean(areas)),
        "calibration_error": float(sum(gaps) / SAMPLES),
    }


@pytest.mark.parametrize("size", [SAMPLES, 32, 1])
def test_metrics_of_classes_equal_scikit_learn(size: int) -> None:
    task = Classification(metrics=tuple(STATISTICS))
    generator = torch.Generator().manual_seed(2)
    response = torch.randn(SAMPLES, CLASSES, generator=generator)
    values = measured(task, response, classes(), size)
    assert list(values) == ["loss", *task.metrics]
    expected = expected_of_classes(response, classes())
    assert set(expected) == set(STATISTICS)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-6), name


def test_constant_predictions_have_no_correlation() -> None:
    response = torch.zeros(4, 3)
    task = Classification(metrics=("matthews", "auroc"))
    values = measured(task, response, torch.tensor([0, 1, 2, 0]))
    assert values["matthews"] == 0
    assert values["auroc"] == 0.5


def test_every_metric_of_task_has_facts() -> None:
    assert set(STATISTICS) <= set(METRICS)


def test_class_weights_are_those_of_weighted_mean() -> None:
    response, targets = responses(), classes()
    counts = torch.bincount(targets, minlength=CLASSES).float()
    loss = Classification(class_weights="balanced").label_loss(targets, CLASSES)
    each = torch.nn.functional.cross_entropy(response, targets, reduction="none")
    weights = 1 / counts[targets]
    torch.testing.assert_close(loss(response, targets), (weights * each).sum() / weights.sum())
    fixed = Classification(class_weights=(1.0,) * CLASSES).label_loss(targets, CLASSES)
    torch.testing.assert_close(fixed(response, targets), each.mean())
    with pytest.raises(ValueError, match="2 weights for 7 classes"):
        Classification(class_weights=(1.0, 2.0)).label_loss(targets, CLASSES)


@pytest.mark.parametrize("size", [SAMPLES, 7])
def test_metrics_of_labels_equal_scikit_learn(size: int) -> None:
    response = responses(4)
    targets = (responses(4).roll(1, 0) > torch.tensor([0.0, 0.5, 1.0, 9.0])).float()
    names = ("mean_average_precision", "macro_f1", "auroc", "label_accuracy", "subset_accuracy")
    values = measured(MultiLabel(metrics=names), response, targets, size)
    scores, labels = response.double().sigmoid().numpy(), targets.numpy()
    assert labels.sum(0)[3] == 0, "the last label occurs nowhere: it is left out of means"
    predicted, present = scores > 0.5, slice(0, 3)
    hits = predicted == (labels > 0)
    expected = {
        "mean_average_precision": reference.average_precision_score(
            labels[:, present], scores[:, present], average="macro"
        ),
        "macro_f1": reference.f1_score(labels[:, present], predicted[:, present], average="macro"),
        "auroc": reference.roc_auc_score(labels[:, present], scores[:, present]),
        "label_accuracy": hits.mean(),
        "subset_accuracy": hits.all(1).mean(),
    }
    assert {name: values[name] for name in names} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [SAMPLES, 7])
def test_metrics_of_values_equal_scikit_learn(size: int) -> None:
    response, scale = responses(2), np.array([3.0, 50.0])
    targets = response.roll(1, 0) / 2 + response
    rows = torch.arange(SAMPLES).split(size)
    batches = [Batch(response[row], targets[row], row) for row in rows]
    names = ("r2", "mae", "rmse", "spearman", "pearson")
    task = Regression(metrics=names)
    values = evaluate(torch.nn.Identity(), batches, task=task, scale=tuple(scale))
    truth, guess = targets.double().numpy() * scale, response.double().numpy() * scale
    columns = [*zip(guess.T, truth.T, strict=True)]
    expected = {
        "r2": reference.r2_score(truth, guess),
        "mae": reference.mean_absolute_error(truth, guess),
        "rmse": np.mean([reference.root_mean_squared_error(t, g) for g, t in columns]),
        "spearman": np.mean([np.corrcoef(*map(stats.rankdata, pair))[0, 1] for pair in columns]),
        "pearson": np.mean([np.corrcoef(*pair)[0, 1] for pair in columns]),
    }
    assert {name: values[name] for name in names} == pytest.approx(expected, rel=1e-5)


def test_metrics_of_vectors_equal_scipy() -> None:
    response = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(6))
    targets = response.roll(1, 0) / 2 + response
    values = measured(Embedding(), response, targets)
    cosines, pairs = [], np.triu_indices(SAMPLES, 1)
    for vectors in (response, targets):
        unit = vectors.double().numpy()
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines.append((unit @ unit.T)[pairs])
    expected = np.corrcoef(*map(stats.rankdata, cosines))[0, 1]
    assert values["similarity_spearman"] == pytest.approx(expected, abs=1e-6)
    each = torch.nn.functional.cosine_similarity(response.double(), targets.double())
    assert values["cosine"] == pytest.approx(each.mean().item(), abs=1e-6)


def test_constant_values_have_no_correlation() -> None:
    task = Regression(metrics=("pearson", "spearman"))
    values = measured(task, torch.zeros(6, 1), torch.arange(6.0)[:, None])
    assert values["pearson"] == values["spearman"] == 0


def test_balanced_labels_weigh_rare_ones_up() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    response = torch.zeros(4, 2)
    loss = MultiLabel(positive_weights="balanced").label_loss(targets, 2)
    factors = torch.where(targets > 0, torch.tensor([1.0, 3.0]), 1.0)
    torch.testing.assert_close(loss(response, targets), (factors * np.log(2)).mean())
    with pytest.raises(ValueError, match="3 weights for 2 labels"):
        MultiLabel(positive_weights=(1.0, 2.0, 3.0)).label_loss(targets, 2)


@pytest.mark.parametrize("name", ["mse", "huber", "l1"])
def test_losses_of_values_are_those_of_torch(name: str) -> None:
    response, targets = responses(3), responses(3).roll(1, 0)
    loss = Regression(loss=name, delta=0.5).label_loss(targets, 3)  # type: ignore[arg-type]
    errors = (response - targets).abs()
    expected = {
        "mse": errors**2,
        "l1": errors,
        "huber": torch.where(errors < 0.5, errors**2 / 2, 0.5 * (errors - 0.25)),
    }
    torch.testing.assert_close(loss(response, targets), expected[name].mean())
