"""Upper bounds on what a study trains, for the displays."""

from __future__ import annotations

from raykd.study.open_study import OpenStudy
from raykd.tracking.events import Budget, SlotPlan, SlotsPlanned
from raykd.tuning.study_dir import StudyFolder


def slots_planned(
    study: OpenStudy, folder: StudyFolder, slots: SlotPlan | None, trials: int | None
) -> SlotsPlanned:
    """Build the event that announces the resources and the budget of a run.

    Args:
        study: the study.
        folder: its folder.
        slots: resources of the parallel trials; None: one training at a time in this process.
        trials: number of trials; None: as the study says.
    """
    return SlotsPlanned(slots, budget_of(study, trials), str(folder.path))


def budget_of(study: OpenStudy, trials: int | None = None) -> Budget:
    """Return the budget of a study.

    Args:
        study: the study.
        trials: number of trials; None: as the study says.
    """
    settings, search = study.settings, study.settings.search
    points = study.size.points
    return Budget(
        teachers=tuple(
            (teacher.train or settings.train).epochs
            for teacher in study.teachers()
            if teacher.is_trained
        ),
        trials=trials or (search.trials if points is None else min(search.trials, points)),
        epochs=settings.train.epochs,
        chosen=1 if trials else search.finalists,
        replicates=search.replicates,
        max_hours=search.max_hours,
    )
