"""What slots train in a layer study: a list of arms, each under the same seeds.

1. the teacher is trained or measured, once;
2. every arm is trained under every seed to its full budget, the arm without hint first; under one
   seed all arms start from the same weights and see the same batches in the same order;
3. for each seed, predictors are computed as soon as the student without hint is trained;
4. the best set of pairs by validation accuracy, and no hint, are trained again under fresh seeds;
   these alone see the test split.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raykd.layer_study.arm_record import NONE, Arm
from raykd.layer_study.arms import build_arms, compared, label_of, study_of_arm
from raykd.layer_study.design import LayerStudyDesign
from raykd.layer_study.result import best_of, values_by_seed
from raykd.runtime.jobs import ProbeDesign, ProbeJob, Report
from raykd.study.config import Study, plain
from raykd.tuning.planner import Planner, RunContext
from raykd.tuning.records import Record


class LayerStudyPlanner(Planner):
    """Trains the arms of a layer study, and keeps the books.

    Args:
        context: study, data, storage and records of the run.
        question: what is asked.
    """

    def __init__(self, context: RunContext, question: LayerStudyDesign) -> None:
        super().__init__(context)
        self.how = self.search.pairs
        if self._caching is not None:  # all arms see the same views, also where none teaches
            shared = question.with_term(question.loss)
            question = replace(question, study=self._settled(question.study, shared))
        self._question = question
        self._arms = build_arms(question, self.how)
        self._trained = {arm.id: arm for arm in self._arms if not arm.why_not}
        self._chosen: list[Record] | None = None
        self.expected_trials = len(self._trained) * self.how.seeds
        self._journal.write("arms", **self._told())
        self._take_up()
        for number in range(self.how.seeds):
            for arm in self._trained.values():
                if run_id(arm.id, number) not in self.records:
                    self._queue_arm(arm, number)
        for record in self.records.of("trial"):
            self._trial_ended(record)

    def report(self, job_id: str, report: Report, slot: str = "") -> None:
        if report.predictors is not None:
            record = self.records[job_id]
            told = {"id": record.id, "seed": record.job.seed, **report.predictors}
            self._write("predictors", **told)
        super().report(job_id, report, slot)

    @property
    def finalists(self) -> list[Record]:
        return list(self._chosen or [])

    def _more(self) -> bool:
        if not self._has_more():
            return False
        self._choose()
        return True

    def _has_more(self) -> bool:
        running = self.records.running("teacher", "trial", "probe")
        return self._chosen is None and not self._queue and not running

    @property
    def _all_queued(self) -> bool:
        return self._chosen is not None

    def _trial_ended(self, record: Record) -> None:
        """Have predictors computed once the student without hint is trained."""
        arm, number = record.job.tags["arm"], int(record.job.tags["seed_number"])
        probe = f"predictors/seed-{number}"
        known = probe in self.records or any(one.id == probe for one in self._queue)
        ready = arm == NONE and record.status == "finished"
        if ready and self.how.batches and not known:
            self._queue_probe(probe, number, record)

    def _settled(self, study: Study, taught: Study) -> Study:
        """The study with its views as they are where the teacher's outputs are kept."""
        assert self._caching is not None
        return replace(study, cache=self._caching.fixed(taught).cache)

    # What is queued

    def _told(self) -> dict[str, Any]:
        question = self._question
        layers = {"hints": question.hints, "guided": question.guided}
        layers |= {f"shown_{side}": question.cka_layers(side) for side in ("hint", "guided")}
        term = question.loss
        return {
            "arms": [arm.plain() for arm in self._arms],
            "layers": {
                side: [
                    {"name": one.name, "shape": list(one.shape), "depth": one.depth}
                    for one in found
                ]
                for side, found in layers.items()
            },
            "term": question.term,
            "loss": plain(term.loss),
            "weight": term.effective_weight,
            "seeds": [question.study.seed + number for number in range(self.how.seeds)],
        }

    def _queue_arm(self, arm: Arm, number: int) -> None:
        keep = f"{self._folder}/students/{arm.id}.seed-{number}.pt" if arm.id == NONE else None
        study = study_of_arm(self._question, arm, number)
        self._queue_student(run_id(arm.id, number), study, keep=keep, tags=self._tags(arm, number))

    def _queue_probe(self, name: str, number: int, without: Record) -> None:
        question = self._question
        study = replace(question.study, seed=question.study.seed + number)
        possible = [arm.pairs[0][0] for arm in self._trained.values() if arm.kind == "pair"]
        hints = [layer.name for layer in question.hints]
        guided = [layer.name for layer in question.guided]
        shared = question.with_term(replace(question.loss, pairs=compared(possible)))
        [teacher] = self._ask_for(self._bound.candidate(shared).teachers)
        self._queue.append(
            ProbeJob(
                id=name,
                role="probe",
                study=plain(replace(shared, seed=study.seed)),
                seed=study.seed,
                folder=self._folder,
                teachers=(teacher,),
                tags={"arm": "predictors", "seed": str(study.seed)},
                design=ProbeDesign(
                    term=question.term,
                    hints=tuple(hints),
                    guided=tuple(guided),
                    teacher_layers=tuple(layer.name for layer in question.cka_layers("hint")),
                    student_layers=tuple(layer.name for layer in question.cka_layers("guided")),
                    possible=tuple(
                        (hints.index(pair.hint), guided.index(pair.guided)) for pair in possible
                    ),
                    steps=self.how.steps,
                    batches=self.how.batches,
                    baseline=without.job.study,
                    baseline_teachers=without.job.teachers,
                    trained_baseline=without.job.network_file,
                ),
            )
        )

    def _choose(self) -> None:
        """Queue the best set of pairs, and no hint, under fresh seeds."""
        values = values_by_seed(self.records)
        best = best_of(self._arms, values, self.how.seeds)
        self._chosen = []
        if best is None:
            return
        record = self.records[run_id(best.id, 0)]
        self._chosen = [record]
        self._journal.write("note", id=record.id, tags={"chosen": "true"}, metrics={})
        for number in range(self.how.seeds, self.how.seeds + self.search.replicates):
            for arm in (best, self._trained[NONE]):
                self._queue_again(arm, number)

    def _queue_again(self, arm: Arm, number: int) -> None:
        name = f"{arm.id}/fresh-{number}"
        if name in self.records:
            return
        study: Study = study_of_arm(self._question, arm, number)
        keep = None
        if arm.id != NONE:
            keep = f"{self._folder}/students/{name.replace('/', '.')}.pt"
        self._queue_student(
            name,
            study,
            role="replicate",
            parent=run_id(arm.id, 0),
            test=True,
            keep=keep,
            tags=self._tags(arm, number),
        )

    def _tags(self, arm: Arm, number: int) -> dict[str, str]:
        pairs = arm.pairs_under(number)
        return {
            "arm": arm.id,
            "arm_kind": arm.kind,
            "hint": " ".join(pair.hint for pair in pairs) or "none",
            "guided": " ".join(pair.guided for pair in pairs) or "none",
            "pairs": label_of(pairs) or "none",
            "seed": str(self._question.study.seed + number),
            "seed_number": str(number),
        }


def run_id(arm: str, number: int) -> str:
    """The id of an arm's training under the seed of that number."""
    return f"{arm}/seed-{number}"
