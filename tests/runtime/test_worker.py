"""Workers of a slot: jobs are started, trained, resumed and finished; failures are outcomes."""

from __future__ import annotations

import dataclasses
import gc
import io
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from helpers import hung_ranks
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
from raykd.models import Signature
from raykd.runtime import worker as worker_module
from raykd.runtime.channel import ContinueJob, Exit, Request, StartJob
from raykd.runtime.jobs import OUT_OF_MEMORY, EvaluateJob, IdleJob, JobFailure, Report, TrainJob
from raykd.runtime.worker import Worker, WorkerContext, failure_of
from raykd.schemes import Teacher
from raykd.storage import Storage
from raykd.study.config import Student, Study, plain
from raykd.train_config import SGD
from raykd.training.checkpoint import dump_weights, parse_weights
from raykd.training.state_file import TrainingState, parse_state
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


_workers: list[Worker] = []


@pytest.fixture(autouse=True)
def close_logs() -> Iterator[None]:
    """Close the logs of the test's workers."""
    yield
    while _workers:
        _workers.pop().stop()


def worker_of(storage: Storage, world: int = 1) -> Worker:
    _workers.append(Worker(WorkerContext(storage, digits(), Placement(CPU, 0, world))))
    return _workers[-1]


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
def test_worker_training_equals_loop(study: Study, worker: Worker) -> None:
    epochs = run(worker, job_of(study))
    assert [(e.epoch, e.done, e.history) for e in epochs] == [(1, False, ()), (2, True, ())]
    training = train_of(study, seed=study.seed)
    expected = [untimed(training.run_epoch()) for _ in range(2)]
    assert [untimed(e.metrics) for e in epochs] == expected
    assert all(e.clock and e.clock.first_step <= e.clock.end for e in epochs)


def test_consecutive_trials_are_independent(worker: Worker, storage: Storage) -> None:
    other = dataclasses.replace(alone(optimizer=SGD(lr=0.5)), seed=3)
    run(worker, job_of(other, "trial-0000"))
    second = run(worker, job_of(taught(), "trial-0001"))
    fresh = run(worker_of(Storage(storage.root + "/elsewhere")), job_of(alone(), "trial-0001"))
    assert fresh[-1].done
    assert [untimed(e.metrics) for e in second] == [
        untimed(e.metrics) for e in run(worker_of(storage), job_of(taught(), "again"))
    ]


def test_test_data_are_used_only_on_request(worker: Worker) -> None:
    epochs = run(worker, job_of(alone(), test=False))
    assert not any(name.startswith("test") for e in epochs for name in e.metrics)
    epochs = run(worker, job_of(alone(), "trial-0001", test=True))
    assert "test_accuracy" not in epochs[0].metrics, "not before the last epoch"
    assert {"test_loss", "test_accuracy"} <= epochs[1].metrics.keys()


def test_teacher_is_loaded_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Storage.read
    monkeypatch.setattr(Storage, "read", lambda s, n: (read.append(n), whole(s, n))[1])
    for number in range(3):
        start(worker, job_of(taught(), f"trial-{number:04d}"))
    assert read.count(TEACHER) == 1


def test_only_exclusive_trainings_use_all_threads(worker: Worker) -> None:
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


def test_new_training_frees_last(worker: Worker) -> None:
    start(worker, job_of(taught()))
    proceed(worker)
    last = weakref.ref(present_training(worker))
    start(worker, job_of(taught(), "trial-0001"))
    assert last() is None
    present = weakref.ref(present_training(worker))
    worker.stop()
    assert present() is None and worker.training is None and worker.job is None


# Resuming


def test_training_resumes_in_another_process(storage: Storage) -> None:
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


def test_saved_epoch_without_answer_is_not_repeated(storage: Storage) -> None:
    study = alone(epochs=2)
    *_, last = run(worker_of(storage), job_of(study, test=True))
    report = start(worker_of(storage), job_of(study, test=True))
    assert report.done and report.epoch == 2 and len(report.history) == 2
    assert report.metrics == last.metrics, "to the second: nothing was trained"


def remove_states(storage: Storage, *jobs: TrainJob) -> None:
    for file in (file for job in jobs for file in job.state_files):
        storage.remove(file)


def damage(content: bytes, kind: str) -> bytes:
    flipped = bytearray(content)
    flipped[-len(content) // 3] ^= 1
    return {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "flipped": bytes(flipped),
        "garbage": b"half a state",
        "longer": content + b"x",
        "pickle": b"\x80\x04cposix\nsystem\n(S'false'\ntR.",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "cut", "flipped", "garbage", "longer", "pickle"])
