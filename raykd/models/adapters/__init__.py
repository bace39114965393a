"""Networks that others build: by `library/NAME`, by an MLflow URI, by an import path.

Each library is imported where it is used.
"""

from raykd.models.adapters.custom_code import Imported, Stored
from raykd.models.adapters.huggingface import Hf
from raykd.models.adapters.timm import Timm
from raykd.models.adapters.torchvision import Torchvision
from raykd.models.base import Model

ADAPTERS: tuple[type[Model], ...] = (Torchvision, Timm, Hf, Stored, Imported)
"""Options that answer to many names."""

__all__ = ["ADAPTERS", "Hf", "Imported", "Stored", "Timm", "Torchvision"]
