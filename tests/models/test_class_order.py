"""Class names of a network, matched to those of the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raykd.models import Resnet, Signature
from raykd.models.weights.class_order import (
    UnmatchedClasses,
    class_rows,
    named_rows,
    reorder_classes,
)

OURS = ("garden", "kitchen", "sea")


def test_permuted_class_names() -> None:
    rows, note = class_rows(("sea", "kitchen", "garden"), OURS, "t")
    assert rows == (2, 1, 0)
    assert note == "classes of t reordered by name: sea, kitchen, garden -> garden, kitchen, sea"
    assert class_rows(OURS, OURS, "t") == (None, "")


@pytest.mark.parametrize(
    "theirs",
    [("Sea", "KITCHEN", " garden "), ("\uff53ea", "kitchen", "garden\t")],
)
def test_names_ignore_case_space_and_unicode_form(theirs: tuple[str, ...]) -> None:
    assert class_rows(theirs, OURS, "t")[0] == (2, 1, 0)


def test_alternative_forms_of_name() -> None:
    assert class_rows(("not_spam", "Spam"), ("spam", "not spam"), "t")[0] == (1, 0)
    assert class_rows(("cafe\u0301", "bar"), ("bar", "caf\u00e9"), "t")[0] == (1, 0)
    # exact names go first where forms collide
    assert class_rows(("a", "A"), ("A", "a"), "t")[0] == (1, 0)


@pytest.mark.parametrize(
    "theirs",
    [(), ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), ("class 0", "class 1", "class 2")],
)
def test_generic_names_are_ignored(theirs: tuple[str, ...]) -> None:
    rows, note = class_rows(theirs, OURS, "t")
    assert rows is None and "class order is assumed to be garden, kitchen, sea" in note


def test_permuted_numbers_are_names() -> None:
    # folders are sorted as text: 0, 1, 10, 2
    assert class_rows(("0", "1", "10", "2"), ("0", "1", "2", "10"), "t")[0] == (0, 1, 3, 2)
    assert class_rows(("2", "1", "0"), ("0", "1", "2"), "t")[0] == (2, 1, 0)
    counted = tuple(map(str, range(11)))
    rows, note = class_rows(counted, tuple(sorted(counted)), "t")
    assert rows == (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9) and "reordered by name" in note


def test_numbered_data_accept_any_names() -> None:
    rows, note = class_rows(("negative", "neutral", "positive"), ("0", "1", "2"), "t")
    assert rows is None and "assumed to be the same" in note
    with pytest.raises(UnmatchedClasses):
        class_rows(("negative", "positive"), ("0", "1", "2"), "t")


def test_other_classes_raise_with_both_lists() -> None:
    with pytest.raises(UnmatchedClasses) as caught:
        class_rows(("ocean", "kitchen", "garden"), OURS, "t.pth")
    message = str(caught.value)
    assert "ocean, kitchen, garden (3)" in message and "garden, kitchen, sea (3)" in message
    assert "missing: sea" in message and "not in the data: ocean" in message
    for theirs in [
        ("sea", "kitchen"),
        ("sea", "kitchen", "garden", "attic"),
        ("sea", "sea", "garden"),
    ]:
        with pytest.raises(UnmatchedClasses):
            class_rows(theirs, OURS, "t")


def test_user_supplied_names() -> None:
    assert named_rows(("sea", "kitchen", "garden"), OURS, "teacher.classes") == (2, 1, 0)
    assert named_rows(OURS, OURS, "teacher.classes") is None
    with pytest.raises(UnmatchedClasses, match=r"teacher\.classes must list each class"):
        named_rows(("0", "1", "2"), OURS, "teacher.classes")


class TwoHeads(nn.Module):
    """Mean of two classifiers, as in DeiT."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)[:, :4]
        return (self.head(flat) + self.head_dist(flat)) / 2


class Square(nn.Module):
    """Network with a hidden layer as wide as the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.hidden = nn.Linear(3, 3, bias=False), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(inputs.flatten(1)[:, :4])))


class Fixed(nn.Module):
    """Network whose output is not the output of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1)[:, :4]) * torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("make", [lambda: Resnet(depth=8, width=4).build(TASK), TwoHeads, Square])
def test_outputs_are_permuted(make: object) -> None:
    network: nn.Module = make()  # type: ignore[operator]
    inputs = torch.randn(5, 1, 8, 8)
    network.eval()
    before, state = network(inputs), torch.get_rng_state()
    reorder_classes(network, (2, 0, 1), TASK, "t")
    assert torch.allclose(network(inputs), before[:, [2, 0, 1]], atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_outputs_that_cannot_be_permuted_raise() -> None:
    network = Fixed()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="cannot be reordered"):
        reorder_classes(network, (2, 0, 1), TASK, "t")
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())


TASK = Signature((1, 8, 8), 3)
