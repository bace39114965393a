"""Names of trained networks: data, architecture, and the losses that taught it."""

from __future__ import annotations

import re

from raykd.study.config import Study, plain
from raykd.study.short_names import model_name

MAX_LENGTH = 100


def network_name(study: Study) -> str:
    """Return the name of a trained student: `digits-resnet-d8-w4-kd`.

    Args:
        study: concrete.
    """
    parts = [part for term in study.knowledge for part in term.parts]
    losses = [part.loss.name for part in parts if part.active and part.loss]
    scheme = study.scheme.name
    taught = losses if scheme == "offline" and losses else [scheme, *losses]
    words = [study.data.name, model_name(plain(study.student.model)), *dict.fromkeys(taught)]
    text = re.sub(r"(?<=\d)\.(?=\d)", "_", "-".join(words))
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:MAX_LENGTH].strip("-")
