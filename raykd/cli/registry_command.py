"""Command `raykd register`: give a student a name in MLflow's model registry."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from raykd.cli import completion
from raykd.cli.parameters import TrackingUri, Verbose
from raykd.cli.session import error_messages


def register(
    student: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT",
            help="A study's folder (its best student), FOLDER:trial-0007, or an MLflow run ID of a "
            "study, trial or training.",
            autocompletion=completion.study_folders,
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the registered model.")],
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", help="Alias of this version, such as champion. Can be repeated."),
    ] = None,
    uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    verbose: Verbose = False,
) -> None:
    """Register a student in MLflow with accuracy, gain and cost; again changes only the aliases."""
    with error_messages(verbose):
        from raykd.errors import Problem, StudyError
        from raykd.study.config import Tracking
        from raykd.tracking.mlflow_registry import register_student

        source, store = _source(student)
        store = uri or store or os.environ.get("MLFLOW_TRACKING_URI") or Tracking().uri
        try:
            result = register_student(source, name, alias or (), uri=store)
        except ValueError as error:
            raise StudyError(Problem(str(error))) from None
        if as_json:
            facts = {"name": result.name, "version": result.version, "uri": result.uri}
            facts |= {"new": result.is_new, "aliases": result.aliases, "tags": result.tags}
            typer.echo(json.dumps(facts))
            return
        state = "registered" if result.is_new else "registered before"
        typer.echo(f"{result.name} version {result.version} ({state}): {result.uri}")
        for key in ("accuracy", "accuracy_over_seeds", "gain_over_alone", "params"):
            if key in result.tags:
                typer.echo(f"  {key.replace('_', ' ')}: {result.tags[key]}")


def _source(student: str) -> tuple[str, str]:
    """Return the ID of a student's run, and the store of its study; "" if it is no folder."""
    folder, colon, trial = student.rpartition(":")
    if Path(student).expanduser().is_dir() or not colon:
        folder, trial = student, ""
    if not Path(folder).expanduser().is_dir() and "/" not in folder:
        return student, ""
    from raykd.tracking.store_uri import absolute
    from raykd.tuning.result import read_run

    run, _, _ = read_run(Path(folder).expanduser())
    id = f"{run.study_id}/{trial}" if trial else run.study_id
    return id, absolute(run.tracking_uri)
