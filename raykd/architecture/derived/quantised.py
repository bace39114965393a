"""Students in 8 bits."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from raykd.architecture.derived.derived import Derived, classifier_of, replaced
from raykd.architecture.derived.int8 import can_be_int8, converted, simulated
from raykd.architecture.model import Task
from raykd.option import option


@option
class Quantized(Derived):
    """The teacher quantized to int8 with quantization-aware training.

    Quantisation-aware training (Jacob 2018, arXiv:1712.05877): the inputs and weights of every
    convolution and linear layer are rounded to 8 bits in the forward pass, gradients pass the
    rounding; weights have a scale for each output channel, inputs a range that follows the batches.
    All else (norms, activations, sums) stays in float32.  Validation while it trains is that of the
    simulated network.  What is tested and kept in the end is the converted one: weights are int8,
    products are computed by int8 kernels on a CPU.  `test_accuracy` is its accuracy,
    `simulated_test_accuracy` that of the network it was converted from, `int8_bytes` the size of
    its tensors.  It has the teacher's parameters and multiply-accumulates.
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

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        fit = [path for path, layer in network.named_modules() if can_be_int8(layer)]
        if self.ends == "float":
            classifier = classifier_of(network, task)
            fit = [path for path in fit[1:] if path != classifier]
        if not fit:
            raise ValueError(
                f"{self.source.name} has no convolution or linear layer that could be quantized"
                + ("; write `ends: int8`" if self.ends == "float" else "")
            )
        for path in fit:
            network = replaced(network, path, simulated(network.get_submodule(path)))
        return network

    def deployed(self, network: nn.Module) -> nn.Module:
        return converted(copy.deepcopy(network).eval())
