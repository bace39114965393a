"""Agreement with the teacher as a metric: values, cached and stored teachers, the null arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional import r2_score

from helpers.cache_cases import built, cropped, described
from helpers.search_cases import InProcessTune, World, opened
from helpers.training_cases import alone, digits, taught, teacher, teacher_model
from raykd.data import Batch, BatchLoader, Dataset
from raykd.errors import StudyError
from raykd.losses import LOSSES, Term
from raykd.schemes import Alone, Teacher
from raykd.study.config import Study
from raykd.tasks import TASKS, Classification
from raykd.training.metrics import evaluate
from raykd.training.stored_outputs import OutputsTable, dump_outputs, load_outputs
from raykd.training.teacher_cache import TeacherHandle
from raykd.training.teachers import train_teachers
from raykd.training.trainer import Training

MEASURED = Classification(metrics=("accuracy", "teacher_agreement"))


def measured(study: Study) -> Study:
    return dataclasses.replace(study, task=MEASURED)


def by_hand(student: nn.Module, data: Dataset, split: str = "val") -> float:
    """Share of samples with the same class, of one pass over the split."""
    part = data.val if split == "val" else data.test
    [batch] = BatchLoader(part, data, batch_size=len(part), shuffle_seed=None).epoch(0)
    with torch.no_grad():
        classes = [net.eval()(batch.inputs).argmax(1) for net in (student, teacher())]
    return (classes[0] == classes[1]).double().mean().item()


# Values


def value(task: str, response: Tensor, reference: Tensor) -> float:
    option = dataclasses.replace(TASKS[task](), metrics=("teacher_agreement",))
    targets = torch.zeros(len(response)).long() if task == "classification" else reference * 0
    rows = torch.arange(len(response)).split(3)
    batches = [Batch(response[row], targets[row], row) for row in rows]
    metrics = evaluate(nn.Identity(), batches, task=option, teacher=reference)
    return metrics["teacher_agreement"]


def test_values_of_every_task() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(10, 4, generator=generator) for _ in range(2))
    same_class = (ours.argmax(1) == theirs.argmax(1)).double().mean().item()
    assert value("classification", ours, theirs) == pytest.approx(same_class)
    same_labels = ((ours > 0) == (theirs > 0)).double().mean().item()
    assert value("multi_label", ours, theirs) == pytest.approx(same_labels)
    columns = [r2_score(ours[:, i].double(), theirs[:, i].double()) for i in range(4)]
    assert value("regression", ours, theirs) == pytest.approx(torch.stack(columns).mean().item())
    cosine = functional.cosine_similarity(ours, theirs).mean().item()
    assert value("embedding", ours, theirs) == pytest.approx(cosine, rel=1e-6)


# Trainings


@pytest.mark.parametrize("scheme", ["offline", "alone"])
def test_agreement_of_a_training(scheme: str) -> None:
    study = measured(taught(epochs=2))
    if scheme == "alone":
        study = dataclasses.replace(study, scheme=Alone(), knowledge=())
    [network] = study.required_networks()
    assert network.model == teacher_model(), "the null arm needs the teacher, too"
    training = Training(study, digits(), seed=0, teacher=teacher())
    metrics = [training.run_epoch() for _ in range(2)]
    assert metrics[1]["val_teacher_agreement"] == by_hand(training.student, digits())
    test = training.evaluate("test")
    assert test["test_teacher_agreement"] == by_hand(training.student, digits(), "test")


def test_results_are_those_without_the_metric() -> None:
    plain, more = taught(epochs=1), measured(taught(epochs=1))
    weights = []
    for study in (plain, more):
        training = Training(study, digits(), seed=0, teacher=teacher())
        metrics = training.run_epoch()
        weights.append(training.student.state_dict())
        assert ("val_teacher_agreement" in metrics) == (study is more)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_teacher_is_run_once_for_each_split() -> None:
    calls: list[int] = []
    network = teacher()
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    try:
        study = measured(dataclasses.replace(taught(epochs=3), scheme=Alone(), knowledge=()))
        training = Training(study, digits(), seed=0, teacher=network)
        for _ in range(3):
            training.run_epoch()
        training.evaluate("test")
    finally:
        handle.remove()
    assert len(calls) == 2


def test_training_of_the_teacher_has_none() -> None:
    study = measured(taught(epochs=1))
    [network] = train_teachers(study, digits())
    assert isinstance(network, nn.Module)
    baseline = measured(alone(epochs=1))
    metrics = Training(baseline, digits(), seed=0).run_epoch()
    assert "val_teacher_agreement" not in metrics and "val_accuracy" in metrics


def test_cached_outputs_give_the_agreement_of_live_ones(tmp_path: Path) -> None:
    study = cropped(Term(loss=LOSSES["kd"]()))
    data = study.data.load()
    outputs = built(tmp_path, study, described(study, fingerprint=data.fingerprint))
    study = measured(study)
    values = []
    for each in (TeacherHandle(teacher(), outputs), teacher()):
        training = Training(study, data, seed=5, teacher=each)
        values.append([training.run_epoch()["val_teacher_agreement"] for _ in range(2)])
    assert values[0] == pytest.approx(values[1])


def test_file_of_outputs_is_a_teacher_to_agree_with() -> None:
    data = digits()
    samples = torch.arange(data.data_size)
    classes = samples % 10
    table = OutputsTable(samples, functional.one_hot(classes, 10).float())
    network = load_outputs(dump_outputs(table), data)
    study = measured(dataclasses.replace(taught(epochs=1), teacher=Teacher(outputs="of.parquet")))
    training = Training(study, data, seed=0, teacher=network)
    agreement = training.run_epoch()["val_teacher_agreement"]
    [batch] = BatchLoader(data.val, data, batch_size=60, shuffle_seed=None).epoch(0)
    with torch.no_grad():
        ours = training.student.eval()(batch.inputs).argmax(1)
    assert agreement == (ours == batch.index % 10).double().mean().item()


# Searches


LABEL_FREE = (
    "task={name: classification, metrics: [teacher_agreement, accuracy]}",
    "search.objectives={val_teacher_agreement: max, params: min}",
    "knowledge=[{loss: kd}]",
    "search.trials=2",
    "search.replicates=1",
    "search.finalists=1",
)


def test_search_by_agreement_has_it_in_every_arm(tmp_path: Path) -> None:
    study = opened(*LABEL_FREE)
    world = World(study, tmp_path)
    explorer = world.explorer()
    InProcessTune(world, explorer, study.settings.data.load()).run()
    records = explorer.records
    assert "val_teacher_agreement" not in records["teacher-0"].metrics
    for record in records.of("trial", "replicate", "alone"):
        assert record.status == "finished", record.reason
        assert 0 < record.metrics["val_teacher_agreement"] <= 1
    [distilled], [baseline] = records.of("replicate"), records.of("alone")
    for record in (distilled, baseline):
        assert 0 < record.metrics["test_teacher_agreement"] <= 1
    assert baseline.job.teachers == distilled.job.teachers
    [finalist] = explorer.finalists
    best = max(each.metrics["val_teacher_agreement"] for each in records.of("trial"))
    assert finalist.metrics["val_teacher_agreement"] == best


NO_TEACHER = """\
name: agreeing
data: {name: digits}
task: {name: classification, metrics: [accuracy, teacher_agreement]}
student: {model: {name: mlp, width: 8}}
scheme: SCHEME
"""


@pytest.mark.parametrize("scheme", ["alone", "dml", "born_again", "tf_kd"])
def test_without_a_teacher_it_is_refused(scheme: str) -> None:
    with pytest.raises(
        StudyError, match=r"task\.metrics: 'teacher_agreement' compares .*"
    ) as error:
        opened(text=NO_TEACHER.replace("SCHEME", scheme))
    assert "add `teacher: {...}`, or remove teacher_agreement" in str(error.value)
