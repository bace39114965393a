"""Peers: networks trained side by side with the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from raykd.architecture import AnyModel, Model
from raykd.schemes.distiller import Parts

Peers = Annotated[int, Field(ge=2, le=8, description="Number of networks, including the student")]
Others = Annotated[
    tuple[AnyModel, ...],
    Field(description="Models of the other peers. Peers without a model use that of the student"),
]


def check_room(peers: int, others: Sequence[object]) -> None:
    """See that no more architectures are named than there are peers beside the student.

    Raises:
        ValueError: there are.
    """
    if len(others) >= peers:
        raise ValueError(
            f"{len(others)} architectures are named in `others` and {peers} peers leave room for "
            f"{peers - 1}; set peers: {len(others) + 1}"
        )


def built_peers(parts: Parts, peers: int, others: Sequence[Model]) -> list[nn.Module]:
    """The student, then the peers of other architectures, then those of its own."""
    named = [model.build(parts.task) for model in others]
    alike = [parts.build_student() for _ in range(peers - 1 - len(named))]
    return [parts.student, *named, *alike]
