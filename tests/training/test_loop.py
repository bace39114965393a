from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.study_cases import CLASS_LOSSES
from helpers.training_cases import (
    DIGITS,
    Forgetful,
    alone,
    assert_same,
    digits,
    forgetful,
    perceptron,
    rich,
    scheme_of,
    taught,
    teacher,
    train_of,
    untimed,
    weights,
)
from raykd.data import BatchLoader
from raykd.losses import LOSSES, Pair, Term
from raykd.models import MODELS, CompressedModel, Resnet, Signature
from raykd.schemes import SCHEMES, Alone, Offline
from raykd.study.config import Student, Study
from raykd.train_config import SGD, AdamW, Constant
from raykd.training.memory_format import to_device
from raykd.training.metrics import evaluate
from raykd.training.state_file import dump_state, parse_state
from raykd.training.trainer import Diverged, Training

CASES = {"alone": alone, "taught": taught, "rich": rich, "forgetful": forgetful}
METRICS = {
    "train_loss",
    "train_accuracy",
    "term_task",
    "val_loss",
    "val_accuracy",
    "lr",
    "epoch_seconds",
    "images_per_second",
}


def hooks_of(network: torch.nn.Module) -> list[int]:
    """Ids of all hooks on a network's modules."""
    tables = ((m._forward_hooks, m._forward_pre_hooks) for m in network.modules())
    return [number for both in tables for hooks in both for number in hooks]


def finish(training: Training) -> Training:
    while training.epoch < training.epochs:
        training.run_epoch()
    return training


def test_student_without_teacher_learns_digits() -> None:
    study = alone(epochs=4, batch_size=64, optimizer=SGD(lr=0.1))
    study = dataclasses.replace(study, data=dataclasses.replace(DIGITS, limit=None))
    training = finish(Training(study, digits(None), seed=0))
    assert training.history[-1]["val_accuracy"] > 0.9
    metrics = training.evaluate("test")
    assert metrics.keys() == {"test_loss", "test_accuracy"} and metrics["test_accuracy"] > 0.9


def test_student_learns_from_its_teacher() -> None:
    """With zero weight on the labels, the student learns the teacher's predictions."""
    fast: dict[str, Any] = {"epochs": 8, "optimizer": SGD(lr=0.1)}
    learner = Student(model=MODELS["mlp"](depth=1, width=32))
    trained = finish(train_of(dataclasses.replace(alone(**fast), student=learner))).student
    study = dataclasses.replace(
        taught(Term(loss=LOSSES["kd"](), weight=1.0), **fast),
        student=learner,
        scheme=Offline(task_weight=0.0),
    )
    training = finish(Training(study, digits(), seed=1, teacher=trained))
    assert training.history[-1]["term_kd"] < training.history[0]["term_kd"] / 3
    assert training.history[-1]["val_accuracy"] > 0.7


def test_metrics_of_epoch() -> None:
    training = train_of(taught(Term(loss=LOSSES["kd"](), weight=0.25)))
    metrics = training.run_epoch()
    assert metrics.keys() == METRICS | {"term_kd"}
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert training.history == [metrics] and training.epoch == 1 and training.epochs == 2
    total = metrics["term_task"] + 0.25 * metrics["term_kd"]
    assert metrics["train_loss"] == pytest.approx(total, rel=1e-5)


def test_validation_uses_current_student() -> None:
    training = train_of(alone())
    metrics = training.run_epoch()
    batches = BatchLoader(digits().val, digits(), batch_size=7, shuffle_seed=None)
    expected_ = evaluate(training.student, batches.epoch(0))
    assert expected_["accuracy"] == metrics["val_accuracy"]
    assert expected_["loss"] == pytest.approx(metrics["val_loss"], rel=1e-5)


