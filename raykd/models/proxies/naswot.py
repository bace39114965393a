"""NASWOT: separation of samples by the activations of an untrained network."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raykd.models.base import Model
from raykd.models.introspection.flops import without_fused_attention
from raykd.models.proxies.base import NetworkProxy, ProxyContext, Scorer, build_initialized, first
from raykd.registry import option

_aten = torch.ops.aten


@option
class Naswot(NetworkProxy):
    """Log-determinant of the similarity of ReLU patterns in an untrained network.

    Mellor et al. 2021 (arXiv:2006.04647), section 3.  The binary code c of a sample holds, for each
    input of a ReLU, whether it is above 0.  K_ij = units - hamming(c_i, c_j) is a (B, B) matrix,
    and the score is log |det K|: large if samples have different codes.  It grows with the number
    of units, so compare it with `params`, or use `per_cost`.  K is singular if the network has
    fewer than B - 1 units, or if two samples have the same code: such a network has no score, and a
    smaller `batch` gives it one.

    As in the paper, weights are the default initialization and batch-norms use batch statistics;
    samples are training images of the study, not augmented, without their labels.  Differences
    from the paper: smooth activations (GELU, SiLU, hard-swish ...) use the sign of the input and a
    ReLU6 its lower bend; `batch` is 64 instead of 128, and the score can be averaged over
    `repeats`.
    """

    paper = "Mellor 2021, arXiv:2006.04647"

    name: Literal["naswot"] = "naswot"

    def seeded_scorer(self, context: ProxyContext, seed: int) -> Scorer:
        inputs = first(context.inputs, self.batch)

        def score(model: Model) -> float:
            network = build_initialized(model, context, seed)
            patterns = Patterns()
            with torch.no_grad(), without_fused_attention(), patterns:
                network(inputs)
            if patterns.kernel is None:
                raise ValueError(
                    f"proxy 'naswot' needs activations such as ReLUs, and {model.name} has none; "
                    "use zen, params or macs"
                )
            return log_determinant(patterns.kernel)

        return score


def log_determinant(kernel: Tensor) -> float:
    """Return log |det kernel|; -inf if it is singular.

    The rank decides: by rounding, the determinant of a singular matrix is not 0 on every processor.
    """
    kernel = kernel.double()
    if int(torch.linalg.matrix_rank(kernel, hermitian=True)) < len(kernel):
        return -math.inf
    return float(torch.linalg.slogdet(kernel).logabsdet)


class Patterns(TorchDispatchMode):
    """Count in how many units two samples agree, over all rectifiers that run inside.

    Covers modules and functions of any network.

    Attributes:
        kernel: (B, B) float64; None before the first rectifier.
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
        """Keep torch from importing its compiler for this mode (private hook; torch 2.15)."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._overloadpacket in self.RECTIFIERS:  # private in torch 2.15, used by its modes
            self._count(args[0])  # before an in-place operation overwrites it
        return func(*args, **(kwargs or {}))

    def _count(self, values: Tensor) -> None:
        codes = (values > 0).flatten(1).float()
        agree = (codes @ codes.T + (1 - codes) @ (1 - codes).T).double()
        self.kernel = agree if self.kernel is None else self.kernel + agree