@pytest.mark.parametrize("count", [1, 2])
def test_damaged_state_is_replaced_by_one_before(storage: Storage, kind: str, count: int) -> None:
    study = alone(epochs=4)
    whole = run(worker_of(storage), job_of(study))
    remove_states(storage, job_of(study))
    worker = worker_of(storage)
    before = [start(worker, job_of(study)), *(proceed(worker) for _ in "ab")]
    assert [each.epoch for each in before] == [1, 2, 3]
    _, last = job_of(study).state_files  # epoch 3 is odd
    for file in job_of(study).state_files[2 - count :]:
        content = storage.read(file)
        assert content is not None
        storage.write(file, damage(content, kind))
    after = run(worker_of(storage), job_of(study))
    assert [e.epoch for e in after] == ([3, 4] if count == 1 else [1, 2, 3, 4])
    warnings = " ".join(after[0].warnings)
    assert last in warnings and ("is empty" if kind == "empty" else "is damaged") in warnings
    assert warnings.endswith("continues after epoch 2" if count == 1 else "starts over")
    assert not any(each.warnings for each in after[1:])
    figures = [untimed(m) for m in [*after[0].history, *(e.metrics for e in after)]]
    assert figures == [untimed(e.metrics) for e in whole], "as if never interrupted"


def test_state_of_another_training_is_not_used(storage: Storage) -> None:
    """Another seed, another trial, another study: each starts over and says why."""
    study = alone(epochs=2)
    reference = run(worker_of(storage), job_of(study, "trial-0001"))
    other_study = dataclasses.replace(study, train=dataclasses.replace(study.train, batch_size=16))
    for other in (
        job_of(study, "trial-0000"),
        job_of(study, "trial-0001", seed=5),
        job_of(other_study, "trial-0001"),
    ):
        ours = job_of(study, "trial-0001")
        remove_states(storage, ours, other)
        start(worker_of(storage), other)
        content = storage.read(other.state_files[1])
        assert content is not None
        storage.write(ours.state_files[1], content)
        after = run(worker_of(storage), ours)
        assert "belongs to another training; the training starts over" in after[0].warnings[0]
        assert [untimed(e.metrics) for e in after] == [untimed(e.metrics) for e in reference]


