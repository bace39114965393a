"""Workers of a slot: jobs are started, trained, resumed and finished; failures are outcomes."""

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
from raykd.data import Placement
from raykd.models import Task
from raykd.runtime import worker as worker_module
from raykd.runtime.channel import ContinueJob, Exit, Request, StartJob
from raykd.runtime.jobs import EvaluateJob, IdleJob, JobFailure, Report, TrainJob
from raykd.runtime.worker import Worker, WorkerContext, failure_of
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
def worker(storage: Storage) -> Worker:
    return worker_of(storage)


def worker_of(storage: Storage, world: int = 1) -> Worker:
    return Worker(WorkerContext(storage, digits(), Placement(CPU, 0, world)))


def job_of(study: Study, record_id: str = "trial-0000", **fields: Any) -> TrainJob:
    needs = study.scheme.needs_teacher
    return TrainJob(
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


def start(worker: Worker, job: TrainJob) -> Report:
    """Start a job; it is trained for one epoch."""
    outcome = worker.handle(StartJob(job))
    assert isinstance(outcome, Report), outcome
    return outcome


def proceed(worker: Worker) -> Report:
    """Train one more epoch."""
    outcome = worker.handle(ContinueJob())
    assert isinstance(outcome, Report), outcome
    return outcome


def failure(outcome: Report | JobFailure) -> JobFailure:
    assert isinstance(outcome, JobFailure), outcome
    return outcome


def run(worker: Worker, job: TrainJob | EvaluateJob) -> list[Report]:
    """Run a whole job that does not fail."""
    outcomes = list(worker.outcomes(job))
    assert all(isinstance(outcome, Report) for outcome in outcomes), outcomes[-1]
    return outcomes  # type: ignore[return-value]


def present_training(worker: Worker) -> Training:
    assert worker.training is not None
    return worker.training


# Training


@pytest.mark.parametrize("study", [alone(), taught()], ids=["alone", "taught"])
def test_a_worker_trains_as_the_loop_does(study: Study, worker: Worker) -> None:
    epochs = run(worker, job_of(study))
    assert [(e.epoch, e.done, e.history) for e in epochs] == [(1, False, ()), (2, True, ())]
    training = train_of(study, seed=study.seed)
    expected = [untimed(training.run_epoch()) for _ in range(2)]
    assert [untimed(e.metrics) for e in epochs] == expected
    assert all(e.clock and e.clock.first_step <= e.clock.end for e in epochs)


def test_trials_in_sequence_do_not_touch_one_another(worker: Worker, storage: Storage) -> None:
    other = dataclasses.replace(alone(optimizer=SGD(lr=0.5)), seed=3)
    run(worker, job_of(other, "trial-0000"))
    second = run(worker, job_of(taught(), "trial-0001"))
    fresh = run(worker_of(Storage(storage.root + "/elsewhere")), job_of(alone(), "trial-0001"))
    assert fresh[-1].done
    assert [untimed(e.metrics) for e in second] == [
        untimed(e.metrics) for e in run(worker_of(storage), job_of(taught(), "again"))
    ]


def test_test_data_are_looked_at_only_when_asked(worker: Worker) -> None:
    epochs = run(worker, job_of(alone(), test=False))
    assert not any(name.startswith("test") for e in epochs for name in e.metrics)
    epochs = run(worker, job_of(alone(), "trial-0001", test=True))
    assert "test_accuracy" not in epochs[0].metrics, "not before the last epoch"
    assert {"test_loss", "test_accuracy"} <= epochs[1].metrics.keys()


def test_the_teacher_is_loaded_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Storage.read
    monkeypatch.setattr(Storage, "read", lambda s, n: (read.append(n), whole(s, n))[1])
    for number in range(3):
        start(worker, job_of(taught(), f"trial-{number:04d}"))
    assert read.count(TEACHER) == 1


def test_only_a_training_that_all_wait_for_takes_all_threads(worker: Worker) -> None:
    before = torch.get_num_threads()
    context = dataclasses.replace(worker.context, threads=1, exclusive_threads=2)
    worker = Worker(context)
    try:
        counts = []
        for number, exclusive in enumerate((True, False)):
            start(worker, job_of(alone(), f"trial-{number:04d}", exclusive=exclusive))
            counts.append(torch.get_num_threads())
        assert counts == [2, 1]
    finally:
        torch.set_num_threads(before)


def test_a_new_training_lets_go_of_the_last(worker: Worker) -> None:
    start(worker, job_of(taught()))
    proceed(worker)
    last = weakref.ref(present_training(worker))
    start(worker, job_of(taught(), "trial-0001"))
    assert last() is None
    present = weakref.ref(present_training(worker))
    worker.stop()
    assert present() is None and worker.training is None and worker.job is None


# Resuming


def test_a_training_goes_on_in_another_process(storage: Storage) -> None:
    study = taught(epochs=4)
    whole = run(worker_of(storage), job_of(study, "whole"))
    first = worker_of(storage)
    before = [start(first, job_of(study)).metrics, proceed(first).metrics]
    after = run(worker_of(storage), job_of(study))  # the first worker's process was killed
    assert [e.epoch for e in after] == [3, 4]
    assert [list(e.history) for e in after] == [before, []]
    assert [untimed(m) for m in [*before, *(e.metrics for e in after)]] == [
        untimed(e.metrics) for e in whole
    ]


def test_an_epoch_that_was_saved_but_not_answered_is_not_trained_again(storage: Storage) -> None:
    study = alone(epochs=2)
    *_, last = run(worker_of(storage), job_of(study, test=True))
    report = start(worker_of(storage), job_of(study, test=True))
    assert report.done and report.epoch == 2 and len(report.history) == 2
    assert report.metrics == last.metrics, "to the second: nothing was trained"


def test_a_state_of_another_training_is_a_failure(storage: Storage) -> None:
    run(worker_of(storage), job_of(alone()))
    other = job_of(dataclasses.replace(alone(), seed=5), seed=5)
    assert "seed" in failure(worker_of(storage).handle(StartJob(other))).reason


def test_a_state_that_cannot_be_read_is_a_failure(storage: Storage) -> None:
    job = job_of(alone())
    storage.write(job.state_file, b"half a st")
    assert failure(worker_of(storage).handle(StartJob(job))).reason


# What is kept


def test_a_kept_network_reaches_what_was_reported(worker: Worker, storage: Storage) -> None:
    keep = "small/students/trial-0000.seed-1.pt"
    last = run(worker, job_of(alone(), test=True, keep=keep))[-1]
    content = storage.read(keep)
    assert content is not None
    network = torch.load(io.BytesIO(content), weights_only=False)
    assert not network.training
    data = digits()
    raw = raw_samples(data, torch.arange(len(data.test)))
    hits = (network(raw).argmax(1) == data.test.targets).double().mean().item()
    assert hits == pytest.approx(last.metrics["test_accuracy"], abs=1e-12)
    assert network.metrics["test_accuracy"] == last.metrics["test_accuracy"]


def test_a_kept_teacher_can_teach(worker: Worker, storage: Storage) -> None:
    keep = "teachers/new.safetensors"
    run(worker, job_of(alone(), "teacher-0", role="teacher", keep=keep))
    content = storage.read(keep)
    assert content is not None
    network = SMALL.build(Task(input_shape=(1, 8, 8), classes=10))
    parse_weights(network, content)
    study = dataclasses.replace(taught(), teacher=Teacher(model=SMALL))
    answers = run(worker, job_of(study, teachers=(keep,)))
    assert answers[-1].done
    loaded = worker._teachers[keep].state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_teacher_that_is_there_is_measured(suffix: str, worker: Worker, storage: Storage) -> None:
    file = f"teachers/given.{suffix}"
    buffer = io.BytesIO()
    torch.save(teacher(), buffer)
    weights = {"safetensors": dump_weights(teacher()), "pt": buffer.getvalue()}
    storage.write(file, weights[suffix])
    study = dataclasses.replace(alone(), student=Student(model=teacher_model()))
    [answer] = run(
        worker,
        EvaluateJob("teacher-0", "teacher", plain(study), study.seed, weights_file=file),
    )
    assert answer.done and answer.epoch == 0 and answer.history == ()
    training = Training(alone(), digits(), seed=0)
    training.distiller.student = teacher()
    assert answer.metrics == training.evaluate("val") | training.evaluate("test")


# Failures


def breaking(error: Exception) -> Any:
    def run_epoch(training: Training) -> dict[str, float]:
        raise error

    return run_epoch


def test_an_exception_is_the_answer_and_the_seat_is_free_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(worker, job_of(alone()))
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run_epoch", breaking(KeyError("stage9")))
        failed = failure(worker.handle(ContinueJob()))
    assert failed.reason == "KeyError: 'stage9'"
    assert "run_epoch" in failed.traceback
    assert run(worker, job_of(alone(), "trial-0001"))[-1].done


def test_a_failed_training_is_let_go(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    start(worker, job_of(alone()))
    reference = weakref.ref(present_training(worker))
    collect, collected = gc.collect, list[bool]()

    def fail(_: Training) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    def watched() -> int:
        result = collect()
        collected.append(reference() is None)
        return result

    monkeypatch.setattr(gc, "collect", watched)
    monkeypatch.setattr(Training, "run_epoch", fail)
    failure(worker.handle(ContinueJob()))
    assert collected == [True], "it has gone by the time that the cache is emptied"


def test_a_training_that_diverges_says_where(worker: Worker) -> None:
    reason = failure(worker.handle(StartJob(job_of(alone(optimizer=SGD(lr=1e12)))))).reason
    assert reason.startswith("diverged in epoch 1: ")
    assert "learning rate" in reason
    assert run(worker, job_of(alone(), "trial-0001"))[-1].done


def test_running_out_of_memory_is_said_as_torch_says_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00 GiB free."
    start(worker, job_of(alone()))
    monkeypatch.setattr(Training, "run_epoch", breaking(torch.OutOfMemoryError(text)))
    assert failure(worker.handle(ContinueJob())).reason == text.replace("\n", " ")


def test_a_study_that_cannot_be_read_is_a_failure(worker: Worker) -> None:
    broken = {**plain(alone()), "train": {"epochs": -1}}
    job = dataclasses.replace(job_of(alone()), study=broken)
    reason = failure(worker.handle(StartJob(job))).reason
    assert "epochs" in reason and "\n" not in reason


def test_a_teacher_that_is_not_there_is_a_failure(worker: Worker) -> None:
    lost = job_of(taught(), teachers=("teachers/lost.safetensors",))
    reason = failure(worker.handle(StartJob(lost))).reason
    assert "teachers/lost.safetensors" in reason
    assert "every node must reach" in reason


def test_an_idle_job_is_no_work_of_a_worker(worker: Worker) -> None:
    with pytest.raises(ValueError, match="needs no worker"):
        worker.handle(StartJob(IdleJob("wait-1")))


def test_a_gpu_that_cannot_be_used_any_more_takes_the_group_down(
    worker: Worker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(alone())
    start(worker, job)
    error = RuntimeError("CUDA error: device-side assert triggered")
    monkeypatch.setattr(Training, "run_epoch", breaking(error))
    with pytest.raises(RuntimeError, match="device-side"):
        proceed(worker)
    reason = storage.read(job.failure_file)
    assert reason is not None
    text, place = reason.decode().split("\n")
    assert text == "RuntimeError: CUDA error: device-side assert triggered"
    assert place.startswith(f"{__file__}:")


def test_with_several_ranks_a_failure_of_one_takes_the_group_down(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are in a collective that it will never reach."""
    worker, job = worker_of(storage, world=2), job_of(alone())

    def fail(*_: Any) -> Any:
        raise ValueError("no such layer")
        yield

    monkeypatch.setattr(Worker, "_train", fail)
    with pytest.raises(ValueError, match="no such layer"):
        worker.handle(StartJob(job))
    written = storage.read(job.failure_file)
    assert written is not None and written.startswith(b"ValueError: no such layer\n")
    log = storage.read(job.log_file())
    assert log is not None and b"in fail\n" in log


def test_with_several_ranks_a_failure_that_all_see_is_an_outcome(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, job = worker_of(storage, world=2), job_of(alone())

    def diverge(*_: Any) -> Any:
        raise Diverged(2, "the loss")
        yield

    monkeypatch.setattr(Worker, "_train", diverge)
    assert failure(worker.handle(StartJob(job))).reason.startswith("diverged in epoch 2")
    assert storage.read(job.failure_file) is None


def test_an_interrupt_is_no_failure_of_the_trial(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(worker, job_of(alone()))

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        proceed(worker)


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
    assert failure_of(error).reason == reason


# Requests


class Mute:
    """A channel's client whose slot is gone, or silent."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def receive(self, timeout: float) -> Request | None:
        assert 0 < timeout <= 60
        if self.error:
            raise self.error
        return None


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_when_the_slot_is_gone_the_worker_leaves(error: Exception) -> None:
    request = worker_module._next_request(Mute(error), None)  # type: ignore[arg-type]
    assert request is not None and request.action == Exit()


def test_without_a_request_the_worker_waits_on() -> None:
    assert worker_module._next_request(Mute(), None) is None  # type: ignore[arg-type]
