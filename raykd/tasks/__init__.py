"""Tasks: what a network's response means, how it is trained on labels and measured."""

from raykd.tasks.base import ALL_KINDS, KINDS, TASKS, AnyTask, Kind, LabelLoss, Task
from raykd.tasks.classification import Classification
from raykd.tasks.detection import Detection
from raykd.tasks.embedding import Embedding
from raykd.tasks.multi_label import MultiLabel
from raykd.tasks.regression import Regression
from raykd.tasks.segmentation import Segmentation

TASKS.add(Classification, MultiLabel, Regression, Embedding, Segmentation, Detection)

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "TASKS",
    "AnyTask",
    "Classification",
    "Detection",
    "Embedding",
    "Kind",
    "LabelLoss",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "Task",
]
