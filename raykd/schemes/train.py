"""How a network is trained: the `train` part of a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raykd.option import option

PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


@option
class SGD:
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Rate = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    nesterov: bool = False


@option
class AdamW:
    """Adam with decoupled weight decay (Loshchilov 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}; each must be >= 0 and < 1")


@option
class Cosine:
    """Half a cosine from the full rate to `final` times it, step by step."""

    name: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


@option
class Step:
    """The rate times `factor` after each epoch listed in `at` (counted from 1)."""

    name: Literal["step"] = "step"
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (150, 180, 210)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


@option
class Constant:
    """The same rate throughout."""

    name: Literal["constant"] = "constant"


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]
Schedule = Annotated[Cosine | Step | Constant, Field(discriminator="name")]


@option
class Train:
    """One training: the budget, the optimiser, the precision."""

    epochs: PositiveInt = 10
    batch_size: Annotated[int, Field(ge=1, description="per trial: shared among its workers")] = 64
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    warmup_epochs: Annotated[float, Field(ge=0, description="linear from 0")] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float | None, Field(gt=0, description="gradient norm; null: none")] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 on CUDA, else fp32")
    ] = "auto"
    compile: Annotated[
        Literal["none", "graph", "default", "reduce-overhead", "max-autotune"],
        Field(
            description="graph: on a GPU whole steps are recorded once an epoch and replayed, "
            "which compiles nothing; the others: torch.compile's mode for the student's forward "
            "and backward, reduce-overhead: CUDA graphs; each architecture is compiled anew, and a "
            "student whose layers a term looks at runs as it is written"
        ),
    ] = "none"
