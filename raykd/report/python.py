"""Python functions that run studies and show their progress.

A terminal shows a live display; notebooks and logs show plain lines.  Progress is written to
standard error (in a notebook, to the output of the cell) to keep it apart from the output of a
script.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykd.tracking.journal import Listener

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.study.open_study import OpenStudy
    from raykd.tuning.result import StudyResult


def search(
    study: OpenStudy | str | Path = "",
    *,
    overrides: Sequence[str] | str = (),
    resume: str | Path | None = None,
    start_from: Sequence[str | Path] | str | Path = (),
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Search a study's space: train its teacher, its trials, and the chosen students again.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to resume; `study` is then not read.
        start_from: runs whose best trials are tried first, if they fit this study: a study's
            folder, `FOLDER:trial-0007`, or the id of a run in MLflow.  A resumed search remembers
            them.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        progress: show the progress.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study, its data or the cluster cannot be used; nothing was started.
    """
    from raykd.tuning.search_run import search as search_study

    with _progress(progress, verbose) as display:
        return search_study(
            study,
            overrides=[overrides] if isinstance(overrides, str) else overrides,
            resume=resume,
            start_from=[start_from] if isinstance(start_from, str | Path) else start_from,
            allow_import=allow_import,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


def pairs(
    study: OpenStudy | str | Path = "",
    *,
    overrides: Sequence[str] | str = (),
    resume: str | Path | None = None,
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> LayerStudyResult:
    """Study which hint layer should teach which guided layer.

    Files and figures are written to the study's folder and to MLflow.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted layer study to resume; `study` is then not read.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        progress: show the progress.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study, its data or the cluster cannot be used; nothing was started.
    """
    from raykd.report.layer_study import pairs as study_pairs

    with _progress(progress, verbose) as display:
        return study_pairs(
            study,
            overrides=[overrides] if isinstance(overrides, str) else overrides,
            resume=resume,
            allow_import=allow_import,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


def distill(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] | str = (),
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train one student of a study that leaves nothing open, without a search.

    It is trained under the study's seed and, where the study asks for replicates, again under
    fresh seeds with and without its teacher, as a search does for its chosen students.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        progress: show the progress.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study leaves a value open (names it), or cannot be started.
    """
    from raykd.tuning.single_run import distill as distill_study

    with _progress(progress, verbose, by_epoch=True) as display:
        return distill_study(
            study,
            overrides=[overrides] if isinstance(overrides, str) else overrides,
            allow_import=allow_import,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


def train_teacher(
    study: OpenStudy | str | Path,
    *,
    overrides: Sequence[str] | str = (),
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
) -> StudyResult:
    """Train (or load) the study's teachers and evaluate them.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: let Ray's own output through.
        progress: show the progress.
        listeners: called with every event as it happens.

    Raises:
        StudyError: the study has no teacher, or cannot be started.
    """
    from raykd.tuning.single_run import train_teacher as train

    with _progress(progress, verbose, by_epoch=True) as display:
        return train(
            study,
            overrides=[overrides] if isinstance(overrides, str) else overrides,
            allow_import=allow_import,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


@contextmanager
def _progress(shown: bool, verbose: bool, *, by_epoch: bool = False) -> Iterator[list[Any]]:
    """Yield a list with the listener that shows progress, or an empty list if not `shown`."""
    if not shown:
        yield []
        return
    from raykd.report import Shielded, epoch_display, search_display

    console = _console()
    made = epoch_display(console) if by_epoch else search_display(console, lines=verbose)
    with made as display:
        yield [Shielded(display, lambda sentence, trace: print(sentence, file=sys.stderr))]


def _console() -> Any:
    from rich.console import Console

    if _in_notebook():
        return Console(force_jupyter=False, force_terminal=False, width=100)
    return Console(stderr=True)


def _in_notebook() -> bool:
    """Return True in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
