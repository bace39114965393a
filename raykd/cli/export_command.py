"""Command `raykd export`: write a trained student in formats that load without raykd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raykd.cli import completion
from raykd.cli.parameters import AllowImport, Verbose
from raykd.cli.session import create_console, error_messages, print_error


def export(
    student: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT",
            help="A study's folder (its best student), FOLDER:trial-0007, an MLflow run ID of a "
            "study or trial, or an MLflow model URI.",
            autocompletion=completion.study_folders,
        ),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="onnx, pt2 (torch.export), safetensors, or hf (a folder for transformers or "
            "timm). Can be repeated. Default: onnx.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("-o", metavar="DIR", help="Folder to create. Default: the student's name."),
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri", "--tracking-uri", help="MLflow tracking URI of a run ID or model URI."
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option(help="Measure the accuracy of each file on the whole test split.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder of an earlier export.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the measurements as a JSON object.")
    ] = False,
    allow_import: AllowImport = False,
    verbose: Verbose = False,
) -> None:
    """Export a trained student to ONNX, pt2, safetensors or a hub folder, with a model card.

    Each file is opened again with its own runtime and compared with the original.
    """
    with error_messages(verbose):
        from raykd.export import export_student, find_student
        from raykd.export.report import export_facts, export_table

        saved = find_student(student, tracking_uri=uri, allow_import=allow_import)
        result = export_student(
            saved, to or ["onnx"], folder, measure_accuracy=test, overwrite=overwrite
        )
        if as_json:
            typer.echo(json.dumps(export_facts(result)))
        else:
            create_console().print(export_table(result), crop=False)
        for note in result.notes:
            print_error(f"note: {note}")
