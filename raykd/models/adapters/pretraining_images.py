"""The pictures that weights were trained on, by the configuration that lies beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykd.models.base import PretrainingImages
from raykd.models.normalization import Normalization

PREPROCESSOR = "preprocessor_config.json"
"""Written by transformers beside a model's weights."""

CONFIG = "config.json"
"""Written by timm for the hub, with the key `pretrained_cfg`."""


def read_pretraining_images(folder: Path) -> PretrainingImages | None:
    """The pictures that the weights in a folder were trained on.

    Returns:
        None where no file of the folder tells.

    Raises:
        ValueError: a file that should tell cannot be read; names it.
    """
    for name, read in ((PREPROCESSOR, _by_transformers), (CONFIG, _by_timm)):
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = read(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{file} cannot be read ({error}); correct it, or write the teacher's "
                "`normalization: {mean: [...], std: [...]}`"
            ) from None
        if found is not None:
            return PretrainingImages(*found, file)
    return None


Found = tuple[Normalization, tuple[int, int] | None]


def _by_transformers(told: Mapping[str, Any]) -> Found:
    """Pixels p of 0 to 255 enter as (p * rescale_factor - image_mean) / image_std."""
    factor = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
    mean, std = told.get("image_mean"), told.get("image_std")
    if not told.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0], [1.0]
    normalization = Normalization(
        mean=tuple(float(value) / factor for value in mean),
        std=tuple(float(value) / factor for value in std),
        maximum=255,
    )
    return normalization, _size(told.get("crop_size") or told.get("size"))


def _by_timm(told: Mapping[str, Any]) -> Found | None:
    held = told.get("pretrained_cfg")
    if not isinstance(held, Mapping) or "mean" not in held or "std" not in held:
        return None
    normalization = Normalization(
        mean=tuple(map(float, held["mean"])), std=tuple(map(float, held["std"]))
    )
    size = held.get("input_size")
    return normalization, (int(size[-2]), int(size[-1])) if size else None


def _size(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if not isinstance(size, Mapping):
        return None
    side = size.get("shortest_edge")
    height, width = size.get("height", side), size.get("width", side)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