def test_state_that_does_not_fit_is_not_used(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that changed a network: no part of it stays in the new weights."""
    study = alone(epochs=3)
    reference = run(worker_of(storage), job_of(study))
    remove_states(storage, job_of(study))
    worker = worker_of(storage)
    start(worker, job_of(study))
    proceed(worker)
    load = Training.load_state

    def refuse_the_last(self: Training, state: TrainingState) -> None:
        load(self, state)
        if state["epoch"] == 2:
            raise ValueError("the saved state is of another study")

    monkeypatch.setattr(Training, "load_state", refuse_the_last)
    after = run(worker_of(storage), job_of(study))
    assert "after epoch 2: the saved state is of another study" in after[0].warnings[0]
    assert after[0].warnings[0].endswith("continues after epoch 1")
    assert [untimed(e.metrics) for e in after] == [untimed(e.metrics) for e in reference[1:]]


def test_last_two_states_are_kept(storage: Storage) -> None:
    job = job_of(alone(epochs=4))
    worker = worker_of(storage)
    start(worker, job)
    files = set(storage.files("small/states"))
    for _ in range(3):
        proceed(worker)
        contents = [storage.read(file) or b"" for file in job.state_files]
        states = [parse_state(content, job.identity) for content in contents]
        assert {state["epoch"] for state in states} in ({1, 2}, {2, 3}, {3, 4})
    assert len(files) == 1 and len(storage.files("small/states")) == 2, "no draft is left"


# What is kept


def test_saved_network_has_reported_metrics(worker: Worker, storage: Storage) -> None:
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


def test_saved_teacher_can_teach(worker: Worker, storage: Storage) -> None:
    keep = "teachers/new.safetensors"
    run(worker, job_of(alone(), "teacher-0", role="teacher", keep=keep))
    content = storage.read(keep)
    assert content is not None
    network = SMALL.build(Signature(input_shape=(1, 8, 8), classes=10))
    parse_weights(network, content)
    study = dataclasses.replace(taught(), teacher=Teacher(model=SMALL))
    answers = run(worker, job_of(study, teachers=(keep,)))
    assert answers[-1].done
    loaded = worker._teachers[keep].state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in network.state_dict().items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_existing_teacher_is_evaluated(suffix: str, worker: Worker, storage: Storage) -> None:
    file = f"teachers/given.{suffix}"
    buffer = io.BytesIO()
    torch.save(teacher(), buffer)
    weights = {"safetensors": dump_weights(teacher()), "pt": buffer.getvalue()}
    storage.write(file, weights[suffix])
    study = dataclasses.replace(alone(), student=Student(model=teacher_model()))
    worker.context = dataclasses.replace(worker.context, allow_code=True)  # a teacher of MLflow
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


def test_exception_is_reported_and_worker_is_free_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(worker, job_of(alone()))
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run_epoch", breaking(KeyError("stage9")))
        failed = failure(worker.handle(ContinueJob()))
    assert failed.reason == "KeyError: 'stage9'"
    assert "run_epoch" in failed.traceback
    assert run(worker, job_of(alone(), "trial-0001"))[-1].done


def test_failed_training_is_freed(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_divergence_is_reported_with_its_place(worker: Worker) -> None:
    reason = failure(worker.handle(StartJob(job_of(alone(optimizer=SGD(lr=1e12)))))).reason
    assert reason.startswith("diverged in epoch 1: ")
    assert "learning rate" in reason
    assert run(worker, job_of(alone(), "trial-0001"))[-1].done


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1.00."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        MemoryError(),
    ],
)
def test_every_lack_of_memory_has_same_beginning(
    error: Exception, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(worker, job_of(alone()))
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run_epoch", breaking(error))
        reason = failure(worker.handle(ContinueJob())).reason
    assert reason == f"{OUT_OF_MEMORY}: {str(error) or 'MemoryError'}".replace("\n", " ")
    assert run(worker, job_of(alone(), "trial-0001"))[-1].done


def test_unreadable_study_fails(worker: Worker) -> None:
    broken = {**plain(alone()), "train": {"epochs": -1}}
    job = dataclasses.replace(job_of(alone()), study=broken)
    reason = failure(worker.handle(StartJob(job))).reason
    assert "epochs" in reason and "\n" not in reason


def test_missing_teacher_fails(worker: Worker) -> None:
    lost = job_of(taught(), teachers=("teachers/lost.safetensors",))
    reason = failure(worker.handle(StartJob(lost))).reason
    assert "teachers/lost.safetensors" in reason
    assert "every node must reach" in reason


def test_idle_job_is_rejected(worker: Worker) -> None:
    with pytest.raises(ValueError, match="needs no worker"):
        worker.handle(StartJob(IdleJob("wait-1")))


def test_unusable_gpu_ends_group(
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


def test_failure_of_one_rank_ends_group(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks wait in a collective that it never reaches."""
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


def test_failure_on_all_ranks_is_outcome(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, job = worker_of(storage, world=2), job_of(alone())

    def diverge(*_: Any) -> Any:
        raise Diverged(2, "the loss")
        yield

    monkeypatch.setattr(Worker, "_train", diverge)
    assert failure(worker.handle(StartJob(job))).reason.startswith("diverged in epoch 2")
    assert storage.read(job.failure_file) is None


def test_interrupt_is_not_failure_of_trial(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_reasons_are_single_lines(error: Exception, reason: str) -> None:
    assert failure_of(error).reason == reason


# Requests


class Mute:
    """Client of a channel whose slot is gone or silent."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def receive(self, timeout: float) -> Request | None:
        assert 0 < timeout <= 60
        if self.error:
            raise self.error
        return None


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_worker_exits_if_slot_is_gone(error: Exception) -> None:
    request = worker_module._next_request(Mute(error), None)  # type: ignore[arg-type]
    assert request is not None and request.action == Exit()


def test_worker_keeps_waiting_without_request() -> None:
    assert worker_module._next_request(Mute(), None) is None  # type: ignore[arg-type]


@pytest.mark.slow
def test_hanging_rank_is_named(tmp_path: Path) -> None:
    spawn(hung_ranks.run, args=(str(tmp_path),), nprocs=hung_ranks.WORLD)
    for rank in hung_ranks.HANGING:
        saved = (tmp_path / hung_ranks.job_of(rank).failure_file).read_text()
        assert saved == f"rank {rank} of 3 hung: the other ranks waited for it"


@pytest.mark.parametrize(
    ("error", "saved"),
    [
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:3", False),
        ("NCCL error: remote process exited", False),
        ("the sizes do not match", True),
    ],
)
def test_only_reason_of_rank_is_saved(error: str, saved: bool, tmp_path: Path) -> None:
    """A rank that was killed leaves none: its job continues in a new group."""
    storage, cause = Storage(str(tmp_path)), RuntimeError(error)
    job = job_of(alone())
    worker_module._save_failure(storage, job, failure_of(cause), cause)
    assert storage.exists(job.failure_file) is saved
