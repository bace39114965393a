"""Command `raykd reproduce`: train a student again from its record, and compare the figures."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import raykd
from raykd.cli import completion
from raykd.cli.parameters import Address, AllowImport, Verbose
from raykd.cli.session import FAILED, OK, Session, error_messages, use_cluster


def reproduce(
    training: Annotated[
        str,
        typer.Argument(
            metavar="TRAINING",
            help="FOLDER:trial-0007, a study's folder (its best trial), or an MLflow run ID of a "
            "study or trial.",
            autocompletion=completion.study_folders,
        ),
    ],
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            help="Largest difference of figures that agree: relative to the recorded figure, "
            "absolute below 1. 0: bit for bit.",
        ),
    ] = 1e-3,
    uri: Annotated[
        str | None, typer.Option("--uri", help="MLflow tracking URI of a run ID.")
    ] = None,
    address: Address = None,
    allow_import: AllowImport = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events and the figures as JSON lines.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train a student again from its record, and tell whether the figures agree.

    Exit code 0: they agree within the tolerance; 1: they do not.
    """
    use_cluster(address)
    session = Session(as_json, verbose)
    result = session.run(
        lambda listeners: raykd.reproduce(
            training,
            tolerance=tolerance,
            tracking_uri=uri,
            allow_import=allow_import,
            verbose=verbose,
            progress=False,
            listeners=listeners,
        )
    )
    with error_messages(verbose, session):
        from raykd.report.terminal.reproduction import reproduction_text
        from raykd.tracking.json_types import to_json

        if as_json:
            typer.echo(json.dumps(to_json({"event": "reproduction", **result.plain()})))
        else:
            session.console.print(reproduction_text(result), crop=False)
    raise typer.Exit(OK if result.agrees else FAILED)
