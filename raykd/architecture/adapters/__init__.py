"""Networks that others build: by `library/NAME`, by an MLflow URI, by an import path.

Each library is imported where it is used.
"""

from raykd.architecture.adapters.hf_models import Hf
from raykd.architecture.adapters.own_code import Imported, Stored
from raykd.architecture.adapters.timm_models import Timm
from raykd.architecture.adapters.torchvision_models import Torchvision
from raykd.architecture.model import Model

ADAPTERS: tuple[type[Model], ...] = (Torchvision, Timm, Hf, Stored, Imported)
"""Options that answer to many names."""

__all__ = ["ADAPTERS", "Hf", "Imported", "Stored", "Timm", "Torchvision"]
