"""Commands that train: `search`, `pairs`, `extend`, `distill` and `teacher`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

import raykd
from raykd.cli import completion
from raykd.cli.parameters import (
    Address,
    AllowImport,
    Folder,
    JsonLines,
    Overrides,
    ResumeLatest,
    StudyFile,
    Verbose,
)
from raykd.cli.session import Session, use_cluster

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.tracking.journal import Listener
    from raykd.tuning.result import StudyResult
    from raykd.tuning.study_dir import Verb

StartFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN",
        help="Start from the best trials of another study, and points near them: its folder, "
        "or an MLflow run ID; or from one trial: FOLDER:trial-0007. Can be repeated.",
    ),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Seeds per pair. Default: search.pairs.seeds.")
]
Sets = Annotated[
    int | None,
    typer.Option(min=0, help="Number of sampled sets of pairs. Default: search.pairs.sets."),
]


def _resume_option(noun: str) -> OptionInfo:
    return typer.Option(
        metavar="FOLDER",
        help=f"Resume the interrupted {noun} in this folder.",
        autocompletion=completion.study_folders,
    )


def search(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="Study file (YAML), or FOLDER:trial-0007 to rerun that study with this trial "
            "first.",
            autocompletion=completion.study_files,
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, _resume_option("search")] = None,
    resume_latest: ResumeLatest = False,
    start_from: StartFrom = None,
    address: Address = None,
    allow_import: AllowImport = False,
    as_json: JsonLines = False,
    verbose: Verbose = False,
) -> None:
    """Run a search: train the teacher, run the trials, retrain the best students with new seeds."""
    _check_resume(file, resume, {"--set": overrides, "--start-from": start_from})
    use_cluster(address)
    session = Session(as_json, verbose, resumable=True)

    def run(listeners: Sequence[Listener]) -> StudyResult:
        folder = resume or _latest(resume_latest, file, overrides or (), "search", allow_import)
        return raykd.search(
            file or "",
            overrides=overrides or (),
            resume=folder,
            start_from=() if folder else start_from or (),
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )

    result = session.run(run)
    session.end(result, failed=result.best is None)


def pairs(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="Study file (YAML), or FOLDER:trial-0007 to study the layers of that trial.",
            autocompletion=completion.study_files,
        ),
    ] = None,
    overrides: Overrides = None,
    seeds: Seeds = None,
    sets: Sets = None,
    resume: Annotated[Path | None, _resume_option("study")] = None,
    resume_latest: ResumeLatest = False,
    address: Address = None,
    allow_import: AllowImport = False,
    as_json: JsonLines = False,
    verbose: Verbose = False,
) -> None:
    """Compare layer pairs: train every hint layer with every guided layer."""
    sizes = [
        f"search.pairs.{key}={value}"
        for key, value in (("seeds", seeds), ("sets", sets))
        if value is not None
    ]
    _check_resume(file, resume, {"--set": overrides, "--seeds and --sets": sizes})
    use_cluster(address)
    session = Session(as_json, verbose, resumable=True)
    values = [*(overrides or ()), *sizes]

    def run(listeners: Sequence[Listener]) -> LayerStudyResult:
        folder = resume or _latest(resume_latest, file, values, "pairs", allow_import)
        return raykd.pairs(
            file or "",
            overrides=values,
            resume=folder,
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )

    result = session.run(run)
    session.end(result, failed=result.best is None)


def extend(
    folder: Folder,
    trials: Annotated[
        str | None,
        typer.Option(metavar="+N", help="Trials to add to a search; without +, their new total."),
    ] = None,
    replicates: Annotated[
        str | None,
        typer.Option(metavar="N", help="Replicates of each finalist; with +, the number to add."),
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
    allow_import: AllowImport = False,
    as_json: JsonLines = False,
    verbose: Verbose = False,
) -> None:
    """Continue a finished or interrupted study with more trials, replicates or a larger space.

    Existing trials are kept, and the sampler learns from them. A change that removes or replaces
    values is refused.
    """
    use_cluster(address)
    session = Session(as_json, verbose, resumable=True)
    result = session.run(
        lambda listeners: raykd.extend(
            folder,
            trials=trials,
            replicates=replicates,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )
    )
    session.end(result, failed=result.best is None)


def distill(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Study file (YAML), or FOLDER:trial-0007 to train that trial again.",
            autocompletion=completion.study_files,
        ),
    ],
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: JsonLines = False,
    verbose: Verbose = False,
) -> None:
    """Train a single student without a search. All parameters must be fixed (see --set)."""
    session = Session(as_json, verbose)
    result = session.run(
        lambda listeners: raykd.distill(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )
    )
    session.end(result, failed=result.best is None)


def teacher(
    file: StudyFile,
    overrides: Overrides = None,
    allow_import: AllowImport = False,
    as_json: JsonLines = False,
    verbose: Verbose = False,
) -> None:
    """Train or load only the teacher of a study, and evaluate it."""
    session = Session(as_json, verbose)
    result = session.run(
        lambda listeners: raykd.train_teacher(
            file,
            overrides=overrides or (),
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )
    )
    session.end(result, failed=all(record.status != "finished" for record in result.teachers))


def _check_resume(
    file: str | None, resume: Path | None, conflicting: dict[str, list[str] | None]
) -> None:
    """Check that a command has either a study file or a folder to resume.

    Args:
        file: study file.
        resume: folder to resume.
        conflicting: values of the options that cannot be used with `--resume`, by name.
    """
    if (file is None) == (resume is None):
        raise typer.BadParameter("give either a study FILE or --resume FOLDER")
    used = [name for name, values in conflicting.items() if values]
    if resume is not None and used:
        raise typer.BadParameter(f"{', '.join(used)} cannot be used with --resume")


def _latest(
    resume_latest: bool, file: str | None, overrides: Sequence[str], verb: Verb, allow_import: bool
) -> Path | None:
    """Return the folder of the run that `--resume-latest` continues; None: start one."""
    if file is None or not resume_latest:
        return None
    from raykd.tuning.latest_run import latest_run, wait_for_driver

    folder = latest_run(file, overrides, verb, allow_import=allow_import)
    if folder is not None:
        typer.echo(f"resuming {folder}", err=True)
        wait_for_driver(folder)
    return folder
