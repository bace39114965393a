"""Access to the Hugging Face Hub, from which timm and transformers download."""

from __future__ import annotations

import importlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SECONDS = 3.0
"""Timeout of the connection to the hub."""


@contextmanager
def hub() -> Iterator[None]:
    """Use earlier downloads if the hub does not answer.

    Its own client would retry for a minute before it fails.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


@cache
def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
