"""Students with fewer channels than the teacher: structured magnitude pruning."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.models.adapters.library import library
from raykd.models.base import Signature
from raykd.models.compression.base import CompressedModel, find_classifier
from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import blank_inputs
from raykd.registry import option

HEAD_COUNTS = ("heads", "num_heads", "num_attention_heads")
"""Attributes of attention modules that hold the number of heads."""

PROJECTIONS = (
    "qkv",
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_lin",
    "k_lin",
    "v_lin",
)
"""Attributes of attention modules that hold layers whose outputs are split among the heads."""

WIDTHS = {
    "head_dim": False,
    "attn_dim": True,
    "attention_head_size": False,
    "all_head_size": True,
}
"""Attributes that hold the width of one head (False) or of all heads together (True)."""


@option
class ChannelPruning(CompressedModel):
    """The teacher after structured magnitude pruning of filters and units.

    Each layer keeps the fraction `keep` of its channels, those with the largest norm (Li 2017,
    arXiv:1608.08710, section 3: the sum of a filter's absolute weights; `norm: l2`: the root of the
    sum of squares).  Channels tied by residual sums, depthwise or grouped convolutions, norms or
    concatenations are pruned together and ranked by the sum of their filters' norms; torch-pruning
    finds these groups (Fang 2023, arXiv:2301.12900, DepGraph).  The logits are not pruned, nor is a
    layer that would lose all channels.  Attention keeps all heads, each narrower by the same
    fraction.
    """

    paper = "Li 2017, arXiv:1608.08710"

    name: Literal["channel_pruning"] = "channel_pruning"
    keep: Annotated[
        float, Field(gt=0, le=1, description="Fraction of the channels of each layer to keep")
    ] = 0.5
    norm: Annotated[Literal["l1", "l2"], Field(description="Norm used to rank filters")] = "l1"

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        pruning = library("torch_pruning", "pruning", self.name)
        if self.keep == 1:
            return network
        classifier = find_classifier(network, signature)
        if not classifier:
            raise ValueError(
                f"{self.base_model.name} has no linear layer that outputs the logits, so the "
                "channels to keep are unknown; choose another compression, such as `low_rank`"
            )
        try:
            head = network.get_submodule(classifier)
            self._prune(pruning, network, signature, head, with_weights=with_weights)
            logits = first_tensor(_forward(network, signature))
        except Exception as error:  # the network's code may raise anything
            raise ValueError(self._failure(error)) from error
        if logits is None or logits.shape[-1] != signature.classes:
            raise ValueError(self._failure("its logits changed shape"))
        return network

    def _prune(
        self,
        pruning: ModuleType,
        network: nn.Module,
        signature: Signature,
        classifier: nn.Module,
        *,
        with_weights: bool,
    ) -> None:
        network.eval()
        heads = _head_counts(network)
        with warnings.catch_warnings(), torch.enable_grad():  # it traces the autograd graph
            warnings.simplefilter("ignore")  # about parameters outside layers, which it prunes too
            pruner = pruning.pruner.BasePruner(
                network,
                blank_inputs(signature, 2, torch.device("cpu")),
                importance=_Norm(pruning, int(self.norm[1])) if with_weights else _by_position,
                pruning_ratio=1 - self.keep,
                ignored_layers=[classifier],
                num_heads=dict(heads),
                in_channel_groups={},
                out_channel_groups={},
                forward_fn=_run,
            )
            pruner.step()
        _update_head_widths(network, heads)

    def _failure(self, reason: object) -> str:
        return (
            f"the channels of {self.base_model.name} cannot be pruned by {1 - self.keep:.3g} "
            f"({reason}); increase `keep`, or choose another compression, such as `layer_pruning` "
            "or `low_rank`"
        )


class _Norm:
    """Importance for torch-pruning: the summed norms of a group's filters, (channels,)."""

    def __init__(self, pruning: ModuleType, power: int) -> None:
        function = pruning.pruner.function
        self._outputs = (function.prune_conv_out_channels, function.prune_linear_out_channels)
        self._power = power

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        members = [item for item in group if None not in item.root_idxs]
        total = torch.zeros(1 + max(max(item.root_idxs) for item in members), dtype=torch.float64)
        for item in members:
            if item.dep.handler in self._outputs:
                weight = item.dep.target.module.weight[item.idxs]
                norms = weight.flatten(1).double().norm(self._power, dim=1)
                total.index_add_(0, torch.tensor(item.root_idxs), norms)
        return total


def _by_position(group: Any) -> Tensor:
    """Rank channels by index, for networks with arbitrary weights, of which only shapes matter."""
    indices = [item.root_idxs for item in group if None not in item.root_idxs]
    return torch.arange(1 + max(map(max, indices)), dtype=torch.float64)


def _run(network: nn.Module, inputs: Any) -> Any:
    """Run a forward as raykd does: a mapping of inputs is one argument."""
    return network(inputs)


def _forward(network: nn.Module, signature: Signature) -> Any:
    with torch.no_grad():
        return network(blank_inputs(signature, 2, torch.device("cpu")))


def _head_counts(network: nn.Module) -> dict[nn.Module, int]:
    """Map each layer whose outputs are split among attention heads to the number of heads."""
    counts: dict[nn.Module, int] = {}
    for module in network.modules():
        heads = [getattr(module, name) for name in HEAD_COUNTS if hasattr(module, name)]
        layers = [getattr(module, name, None) for name in PROJECTIONS] if heads else []
        counts |= {layer: int(heads[0]) for layer in layers if isinstance(layer, nn.Linear)}
    return counts


def _update_head_widths(network: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Set the head widths that attention modules store to those after pruning."""
    for module in network.modules():
        projections = [child for child in module.children() if child in heads]
        if not projections:
            continue
        layer = projections[0]
        assert isinstance(layer, nn.Linear)
        width = layer.out_features // (3 if len(projections) == 1 else 1)  # one layer: q, k and v
        for name, of_all_heads in WIDTHS.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, width if of_all_heads else width // heads[layer])
