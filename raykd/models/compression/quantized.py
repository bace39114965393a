"""Students in 8 bits: quantization-aware training."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel, find_classifier, replace_module
from raykd.models.compression.int8 import convert, has_int8_form, simulate
from raykd.registry import option


@option
class Quantized(CompressedModel):
    """The teacher quantized to int8 with quantization-aware training.

    Quantization-aware training (Jacob 2018, arXiv:1712.05877): the forward pass rounds the inputs
    and weights of every convolution and linear layer to 8 bits, and gradients pass through the
    rounding.  Weights have one scale per output channel; the range of the inputs is a moving
    average over batches.  Everything else (norms, activations, sums) is float32.  Validation during
    training uses this simulated network.  At the end the network is converted, tested and saved:
    weights are int8, and a CPU computes products with int8 kernels.  `test_accuracy` is the
    accuracy of the converted network, `simulated_test_accuracy` that of the network before
    conversion, `int8_bytes` the size of the converted tensors.  Parameters and multiply-accumulates
    are those of the teacher.
    """

    paper = "Jacob 2018, arXiv:1712.05877"

    name: Literal["quantized"] = "quantized"
    ends: Annotated[
        Literal["int8", "float"],
        Field(
            description="Precision of the first layer and the classifier. float: do not "
            "quantize them"
        ),
    ] = "int8"

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        paths = [path for path, layer in network.named_modules() if has_int8_form(layer)]
        if self.ends == "float":
            classifier = find_classifier(network, signature)
            paths = [path for path in paths[1:] if path != classifier]
        if not paths:
            raise ValueError(
                f"{self.base_model.name} has no convolution or linear layer to quantize"
                + ("; set `ends: int8`" if self.ends == "float" else "")
            )
        for path in paths:
            network = replace_module(network, path, simulate(network.get_submodule(path)))
        return network

    def deployed(self, network: nn.Module) -> nn.Module:
        return convert(copy.deepcopy(network).eval())
