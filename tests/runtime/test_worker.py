"""A worker's seat: starts, trains, resumes and finishes what a slot asks, and answers failures."""

from __future__ import annotations

import dataclasses
import gc
import io
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training_cases import (
    SMALL,
    alone,
    digits,
    taught,
    teacher,
    teacher_model,
    train_of,
    untimed,
)
from raykd.models import Task
from raykd.runtime import worker
from raykd.runtime.channel import Command
from raykd.runtime.jobs import Assignment
from raykd.runtime.worker import Bench, Seat, describe, obey
from raykd.schemes import Teacher
from raykd.storage import Storage
from raykd.study.config import Student, Study, plain
from raykd.train_config import SGD
from raykd.training.checkpoint import dump_weights, parse_weights
from raykd.training.stored_networks import raw_samples
from raykd.training.trainer import Diverged, Training

CPU = torch.device("cpu")
TEACHER = "teachers/known.safetensors"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    storage.write(TEACHER, dump_weights(teacher()))
    return storage


@pytest.fixture
def seat(storage: Storage) -> Seat:
    return seated(storage)


def seated(storage: Storage, world: int = 1) -> Seat:
    return Seat(Bench(storage, digits(), CPU, rank=0, world=world))


def assigned(study: Study, record_id: str = "trial-0000", **fields: Any) -> Assignment:
    needs = study.scheme.needs_teacher
    return Assignment(
        **{
            "id": record_id,
            "role": "trial",
            "study": plain(study),
            "seed": study.seed,
            "epochs": study.train.epochs,
            "folder": "small",
            "teachers": (TEACHER,) if needs else (),
            **fields,
        }
    )


def ordered(seat: Seat, verb: Any, assignment: Assignment | None = None) -> dict[str, Any]:
    """What the seat answers to a command."""
    return obey(seat, Command(1, verb, assignment.plain() if assignment else {}))


def run(seat: Seat, assignment: Assignment) -> list[dict[str, Any]]:
    """The answers to `start` and to every `epoch` until it is done."""
    answers = [ordered(seat, "start", assignment)]
    while not answers[-1].get("done") and not answers[-1].get("failed"):
        answers.append(ordered(seat, "epoch"))
    return answers


def under_way(seat: Seat) -> Training:
    assert seat.training is not None
    return seat.training


# Training


@pytest.mark.parametrize("study", [alone(), taught()], ids=["alone", "taught"])
def test_a_seat_trains_as_the_loop_does(study: Study, seat: Seat) -> None:
    begun, *epochs = run(seat, assigned(study))
    assert begun == {"epoch": 0, "history": []}
    assert [(e["epoch"], e["done"]) for e in epochs] == [(1, False), (2, True)]
    training = train_of(study, seed=study.seed)
    expected = [untimed(training.run_epoch()) for _ in range(2)]
    assert [untimed(e["metrics"]) for e in epochs] == expected
    assert all(e["clock"]["first_step"] <= e["clock"]["end"] for e in epochs)


def test_trials_one_after_the_other_do_not_touch_one_another(seat: Seat, storage: Storage) -> None:
    other = dataclasses.replace(alone(optimizer=SGD(lr=0.5)), seed=3)
    run(seat, assigned(other, "trial-0000"))
    second = run(seat, assigned(taught(), "trial-0001"))
    fresh = run(seated(Storage(storage.root + "/elsewhere")), assigned(alone(), "trial-0001"))
    assert fresh[-1]["done"]
    assert [untimed(e["metrics"]) for e in second[1:]] == [
        untimed(e["metrics"]) for e in run(seated(storage), assigned(taught(), "again"))[1:]
    ]


def test_test_data_are_looked_at_only_when_asked(seat: Seat) -> None:
    answers = run(seat, assigned(alone(), test=False))
    assert not any(name.startswith("test") for a in answers[1:] for name in a["metrics"])
    answers = run(seat, assigned(alone(), "trial-0001", test=True))
    assert "test_accuracy" not in answers[1]["metrics"], "not before the last epoch"
    assert {"test_loss", "test_accuracy"} <= answers[2]["metrics"].keys()


