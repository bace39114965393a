"""Shape checks of what losses compare.

PyTorch broadcasts: the divergence of (8, 10) from (8, 1) logits is a number, and a wrong one.  The
checks compare Python integers only: no synchronization with a GPU, and a few microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Shape = tuple[int, ...]
"""Output shape of a layer without the batch: (C, H, W), (tokens, D) or (D,)."""


def check_logits(loss: str, student: Tensor, teacher: Tensor, targets: Tensor | None) -> None:
    """Check that two networks' logits and the labels belong to one batch.

    Args:
        loss: its name, for the message.
        student, teacher: (B, classes) logits.
        targets: (B,) integers; None where the loss reads none.

    Raises:
        ValueError: a shape or a type is another one.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"{loss}: the student's logits have shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; both must be (batch, classes) and the same"
        )
    if targets is not None:
        check_integers(f"{loss}: the targets", targets, len(student))


def check_integers(what: str, values: Tensor, batch: int) -> None:
    """Check that labels, or numbers of samples, are one integer a sample.

    Raises:
        ValueError: they are not.
    """
    if values.shape != (batch,) or values.is_floating_point() or values.is_complex():
        raise ValueError(
            f"{what} have shape {tuple(values.shape)} and type {values.dtype}; they must be "
            f"integers of shape ({batch},)"
        )


def check_features(loss: str, guided: Tensor, hint: Tensor, *, same: bool) -> None:
    """Check that two layers belong to one batch.

    Args:
        loss: its name, for the message.
        guided, hint: (B, ...) each, the guided one as it came out of its connector.
        same: whether all their sizes must agree; if not, only the batch's.

    Raises:
        ValueError: they do not.
    """
    if guided.dim() < 2 or hint.dim() < 2 or len(guided) != len(hint):
        raise ValueError(
            f"{loss}: the guided layer has shape {tuple(guided.shape)} and the hint layer "
            f"{tuple(hint.shape)}; both must be (batch, ...) with the same batch"
        )
    if same and guided.shape != hint.shape:
        raise ValueError(
            f"{loss}: the guided layer has shape {tuple(guided.shape)} and the hint layer "
            f"{tuple(hint.shape)}; they must be the same: pass the guided layer through "
            "`loss.connector(guided_shape, hint_shape)` first"
        )


def check_maps(loss: str, guided: Tensor, hint: Tensor) -> None:
    """Check that two layers are (B, C, H, W).

    Raises:
        ValueError: one of them is not.
    """
    if guided.dim() != 4 or hint.dim() != 4:
        raise ValueError(
            f"{loss}: the guided layer has shape {tuple(guided.shape)} and the hint layer "
            f"{tuple(hint.shape)}; both must be maps (batch, channels, height, width)"
        )


def check_layers(
    side: str, layers: Mapping[str, Tensor], batch: int, shapes: Mapping[str, Shape]
) -> None:
    """Check a network's layers against the shapes that a loss was built for.

    Args:
        side: "student" or "teacher", for the message.
        layers: outputs by name; a layer that is missing is not checked.
        batch: number of samples.
        shapes: by layer, without the batch.

    Raises:
        ValueError: a layer has another shape.
    """
    for name, shape in shapes.items():
        layer = layers.get(name)
        if layer is not None and layer.shape != (batch, *shape):
            raise ValueError(
                f"layer {name!r} of the {side} has shape {tuple(layer.shape)}; the loss was built "
                f"for {(batch, *shape)}, the batch first"
            )
