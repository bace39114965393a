"""Params, tags and metrics in the form that MLflow accepts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from raykd.tracking.events import Metrics, RunStarted

MAX_KEY = 250


MAX_PARAM = 6000


MAX_TAG = 8000


CUT = " ... [cut]"


def text(value: Any) -> str:
    """Return a value in the notation of a study file."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def run_params(start: RunStarted) -> dict[str, str]:
    """Return a run's params at full length, under names that MLflow accepts."""
    params = dict(start.params)
    if start.seed is not None:
        params.setdefault("seed", start.seed)
    named: dict[str, str] = {}
    for key, value in params.items():
        named[_free(clean_key(key), named)] = text(value)
    return named


def clean_key(key: str) -> str:
    """Return `key` in MLflow's form: `knowledge[0].loss` becomes `knowledge.0.loss`."""
    key = re.sub(r"\[([^\]]*)\]", r".\1", str(key))
    key = re.sub(r"[^\w.\- /]", "_", key)
    key = "/".join(part for part in key.split("/") if part not in ("", ".", ".."))
    return key[:MAX_KEY] or "_"


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags with names and lengths that MLflow accepts, without empty ones."""
    present = {key: value for key, value in tags.items() if value is not None}
    return {clean_key(key): cut(text(value), MAX_TAG) for key, value in present.items()}


def cut(value: str, limit: int) -> str:
    """Cut `value` to at most `limit` characters, with a note if it was longer."""
    return value if len(value) <= limit else value[: limit - len(CUT)] + CUT


def split_finite(metrics: Metrics) -> tuple[dict[str, float], dict[str, float]]:
    """Split metrics into finite numbers and others."""
    values = {clean_key(key): value for key, value in metrics.items()}
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    return finite, {key: value for key, value in values.items() if key not in finite}


def _free(key: str, used: Mapping[str, Any]) -> str:
    """Return `key`, or the first of `key_2`, `key_3` ... that is not in use."""
    free, number = key, 1
    while free in used:
        number += 1
        free = f"{key[: MAX_KEY - 6]}_{number}"
    return free
