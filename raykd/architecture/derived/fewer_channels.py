"""Students with fewer channels than the teacher."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.architecture.adapters.library import library
from raykd.architecture.derived.derived import Derived, classifier_of
from raykd.architecture.layers import blank_inputs
from raykd.architecture.model import Task
from raykd.architecture.taps import first_tensor
from raykd.option import option

HEADS = ("heads", "num_heads", "num_attention_heads")
"""How modules of attention call the number of their heads."""

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
"""How they call the layers whose outputs are parted among the heads."""

WIDTHS = {
    "head_dim": False,
    "attn_dim": True,
    "attention_head_size": False,
    "all_head_size": True,
}
"""How they call the width of one head (False), or of all (True)."""


@option
class ChannelPruning(Derived):
    """The teacher after structured magnitude pruning of filters and units.

    Of every layer's channels a share of `keep` stays, those of the largest norm (Li 2017,
    arXiv:1608.08710, section 3: the sum of a filter's absolute weights; `norm: l2`: the root of the
    sum of their squares).  Channels that are bound to one another by residual sums, depthwise or
    grouped convolutions, norms or concatenations go together, and are ranked by the sum of their
    filters' norms; they are found by torch-pruning (Fang 2023, arXiv:2301.12900, DepGraph).  The
    logits stay, and so does a layer of which none would be left.  Of attention every head gets
    narrower by the same share; the heads stay.
    """

    paper = "Li 2017, arXiv:1608.08710"

    name: Literal["channel_pruning"] = "channel_pruning"
    keep: Annotated[
        float, Field(gt=0, le=1, description="Fraction of the channels of each layer to keep")
    ] = 0.5
    norm: Annotated[Literal["l1", "l2"], Field(description="Norm used to rank filters")] = "l1"

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        pruning = library("torch_pruning", "pruning", self.name)
        if self.keep == 1:
            return network
        classifier = classifier_of(network, task)
        if not classifier:
            raise ValueError(
                f"{self.source.name} has no linear layer that gives the logits, and which channels "
                "must stay is not known; derive the student in another way, such as `low_rank`"
            )
        try:
            whole = network.get_submodule(classifier)
            self._prune(pruning, network, task, whole, weighed=weighed)
            logits = first_tensor(_forward(network, task))
        except Exception as error:  # whatever the network's own code raises
            raise ValueError(self._cannot(error)) from error
        if logits is None or logits.shape[-1] != task.classes:
            raise ValueError(self._cannot("it gives other logits"))
        return network

    def _prune(
        self,
        pruning: ModuleType,
        network: nn.Module,
        task: Task,
        classifier: nn.Module,
        *,
        weighed: bool,
    ) -> None:
        network.eval()
        heads = _heads(network)
        with warnings.catch_warnings(), torch.enable_grad():  # it follows the graph of gradients
            warnings.simplefilter("ignore")  # of parameters outside layers, which go along
            pruner = pruning.pruner.BasePruner(
                network,
                blank_inputs(task, 2, torch.device("cpu")),
                importance=_Norm(pruning, int(self.norm[1])) if weighed else _in_order,
                pruning_ratio=1 - self.keep,
                ignored_layers=[classifier],
                num_heads=dict(heads),
                in_channel_groups={},
                out_channel_groups={},
                forward_fn=_run,
            )
            pruner.step()
        _settle(network, heads)

    def _cannot(self, why: object) -> str:
        return (
            f"the channels of {self.source.name} cannot be pruned by {1 - self.keep:.3g} "
            f"({why}); keep more, or derive the student in another way, such as `layer_pruning` or "
            "`low_rank`"
        )


class _Norm:
    """The norms of a group's filters, summed: (channels,), for torch-pruning."""

    def __init__(self, pruning: ModuleType, power: int) -> None:
        function = pruning.pruner.function
        self._outputs = (function.prune_conv_out_channels, function.prune_linear_out_channels)
        self._power = power

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        known = [item for item in group if None not in item.root_idxs]
        total = torch.zeros(1 + max(max(item.root_idxs) for item in known), dtype=torch.float64)
        for item in known:
            if item.dep.handler in self._outputs:
                weight = item.dep.target.module.weight[item.idxs]
                norms = weight.flatten(1).double().norm(self._power, dim=1)
                total.index_add_(0, torch.tensor(item.root_idxs), norms)
        return total


def _in_order(group: Any) -> Tensor:
    """For networks whose weights say nothing: as many channels, the first ones go."""
    known = [item.root_idxs for item in group if None not in item.root_idxs]
    return torch.arange(1 + max(map(max, known)), dtype=torch.float64)


def _run(network: nn.Module, inputs: Any) -> Any:
    """A forward as raykd makes it: mappings of inputs are one argument."""
    return network(inputs)


def _forward(network: nn.Module, task: Task) -> Any:
    with torch.no_grad():
        return network(blank_inputs(task, 2, torch.device("cpu")))


def _heads(network: nn.Module) -> dict[nn.Module, int]:
    """The layers whose outputs are parted among heads of attention, with the number of heads."""
    found: dict[nn.Module, int] = {}
    for module in network.modules():
        heads = [getattr(module, name) for name in HEADS if hasattr(module, name)]
        layers = [getattr(module, name, None) for name in PROJECTIONS] if heads else []
        found |= {layer: int(heads[0]) for layer in layers if isinstance(layer, nn.Linear)}
    return found


def _settle(network: nn.Module, heads: dict[nn.Module, int]) -> None:
    """Tell modules of attention how wide their heads have become."""
    for module in network.modules():
        held = [child for child in module.children() if child in heads]
        if not held:
            continue
        layer = held[0]
        assert isinstance(layer, nn.Linear)
        whole = layer.out_features // (3 if len(held) == 1 else 1)
        for name, of_all in WIDTHS.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, whole if of_all else whole // heads[layer])
