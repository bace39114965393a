"""Networks with several outputs are wrapped to return only logits."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raykd.data.batch import Batch
from raykd.losses import KD, Progress, Term
from raykd.models import Signature, profile_model
from raykd.models.adapters import Torchvision
from raykd.models.adapters.find_logits import find_logits, return_logits, select_logits
from raykd.models.adapters.values import Values
from raykd.schemes import SCHEMES, LiveTeacher, SchemeInputs

TASK = Signature((4,), 3)


class Both(NamedTuple):
    aux: Tensor
    logits: Tensor


@dataclasses.dataclass
class Wrapped:
    features: Tensor
    answer: Tensor


FEATURES, LOGITS, AUX = torch.zeros(2, 4), torch.ones(2, 3), torch.full((2, 3), 2.0)


@pytest.mark.parametrize(
    "output",
    [
        (LOGITS, AUX),
        [FEATURES, LOGITS, AUX],
        {"features": FEATURES, "out": LOGITS, "aux": AUX},
        {"aux": AUX, "logits": LOGITS},
        Both(AUX, LOGITS),
        Wrapped(FEATURES, LOGITS),
        ((FEATURES, None), {"deep": [LOGITS]}, AUX),
    ],
)
def test_logits_are_extracted(output: Any) -> None:
    assert find_logits(output, 3) is LOGITS


@pytest.mark.parametrize("output", [None, (), (FEATURES,), {"loss": torch.zeros(())}, "logits"])
def test_outputs_without_logits_give_none(output: Any) -> None:
    assert find_logits(output, 3) is None


class Auxiliary(nn.Module):
    """Network that returns a tuple in training, as GoogLeNet does."""

    def __init__(self, train_only: int = 3) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.aux = nn.Linear(8, train_only)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = self.stage1(inputs)
        logits = self.head(self.stage2(first))
        return (logits, self.aux(first)) if self.training else logits


def test_network_returns_logits_and_is_otherwise_unchanged() -> None:
    torch.manual_seed(0)
    network = Auxiliary().train()
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    assert return_logits(network, TASK) is network
    assert torch.equal(torch.get_rng_state(), random) and network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    inputs = torch.rand(5, 4)
    for variant in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        logits = variant.train()(inputs)
        assert logits.shape == (5, 3) and logits.requires_grad
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"aux.weight", "aux.bias"}


def test_network_that_returns_logits_gets_no_hook() -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    assert return_logits(network, TASK)._forward_hooks == {}


def test_network_without_logits_in_training_raises() -> None:
    class Wrong(Auxiliary):
        def forward(self, inputs: Tensor) -> Any:
            return {"features": self.stage1(inputs)} if self.training else super().forward(inputs)

    with pytest.raises(ValueError, match=r"in training it returns dict with tensors of shape \(2,"):
        return_logits(Wrong(), TASK)


@pytest.mark.parametrize("name", sorted({*SCHEMES.members} - {"assistant", "multi_teacher"}))
def test_every_scheme_trains_networks_that_return_tuple(name: str) -> None:
    torch.manual_seed(0)

    def build() -> nn.Module:
        return return_logits(Auxiliary(), TASK).train()

    parts = SchemeInputs(
        student=build(),
        build_student=build,
        teacher=LiveTeacher(build(), (), TASK),
        terms=(Term(loss=KD()),),
        task_loss=nn.functional.cross_entropy,
        signature=TASK,
        train_size=8,
        data_size=8,
    )
    distiller = SCHEMES.members[name]().build(parts).train()
    inputs = torch.rand(8, 4)
    extra: dict[str, Any] = {"partners": inputs} if distiller.extra_inputs.partners else {}
    if distiller.extra_inputs.views:
        extra["views"] = tuple(inputs for _ in range(distiller.extra_inputs.views))
    batch = Batch(inputs, torch.arange(8) % 3, torch.arange(8), **extra)
    progress = Progress(epoch=0, epochs=2)
    distiller.begin_epoch(progress)
    output = distiller(batch, progress)
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.logits.shape == (8, 3)


def test_googlenet_with_auxiliary_classifiers_can_be_trained() -> None:
    model = Torchvision(name="torchvision/googlenet", args=Values({"aux_logits": True}))
    signature = Signature((3, 32, 32), 5)
    logits = model.build(signature).train()(torch.rand(2, 3, 32, 32))
    assert isinstance(logits, Tensor) and logits.shape == (2, 5)


def test_too_small_images_raise_with_minimum_size() -> None:
    model = Torchvision(name="torchvision/alexnet")
    with pytest.raises(ValueError, match=r"cannot take .*\(3, 16, 16\).*images of 64x64 work"):
        profile_model(model, Signature((3, 16, 16), 5))


def test_hook_raises_for_output_without_logits() -> None:
    network = select_logits(nn.Sequential(nn.LSTM(4, 6)), TASK)
    with pytest.raises(ValueError, match="must return logits of shape"):
        network(torch.rand(2, 5, 4))
