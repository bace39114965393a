"""A teacher as a training finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from raykd.architecture import Task
from raykd.schemes import LiveTeacher
from raykd.schemes.scheme import TeacherSource
from raykd.training.cache.reading import CachedTeacher, Outputs
from raykd.training.layout import lay_out


class TeacherAtHand:
    """A trained teacher: its network, perhaps not loaded yet, and perhaps its kept outputs.

    Args:
        network: itself, or what loads it when it is first asked for.
        outputs: of it, on the samples that are trained on.
    """

    def __init__(
        self, network: nn.Module | Callable[[], nn.Module], outputs: Outputs | None = None
    ) -> None:
        self._network = network if isinstance(network, nn.Module) else None
        self._load = network
        self.outputs = outputs

    @property
    def network(self) -> nn.Module:
        """The trained network."""
        if self._network is None:
            self._network = self._load()
        return self._network

    @property
    def loaded(self) -> nn.Module | None:
        """The network, if it was loaded already."""
        return self._network

    def without_outputs(self) -> TeacherAtHand:
        """The same teacher, to be run live."""
        return TeacherAtHand(self._load)

    def source(
        self, layers: Sequence[str], task: Task, device: torch.device, *, logits: bool
    ) -> TeacherSource:
        """What shows these layers, and the logits where they are wanted: the kept outputs as far
        as they reach, for the rest the network, run no further than it must.

        Args:
            layers: as the pairs name them.
            task: what the network takes and gives.
            device: where batches are.
            logits: whether they are wanted.

        Raises:
            ValueError: the teacher has no such layer.
        """
        if self.outputs is None:
            return LiveTeacher(lay_out(self.network, device), layers, task, logits=logits)
        kept = [name for name in layers if name in self.outputs.layers]
        others = [name for name in layers if name not in kept]
        live = None
        if others:
            live = LiveTeacher(lay_out(self.network, device), others, task, logits=False)
        return CachedTeacher(self.outputs, kept, live, logits=logits)


def at_hand(teacher: nn.Module | TeacherAtHand) -> TeacherAtHand:
    """A network as a teacher at hand."""
    return teacher if isinstance(teacher, TeacherAtHand) else TeacherAtHand(teacher)
