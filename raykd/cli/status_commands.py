"""Commands that watch and stop studies which other processes run."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from raykd.cli.parameters import Folder, OptionalStudy, TrackingUri, folder_of
from raykd.cli.session import create_console, error_messages
from raykd.errors import Problem, StudyError

PIPE_WIDTH = 10_000
"""Number of characters of a line of the table of studies that is not printed to a terminal."""

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object instead.")]


def status(
    study: OptionalStudy = None,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.5, help="Print again every SECONDS until the study ends."
        ),
    ] = None,
    as_json: AsJson = False,
    uri: TrackingUri = None,
) -> None:
    """Show what a study is doing: trials, best so far, time left, failures.

    Without STUDY: the running study in studies/, or else the newest one.

    MLflow is read where the study's folder is on another machine.
    """
    with error_messages():
        from raykd.report.status import read_status
        from raykd.report.terminal.status import status_text
        from raykd.tuning.study_lookup import current_folder

        console = create_console()
        if study is None and uri is not None:
            raise StudyError(Problem("--uri needs STUDY", fix="raykd ls --uri URI lists them"))
        folder = folder_of(study, uri) if study is not None else current_folder()
        if folder is not None:
            read = partial(read_status, folder)
        else:
            assert study is not None
            from raykd.report.stored_status import open_store, read_stored_status

            read = partial(read_stored_status, open_store(uri, study), study)
        while True:
            state = read()
            if as_json:
                typer.echo(json.dumps(state.plain()))
            else:
                console.print(status_text(state), crop=False)
            if watch is None or state.status != "running":
                return
            time.sleep(watch)


def list_studies(
    roots: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Folders of studies. Default: studies."),
    ] = None,
    as_json: AsJson = False,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri", "--tracking-uri", metavar="URI", help="List the studies of this MLflow store."
        ),
    ] = None,
) -> None:
    """List the studies below a folder, or in MLflow: status, trials, best trial."""
    with error_messages():
        from raykd.report.status import list_studies as read_studies
        from raykd.report.terminal.status import studies_table

        states = [] if uri and not roots else list(read_studies(roots or [Path("studies")]))
        if uri is not None:
            from raykd.report.stored_status import list_stored_studies, open_store

            states += list_stored_studies(open_store(uri))
        if as_json:
            typer.echo(json.dumps([state.plain() for state in states]))
        else:
            console = create_console()
            if not console.is_terminal:  # a program that reads the table gets all of its columns
                console.width = PIPE_WIDTH
            limit = console.width if console.is_terminal else None
            console.print(studies_table(states, limit), crop=False)


def stop(
    folder: Folder,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for the end of the process.")
    ] = 120.0,
) -> None:
    """Stop a running study as Ctrl-C does: finished epochs are kept, --resume continues."""
    with error_messages():
        from raykd.compat.packages import launcher
        from raykd.tuning.stop import stop_study

        driver = stop_study(folder, timeout=timeout)
        verb = driver.work if driver.work in ("search", "pairs") else "search"
        typer.echo(f"stopped {driver}")
        typer.echo(f"  continue it: {launcher()}raykd {verb} --resume {folder}")
