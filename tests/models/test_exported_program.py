"""Networks saved as programs of `torch.export`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raykd.models.exported_program import ExportError, save_program
from raykd.models.preprocessing import Preprocessing, RawInputModel

TENSORS = Preprocessing("tensors", (4,))
TEXTS = Preprocessing("texts", (4,), "int64", keys=("input_ids", "attention_mask"))


class Branching(nn.Module):
    """Network whose result depends on its values in Python."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if float(inputs.sum()) > 0 else -inputs


class BatchBound(nn.Module):
    """Network that uses the batch size as a number."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(int(str(len(inputs))), -1)


class Embedded(nn.Module):
    """Network of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return (self.embedding(inputs["input_ids"]) * inputs["attention_mask"][..., None]).mean(1)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_program_takes_any_batch_size(batch: int, tmp_path: Path) -> None:
    network = RawInputModel(nn.Linear(4, 3), TENSORS, "abc").eval()
    save_program(network, torch.randn(batch, 4), tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for size in (1, 3, 50):
        samples = torch.randn(size, 4)
        torch.testing.assert_close(program(samples), network(samples))
    graph = torch.export.load(tmp_path / "program.pt2").graph
    assert not any("stack_trace" in node.meta for node in graph.nodes), "no paths of this machine"


def test_program_of_texts_takes_stacked_tensors(tmp_path: Path) -> None:
    network = RawInputModel(Embedded(), TEXTS, "abc").eval()
    samples = torch.randint(0, 2, (5, 2, 4))
    save_program(network, samples, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(program(samples[:2]), network(samples[:2]))


@pytest.mark.parametrize(
    ("network", "message"),
    [(Branching(), "torch.export cannot trace it"), (BatchBound(), "it computes with the batch")],
)
def test_other_networks_are_refused(network: nn.Module, message: str, tmp_path: Path) -> None:
    wrapped = RawInputModel(network, TENSORS, "abcd").eval()
    with pytest.raises(ExportError, match=message):
        save_program(wrapped, torch.ones(4, 4), tmp_path / "program.pt2")
    assert list(tmp_path.iterdir()) == []
