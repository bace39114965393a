"""Students with the architecture of the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel
from raykd.registry import option


@option
class Copy(CompressedModel):
    """The architecture of the teacher, with separate weights.

    Furlanello 2018 (arXiv:1805.04770, born-again networks): with scheme `offline`, the student of
    one generation.  With `inherit_weights` it starts from the weights of the trained teacher.
    """

    paper = "Furlanello 2018, arXiv:1805.04770"

    name: Literal["copy"] = "copy"
    inherit_weights: Annotated[
        bool, Field(description="Initialize from the weights of the trained teacher")
    ] = False

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        return network
