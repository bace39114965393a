"""Metrics of the user, `FILE.py:NAME`: refused, measured on whole splits, used as objectives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.multiprocessing.spawn import spawn
from torchmetrics.regression import MeanAbsolutePercentageError

from helpers import detection_cases, metric_workers, segmentation_cases
from helpers.documents import ROOT, user_files
from helpers.search_cases import InProcessTune, World
from raykd.data import Batch
from raykd.errors import StudyError
from raykd.metrics import facts_of, lead_metric
from raykd.study.checks.load import load_study
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.tasks import Detection, Regression, Segmentation
from raykd.tasks.user_metrics import try_user_metric, user_statistic
from raykd.training.build import signature_of
from raykd.training.metrics import evaluate, evaluate_split
from raykd.tuning.study_input import CHECKS
from raykd.user_code import UserCode

STUDY = {
    "name": "own-metric",
    "data": {"name": "digits", "limit": 160, "val_limit": 60},
    "task": {"name": "classification", "metrics": ["accuracy", "metrics.py:Margin"]},
    "teacher": {"model": {"name": "mlp", "width": 16}, "train": {"epochs": 1}},
    "student": {"model": {"name": "mlp", "width": 8}},
    "knowledge": [{"loss": "kd"}],
    "train": {"epochs": 2, "batch_size": 32},
    "search": {"trials": 1, "replicates": 1},
}

CODE = """\
import torch
from torchmetrics import Metric, MeanMetric
from torchmetrics.regression import MeanAbsolutePercentageError

NUMBER = 3

class Error(Metric):
    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.add_state("hits", torch.tensor(0.0))
        self.add_state("count", torch.tensor(0.0))

    def update(self, preds, target):
        self.hits += (preds.argmax(1) != target).sum()
        self.count += len(target)

    def compute(self):
        return self.hits / self.count

class NoDirection(Error):
    higher_is_better = None

class NeedsClasses(Error):
    def __init__(self, classes):
        super().__init__()

class Fails(Error):
    def update(self, preds, target):
        raise KeyError("row")

class Vector(Error):
    def compute(self):
        return torch.zeros(3)

class accuracy(Error): ...

class NoMetric:
    higher_is_better = True
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.py").write_text(user_files(ROOT / "docs/user-code.md")["metrics.py"])
    (tmp_path / "more.py").write_text(CODE)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def opened(folder: Path, *overrides: str, allow_import: bool = True) -> OpenStudy:
    return load_study(folder / "study.yaml", overrides, checks=CHECKS, allow_import=allow_import)


def metrics(*names: str) -> str:
    return f"task.metrics={list(names)}"


