"""A small search that ran in this process, for tests of what comes after it."""

from __future__ import annotations

import shutil
from pathlib import Path

from raykd.tuning.executors import LocalExecutor
from raykd.tuning.search_run import search


def finished_search(root: Path, study: str) -> Path:
    """Run a search whose folder, teachers and MLflow store are below a folder.

    Args:
        root: folder for `study.yaml`, `studies` and `mlflow.db`.
        study: text of the study file, without `cluster` and `tracking`.

    Returns:
        The study's folder.
    """
    file = root / "study.yaml"
    file.write_text(f"{study}cluster: {{storage: '{root}/studies'}}\n")
    uri = f"tracking.uri=sqlite:///{root}/mlflow.db"
    return search(file, overrides=[uri], executor=LocalExecutor()).folder


def copy_study(folder: Path, target: Path) -> Path:
    """Copy a study's folder with its teachers; return the copy."""
    shutil.copytree(folder.parent, target / "studies")
    return target / "studies" / folder.name
