"""Planner of a layer study: trains a list of arms, each under the same seeds.

1. The teacher is trained or evaluated, once.
2. Every arm is trained under every seed with its full budget, the baseline without hint first.
   Under one seed, all arms start from the same weights and see the same batches in the same order.
3. For each seed, predictors are computed as soon as the student without hint is trained.
4. The best set of pairs by the leading metric on validation data, and the baseline, are trained
   again under new seeds.  Only these see the test split.
"""

from __future__ import annotations

from dataclasses import replace

from raykd.layer_study.arms import build_arm_study, build_arms, term_pairs
from raykd.layer_study.design import LayerStudyDesign
from raykd.layer_study.plan import NONE, Arm, format_pairs
from raykd.layer_study.result import accuracies_by_arm, find_best_arm
from raykd.metrics import lead_metric
from raykd.models.introspection.layers import Layer
from raykd.runtime.jobs import ProbeDesign, ProbeJob, Report
from raykd.study.config import plain
from raykd.tracking.events import ArmsPlanned, Note, PredictorsComputed
from raykd.tuning.planner import Planner
from raykd.tuning.records import Record
from raykd.tuning.session import RunContext


class LayerStudyPlanner(Planner):
    """Queues the arms of a layer study, their predictors, and replicates of the best arm.

    Args:
        context: study, data, storage and records of the run.
        design: layers and term of the study.
    """

    def __init__(self, context: RunContext, design: LayerStudyDesign) -> None:
        super().__init__(context)
        self.settings = self.search.pairs
        if self._cache_jobs is not None:  # all arms see the same views, also those without teacher
            taught = design.with_term(design.loss)
            cache = self._cache_jobs.fixed(taught).cache
            design = replace(design, study=replace(design.study, cache=cache))
        self._design = design
        self._metric = f"val_{lead_metric(plain(design.study))}"
        self._arms = build_arms(design, self.settings)
        self._trained_arms = {arm.id: arm for arm in self._arms if not arm.skip_reason}
        self._finalists: list[Record] | None = None
        self.expected_trials = len(self._trained_arms) * self.settings.seeds
        self._publish(self._plan())
        self._resume()
        for number in range(self.settings.seeds):
            for arm in self._trained_arms.values():
                if run_id(arm.id, number) not in self.records:
                    self._enqueue_arm(arm, number)
        for record in self.records.of("trial"):
            self._trial_ended(record)

    def report(self, job_id: str, report: Report, slot: str = "") -> None:
        if report.predictors is not None:
            seed = self.records[job_id].job.seed
            self._publish(PredictorsComputed(job_id, seed, **report.predictors))
        super().report(job_id, report, slot)

    @property
    def finalists(self) -> list[Record]:
        return list(self._finalists or [])

    def _enqueue_more(self) -> bool:
        if not self._has_more():
            return False
        self._enqueue_finalists()
        return True

    def _has_more(self) -> bool:
        running = self.records.running("teacher", "trial", "probe")
        return self._finalists is None and not self._queue and not running

    @property
    def _all_enqueued(self) -> bool:
        return self._finalists is not None

    def _trial_ended(self, record: Record) -> None:
        """Queue the predictors of a seed once its student without hint is trained."""
        tags = record.job.tags
        number = int(tags["seed_number"])
        probe_id = f"predictors/seed-{number}"
        ready = tags["arm"] == NONE and record.status == "finished"
        exists = probe_id in self.records or any(job.id == probe_id for job in self._queue)
        if ready and self.settings.batches and not exists:
            self._enqueue_probe(probe_id, number, record)

    def _plan(self) -> ArmsPlanned:
        design = self._design
        layers = {
            "hints": design.hints,
            "guided": design.guided,
            "shown_hint": design.cka_layers("hint"),
            "shown_guided": design.cka_layers("guided"),
        }
        plain_layers = {side: [*map(_plain_layer, of_side)] for side, of_side in layers.items()}
        return ArmsPlanned(
            arms=[arm.plain() for arm in self._arms],
            layers=plain_layers,
            term=design.term,
            loss=plain(design.loss.loss),
            weight=design.loss.effective_weight,
            seeds=[design.study.seed + number for number in range(self.settings.seeds)],
        )

    def _enqueue_arm(self, arm: Arm, number: int) -> None:
        is_baseline = arm.id == NONE  # the predictors use its network
        folder = f"{self.context.folder}/students"
        keep = f"{folder}/{arm.id}.seed-{number}.pt" if is_baseline else None
        study = build_arm_study(self._design, arm, number)
        tags = self._tags(arm, number)
        self._enqueue_student(run_id(arm.id, number), study, keep=keep, tags=tags)

    def _enqueue_probe(self, probe_id: str, number: int, baseline: Record) -> None:
        """Queue the job that computes the predictors of all pairs under one seed.

        Args:
            probe_id: id of the job.
            number: index of the seed, from 0.
            baseline: record of the student without hint.
        """
        design = self._design
        seed = design.study.seed + number
        possible = [arm.pairs[0][0] for arm in self._trained_arms.values() if arm.kind == "pair"]
        hints = [layer.name for layer in design.hints]
        guided = [layer.name for layer in design.guided]
        study = design.with_term(replace(design.loss, pairs=term_pairs(possible)))
        [teacher] = self._teachers.request(self._bound.candidate(study).teachers)
        self._queue.append(
            ProbeJob(
                id=probe_id,
                role="probe",
                study=plain(replace(study, seed=seed)),
                seed=seed,
                folder=self.context.folder,
                teachers=(teacher,),
                tags={"arm": "predictors", "seed": str(seed)},
                design=ProbeDesign(
                    term=design.term,
                    hints=tuple(hints),
                    guided=tuple(guided),
                    teacher_layers=tuple(layer.name for layer in design.cka_layers("hint")),
                    student_layers=tuple(layer.name for layer in design.cka_layers("guided")),
                    possible=tuple(
                        (hints.index(pair.hint), guided.index(pair.guided)) for pair in possible
                    ),
                    steps=self.settings.steps,
                    batches=self.settings.batches,
                    baseline=baseline.job.study,
                    baseline_teachers=baseline.job.teachers,
                    trained_baseline=baseline.job.network_file,
                ),
            )
        )

    def _enqueue_finalists(self) -> None:
        """Queue the best set of pairs, and the baseline, under new seeds."""
        seeds = self.settings.seeds
        best = find_best_arm(self._arms, accuracies_by_arm(self.records, self._metric), seeds)
        self._finalists = []
        if best is None:
            return
        record = self.records[run_id(best.id, 0)]
        self._finalists = [record]
        self._publish(Note(record.id, {"chosen": "true"}, step=None))
        for number in range(seeds, seeds + self.search.replicates):
            for arm in (best, self._trained_arms[NONE]):
                self._enqueue_replicate(arm, number)

    def _enqueue_replicate(self, arm: Arm, number: int) -> None:
        replicate_id = f"{arm.id}/fresh-{number}"
        if replicate_id in self.records:
            return
        file = f"{self.context.folder}/students/{replicate_id.replace('/', '.')}.pt"
        self._enqueue_student(
            replicate_id,
            build_arm_study(self._design, arm, number),
            role="replicate",
            parent=run_id(arm.id, 0),
            test=True,
            keep=file if arm.id != NONE else None,
            tags=self._tags(arm, number),
        )

    def _tags(self, arm: Arm, number: int) -> dict[str, str]:
        pairs = arm.pairs_under(number)
        return {
            "arm": arm.id,
            "arm_kind": arm.kind,
            "hint": " ".join(pair.hint for pair in pairs) or "none",
            "guided": " ".join(pair.guided for pair in pairs) or "none",
            "pairs": format_pairs(pairs) or "none",
            "seed": str(self._design.study.seed + number),
            "seed_number": str(number),
        }


def _plain_layer(layer: Layer) -> dict[str, object]:
    return {"name": layer.name, "shape": list(layer.shape), "depth": layer.depth}


def run_id(arm: str, number: int) -> str:
    """Return the id of an arm's training under a seed, by number from 0."""
    return f"{arm}/seed-{number}"
