"""What a study did, kept: the journal it writes, and MLflow, which is filled from it.

Nothing here imports MLflow until a store is reached.
"""

from raykd.tracking.journal import Journal, events
from raykd.tracking.models import load_model_uri
from raykd.tracking.runs import Status, Tracker, sync
from raykd.tracking.store import FoundRun, StoreCheck, check_store, find_run, ui_command

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
