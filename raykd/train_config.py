"""How a network is trained: the `train` part of a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raykd.registry import option

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
    """Cosine decay from the full learning rate to `final` times it, per step."""

    name: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


@option
class Step:
    """Multiply the learning rate by `factor` after each epoch in `at` (counted from 1)."""

    name: Literal["step"] = "step"
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (150, 180, 210)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


@option
class Constant:
    """Constant learning rate."""

    name: Literal["constant"] = "constant"


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]
Schedule = Annotated[Cosine | Step | Constant, Field(discriminator="name")]


@option
class Train:
    """Training settings: budget, optimizer, schedule, precision."""

    epochs: PositiveInt = 10
    batch_size: Annotated[
        int, Field(ge=1, description="Samples per batch and trial, divided among its workers")
    ] = 64
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    warmup_epochs: Annotated[
        float, Field(ge=0, description="Number of epochs with a linear learning rate warmup from 0")
    ] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[
        float | None, Field(gt=0, description="Maximum gradient norm. null: no clipping")
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Numeric precision. auto: bf16 on CUDA, otherwise fp32"),
    ] = "auto"
    compile: Annotated[
        Literal["none", "graph", "default", "reduce-overhead", "max-autotune"],
        Field(
            description="Compilation of the student. graph: record training steps as a CUDA "
            "graph once per epoch and replay them, without compiling; other "
            "values: mode of torch.compile for the forward and backward pass "
            "(reduce-overhead uses CUDA graphs). Each architecture is compiled "
            "separately; students with terms on layers run in eager mode"
        ),
    ] = "none"
