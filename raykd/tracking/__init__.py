"""What a study did, kept: the journal it writes, and MLflow, which is filled from it.

Nothing here imports MLflow until a store is reached.
"""

from raykd.tracking.journal import Journal, events
from raykd.tracking.mlflow_client import FoundRun, StoreCheck, check_store, find_run, ui_command
from raykd.tracking.mlflow_models import load_model_uri
from raykd.tracking.sync import Status, Tracker, sync

__all__ = [
    "FoundRun",
    "Journal",
    "Status",
    "StoreCheck",
    "Tracker",
    "check_store",
    "events",
    "find_run",
    "load_model_uri",
    "sync",
    "ui_command",
]
