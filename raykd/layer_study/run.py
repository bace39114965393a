"""Layer studies: train every pairing of hint and guided layers, and compare them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from raykd.errors import Problem, StudyError
from raykd.layer_study.arms import build_arms
from raykd.layer_study.description import arm_metrics, describe_layer_study
from raykd.layer_study.design import design_layer_study
from raykd.layer_study.files import write_files
from raykd.layer_study.plan import Arm
from raykd.layer_study.planner import LayerStudyPlanner
from raykd.layer_study.result import LayerStudyResult, read_layer_study, read_with_events
from raykd.metrics import lead_metric
from raykd.models import Signature
from raykd.models.proxies import NoProxy
from raykd.registry import replaced_unchecked
from raykd.study.config import plain
from raykd.study.open_study import OpenStudy
from raykd.study.samplers import Random
from raykd.study.schedulers import Unscheduled
from raykd.tracking.events import ArtifactSaved, Event, Note, SummaryWritten
from raykd.tracking.journal import Listener
from raykd.tuning.executors import RayExecutor
from raykd.tuning.planner import Planner
from raykd.tuning.resume import resumed
from raykd.tuning.run import Executor, StudyRun, as_finished
from raykd.tuning.session import RunSession
from raykd.tuning.study_dir import StudyFolder, Verb
from raykd.tuning.study_input import load_or_use
from raykd.tuning.trial_reference import study_of_trial

Draw = Callable[[LayerStudyResult, Sequence[Event]], Iterable[Path]]
"""Function that draws the figures of a result, with the events of its journal, into its folder, and
returns their paths."""

ARTIFACT_FOLDER = "pairs"
"""Artifact folder of a layer study's files in its MLflow run."""


def pairs(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    extension: Sequence[str] | None = None,
    allow_import: bool = False,
    objects: Mapping[str, Any] | None = None,
    verbose: bool = False,
    listeners: Sequence[Listener] = (),
    draw: Draw | None = None,
    executor: Executor | None = None,
) -> LayerStudyResult:
    """Study which hint layer should teach which guided layer.

    Args:
        study: an open study (`load_study`), the path of a study file, or `FOLDER:trial-0007`: the
            layers of that trial's teacher and student are paired.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted layer study to resume; `study` is then not read.
        extension: overrides with which the study to resume grows (`raykd extend`), such as
            `search.pairs.seeds=5`; None: it is only resumed.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        objects: handed over from Python, by kind (`PythonObjects`); only with a path or `resume`.
        verbose: show Ray's own output.
        listeners: called with every event as it happens.
        draw: draws the figures; None: there are none.
        executor: trains the jobs; None: slots of a Ray cluster.

    Raises:
        StudyError: the study, its data or the cluster cannot be used; nothing was started.
    """
    with contextlib.ExitStack() as stack:
        folder = None
        if resume is not None:
            folder, overrides = stack.enter_context(resumed(resume, "pairs"))
            study, overrides = folder.study_file, [*overrides, *(extension or ())]
        else:
            named = study_of_trial(study, overrides, pairs_open=True)
            study, overrides = stack.enter_context(named)
        study = load_or_use(study, overrides, allow_import=allow_import, objects=objects)
        run = LayerStudyRun(study, folder, draw, verbose=verbose, listeners=listeners)
        run.extends = extension is not None
        return run.run(executor or RayExecutor())


class LayerStudyRun(StudyRun[LayerStudyResult]):
    """A layer study.

    Args:
        study, folder, verbose, listeners: as `StudyRun`'s.
        draw: draws the figures; None: there are none.
    """

    verb: ClassVar[Verb] = "pairs"

    def __init__(
        self,
        study: OpenStudy,
        folder: StudyFolder | None = None,
        draw: Draw | None = None,
        *,
        verbose: bool = False,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.draw = draw
        task = study.settings.learning_task
        lead = lead_metric(plain(study.settings))
        if task.direction(lead) != "max":
            raise StudyError(
                Problem(
                    f"a layer study compares arms by a metric of which more is better, and {lead} "
                    "is none",
                    path="task.metrics",
                    fix=f"list another metric of task '{task.name}' first",
                )
            )
        search = replace(
            study.settings.search,
            finalists=1,
            sampler=Random(),
            scheduler=Unscheduled(),
            proxy=NoProxy(),
            max_hours=None,
        )
        if study.signature is not None:
            arms = check_layer_study(study, study.signature)
            trials = study.settings.search.pairs.seeds * sum(not arm.skip_reason for arm in arms)
            search = replaced_unchecked(search, trials=trials)
        super().__init__(study, folder, search=search, verbose=verbose, listeners=listeners)

    def check(self, study: OpenStudy, signature: Signature) -> None:
        check_layer_study(study, signature)

    def planner(self, session: RunSession, slots: int) -> LayerStudyPlanner:
        return LayerStudyPlanner(
            session.context(slots), design_layer_study(session.study, session.signature)
        )

    def conclude(self, session: RunSession, planner: Planner) -> LayerStudyResult:
        folder = session.folder.path
        result, history = read_with_events(folder)
        figures = () if self.draw is None else self.draw(result, as_finished(history))
        for file in (*write_files(result), *figures):
            path = str(file.relative_to(folder))
            session.bus.publish(ArtifactSaved(None, path, folder=ARTIFACT_FOLDER))
        for record_id, metrics in arm_metrics(result).items():
            session.bus.publish(Note(record_id, metrics=metrics))
        session.bus.publish(Note(None, result.tags(), result.metrics()))
        session.bus.publish(describe_layer_study(result))
        return result

    def read(self, folder: Path) -> LayerStudyResult:
        return read_layer_study(folder)

    def describe(self, folder: Path) -> SummaryWritten:
        return describe_layer_study(read_layer_study(folder))


def check_layer_study(study: OpenStudy, signature: Signature) -> tuple[Arm, ...]:
    """Check that a study can be a layer study, and return its arms.

    Raises:
        StudyError: see `design_layer_study`; or none of its pairs can be compared by its loss.
    """
    design = design_layer_study(study, signature)
    arms = build_arms(design, study.settings.search.pairs)
    singles = [arm for arm in arms if arm.kind == "pair"]
    if all(arm.skip_reason for arm in singles):
        text = f"none of its {len(singles)} pairs can be compared: {singles[0].skip_reason}"
        place = ("knowledge", design.term, "pairs")
        fix = "use another loss, or name other layers"
        raise StudyError(study.document.problem(place, text, fix))
    return arms
