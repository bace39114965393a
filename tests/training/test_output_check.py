"""Teacher outputs that are not logits: probabilities, NaN, infinity."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raykd.data import Dataset
from raykd.data.digits import Digits
from raykd.study.checks.load import load_study
from raykd.training.output_check import (
    IN_UNIT_RANGE,
    SUMS_TO_ONE,
    check_outputs,
    probabilities_warning,
)
from raykd.training.teachers import train_teachers


class Ending(nn.Module):
    """Linear classifier followed by an operation."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.last = last

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.linear(inputs.flatten(1)))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits().load()


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    def last(logits: Tensor) -> Tensor:
        logits[-1, 3] = value  # in one sample of a batch
        return logits

    return last


@pytest.mark.parametrize(
    ("last", "sign"),
    [
        (lambda z: z, None),
        (lambda z: 1e-3 * z, None),
        (lambda z: z.log_softmax(1), None),
        (torch.relu, None),
        (torch.zeros_like, None),
        (lambda z: (9 * z).softmax(1), SUMS_TO_ONE),
        (lambda z: (9 * z).softmax(1).half(), SUMS_TO_ONE),
        (lambda z: (9 * z).softmax(1).bfloat16(), SUMS_TO_ONE),
        (lambda z: (z == z.max(1, keepdim=True).values).float(), SUMS_TO_ONE),
        (torch.sigmoid, IN_UNIT_RANGE),
    ],
)
def test_problems_of_outputs(
    data: Dataset, last: Callable[[Tensor], Tensor], sign: str | None
) -> None:
    torch.manual_seed(0)
    network = Ending(last).train()
    with torch.no_grad():
        network.linear.weight *= 20
    problems = check_outputs(network, data)
    assert problems == ({sign: 1.0} if sign else {})
    assert bool(probabilities_warning("teacher t", problems)) == bool(sign)
    assert network.training


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values(data: Dataset, value: float) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite for 1 of \d+ validation samples"):
        check_outputs(Ending(spoiled(value)), data)


def test_python_training_warns(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_in_softmax.py").write_text(
        "import torch\n\ndef build(signature, scale=1.0):\n"
        "    torch.manual_seed(0)\n"
        "    last = torch.nn.Softmax(1) if scale else torch.nn.Identity()\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), last)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = """\
name: softmax
data: {name: digits}
teacher: {model: {name: 'ends_in_softmax:build', args: {scale: 1}}, train: {epochs: 1}}
student: {model: {name: mlp, depth: 1, width: 8}}
knowledge: [{loss: kd}]
"""
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.warns(UserWarning, match=r"ends_in_softmax:build returns probabilities"):
        train_teachers(load_study(file, allow_import=True).settings, data)
    file.write_text(text.replace("scale: 1", "scale: 0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_teachers(load_study(file, allow_import=True).settings, data)
