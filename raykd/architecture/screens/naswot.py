"""NASWOT: do the activations of an untrained network tell samples apart?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raykd.architecture.macs import without_fused_attention
from raykd.architecture.model import Model
from raykd.architecture.screens.screen import Measured, Scorer, Screening, first, fresh
from raykd.option import option

_aten = torch.ops.aten


@option
class Naswot(Measured):
    """Log-determinant of the similarity of ReLU patterns in an untrained network.

    Mellor et al. 2021 (arXiv:2006.04647), section 3.  Each sample has a binary code c: for each
    unit before a ReLU, whether it is above 0.  K_ij = units - hamming(c_i, c_j), a (B, B) matrix,
    and the score is log |det K|: large where samples get codes that differ.  It grows with the
    number of units by itself, so look at it beside `params`, or with `per_cost`.

    The network has its own first weights, and batch-norms see the batch, as in the paper; the
    samples are the study's own training pictures, not augmented, their labels not looked at.  We
    depart: of smooth activations (GELU, SiLU, hard-swish ...) the sign of the input is taken, of a
    ReLU6 only its lower bend; `batch` is 64 and not 128, and the mean over `repeats` is offered.
    """

    paper = "Mellor 2021, arXiv:2006.04647"

    name: Literal["naswot"] = "naswot"

    def seeded_scorer(self, about: Screening, seed: int) -> Scorer:
        inputs = first(about.inputs, self.batch)

        def score(model: Model) -> float:
            network = fresh(model, about, seed)
            patterns = Patterns()
            with torch.no_grad(), without_fused_attention(), patterns:
                network(inputs)
            if patterns.kernel is None:
                raise ValueError(
                    f"screen 'naswot' looks at ReLUs and their like, and {model.name} has none; "
                    "take zen, params or macs"
                )
            return log_determinant(patterns.kernel)

        return score


def log_determinant(kernel: Tensor) -> float:
    """log |det kernel|, -inf where it is singular."""
    return float(torch.linalg.slogdet(kernel.double()).logabsdet)


class Patterns(TorchDispatchMode):
    """Adds up, over all rectifiers that run inside, in how many units two samples agree.

    Works on any network, modules and functions alike.

    Attributes:
        kernel: (B, B) float64; None before the first rectifier has run.
    """

    RECTIFIERS = frozenset(
        getattr(_aten, name)
        for name in (
            *("relu", "relu_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_"),
            *("gelu", "gelu_", "silu", "silu_", "hardswish", "hardswish_", "elu", "elu_"),
            *("mish", "mish_", "rrelu_with_noise", "_prelu_kernel", "softplus"),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would otherwise import the compiler, to keep it away from this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._overloadpacket in self.RECTIFIERS:
            self._count(args[0])  # before it may be overwritten
        return func(*args, **(kwargs or {}))

    def _count(self, values: Tensor) -> None:
        codes = (values > 0).flatten(1).float()
        agree = (codes @ codes.T + (1 - codes) @ (1 - codes).T).double()
        self.kernel = agree if self.kernel is None else self.kernel + agree
