"""Python functions that run studies and show their progress.

A terminal shows a live display, a notebook a card; logs show plain lines.  Progress is written to
standard error (in a notebook, to the output of the cell) to keep it apart from the output of a
script.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from raykd.tracking.journal import Listener

if TYPE_CHECKING:
    from rich.console import Console

    from raykd.layer_study.result import LayerStudyResult
    from raykd.report.lines import Display
    from raykd.study.open_study import OpenStudy
    from raykd.tracking.events import Event
    from raykd.tuning.handed_over import PythonObjects
    from raykd.tuning.reproduced_figures import Reproduction
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
    **objects: Unpack[PythonObjects],
) -> StudyResult:
    """Search a study's space: train its teacher, its trials, and the finalists with new seeds.

    Args:
        study: an open study (`load_study`) or the path of a study file.
        overrides: `a.b=value`, as on the command line; only with a path.
        resume: the folder of an interrupted search to resume; `study` is then not read.
        start_from: runs whose best trials are tried first, if they fit this study: a study's
            folder, `FOLDER:trial-0007`, or the id of a run in MLflow.  A resumed search remembers
            them.
        allow_import: let models run code of their own (import paths, networks from MLflow).
        verbose: show Ray's own output.
        progress: show the progress.
        listeners: called with every event as it happens.
        objects: classes and functions that the study names `python:NAME`, one or a list by kind:
            `data`, `models`, `losses`, `metrics`, `schemes`, `augmentations`.

    Raises:
        StudyError: the study, its data, an object or the cluster cannot be used; nothing was
            started.
    """
    from raykd.report.page.write import write_page
    from raykd.tuning.search_run import search as search_study

    with _progress(progress, verbose) as display:
        return search_study(
            study,
            overrides=_as_list(overrides),
            resume=resume,
            start_from=[start_from] if isinstance(start_from, str | Path) else start_from,
            allow_import=allow_import,
            objects=objects,
            verbose=verbose,
            listeners=[*display, *listeners],
            draw=write_page,
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
    **objects: Unpack[PythonObjects],
) -> LayerStudyResult:
    """Run a layer study: train every hint layer with every guided layer.

    Files and figures are written to the study's folder and to MLflow.

    Args:
        resume: the folder of an interrupted layer study to resume; `study` is then not read.
        study, overrides, allow_import, verbose, progress, listeners, objects: as for
            `search`.

    Raises:
        StudyError: the study, its data or the cluster cannot be used; nothing was started.
    """
    from raykd.layer_study.run import pairs as run_layer_study

    with _progress(progress, verbose) as display:
        return run_layer_study(
            study,
            overrides=_as_list(overrides),
            resume=resume,
            allow_import=allow_import,
            objects=objects,
            verbose=verbose,
            listeners=[*display, *listeners],
            draw=draw_layer_study,
        )


def extend(
    folder: str | Path,
    *,
    trials: int | str | None = None,
    replicates: int | str | None = None,
    overrides: Sequence[str] | str = (),
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    **objects: Unpack[PythonObjects],
) -> StudyResult | LayerStudyResult:
    """Continue a finished or interrupted search or layer study with more to train.

    Trials that exist stay as they are, and the sampler learns from them.  Finalists are chosen
    again among all trials.

    Args:
        folder: folder of the study.
        trials: trials of the search: a total such as `10`, or `"+4"` to add four.
        replicates: trainings of each finalist under new seeds, in the same form.
        overrides: `a.b=value`: other numbers that may grow, and options and ranges of the space
            that contain the old ones.
        allow_import, verbose, progress, listeners, objects: as for `search`.

    Raises:
        StudyError: the change is not growth (shows the differences), another process works on the
            study, or its data have changed; nothing was started.
    """
    from raykd.layer_study.run import pairs as run_layer_study
    from raykd.report.page.write import write_page
    from raykd.tuning.extension import plan_extension
    from raykd.tuning.search_run import search as search_study

    verb, extension = plan_extension(folder, trials, replicates, _as_list(overrides))
    if verb == "pairs":
        run = partial(run_layer_study, draw=draw_layer_study)
    else:
        run = partial(search_study, draw=write_page)
    with _progress(progress, verbose) as display:
        return run(
            "",
            resume=folder,
            extension=extension,
            allow_import=allow_import,
            objects=objects,
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
    **objects: Unpack[PythonObjects],
) -> StudyResult:
    """Train one student of a study that leaves nothing open, without a search.

    It is trained under the study's seed.  If the study has replicates, it is trained again with
    new seeds, with and without its teacher, as a search does for its finalists.

    Args:
        study, overrides, allow_import, verbose, progress, listeners, objects: as for
            `search`.

    Raises:
        StudyError: the study leaves a value open (the message names it), or cannot be started.
    """
    from raykd.tuning.single_run import distill as distill_study

    with _progress(progress, verbose, by_epoch=True) as display:
        return distill_study(
            study,
            overrides=_as_list(overrides),
            allow_import=allow_import,
            objects=objects,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


def reproduce(
    source: str | Path,
    *,
    tolerance: float = 1e-3,
    tracking_uri: str | None = None,
    allow_import: bool = False,
    verbose: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    **objects: Unpack[PythonObjects],
) -> Reproduction:
    """Train a student again from its record, and compare the figures.

    Args:
        source: a study's folder (its best trial), `FOLDER:trial-0007`, or the ID of a run in
            MLflow, whose study folder may be on another machine.
        tolerance: largest difference of figures that agree: relative to the recorded figure,
            absolute below 1.
        tracking_uri: URI of the MLflow store of a run ID; None: MLflow's default.
        allow_import, verbose, progress, listeners, objects: as for `search`.

    Raises:
        StudyError: there is no such training, it failed, or its data have changed.
    """
    from raykd.tuning.reproduction import reproduce as reproduce_training

    with _progress(progress, verbose, by_epoch=True) as display:
        return reproduce_training(
            source,
            tolerance=tolerance,
            tracking_uri=tracking_uri,
            allow_import=allow_import,
            objects=objects,
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
    **objects: Unpack[PythonObjects],
) -> StudyResult:
    """Train (or load) the study's teachers and evaluate them.

    Args:
        study, overrides, allow_import, verbose, progress, listeners, objects: as for
            `search`.

    Raises:
        StudyError: the study has no teacher, or cannot be started.
    """
    from raykd.tuning.single_run import train_teacher as train_study_teacher

    with _progress(progress, verbose, by_epoch=True) as display:
        return train_study_teacher(
            study,
            overrides=_as_list(overrides),
            allow_import=allow_import,
            objects=objects,
            verbose=verbose,
            listeners=[*display, *listeners],
        )


def draw_layer_study(result: LayerStudyResult, history: Sequence[Event]) -> list[Path]:
    """Draw the figures and the page of a layer study into its folder.

    Args:
        result: of the study.
        history: events of its journal.

    Returns:
        Paths of the files.
    """
    from raykd.report.layer_study_figures import draw_figures
    from raykd.report.page.write import write_page

    return [*draw_figures(result), write_page(result, history)]


def _as_list(overrides: Sequence[str] | str) -> Sequence[str]:
    return [overrides] if isinstance(overrides, str) else overrides


@contextmanager
def _progress(
    enabled: bool, verbose: bool, *, by_epoch: bool = False
) -> Iterator[Sequence[Listener]]:
    """Yield the listener that shows progress in a list; an empty list if not `enabled`."""
    if not enabled:
        yield []
        return
    from raykd.report import Shielded, epoch_display, search_display

    console = _console()
    if by_epoch:
        display = epoch_display(console)
    elif _in_notebook() and not verbose:
        display = _live_card()
    else:
        display = search_display(console, lines=verbose)
    with display:
        yield [Shielded(display, lambda sentence, trace: print(sentence, file=sys.stderr))]


def _live_card() -> Display:
    from raykd.report.notebook import LiveCard

    # No dependency: a notebook's kernel has it.
    return LiveCard(partial(import_module("IPython.display").display, display_id=True))


def _console() -> Console:
    from rich.console import Console

    if _in_notebook():
        return Console(force_jupyter=False, force_terminal=False, width=100)
    return Console(stderr=True)


def _in_notebook() -> bool:
    """Return True in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
