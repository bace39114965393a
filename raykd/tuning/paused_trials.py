"""Paused trials of a search: their states, their promotion, and the end of the front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from raykd.runtime.jobs import JournalJob
from raykd.study.promotion import Promotions
from raykd.study.schedulers import Asha, Hyperband
from raykd.tracking.events import Event, Note, RunPaused, RunPromoted
from raykd.tuning.records import Record
from raykd.tuning.session import RunContext


class PausedTrials:
    """Trials that wait for their promotion, and the files of their states.

    Args:
        rule: decides which trials pause and continue.
        context: study, storage and records of the run.
        publish: takes the events.

    Attributes:
        rule: decides which trials pause and continue.
    """

    def __init__(
        self, rule: Promotions, context: RunContext, publish: Callable[[Event], None]
    ) -> None:
        self.rule = rule
        self._storage, self._records = context.storage, context.records
        self._search, self._slots = context.search, context.slots
        self._epochs = context.study.settings.train.epochs
        self._states = f"{context.folder}/states"
        self._publish = publish
        self._is_full = False

    @classmethod
    def of(cls, context: RunContext, publish: Callable[[Event], None]) -> PausedTrials | None:
        """Return the paused trials of a search; None if its scheduler promotes none."""
        epochs = context.study.settings.train.epochs
        rule = context.search.scheduler.build(context.search.objectives, epochs)
        return cls(rule, context, publish) if isinstance(rule, Promotions) else None

    def restore(self) -> None:
        """Enter the trials of an earlier run, and pause those that had just reached a rung.

        In an extended search, the trials that were stopped may be promoted again.  Their states
        are gone, so a promoted one is trained from its start.
        """
        for record in self._records.of("trial"):
            for epoch, metrics in enumerate(record.epochs, 1):
                self.rule.record(record.id, {**metrics, "epoch": epoch})
            is_reopened = record.id in self._records.reopened
            if record.finishing_at is not None and not is_reopened:
                self.rule.resume_finishing([record.id])
            if record.status == "paused" or (is_reopened and record.status == "stopped"):
                self.rule.pause(record.id, len(record.epochs))
        for record in self._records.running("trial"):
            epoch = len(record.epochs)
            if not 0 < epoch < record.job.epochs or record.promoted_at == epoch:
                continue
            if not self.rule.keeps(record.id, {**record.epochs[-1], "epoch": epoch}):
                self.pause(record.id)

    def pause(self, trial: str) -> bool:
        """Pause a trial after its last epoch; return False if it can never be promoted."""
        record = self._records[trial]
        epoch = len(record.epochs)
        if not self.rule.pause(trial, epoch):
            return False
        self._storage.remove(record.job.state_files[(epoch + 1) % 2])  # of the epoch before
        self._publish(RunPaused(trial, epoch))
        return True

    def excess(self) -> Iterator[str]:
        """Yield the worst paused trials while there are too many, or their states are too large.

        They are no longer paused.
        """
        scheduler = self._search.scheduler
        if not isinstance(scheduler, (Asha, Hyperband)):
            return
        files = self._storage.files(self._states)
        sizes = {
            trial: sum(
                files.get(name.rpartition("/")[2], 0) for name in self._job(trial).state_files
            )
            for trial in self.rule.paused
            if self._records[trial].status == "paused"
        }
        while sizes and (
            len(sizes) > scheduler.max_paused or sum(sizes.values()) > scheduler.paused_gb * 1e9
        ):
            worst = self.rule.worst()
            assert worst is not None, "there are paused trials"
            self.rule.drop(worst)
            sizes.pop(worst, None)  # a reopened trial has no state
            if not self._is_full:
                self._is_full = True
                text = (
                    f"{len(sizes) + 1} trials are paused, and at most {scheduler.max_paused} may "
                    f"be, with states of {scheduler.paused_gb:g} GB (search.scheduler.max_paused, "
                    "paused_gb): the worst are stopped from now on"
                )
                self._publish(Note(None, {"warning_paused": text}))
            yield worst

    def promote(self) -> JournalJob:
        """Continue the next candidate; return its job."""
        trial = self.rule.candidate
        assert trial is not None, "there is a candidate"
        return self._continue(trial, finishing=False)

    def finish(self) -> list[JournalJob]:
        """Continue trials that are non-dominated at their rung, within the share of the epochs.

        If no trial has run whole, the best one is trained to the end in any case.

        Returns:
            Their jobs, at most one for each slot; empty if the front is complete or the share is
            spent.
        """
        allowance, count = self._allowance, self._slots
        if not any(r.is_complete(self._search.objectives) for r in self._records.of("trial")):
            allowance, count = max(allowance, self._epochs), 1
        return [self._continue(t, finishing=True) for t in self.rule.finish(allowance, count)]

    def close(self) -> list[str]:
        """Publish which trials the front was completed with; return the trials still paused."""
        finishing = [r for r in self._records.of("trial") if r.finishing_at is not None]
        done = [r.id for r in finishing if r.is_complete(self._search.objectives)]
        left = self.rule.on_front
        if finishing or left:
            self._publish(Note(None, {"front_finished": _sentence(finishing, done, left)}))
        paused = list(self.rule.paused)
        for trial in paused:
            self.rule.drop(trial)
        return paused

    @property
    def _allowance(self) -> float:
        """Epochs that may still be spent on completing the front."""
        trials = self._records.of("trial")
        before = sum(len(r.epochs) if r.finishing_at is None else r.finishing_at for r in trials)
        return self._search.finish * before - (sum(len(r.epochs) for r in trials) - before)

    def _continue(self, trial: str, *, finishing: bool) -> JournalJob:
        self._publish(RunPromoted(trial, self.rule.promote(trial), finishing))
        return self._job(trial)

    def _job(self, trial: str) -> JournalJob:
        return self._records[trial].job


def _size(job: JournalJob, files: Mapping[str, int]) -> int:
    """Return the bytes of a training's states."""
    return sum(files.get(name.rpartition("/")[2], 0) for name in job.state_files)


def _sentence(finishing: list[Record], done: list[str], left: list[str]) -> str:
    """Return what was done to complete the front."""
    names = f" ({', '.join(done)})" if done else ""
    text = f"front: {len(done)} of {len(finishing)} trials that were continued after the last "
    text += f"trial ran whole{names}"
    if left:
        text += f"; {len(left)} non-dominated at an earlier epoch were not continued "
        text += f"({', '.join(left)}): the share search.finish is spent"
    return text
