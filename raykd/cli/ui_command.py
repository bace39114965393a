"""Command `raykd ui`: open the pages of a study."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raykd.cli import completion
from raykd.cli.parameters import TrackingUri, Verbose, folder_of
from raykd.cli.session import error_messages

if TYPE_CHECKING:
    from raykd.report.dashboards import StudyPages


def ui(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study's folder or name, or an MLflow run ID or folder name of a study "
            "elsewhere. "
            "Default: the newest study in studies/, or else the tracking store alone.",
            autocompletion=completion.study_folders,
        ),
    ] = None,
    uri: TrackingUri = None,
    verbose: Verbose = False,
) -> None:
    """Serve MLflow (and Optuna's dashboard) on this machine and print the links; Ctrl-C stops."""
    with error_messages(verbose):
        from raykd.report.dashboards import serve

        with serve(_pages(study, uri)) as (links, servers):
            width = max(len(link.name) for link in links)
            for link in links:
                typer.echo(f"{link.name:{width}}  {link.address}")
            if servers:
                typer.echo("press Ctrl-C to stop")
            while servers and all(server.poll() is None for server in servers):
                time.sleep(0.5)


def _pages(study: str | None, uri: str | None) -> StudyPages:
    from raykd.report.dashboards import Link, StudyPages, pages_of_folder
    from raykd.study.config import Tracking

    if study is None:
        listed = completion.study_folders("")
        if listed and uri is None:
            return pages_of_folder(Path(listed[0][0]))
        store = uri or os.environ.get("MLFLOW_TRACKING_URI") or Tracking().uri
        if not store.startswith("http"):
            from raykd.report.stored_status import open_store

            store = open_store(store).uri  # refuses a store that does not exist
        return StudyPages(store, [])
    folder = folder_of(study, uri)
    if folder is not None:
        return pages_of_folder(folder)
    from raykd.report.stored_status import find_stored_study, open_store

    store = open_store(uri, study)
    return StudyPages(store.uri, [Link("study in MLflow", find_stored_study(store, study).page)])