def test_the_teacher_is_loaded_once(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Storage.read
    monkeypatch.setattr(Storage, "read", lambda s, n: (read.append(n), whole(s, n))[1])
    for number in range(3):
        ordered(seat, "start", assigned(taught(), f"trial-{number:04d}"))
    assert read.count(TEACHER) == 1


def test_only_a_training_that_all_wait_for_takes_all_threads(seat: Seat) -> None:
    before = torch.get_num_threads()
    seat = Seat(dataclasses.replace(seat.bench, threads=1, sole_threads=2))
    try:
        taken = []
        for number, sole in enumerate((True, False)):
            ordered(seat, "start", assigned(alone(), f"trial-{number:04d}", sole=sole))
            taken.append(torch.get_num_threads())
        assert taken == [2, 1]
    finally:
        torch.set_num_threads(before)


def test_a_new_training_lets_go_of_the_last(seat: Seat) -> None:
    ordered(seat, "start", assigned(taught()))
    ordered(seat, "epoch")
    last = weakref.ref(under_way(seat))
    ordered(seat, "start", assigned(taught(), "trial-0001"))
    assert last() is None
    present = weakref.ref(under_way(seat))
    assert ordered(seat, "stop") == {}
    assert present() is None and seat.training is None and seat.assignment is None


# Resuming


def test_a_training_goes_on_in_another_process(storage: Storage) -> None:
    study = taught(epochs=4)
    whole = run(seated(storage), assigned(study, "whole"))
    first = seated(storage)
    ordered(first, "start", assigned(study))
    before = [ordered(first, "epoch")["metrics"] for _ in range(2)]
    begun, *after = run(seated(storage), assigned(study))  # the first seat's process was killed
    assert begun["epoch"] == 2
    assert begun["history"] == before
    assert [e["epoch"] for e in after] == [3, 4]
    assert [untimed(m) for m in [*before, *(e["metrics"] for e in after)]] == [
        untimed(e["metrics"]) for e in whole[1:]
    ]


def test_an_epoch_that_was_saved_but_not_answered_is_not_trained_again(storage: Storage) -> None:
    study = alone(epochs=2)
    first = seated(storage)
    ordered(first, "start", assigned(study, test=True))
    done = [ordered(first, "epoch") for _ in range(2)]
    again = seated(storage)
    begun = ordered(again, "start", assigned(study, test=True))
    assert begun["epoch"] == 2 and len(begun["history"]) == 2
    answer = ordered(again, "epoch")
    assert answer["done"] and answer["epoch"] == 2
    assert answer["metrics"] == done[1]["metrics"], "to the second: nothing was trained"


def test_a_state_of_another_training_is_a_failure(storage: Storage) -> None:
    run(seated(storage), assigned(alone()))
    other = assigned(dataclasses.replace(alone(), seed=5), seed=5)
    answer = ordered(seated(storage), "start", other)
    assert answer["failed"] and "seed" in answer["reason"]


def test_a_state_that_cannot_be_read_is_a_failure(storage: Storage) -> None:
    assignment = assigned(alone())
    storage.write(assignment.state_file, b"half a st")
    answer = ordered(seated(storage), "start", assignment)
    assert answer["failed"] and answer["reason"]


# What is kept


def test_a_kept_network_reaches_what_was_reported(seat: Seat, storage: Storage) -> None:
    keep = "small/students/trial-0000.seed-1.pt"
    last = run(seat, assigned(alone(), test=True, keep=keep))[-1]
    content = storage.read(keep)
    assert content is not None
    network = torch.load(io.BytesIO(content), weights_only=False)
    assert not network.training
    data = digits()
    raw = raw_samples(data, torch.arange(len(data.test)))
    hits = (network(raw).argmax(1) == data.test.targets).double().mean().item()
    assert hits == pytest.approx(last["metrics"]["test_accuracy"], abs=1e-12)
    assert network.metrics["test_accuracy"] == last["metrics"]["test_accuracy"]


def test_a_kept_teacher_can_teach(seat: Seat, storage: Storage) -> None:
    keep = "teachers/new.safetensors"
    run(seat, assigned(alone(), "teacher-0", role="teacher", keep=keep))
    content = storage.read(keep)
    assert content is not None
    network = SMALL.build(Task(input_shape=(1, 8, 8), classes=10))
    parse_weights(network, content)
    study = dataclasses.replace(taught(), teacher=Teacher(model=SMALL))
    answers = run(seat, assigned(study, teachers=(keep,)))
    assert answers[-1]["done"]
    loaded = seat._teachers[keep].state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_teacher_that_is_there_is_measured(suffix: str, seat: Seat, storage: Storage) -> None:
    file = f"teachers/given.{suffix}"
    buffer = io.BytesIO()
    torch.save(teacher(), buffer)
    weights = {"safetensors": dump_weights(teacher()), "pt": buffer.getvalue()}
    storage.write(file, weights[suffix])
    study = dataclasses.replace(alone(), student=Student(model=teacher_model()))
    measured = assigned(study, "teacher-0", role="teacher", epochs=0, measures=file)
    begun, answer = run(seat, measured)
    assert begun == {"epoch": 0, "history": []}
    assert answer["done"] and answer["epoch"] == 0
    training = Training(alone(), digits(), seed=0)
    training.distiller.student = teacher()
    assert answer["metrics"] == training.evaluate("val") | training.evaluate("test")


# Failures


def breaking(error: Exception) -> Any:
    def run_epoch(training: Training) -> dict[str, float]:
        raise error

    return run_epoch


def test_an_exception_is_the_answer_and_the_seat_is_free_again(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered(seat, "start", assigned(alone()))
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run_epoch", breaking(KeyError("stage9")))
        answer = ordered(seat, "epoch")
    assert answer["failed"] and answer["reason"] == "KeyError: 'stage9'"
    assert "run_epoch" in answer["traceback"]
    assert run(seat, assigned(alone(), "trial-0001"))[-1]["done"]


def test_a_failed_training_is_let_go(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered(seat, "start", assigned(alone()))
    gone = weakref.ref(under_way(seat))
    collect, collected = gc.collect, list[bool]()

    def fail(_: Training) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    def watched() -> int:
        found = collect()
        collected.append(gone() is None)
        return found

    monkeypatch.setattr(gc, "collect", watched)
    monkeypatch.setattr(Training, "run_epoch", fail)
    ordered(seat, "epoch")
    assert collected == [True], "it has gone by the time that the cache is emptied"


def test_a_training_that_diverges_says_where(seat: Seat) -> None:
    *_, answer = run(seat, assigned(alone(optimizer=SGD(lr=1e12))))
    assert answer["failed"]
    assert answer["reason"].startswith("diverged in epoch 1: ")
    assert "learning rate" in answer["reason"]
    assert run(seat, assigned(alone(), "trial-0001"))[-1]["done"]


def test_running_out_of_memory_is_said_as_torch_says_it(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free."
    ordered(seat, "start", assigned(alone()))
    monkeypatch.setattr(Training, "run_epoch", breaking(torch.OutOfMemoryError(text)))
    answer = ordered(seat, "epoch")
    assert answer["reason"] == text.replace("\n", " ")


def test_a_study_that_cannot_be_read_is_a_failure(seat: Seat) -> None:
    broken = {**plain(alone()), "train": {"epochs": -1}}
    assignment = dataclasses.replace(assigned(alone()), study=broken)
    answer = ordered(seat, "start", assignment)
    assert answer["failed"] and "epochs" in answer["reason"] and "\n" not in answer["reason"]


def test_a_teacher_that_is_not_there_is_a_failure(seat: Seat) -> None:
    answer = ordered(seat, "start", assigned(taught(), teachers=("teachers/lost.safetensors",)))
    assert answer["failed"]
    assert "teachers/lost.safetensors" in answer["reason"]
    assert "every node must reach" in answer["reason"]


def test_an_epoch_without_a_start_is_a_failure(seat: Seat) -> None:
    assert "epoch before start" in ordered(seat, "epoch")["reason"]


def test_a_gpu_that_cannot_be_used_any_more_takes_the_group_down(
    seat: Seat, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignment = assigned(alone())
    ordered(seat, "start", assignment)
    error = RuntimeError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(Training, "run_epoch", breaking(error))
    with pytest.raises(RuntimeError, match="device-side"):
        ordered(seat, "epoch")
    reason = storage.read(assignment.failure_file)
    assert reason is not None
    said, place = reason.decode().split("\n")
    assert said == "RuntimeError: CUDA error: device-side assert triggered"
    assert place.startswith(f"{__file__}:")


@pytest.mark.parametrize("verb", ["start", "epoch"])
def test_with_several_ranks_a_failure_of_one_takes_the_group_down(
    verb: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are in a collective that it will never reach."""
    seat, assignment = seated(storage, world=2), assigned(alone())
    seat.assignment = assignment if verb == "epoch" else None

    def fail(*_: Any) -> Any:
        raise ValueError("no such layer")

    monkeypatch.setattr(Seat, verb, fail)
    with pytest.raises(ValueError, match="no such layer"):
        ordered(seat, verb, assignment)
    written = storage.read(assignment.failure_file)
    assert written is not None and written.startswith(b"ValueError: no such layer\n")
    log = storage.read(assignment.log_file())
    if verb == "start":
        assert log is not None and b"in fail\n" in log


def test_with_several_ranks_what_all_see_alike_is_answered(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, assignment = seated(storage, world=2), assigned(alone())

    def diverge(_: Any) -> Any:
        raise Diverged(2, "the loss")

    monkeypatch.setattr(Seat, "epoch", diverge)
    assert ordered(seat, "epoch", assignment)["reason"].startswith("diverged in epoch 2")
    assert storage.read(assignment.failure_file) is None


def test_an_interrupt_is_no_failure_of_the_trial(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered(seat, "start", assigned(alone()))

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ordered(seat, "epoch")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("stage9 is no layer"), "stage9 is no layer"),
        (ValueError(), "ValueError"),
        (RuntimeError("boom\n  at line 3"), "RuntimeError: boom at line 3"),
        (Diverged(1, "x"), str(Diverged(1, "x"))),
        (ZeroDivisionError(), "ZeroDivisionError:"),
    ],
)
def test_reasons_are_one_line(error: Exception, reason: str) -> None:
    assert describe(error)["reason"] == reason


# Commands


class Mute:
    """A mailbox whose slot is gone, or says nothing."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def next(self, timeout: float) -> Command | None:
        assert 0 < timeout <= 60
        if self.error:
            raise self.error
        return None


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_when_the_slot_is_gone_the_worker_leaves(error: Exception) -> None:
    command = worker._next_command(Mute(error), None)  # type: ignore[arg-type]
    assert command is not None and command.verb == "exit"


def test_without_a_command_the_worker_waits_on() -> None:
    assert worker._next_command(Mute(), None) is None  # type: ignore[arg-type]
