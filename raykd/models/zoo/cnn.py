"""Convolutional networks of configurable stages, for architecture search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.base import Model, Signature, format_option, image_shape
from raykd.models.zoo.blocks import conv_bn, init_kaiming, staged
from raykd.models.zoo.cnn_blocks import AnyBlock, BlockShape, Plain
from raykd.registry import option


@option
class CnnStage:
    """One stage of a `cnn`: repeated blocks.

    The first block has the stride of the stage and takes the channels of the previous stage.
    """

    width: Annotated[int, Field(ge=1, description="Output channels")]
    depth: Annotated[int, Field(ge=1, description="Number of blocks")] = 1
    block: Annotated[AnyBlock, Field(description="Block type")] = Plain()
    kernel: Annotated[
        Literal[1, 3, 5, 7, 9], Field(description="Kernel size of the spatial convolutions")
    ] = 3
    stride: Annotated[
        Literal[1, 2] | None,
        Field(description="Stride of the first block. null: 1 in the first stage, 2 in the others"),
    ] = None
    squeeze_excite: Annotated[
        bool, Field(description="Add squeeze-and-excitation to each block, with reduction 4")
    ] = False

    def build(self, inputs: int, first: bool) -> nn.Sequential:
        """Build the stage: (B, inputs, H, W) -> (B, width, H', W').

        Raises:
            ValueError: the block does not support this width.
        """
        stride = self.stride or (1 if first else 2)
        blocks = []
        for number in range(self.depth):
            shape = BlockShape(
                inputs if number == 0 else self.width,
                self.width,
                self.kernel,
                stride if number == 0 else 1,
                self.squeeze_excite,
            )
            blocks.append(self.block.build(shape))
        return nn.Sequential(*blocks)

    def __repr__(self) -> str:
        """Format as in a study file, without fields that have their default."""
        return format_option(self)


@option
class Cnn(Model):
    """Convolutional network of configurable stages, for architecture search.

    A 3x3 stem with batch-norm and ReLU, a sequence of stages, a global average and a linear
    classifier.  Each stage has its own width, number of blocks, kernel size, block type and
    optional squeeze-and-excite.  This is a macro search space: the blocks of a stage are equal,
    and there are no cells to search.  The number of stages can be searched, too: null entries are
    left out, so the last stage may be `{choice: [null, {width: 64}]}`.

    Every stage except the first halves the size, rounding up, so any image size works.
    Convolutions are initialized as in He et al. 2015 (arXiv:1502.01852), fan out, the classifier
    with PyTorch's defaults.
    """

    name: Literal["cnn"] = "cnn"
    stages: Annotated[
        tuple[CnnStage | None, ...],
        Field(min_length=1, description="Stages, shallow to deep; null entries are skipped"),
    ] = (CnnStage(width=16), CnnStage(width=32), CnnStage(width=64))
    stem: Annotated[
        int | None, Field(ge=1, description="Channels of the stem. null: same as the first stage")
    ] = None
    stem_stride: Annotated[
        Literal[1, 2], Field(description="Stride of the stem. 2 halves the image size")
    ] = 1

    def build(self, signature: Signature) -> nn.Module:
        channels, _, _ = image_shape(signature, self.name)
        present = [stage for stage in self.stages if stage is not None]
        if not present:
            raise ValueError(f"a cnn needs at least one stage, got {format_option(self.stages)}")
        width = self.stem or present[0].width
        stem = conv_bn(channels, width, kernel=3, stride=self.stem_stride)
        stages: list[nn.Module] = []
        for number, stage in enumerate(present, start=1):
            try:
                stages.append(stage.build(width, first=number == 1))
            except ValueError as error:
                raise ValueError(f"stage{number} of the cnn: {error}") from None
            width = stage.width
        network = staged(stem, stages, nn.Linear(width, signature.classes))
        init_kaiming(network)
        return network
