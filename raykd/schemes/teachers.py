"""Teachers: the option of a study, and the network that is run in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from raykd.data.batch import Batch
from raykd.losses import ModelOutputs
from raykd.models import AnyModel, Task
from raykd.models.normalization import Given
from raykd.registry import option
from raykd.schemes.distiller import HookedModel
from raykd.train_config import Train


@option
class Teacher:
    """The teacher network, trained by the study or loaded from a file.

    Exactly one of these holds: `weights` is null and the teacher is trained by `train`; `weights`
    is a file for `model`; `weights` is an MLflow model URI (`models:/name@alias`,
    `runs:/id/model`), and `model` may be left out.
    """

    model: AnyModel | None = None
    weights: Annotated[
        str | None,
        Field(
            description="File or folder of weights, or MLflow model URI. null: train the teacher"
        ),
    ] = None
    classes: Annotated[
        tuple[str | int, ...] | None,
        Field(
            description="Class names in the order of the outputs of `weights`. null: the "
            "names stored with the weights, otherwise the order of the data"
        ),
    ] = None
    normalization: Annotated[
        Given,
        Field(
            description="Normalization of the images that `weights` were trained with. auto: as "
            "stored with the weights, otherwise that of the data; model: from the configuration "
            "of the model library"
        ),
    ] = "auto"
    train: Annotated[
        Train | None,
        Field(
            description="Training settings. null: those of the teacher of the study, or of "
            "the student"
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0, lt=2**31, description="Random seed of the training. null: the seed of the study"
        ),
    ] = None

    @property
    def is_mlflow(self) -> bool:
        return self.weights is not None and self.weights.split(":", 1)[0] in (
            "models",
            "runs",
            "mlflow-artifacts",
        )


class LiveTeacher:
    """ModelOutputs from a forward of the teacher, frozen and in eval mode.

    A `TeacherSource`.  The model is put in eval mode, its parameters need no gradient from then
    on, and its batch-norm statistics do not move.

    Args:
        model: the trained teacher, on the device of the batches.
        layers: the hint layers to show, as the pairs name them.
        task: what the teacher takes and gives.
        logits: whether any term reads the logits; if not, the forward ends after the last layer
            and the evidence's logits are (B, 0).

    Raises:
        ValueError: the teacher has no such layer.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], task: Task, *, logits: bool = True
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.logits = logits
        self._watched = HookedModel(self.model, layers, task)

    def __call__(self, batch: Batch) -> ModelOutputs:
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            if self.logits:
                return self._watched(batch.inputs)
            nothing = torch.empty(len(batch), 0, device=batch.targets.device)
            return ModelOutputs(nothing, self._watched.layers_only(batch.inputs))
