"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raykd.cli import completion

StudyFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="Study file (YAML).", autocompletion=completion.study_files
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="The study folder printed by the search.",
        autocompletion=completion.study_folders,
    ),
]
_STUDY = typer.Argument(
    metavar="STUDY",
    help="A study's folder, or a study's name: its newest folder in studies/. If it is on another "
    "machine: the folder's name, the study's name or an MLflow run ID, which are looked up in "
    "MLflow.",
    autocompletion=completion.study_folders,
)
Study = Annotated[str, _STUDY]
OptionalStudy = Annotated[str | None, _STUDY]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b=VALUE",
        help="Override a value in the study file. Can be repeated.",
        autocompletion=completion.keys,
    ),
]
ResumeLatest = Annotated[
    bool,
    typer.Option(
        "--resume-latest",
        help="Resume the newest run of this FILE with the same --set options and storage, or start "
        "one. For jobs that are started again: SLURM, Kubernetes, `ray job submit`.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to join, or `auto`. Default: RAY_ADDRESS. Without it, Ray is started on "
        "this machine.",
    ),
]
AllowImport = Annotated[
    bool,
    typer.Option(
        "--allow-import",
        help="Allow the study to run third-party code: models given by import path, networks "
        "from MLflow. Use it only for studies you trust. It is not stored with the study.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--uri",
        "--tracking-uri",
        metavar="URI",
        help="MLflow tracking URI. Default: the one in the study, else MLFLOW_TRACKING_URI.",
    ),
]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print events and the result as JSON, one object per line.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the output of Ray and full tracebacks.")
]


def folder_of(study: str, uri: str | None) -> Path | None:
    """Return the folder that a `Study` names; None if it is looked up in MLflow.

    Args:
        study: the argument.
        uri: MLflow's tracking URI; if it is given, only the path of a folder names one.
    """
    from raykd.tuning.study_lookup import find_folder

    path = Path(study).expanduser()
    if path.is_dir() or uri is not None:
        return path if path.is_dir() else None
    return find_folder(study)
