"""Shape checks of the inputs of losses.

PyTorch broadcasts: the divergence between (8, 10) and (8, 1) logits is a number, but a wrong one.
The checks compare Python integers, without synchronization with a GPU, in a few microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Shape = tuple[int, ...]
"""Output shape of a layer without the batch: (C, H, W), (tokens, D) or (D,)."""


def check_logits(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    *,
    kinds: Sequence[str] = ("softmax",),
) -> None:
    """Check that the logits of two networks and the labels belong to one batch.

    Args:
        loss: name of the loss, for the message.
        student, teacher: (B, classes) logits, or (B, classes, H, W) if the loss is for positions.
        targets: labels of the samples; None if the loss does not use labels.
        kinds: kinds of responses that the loss fits: class indices, labels or values as targets.

    Raises:
        ValueError: a shape or a type does not match.
    """
    shape_by_dims = {4: "(batch, classes, height, width)"} if "dense" in kinds else {}
    if set(kinds) != {"dense"}:
        shape_by_dims[2] = "(batch, classes)"
    if student.dim() not in shape_by_dims or student.shape != teacher.shape:
        shapes = " or ".join(shape_by_dims.values())
        raise ValueError(
            f"{loss}: the student's logits have shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}; both must be {shapes} and the same"
        )
    if targets is None or student.dim() == 4:
        return
    name = f"{loss}: the targets"
    if "softmax" in kinds:
        check = check_integers if len(kinds) == 1 else check_targets
        check(name, targets, len(student))
    elif targets.shape != student.shape or not targets.is_floating_point():
        raise ValueError(
            f"{name} have shape {tuple(targets.shape)} and type {targets.dtype}; they must be "
            f"values of shape {tuple(student.shape)}"
        )


def check_targets(name: str, targets: Tensor, batch: int) -> None:
    """Check that targets are a class index, labels or values, a mask or boxes of each sample.

    Raises:
        ValueError: they are not.
    """
    is_mask = targets.dtype == torch.int64 or targets.shape[2:] == (5,)
    if targets.dim() == 3 and len(targets) == batch and is_mask:
        return
    if not targets.is_floating_point():
        check_integers(name, targets, batch)
    elif targets.dim() != 2 or len(targets) != batch:
        raise ValueError(
            f"{name} have shape {tuple(targets.shape)} and type {targets.dtype}; they must be "
            f"integers of shape ({batch},), or labels or values of shape ({batch}, outputs)"
        )


def check_integers(name: str, values: Tensor, batch: int) -> None:
    """Check that labels, or numbers of samples, are one integer per sample.

    Raises:
        ValueError: the shape or the type differs.
    """
    if values.shape != (batch,) or values.is_floating_point() or values.is_complex():
        raise ValueError(
            f"{name} have shape {tuple(values.shape)} and type {values.dtype}; they must be "
            f"integers of shape ({batch},)"
        )


def check_features(loss: str, guided: Tensor, hint: Tensor, *, same: bool) -> None:
    """Check that two layers belong to one batch.

    Args:
        loss: name of the loss, for the message.
        guided, hint: (B, ...) each, the guided layer after its connector.
        same: whether all sizes must match; if not, only the batch size must match.

    Raises:
        ValueError: the sizes differ.
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
        ValueError: a layer has another number of dimensions.
    """
    if guided.dim() != 4 or hint.dim() != 4:
        raise ValueError(
            f"{loss}: the guided layer has shape {tuple(guided.shape)} and the hint layer "
            f"{tuple(hint.shape)}; both must be maps (batch, channels, height, width)"
        )


def check_layers(
    side: str, layers: Mapping[str, Tensor], batch: int, shapes: Mapping[str, Shape]
) -> None:
    """Check the layers of a network against the shapes that a loss was built for.

    Args:
        side: "student" or "teacher", for the message.
        layers: outputs by name; missing layers are not checked.
        batch: number of samples.
        shapes: expected shapes by layer, without the batch.

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
