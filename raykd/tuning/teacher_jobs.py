"""Jobs that train teachers, and warnings about teachers that are too weak."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import replace
from typing import Any

from raykd.runtime.jobs import EvaluateJob, QueuedJob, RecordedJob, TrainJob
from raykd.schemes import Alone, TeacherSpec
from raykd.study.config import plain
from raykd.study.short_names import teacher_text
from raykd.tracking.events import Note
from raykd.tracking.journal import Listener
from raykd.training.output_check import probabilities_warning
from raykd.training.teachers import teacher_spec_of, teacher_training_study
from raykd.tuning.records import Record, Records
from raykd.tuning.session import RunContext
from raykd.tuning.teacher_warnings import chance_warning, weak_teacher_warning


class TeacherJobs:
    """Queues the jobs of teachers: the study's own first, others when a student needs them.

    Args:
        context: of the run.
        queue: of the planner.

    Attributes:
        own: the study's own teachers, by file.
        failed: records of the failed jobs, by the file that is missing.
    """

    def __init__(self, context: RunContext, queue: MutableSequence[QueuedJob]) -> None:
        self._context = context
        self._queue = queue
        self._store = context.teacher_store
        self._records = context.records
        self._notes: set[str] = set()
        settings = context.study.settings
        teachers = context.study.teachers()
        specs = [teacher_spec_of(replace(settings, teacher=teacher)) for teacher in teachers]
        self.own = {self._store.file(spec): spec for spec in specs}
        self.failed: dict[str, Record] = {}

    def queue_own(self) -> None:
        """Queue the study's own teachers, except those that are stored or in training.

        Raises:
            StudyError: named weights cannot be read.
        """
        records = self._records.of("teacher")
        settled = {network_file(record) for record in records if self._is_settled(record)}
        for file, spec in self.own.items():
            self._fetch(spec)
            if file not in settled:
                self._queue.append(self._job(spec, file))

    def request(self, specs: Iterable[TeacherSpec]) -> tuple[str, ...]:
        """Return the files of networks, and queue the training of those that are missing.

        Raises:
            StudyError: named weights cannot be read.
        """
        return tuple(map(self._request, specs))

    @property
    def pending(self) -> set[str | None]:
        """Files of the networks that are in training or queued for it."""
        jobs = [job for job in self._teacher_jobs() if isinstance(job, TrainJob)]
        return {job.keep for job in jobs}

    @property
    def own_are_ready(self) -> bool:
        """True if no job of the study's own teachers is running or queued."""
        return all(job.network_file not in self.own for job in self._teacher_jobs())

    def finished(self, record: Record) -> None:
        """Record that a teacher's job has finished."""
        self._store.note(network_file(record))

    def _teacher_jobs(self) -> list[RecordedJob]:
        queued = [job for job in self._queue if isinstance(job, RecordedJob)]
        running = [record.job for record in self._records.running("teacher")]
        return [job for job in (*queued, *running) if job.role == "teacher"]

    def _is_settled(self, record: Record) -> bool:
        finished = record.status == "finished" and self._store.has(network_file(record))
        return finished or record.status == "running"

    def _request(self, spec: TeacherSpec) -> str:
        file = self._store.file(spec)
        if not spec.is_trained:
            self._fetch(spec)
        elif not self._store.has(file) and file not in self.pending | {*self.failed}:
            teachers = self.request(spec.needs)
            self._queue.append(self._job(spec, file, teachers))
        return file

    def _fetch(self, spec: TeacherSpec) -> None:
        """Store the weights that a teacher loads, and note what was changed in them."""
        self._store.fetch(spec)
        notes = self._store.take_notes()
        if notes and notes not in self._notes:
            self._notes.add(notes)
            self._context.bus.publish(Note(None, {"weights_notes_fetched": notes}))

    def _job(
        self, spec: TeacherSpec, file: str, teachers: tuple[str, ...] = ()
    ) -> TrainJob | EvaluateJob:
        """Return the job that trains a teacher, or evaluates a stored one."""
        settings = self._context.study.settings
        if spec.model is not None:
            study = teacher_training_study(settings, spec)
        else:  # a whole network from MLflow and a file of outputs are only evaluated
            study = replace(settings, teacher=spec.as_teacher, scheme=Alone(), knowledge=())
        queued = [job for job in self._queue if isinstance(job, RecordedJob)]
        number = len(self._records.of("teacher")) + sum(job.role == "teacher" for job in queued)
        fields: dict[str, Any] = {
            "id": f"teacher-{number}",
            "role": "teacher",
            "study": plain(study),
            "seed": study.seed,
            "folder": self._context.folder,
            "teachers": teachers,
            "test": file in self.own,
            "params": self._context.study.flat(study),
            "tags": {"teacher": teacher_text(spec)},
        }
        if self._store.has(file):
            return EvaluateJob(**fields, weights_file=file)
        return TrainJob(**fields, epochs=study.train.epochs, keep=file)


def network_file(record: Record) -> str:
    """Return the file of a teacher's network, below the storage."""
    file = record.job.network_file
    assert file is not None, "a teacher is loaded from a file or kept in one"
    return file


class TeacherWarnings:
    """Warns about weak teachers, and about networks that output probabilities; each once.

    Args:
        records: of all trainings.
        val_counts: samples of each class of the validation split.
        publish: called with each warning, as a note on the study.
    """

    def __init__(self, records: Records, val_counts: Sequence[int], publish: Listener) -> None:
        self._records = records
        self._val_counts = val_counts
        self._publish = publish
        self._published: set[str] = set()

    def check_teacher(self, record: Record) -> None:
        """Check a teacher that has finished."""
        name = _teacher_name(record)
        self._warn(f"outputs_{record.id}", probabilities_warning(f"teacher {name}", record.metrics))
        accuracy = record.metrics.get("val_accuracy")
        if accuracy is not None:
            self._warn(record.id, chance_warning(name, accuracy, self._val_counts))

    def check_student(self, record: Record) -> None:
        """Check a student's training that has ended."""
        if record.role in ("trial", "alone"):
            self._compare_with_teachers(record)
        name = f"the student of {record.id}"
        self._warn("outputs_student", probabilities_warning(name, record.metrics))

    def _compare_with_teachers(self, record: Record) -> None:
        """Warn if a student without a teacher is better than the study's teachers."""
        accuracy = record.metrics.get("val_accuracy")
        scheme = record.job.study.get("scheme", {}).get("name")
        teachers = [each for each in self._records.teachers if "val_accuracy" in each.metrics]
        if record.status != "finished" or accuracy is None or scheme != "alone" or not teachers:
            return
        best = max(teachers, key=lambda teacher: teacher.metrics["val_accuracy"])
        best_accuracy, samples = best.metrics["val_accuracy"], sum(self._val_counts)
        name = _teacher_name(best)
        warning = weak_teacher_warning(name, best_accuracy, record.id, accuracy, samples)
        self._warn("below_student", warning)

    def _warn(self, key: str, warning: str) -> None:
        if warning and key not in self._published:
            self._published.add(key)
            self._publish(Note(None, {f"warning_{key.replace('-', '_')}": warning}))


def _teacher_name(record: Record) -> str:
    return record.job.tags.get("teacher", record.id)
