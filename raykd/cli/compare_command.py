"""Command `raykd compare`: compare studies and other runs of MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raykd.cli import completion
from raykd.cli.parameters import Verbose
from raykd.cli.session import create_console, error_messages

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Folders of studies, FOLDER:trial-0007, MLflow run IDs, or names or IDs of MLflow "
        "experiments.",
        autocompletion=completion.study_folders,
    ),
]
Filter = Annotated[
    str,
    typer.Option(
        "--filter",
        metavar="TEXT",
        help="Filter of the runs in MLflow's language, such as \"tags.team = 'vision'\". Without a "
        "source it applies to all experiments.",
    ),
]
Uri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        "--uri",
        metavar="URI",
        help="MLflow store of runs and experiments. Default: MLFLOW_TRACKING_URI, else "
        "sqlite:///mlflow.db.",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Metric to compare. Default: test_accuracy if every study has it, else the first "
        "objective.",
    ),
]
Smaller = Annotated[
    bool | None,
    typer.Option(
        "--smaller/--larger",
        help="Smaller (larger) values of the metric are better. Default: known from the "
        "objectives or the name.",
    ),
]
Reference = Annotated[
    str,
    typer.Option(
        metavar="ARM",
        help="ID of the arm that the others are compared with. Default: the best arm over several "
        "seeds.",
    ),
]
Files = Annotated[
    list[Path] | None,
    typer.Option(
        "-o",
        metavar="FILE",
        help="Write a page (.html) or the table of all arms (.csv, .parquet). Can be repeated.",
    ),
]
Log = Annotated[
    bool,
    typer.Option("--mlflow", help="Log the comparison in MLflow, as a run that links its members."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the arms as a JSON list instead of text.")
]


def compare(
    sources: Sources = None,
    filter: Filter = "",
    uri: Uri = None,
    metric: MetricName = None,
    smaller: Smaller = None,
    reference: Reference = "",
    out: Files = None,
    mlflow: Log = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare studies: which student is better, by how much, and what differs.

    Runs that other programs recorded in MLflow are compared by their params and metrics.
    """
    with error_messages(verbose):
        from raykd.report.comparison.files import check_suffix
        from raykd.report.comparison.sources import compare as compare_sources

        files = [check_suffix(file) for file in out or ()]
        comparison = compare_sources(
            sources or (),
            tracking_uri=uri,
            filter=filter,
            metric=metric,
            smaller=smaller,
            reference=reference,
        )
        if as_json:
            typer.echo(comparison.table.to_json(orient="records"))
        else:
            from raykd.report.terminal.comparison import render_comparison

            create_console().print(render_comparison(comparison), crop=False)
        for file in files:
            typer.echo(f"wrote {comparison.write(file)}", err=as_json)
        if mlflow:
            typer.echo(f"logged {comparison.log(uri)}", err=as_json)
