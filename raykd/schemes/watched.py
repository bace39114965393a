"""A network together with the layers a trial looks at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raykd.architecture import Layer, Taps, Task, discover, resolve
from raykd.data.batch import Inputs
from raykd.knowledge.evidence import Evidence


class Watched:
    """Runs a network and shows its logits and the layers asked for.

    Args:
        model: (B, ...) -> (B, classes); not registered anywhere by this.
        layers: dotted module names or aliases ("stage2", "embedding").
        task: what the network takes and gives.
        known: the layers the names are looked up in; None: all that are discovered.

    Raises:
        ValueError: the network has no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        task: Task,
        known: Sequence[Layer] | None = None,
    ) -> None:
        if known is None:
            known = discover(model, task) if layers else ()
        self._taps = Taps(model, [resolve(known, name) for name in layers])

    def __call__(self, inputs: Inputs) -> Evidence:
        logits, layers = self._taps.run(inputs)
        return Evidence(logits, layers)

    def layers_only(self, inputs: Inputs) -> dict[str, Tensor]:
        """The layers without the logits: the forward ends after the last of them.  No gradient."""
        return self._taps.layers_only(inputs)