def test_steps_equal_plain_pytorch() -> None:
    """One epoch against an explicit loop with equal weights and batches."""
    study = alone(epochs=1, optimizer=SGD(lr=0.1), schedule=Constant(), label_smoothing=0.1)
    training = train_of(dataclasses.replace(study, student=Student(model=MODELS["mlp"](width=16))))
    model = MODELS["mlp"](width=16).build(Signature(input_shape=(1, 8, 8), classes=10))
    model.load_state_dict(training.student.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    batches = BatchLoader(digits().train, digits(), batch_size=32, shuffle_seed=0)
    for batch in batches.epoch(0):
        logits = model(batch.inputs)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    training.run_epoch()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(training.student.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_every_loss_trains_and_resumes(name: str) -> None:
    study = taught(Term(loss=LOSSES[name]()), epochs=2)
    whole = train_of(study)
    metrics = whole.run_epoch()
    assert math.isfinite(metrics[f"term_{name}"])
    resumed = train_of(study)
    resumed.load_state(whole.state())
    assert untimed(resumed.run_epoch()) == untimed(whole.run_epoch())
    assert_same(weights(resumed.distiller), weights(whole.distiller))


@pytest.mark.parametrize("name", list(SCHEMES.members))
def test_every_scheme_trains_and_resumes(name: str) -> None:
    scheme = scheme_of(name)
    terms = (Term(loss=LOSSES["kd"]()),) if scheme.takes_knowledge else ()
    study = dataclasses.replace(taught(epochs=3), scheme=scheme, knowledge=terms)
    whole = train_of(study)
    for _ in range(2):
        assert math.isfinite(whole.run_epoch()["term_task"])
    resumed = train_of(study)
    resumed.load_state(whole.state())
    assert untimed(resumed.run_epoch()) == untimed(whole.run_epoch())
    assert_same(weights(resumed.distiller), weights(whole.distiller))


def test_no_step_is_replayed_without_gpu() -> None:
    eager, graph = train_of(taught()), train_of(taught(compile="graph"))
    assert untimed(graph.run_epoch()) == untimed(eager.run_epoch())


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05), SGD(momentum=0.0), AdamW()], ids=repr)
def test_learned_connector_may_start_late(optimizer: SGD | AdamW) -> None:
    """Its connectors have no gradient and no optimizer state in earlier epochs."""
    term = Term(loss=LOSSES["hint"](), start_epoch=1, stop_epoch=2)
    training = train_of(taught(term, epochs=3, optimizer=optimizer))
    before = weights(training.distiller)
    training.run_epoch()
    connectors = [
        name for name, _ in training.distiller.named_parameters() if "student" not in name
    ]
    assert connectors
    first = weights(training.distiller)
    assert all(torch.equal(first[name], before[name]) for name in connectors)
    assert "term_hint" in training.run_epoch()
    second = weights(training.distiller)
    assert not all(torch.equal(second[name], before[name]) for name in connectors)
    assert "term_hint" not in training.run_epoch()
    assert_same(
        {name: weights(training.distiller)[name] for name in connectors},
        {name: second[name] for name in connectors},
    )


@pytest.mark.parametrize("name", [n for n, cls in MODELS.members.items() if "sample" in cls.gives])
def test_every_model_trains(name: str) -> None:
    cls = MODELS[name]
    options: dict[str, Any] = (
        {"base": Resnet(depth=14, width=4)} if issubclass(cls, CompressedModel) else {}
    )
    study = dataclasses.replace(alone(epochs=1), student=Student(model=cls(**options)))
    small = dataclasses.replace(DIGITS, limit=40)
    training = Training(dataclasses.replace(study, data=small), digits(40), seed=0)
    assert math.isfinite(training.run_epoch()["train_loss"])


@pytest.mark.parametrize("case", CASES)
def test_equal_seeds_give_equal_bits(case: str) -> None:
    first = finish(train_of(CASES[case](), seed=3))
    torch.manual_seed(123)  # what the process did before does not matter
    train_of(taught(), seed=9).run_epoch()
    torch.rand(7)
    second = finish(train_of(CASES[case](), seed=3))
    assert_same(weights(first.distiller), weights(second.distiller))
    assert list(map(untimed, first.history)) == list(map(untimed, second.history))


def test_interleaved_trainings_are_independent() -> None:
    reference = finish(train_of(forgetful(), seed=3))
    first, second = train_of(forgetful(), seed=3), train_of(forgetful(), seed=4)
    while first.epoch < first.epochs:
        second.run_epoch()
        first.run_epoch()
    assert_same(weights(first.student), weights(reference.student))


@pytest.mark.parametrize("case", CASES)
def test_different_seeds_give_different_trainings(case: str) -> None:
    first, second = train_of(CASES[case](), seed=3), train_of(CASES[case](), seed=4)
    assert untimed(first.run_epoch()) != untimed(second.run_epoch())


def test_dropout_differs_between_epochs_and_keeps_global_generator() -> None:
    study = dataclasses.replace(
        alone(epochs=2, optimizer=SGD(lr=1e-12), schedule=Constant()),
        student=Student(model=Forgetful()),
    )
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    training = finish(train_of(study))
    assert torch.equal(torch.rand(3), expected)
    assert training.history[0]["train_loss"] != training.history[1]["train_loss"]
    assert training.history[0]["val_loss"] == training.history[1]["val_loss"]


def test_initial_weights_are_independent_of_scheme() -> None:
    hint = Term(loss=LOSSES["hint"]())
    ours = weights(train_of(taught(hint), seed=5).student)
    assert_same(ours, weights(train_of(alone(), seed=5).student))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_training_equals_uninterrupted_one(case: str, stop: int) -> None:
    study = dataclasses.replace(
        CASES[case](), train=dataclasses.replace(CASES[case]().train, epochs=4)
    )
    whole = train_of(study, seed=2)
    for _ in range(stop):
        whole.run_epoch()
    saved = b"".join(dump_state(whole.state(), "training"))
    finish(whole)  # the state is a copy, and does not change

    resumed = train_of(study, seed=2)
    resumed.load_state(parse_state(saved, "training"))
    assert resumed.epoch == stop
    finish(resumed)
    assert_same(weights(resumed.distiller), weights(whole.distiller))
    assert list(map(untimed, resumed.history)) == list(map(untimed, whole.history))
    assert resumed.evaluate("test") == whole.evaluate("test")


