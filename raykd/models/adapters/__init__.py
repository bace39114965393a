"""Models of other libraries (`library/NAME`), from MLflow (a URI) and from an import path.

Each library is imported when it is used.
"""

from collections.abc import Mapping

from raykd.models.adapters.custom_code import Imported, Stored
from raykd.models.adapters.huggingface import Hf
from raykd.models.adapters.library import LibraryModel
from raykd.models.adapters.timm import Timm
from raykd.models.adapters.torchvision import Torchvision
from raykd.models.base import Model

ADAPTERS: tuple[type[Model], ...] = (Torchvision, Timm, Hf, Stored, Imported)
"""Options that have many names."""

LIBRARIES: Mapping[str, type[LibraryModel]] = {
    "torchvision": Torchvision,
    "timm": Timm,
    "hf": Hf,
}
"""Adapters to libraries, by the start of their models' names."""


def models_of_libraries(name: str) -> list[str]:
    """Return the models of this name in installed libraries: `torchvision/NAME`, `timm/NAME`."""
    listed = []
    for library, cls in LIBRARIES.items():
        try:
            names = cls.library_names()
        except ValueError:  # it is not installed
            continue
        if name in names:
            listed.append(f"{library}/{name}")
    return listed


__all__ = ["ADAPTERS", "Hf", "Imported", "Stored", "Timm", "Torchvision", "models_of_libraries"]
