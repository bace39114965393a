"""Optuna's hypervolume.

`optuna._hypervolume.compute_hypervolume` (Optuna 5.0) is private; the public functions draw the
history of one study and choose the reference point themselves.
"""

from __future__ import annotations

import numpy as np
from optuna._hypervolume import compute_hypervolume


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume that points dominate, up to a reference point.

    Args:
        points: (N, objectives), smaller is better; none above the reference point.
        reference: (objectives,).
    """
    return float(compute_hypervolume(points, reference))
