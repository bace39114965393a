"""Commands that prepare a study (file, machine) and read or upload its results."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raykd.cli.parameters import (
    Address,
    AllowImport,
    Folder,
    JsonLines,
    Overrides,
    Study,
    StudyFile,
    TrackingUri,
    Verbose,
    folder_of,
)
from raykd.cli.session import (
    FAILED,
    OK,
    create_console,
    error_messages,
    print_error,
    print_result,
    use_cluster,
)

if TYPE_CHECKING:
    from raykd.layer_study.result import LayerStudyResult
    from raykd.tuning.result import StudyResult


def init(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Study file to write, or - for standard output.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Template: quickstart, architecture, pairing or text.",
        ),
    ] = "quickstart",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Create a commented study file from a template."""
    with error_messages():
        from raykd.compat.packages import launcher
        from raykd.study.starters import STARTERS, starter_text, write_starter

        if file == "-":
            typer.echo(starter_text(name, "FILE"), nl=False)
            return
        write_starter(name, file, force=force)
        quoted = shlex.quote(file)
        typer.echo(f"created {file}")
        typer.echo(f"  data: {STARTERS[name].data}")
        typer.echo(f"  check it: {launcher()}raykd validate {quoted}")
        typer.echo(f"  run it:   {launcher()}raykd {STARTERS[name].verb} {quoted}")


def validate(
    file: StudyFile,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Random seed of the example trial.")] = 0,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Check a study file and show its search space, the size of the space and the cost."""
    from raykd.report import print_line

    console = create_console()
    with error_messages(verbose):
        from raykd.compat.packages import launcher
        from raykd.report.space import explain_file

        console.print(
            explain_file(file, overrides or (), seed, allow_import=allow_import), crop=False
        )
        command = f"{launcher()}raykd search {file}"
        command += "".join(f" --set {shlex.quote(override)}" for override in overrides or ())
        command += " --allow-import" if allow_import else ""
    print_line(console, f"\nvalid: {command}")


def doctor(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Check what this study file needs.")
    ] = None,
    overrides: Overrides = None,
    uri: TrackingUri = None,
    address: Address = None,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Check this machine, or a cluster (--address), and suggest how to fix problems."""
    use_cluster(address)
    healthy = True
    with error_messages(verbose):
        from raykd.doctor import render, requirements_of, run_checks

        console = create_console()
        requirements = requirements_of(file, overrides or (), uri, allow_import=allow_import)
        for check in run_checks(requirements):
            console.print(render(check), crop=False)
            healthy = healthy and not check.fatal
    raise typer.Exit(OK if healthy else FAILED)


def sync(
    folder: Folder,
    uri: TrackingUri = None,
    from_start: Annotated[
        bool, typer.Option(help="Upload everything again. Existing entries are not changed.")
    ] = False,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Upload what could not be sent during the search to MLflow, or upload to another server."""
    with error_messages(verbose):
        from raykd.tracking.sync import upload_journal
        from raykd.tuning.result import read_result
        from raykd.tuning.study_dir import open_folder
        from raykd.tuning.study_lock import locked

        study = open_folder(folder)[0]
        uri = uri or read_result(folder).tracking_uri
        try:
            with locked(study.path, "sync"):  # a running search uploads its events itself
                status = upload_journal(
                    study.journal,
                    uri,
                    from_start=from_start,
                    allow_code=allow_import,
                    verbose=verbose,
                )
        except ValueError as error:
            print_error(str(error))
            raise typer.Exit(FAILED) from None
    typer.echo(str(status))
    raise typer.Exit(FAILED if status.refused else OK)


def report(
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            metavar="DIR",
            help="Write the report as an HTML page with figures into this folder.",
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option("--images", help="With -o: also write the figures as PNG and SVG."),
    ] = False,
    predictions: Annotated[
        bool,
        typer.Option(
            help="With -o: compare the predictions of the best student and its teacher, which "
            "loads the data and both networks."
        ),
    ] = True,
    as_json: JsonLines = False,
    uri: TrackingUri = None,
    verbose: Verbose = False,
) -> None:
    """Print the results of a finished, interrupted or running study, or write them as a page.

    If the study's folder is on another machine, its journal is downloaded from MLflow.
    """
    with error_messages(verbose), _study_folder(study, uri) as folder:
        from raykd.tuning.study_dir import open_folder

        result: StudyResult | LayerStudyResult
        if open_folder(folder)[0].verb == "pairs":
            from raykd.layer_study.result import read_layer_study

            result = read_layer_study(folder)
        else:
            from raykd.tuning.result import read_result

            result = read_result(folder)
        if out is None:
            print_result(result, create_console(), as_json)
            return
        from raykd.report.page.write import write_report
        from raykd.tuning.stored_study import is_fetched

        evaluate = predictions and not is_fetched(folder)
        page = write_report(result, out, images=images, evaluate=evaluate)
        typer.echo(f"wrote {page}")


def _study_folder(study: str, uri: str | None) -> AbstractContextManager[Path]:
    """Give a study's folder, or one with its journal from MLflow; see `study_folder`."""
    path = folder_of(study, uri)
    if path is not None:
        return nullcontext(path)
    from raykd.report.stored_status import study_folder

    return study_folder(study, uri)