def test_state_stores_student_separately() -> None:
    training = train_of(taught(Term(loss=LOSSES["hint"]())))
    training.run_epoch()
    state = training.state()
    assert_same(state["student"], weights(training.student))
    assert state["distiller"] and not any("student" in name for name in state["distiller"])
    before = {name: tensor.clone() for name, tensor in state["student"].items()}
    training.run_epoch()
    assert_same(state["student"], before)


def test_state_of_another_training_raises() -> None:
    training = train_of(alone(), seed=1)
    training.run_epoch()
    state = training.state()
    with pytest.raises(ValueError, match="seed 1 after 1 epochs"):
        train_of(alone(), seed=2).load_state(state)
    with pytest.raises(ValueError, match="another study"):
        train_of(perceptron(), seed=1).load_state(state)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"optimizer": SGD(lr=1e12)}, "term 'task'"),
        ({"optimizer": AdamW(lr=1e30)}, ""),
    ],
)
def test_divergence_raises(train: dict[str, Any], message: str) -> None:
    training = train_of(alone(epochs=3, **train))
    with pytest.raises(Diverged, match="not finite") as caught:
        finish(training)
    assert message in caught.value.fault
    assert caught.value.epoch == training.epoch + 1


def test_divergence_in_last_step_is_detected() -> None:
    """Single step: its loss is that of the initial weights, and the update diverges."""
    study = alone(epochs=1, batch_size=200, optimizer=SGD(lr=1e38))
    with pytest.raises(Diverged, match="validation loss"):
        train_of(study).run_epoch()


class CountsHostReads(TorchDispatchMode):
    """Count operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_no_step_synchronizes(case: str) -> None:
    training = train_of(CASES[case]())
    with CountsHostReads() as counted:
        training.train_epoch()
    assert counted.reads == 0


def test_gradients_are_clipped() -> None:
    study = alone(epochs=1, optimizer=SGD(lr=1.0, momentum=0.0, weight_decay=0.0), clip_norm=1e-3)
    study = dataclasses.replace(study, train=dataclasses.replace(study.train, schedule=Constant()))
    training = train_of(study)
    before = weights(training.student)
    training.run_epoch()
    parameters = dict(training.student.named_parameters())
    moved = sum(float((p.detach() - before[k]).square().sum()) for k, p in parameters.items())
    steps = math.ceil(200 / 32)
    assert 0 < math.sqrt(moved) <= 1e-3 * steps * 1.01


def test_bf16_trains() -> None:
    training = finish(train_of(alone(precision="bf16", optimizer=SGD(lr=0.1))))
    assert training.history[-1]["train_loss"] < training.history[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in training.student.parameters())


def test_scheme_without_its_teacher_raises() -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        Training(taught(), digits(), seed=0)


def test_missing_layer_raises() -> None:
    term = Term(loss=LOSSES["hint"](), pairs=(Pair(hint="stage2", guided="stage9"),))
    with pytest.raises(ValueError, match="stage9"):
        train_of(taught(term))


def test_teacher_network_needs_no_option() -> None:
    study = taught(Term(loss=LOSSES["hint"]()), epochs=1)
    named = Training(study, digits(), seed=0, teacher=teacher()).run_epoch()
    study = dataclasses.replace(study, teacher=None)
    assert untimed(Training(study, digits(), seed=0, teacher=teacher()).run_epoch()) == untimed(
        named
    )


def test_trainings_leave_no_trace_on_teacher() -> None:
    """No hooks, no changed statistics, and each training is freed with its last reference."""
    network = to_device(teacher(), torch.device("cpu"))
    before, hooks = weights(network), hooks_of(network)
    gc.collect()
    gc.disable()  # nothing may be left for the collector
    try:
        for seed in range(5):
            training = train_of(rich(), seed=seed)
            training.run_epoch()
            training.run_epoch()
            references = [weakref.ref(training), weakref.ref(training.student)]
            references += [weakref.ref(p) for p in training.distiller.parameters()]
            del training
            assert all(each() is None for each in references)
    finally:
        gc.enable()
    assert_same(weights(network), before)
    assert hooks_of(network) == hooks, "no more than its layout needs"
    for module in network.modules():
        assert not module.training
    assert all(p.grad is None for p in network.parameters())


def test_terms_of_study_set_pairs() -> None:
    """Null pairs equal the loss's explicit default pairs."""
    at = LOSSES["at"]()
    default = train_of(taught(Term(loss=at), epochs=1)).run_epoch()
    stages = tuple(Pair(hint=f"stage{n}", guided=f"stage{n}") for n in (1, 2, 3))
    named = train_of(taught(Term(loss=at, pairs=stages), epochs=1)).run_epoch()
    assert untimed(default) == untimed(named)


def test_no_teacher_ignores_knowledge() -> None:
    study: Study = dataclasses.replace(taught(Term(loss=LOSSES["hint"]())), scheme=Alone())
    metrics = Training(study, digits(), seed=0).run_epoch()
    assert untimed(metrics) == untimed(train_of(alone(), seed=0).run_epoch())
