"""A teacher that is run live, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from raykd.architecture import Task
from raykd.data.batch import Batch
from raykd.knowledge.evidence import Evidence
from raykd.schemes.watched import Watched


class LiveTeacher:
    """Evidence from a forward of the teacher, frozen and in eval mode.

    A `TeacherSource`.  The model is put in eval mode, its parameters need no gradient from then
    on, and its batch-norm statistics do not move.

    Args:
        model: the trained teacher, on the device of the batches.
        layers: the hint layers to show, as the pairs name them.
        task: what the teacher takes and gives.
        logits: whether any term reads the logits; if not, the forward ends after the last layer
            and the evidence's logits are (B, 0).

    Raises:
        ValueError: the teacher has no such layer.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], task: Task, *, logits: bool = True
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.logits = logits
        self._watched = Watched(self.model, layers, task)

    def __call__(self, batch: Batch) -> Evidence:
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            if self.logits:
                return self._watched(batch.inputs)
            nothing = torch.empty(len(batch), 0, device=batch.targets.device)
            return Evidence(nothing, self._watched.layers_only(batch.inputs))
