"""Models of other libraries (`library/NAME`), from MLflow (a URI) and from an import path.

Each library is imported when it is used.
"""

from raykd.models.adapters.custom_code import Imported, Stored
from raykd.models.adapters.huggingface import Hf
from raykd.models.adapters.timm import Timm
from raykd.models.adapters.torchvision import Torchvision
from raykd.models.base import Model

ADAPTERS: tuple[type[Model], ...] = (Torchvision, Timm, Hf, Stored, Imported)
"""Options that have many names."""

__all__ = ["ADAPTERS", "Hf", "Imported", "Stored", "Timm", "Torchvision"]