WRONG = {
    "more.py:NoDirection": "does not state its better direction",
    "more.py:NeedsClasses": "cannot be called without arguments",
    "more.py:NoMetric": "is no metric but a NoMetric; derive it from torchmetrics.Metric",
    "more.py:NUMBER": "more.py:NUMBER is a int; a name means a class or a function",
    "more.py:Missing": "more.py has no Missing",
    "more.py:accuracy": "another metric is called accuracy, too",
    "more.py:Fails": r"fails for responses (32, 10) and targets (32,): KeyError: 'row'",
    "more.py:Vector": "fails for responses (32, 10)",
    "nothing.py:Error": "there is no file",
    "../more.py:Error": "is not below",
    "more:Error": "task.metrics",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_metrics_are_refused(name: str, folder: Path) -> None:
    with pytest.raises(StudyError, match=re.escape(WRONG[name])) as error:
        opened(folder, metrics("auroc", name))
    assert len(error.value.problems) == 1, "one message"


def test_metrics_of_the_same_name_are_refused(folder: Path) -> None:
    (folder / "again.py").write_text(CODE)
    with pytest.raises(StudyError, match="another metric is called Error, too"):
        opened(folder, metrics("accuracy", "more.py:Error", "again.py:Error"))


def test_first_metric_must_be_an_objective(folder: Path) -> None:
    with pytest.raises(StudyError, match="val_Error is no objective"):
        opened(folder, metrics("more.py:Error"), "search.objectives={val_loss: min}")


def test_direction_is_checked(folder: Path) -> None:
    with pytest.raises(StudyError, match="val_Error must be minimized"):
        opened(folder, metrics("more.py:Error"), "search.objectives={val_Error: max}")


def test_code_is_not_run_without_permission(folder: Path) -> None:
    (folder / "metrics.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(StudyError, match="would run code"):
        opened(folder, allow_import=False)


def test_bytes_are_part_of_the_code_of_the_study(folder: Path) -> None:
    study = opened(folder)
    assert study.code is not None and "metrics.py" in study.code.files


def test_direction_of_the_first_metric(folder: Path) -> None:
    settings = opened(folder, metrics("more.py:Error", "accuracy")).settings
    assert settings.search.objectives == {"val_Error": "min"}
    assert lead_metric(plain(settings)) == "Error"
    assert facts_of("val_Error").direction == "min", "also for reports, which import no code"


@pytest.mark.parametrize("size", [40, 7])
def test_values_are_those_of_the_whole_split_in_units_of_the_data(folder: Path, size: int) -> None:
    code = "class Percentage(MeanAbsolutePercentageError): ...\n"
    (folder / "more.py").write_text(CODE + code)
    opened(folder, metrics("accuracy", "more.py:Error"))
    UserCode.read(folder, ["more.py:Percentage"]).register()
    task = Regression(metrics=("r2", "more.py:Percentage"))
    response, targets = torch.randn(40, 2), torch.randn(40, 2)
    scale, shift = (2.0, 3.0), (10.0, 20.0)
    batches = [Batch(response[r], targets[r], r) for r in torch.arange(40).split(size)]
    values = evaluate(nn.Identity(), batches, task=task, scale=scale, shift=shift)
    factor, offset = torch.tensor(scale), torch.tensor(shift)
    right = MeanAbsolutePercentageError()(response * factor + offset, targets * factor + offset)
    assert values["Percentage"] == pytest.approx(right.item(), rel=1e-5)


def test_two_workers_measure_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(metric_workers.CODE)
    spawn(metric_workers.run, args=(tmp_path,), nprocs=metric_workers.WORLD)
    for kind in ("softmax", "dense"):
        whole = metric_workers.measured(tmp_path, kind)
        for rank in range(metric_workers.WORLD):
            values = torch.load(tmp_path / f"values{rank}.pt")
            assert values[kind] == pytest.approx(whole, rel=1e-6), kind


POSITIONS = """\
import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

class Iou(MulticlassJaccardIndex):
    def __init__(self):
        super().__init__(num_classes=4, ignore_index=255)

class Unmerged(Iou):
    full_state_update = True

class MeanOfBatches(Metric):
    higher_is_better = True
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.total += (preds.argmax(1) == target).float().mean()

    def compute(self):
        return self.total

class Ranking(Iou):
    def update(self, preds, target):
        assert preds.dim() == 2, "rows of scores"
"""
WRONG_POSITIONS = {
    "positions.py:Unmerged": "cannot be merged",
    "positions.py:MeanOfBatches": "depends on the division of the samples among batches",
    "positions.py:Ranking": "fails for responses (3, 4, 16, 16) and targets (3, 16, 16)",
}


@pytest.fixture
def positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "positions.py").write_text(POSITIONS)
    return tmp_path


@pytest.mark.parametrize("name", WRONG_POSITIONS)
def test_wrong_metrics_of_positions_are_refused(name: str, positions: Path) -> None:
    UserCode.read(positions, [name]).register()
    with pytest.raises(ValueError, match=re.escape(WRONG_POSITIONS[name])):
        try_user_metric(name, "dense", 4)


def test_metrics_of_positions_equal_those_of_raykd(positions: Path) -> None:
    UserCode.read(positions, ["positions.py:Iou"]).register()
    try_user_metric("positions.py:Iou", "dense", 4)
    data = segmentation_cases.data()
    task = Segmentation(metrics=("mean_iou", "positions.py:Iou"))
    model = segmentation_cases.PlainPositions().build(signature_of(data))
    values = evaluate_split(model, data, "val", task=task, batch_size=5)
    assert values["val_Iou"] == pytest.approx(values["val_mean_iou"], rel=1e-5)


BOXES = """\
import torch
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision

class MapAt75(MeanAveragePrecision):
    def __init__(self):
        super().__init__(iou_thresholds=[0.75], backend="faster_coco_eval")
        self.warn_on_many_detections = False

    def compute(self):
        return max(torch.tensor(0.0), super().compute()["map"])

class Boxes(Metric):
    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds, target):
        assert all(set(each) == {"boxes", "scores", "labels"} for each in preds)
        assert all((each["labels"] >= 0).all() for each in target)
        self.rows += sum(len(each["boxes"]) for each in target)

    def compute(self):
        return self.rows

class WholeMap(MeanAveragePrecision):
    def __init__(self):
        super().__init__(backend="faster_coco_eval")

class Scores(Boxes):
    def update(self, preds, target):
        self.rows += preds.argmax(1)
"""
WRONG_BOXES = {
    "boxes.py:WholeMap": "fails for the boxes of 3 images: TypeError",
    "boxes.py:Scores": "fails for the boxes of 3 images: AttributeError: 'list' object has no",
}


@pytest.fixture
def of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxes.py").write_text(BOXES)
    return tmp_path


@pytest.mark.parametrize("name", WRONG_BOXES)
def test_wrong_metrics_of_boxes_are_refused(name: str, of_boxes: Path) -> None:
    UserCode.read(of_boxes, [name]).register()
    with pytest.raises(ValueError, match=re.escape(WRONG_BOXES[name])):
        try_user_metric(name, "boxes", 3)


def test_metrics_of_boxes_equal_those_of_raykd(of_boxes: Path) -> None:
    names = ("boxes.py:MapAt75", "boxes.py:Boxes")
    UserCode.read(of_boxes, names).register()
    for name in names:
        try_user_metric(name, "boxes", 3)
    targets = detection_cases.data().val.targets
    right = torch.cat([targets[:, :, :4] + 0.8, torch.rand(*targets.shape[:2], 1)], dim=2)
    response = torch.cat([right, targets[:, :, 4:]], dim=2)
    task = Detection(metrics=("map_75", *names))
    expected = task.statistic("map_75").value(response, targets)  # type: ignore[union-attr,call-arg]
    values = {n: user_statistic(n, "boxes").value(response, targets) for n in names}  # type: ignore[union-attr,arg-type]
    assert 0 < values[names[0]] == pytest.approx(expected)
    assert values[names[1]] == (targets[:, :, 4] >= 0).sum()


@pytest.mark.parametrize("size", [4, 11])
def test_evaluations_of_detectors_measure_metrics_of_the_user(of_boxes: Path, size: int) -> None:
    UserCode.read(of_boxes, ["boxes.py:MapAt75", "boxes.py:Boxes"]).register()
    task = Detection(metrics=("boxes.py:Boxes", "map_75", "boxes.py:MapAt75"))
    data, network = detection_cases.data(), detection_cases.teacher()
    values = evaluate_split(network, data, "val", task=task, batch_size=size)
    assert values["val_Boxes"] == (data.val.targets[:, :, 4] >= 0).sum()
    assert values["val_MapAt75"] == pytest.approx(values["val_map_75"], abs=1e-6)
    assert task.direction("Boxes") == "max"


def test_direction_of_a_name_that_begins_like_a_split() -> None:
    settings = {
        "task": {"metrics": ["more.py:train_error"]},
        "search": {"objectives": {"val_train_error": "min"}},
    }
    assert lead_metric(settings) == "train_error"
    assert facts_of("train_error").direction == facts_of("val_train_error").direction == "min"


def test_search_by_a_metric_of_the_user(folder: Path) -> None:
    overrides = ("search.objectives={val_Margin: max, params: min}",)
    study = opened(folder, *overrides)
    world = World(study, folder / "world")
    explorer = world.explorer()
    InProcessTune(world, explorer, study.settings.data.load()).run()
    for record in explorer.records.of("teacher", "trial", "replicate", "alone"):
        assert record.status == "finished", record.reason
        assert "val_Margin" in record.metrics
    assert all("test_Margin" in each.metrics for each in explorer.records.of("alone"))
