"""Images that weights were trained on, from the configuration files next to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykd.models.base import PretrainingImages
from raykd.models.normalization import Normalization

PREPROCESSOR = "preprocessor_config.json"
"""Written by transformers next to the weights."""

CONFIG = "config.json"
"""Written by timm for the hub, with the key `pretrained_cfg`."""


def read_pretraining_images(folder: Path) -> PretrainingImages | None:
    """Read what images the weights in a folder were trained on.

    Returns:
        The images, or None if the folder has no such file.

    Raises:
        ValueError: a configuration file is not readable; the message names it.
    """
    for name, read in ((PREPROCESSOR, _by_transformers), (CONFIG, _by_timm)):
        file = folder / name
        if not file.is_file():
            continue
        try:
            images = read(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"{file} is not readable ({error}); correct it, or set the teacher's "
                "`normalization: {mean: [...], std: [...]}`"
            ) from None
        if images is not None:
            return PretrainingImages(*images, file)
    return None


NormalizationAndSize = tuple[Normalization, tuple[int, int] | None]


def _by_transformers(config: Mapping[str, Any]) -> NormalizationAndSize:
    """Read the preprocessor: the network takes (p * rescale_factor - image_mean) / image_std."""
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True) or mean is None or std is None:
        mean, std = [0.0], [1.0]
    normalization = Normalization(
        mean=tuple(float(value) / factor for value in mean),
        std=tuple(float(value) / factor for value in std),
        maximum=255,
    )
    return normalization, _size(config.get("crop_size") or config.get("size"))


def _by_timm(config: Mapping[str, object]) -> NormalizationAndSize | None:
    pretrained = config.get("pretrained_cfg")
    if not isinstance(pretrained, Mapping) or not {"mean", "std"} <= pretrained.keys():
        return None
    normalization = Normalization(
        mean=tuple(map(float, pretrained["mean"])), std=tuple(map(float, pretrained["std"]))
    )
    size = pretrained.get("input_size")
    return normalization, (int(size[-2]), int(size[-1])) if size else None


def _size(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if not isinstance(size, Mapping):
        return None
    side = size.get("shortest_edge")
    height, width = size.get("height", side), size.get("width", side)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
