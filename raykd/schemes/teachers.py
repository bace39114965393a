"""Option for the teacher of a study."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raykd.models import AnyModel
from raykd.models.normalization import NormalizationSetting
from raykd.registry import option
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
        NormalizationSetting,
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
