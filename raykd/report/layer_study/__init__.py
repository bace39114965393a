"""User interface of a layer study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.study.open_study import OpenStudy


def pairs(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: str | Path | None = None,
    allow_import: bool = False,
    verbose: bool = False,
    listeners: Sequence[Any] = (),
) -> LayerStudyResult:
    """Study which hint layer should teach which guided layer.

    Files and figures are written to the study's folder and to MLflow.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted layer study to resume; `study` is then not read.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study, its data or the cluster cannot be used; nothing was started.
    """
    from raykd.layer_study.run import pairs as study_pairs
    from raykd.report.layer_study.figures import draw

    return study_pairs(
        study,
        overrides=overrides,
        resume=resume,
        allow_import=allow_import,
        verbose=verbose,
        listeners=listeners,
        draw=draw,
    )
