"""Journal of a study, and its upload to MLflow.

MLflow is imported on the first connection to a store.  No other part of raykd is imported.
"""

from raykd.tracking.journal import EventBus, Journal, Listener, events
from raykd.tracking.mlflow_client import FoundRun, find_run
from raykd.tracking.mlflow_models import load_model_uri
from raykd.tracking.store_check import StoreCheck, check_store
from raykd.tracking.sync import Status, Tracker, upload_journal

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
    "upload_journal",
]
