"""Records of a study: the journal that it writes, and MLflow, which is filled from it.

MLflow is imported when a store is reached, and nothing else of raykd is imported at all.
"""

from raykd.tracking.journal import EventBus, Journal, Listener, events
from raykd.tracking.mlflow_client import FoundRun, StoreCheck, check_store, find_run, ui_command
from raykd.tracking.mlflow_models import load_model_uri
from raykd.tracking.sync import Status, Tracker, sync

__all__ = [
    "EventBus",
    "FoundRun",
    "Journal",
    "Listener",
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
