"""Studies whose folder is not on this machine: their files from MLflow."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.errors import Problem, StudyError
from raykd.tracking.store_uri import masked

if TYPE_CHECKING:
    from raykd.tracking.mlflow_studies import MlflowStudies, StudyRun

FETCHED = "fetched.json"
"""File in a temporary folder with a journal from MLflow: ID of the study's run, and the store."""


def is_fetched(folder: Path) -> bool:
    """Return True for a temporary folder whose journal comes from MLflow."""
    return (folder / FETCHED).is_file()


@contextlib.contextmanager
def fetched_folder(store: MlflowStudies, study: StudyRun) -> Iterator[Path]:
    """Give a temporary folder with the journal, the study file and the description of a study.

    Raises:
        StudyError: MLflow does not have them.
    """
    with tempfile.TemporaryDirectory(prefix="raykd-") as temporary:
        folder = Path(temporary, study.folder or study.name)
        folder.mkdir()
        try:
            store.download(study, folder)
        except ValueError as error:
            raise StudyError(Problem(str(error))) from None
        (folder / FETCHED).write_text(json.dumps({"run": study.run_id, "uri": masked(study.uri)}))
        yield folder
