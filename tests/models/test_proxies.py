"""Zero-cost proxies: values against NumPy formulas, and conformance; new members of PROXIES
is tried for nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from helpers.model_cases import DIGITS, NAMES, small
from raykd.data import SOURCES
from raykd.models import AnyModel, Cnn, Model, Resnet, Signature, Text, profile_model
from raykd.models.proxies import (
    PROXIES,
    Diswot,
    Naswot,
    NetworkProxy,
    ProxyContext,
    RankingProxy,
    Zen,
)
from raykd.models.proxies.base import build_initialized
from raykd.models.proxies.diswot import class_cosines, relations, similarity_score
from raykd.models.proxies.naswot import Patterns, log_determinant
from raykd.models.proxies.zen import batch_variances, zen_score
from raykd.models.zoo.cnn import CnnStage
from raykd.registry import option

WORDS = Signature((12,), 3, Text(vocabulary=50, padding=1))
TEACHER = Resnet(depth=14, width=8)
RANKING = [name for name, cls in PROXIES.members.items() if issubclass(cls, RankingProxy)]
MEASURED = [name for name in RANKING if issubclass(PROXIES[name], NetworkProxy)]
BERT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def digits() -> ProxyContext:
    """32 of the digits."""
    train = SOURCES["digits"]().load().train
    rows = torch.arange(32)
    pictures = train.take(rows)
    assert isinstance(pictures, Tensor)
    return ProxyContext(DIGITS, pictures.float() / 16, train.targets[rows], TEACHER, seed=3)


def build_proxy(name: str, **fields: Any) -> RankingProxy:
    return PROXIES[name](**fields)


# NASWOT


def codes_of(weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Binary codes of a ReLU network, one row per sample."""
    codes, hidden = [], inputs
    for weight in weights:
        before = hidden @ weight.T
        codes.append(before > 0)
        hidden = np.maximum(before, 0)
    return np.concatenate(codes, axis=1)


@pytest.mark.parametrize("inplace", [False, True])
def test_naswot_is_log_determinant_of_agreement_matrix(inplace: bool) -> None:
    drawer = np.random.default_rng(0)
    weights = [drawer.normal(size=(9, 4)), drawer.normal(size=(7, 9))]
    inputs = drawer.normal(size=(5, 4))
    codes = codes_of(weights, inputs)
    hamming = (codes[:, None] != codes[None, :]).sum(axis=-1)
    kernel = 16 - hamming
    network = nn.Sequential(
        nn.Linear(4, 9, bias=False), nn.ReLU(inplace), nn.Linear(9, 7, bias=False), nn.ReLU(inplace)
    ).double()
    for layer, weight in zip(network[::2], weights, strict=True):
        assert isinstance(layer, nn.Linear)
        layer.weight.data = torch.from_numpy(weight)
    with torch.no_grad(), Patterns() as patterns:
        network(torch.from_numpy(inputs))
    assert patterns.kernel is not None
    np.testing.assert_array_equal(patterns.kernel.numpy(), kernel)
    assert log_determinant(patterns.kernel) == pytest.approx(math.log(np.linalg.det(kernel)))


def test_naswot_of_two_samples_by_hand() -> None:
    """4 units, one of them differs: K = [[4, 3], [3, 4]], det K = 7."""
    with Patterns() as patterns:
        torch.relu(torch.tensor([[1.0, 1.0, -1.0, -2.0], [0.5, 2.0, -1.0, 3.0]]))
    assert patterns.kernel is not None
    assert patterns.kernel.tolist() == [[4, 3], [3, 4]]
    assert log_determinant(patterns.kernel) == pytest.approx(math.log(7))


def test_naswot_rejects_networks_that_do_not_separate_samples(digits: ProxyContext) -> None:
    same = digits.inputs[:1].expand(32, -1, -1, -1)  # type: ignore[index]
    score = Naswot().scorer(dataclasses.replace(digits, inputs=same))
    assert score(Resnet(depth=8, width=4)) == -math.inf


@pytest.mark.parametrize("act", ["relu6", "gelu", "silu", "hardswish", "leaky_relu", "elu"])
def test_all_rectifiers_are_recorded(act: str) -> None:
    inputs = torch.randn(4, 6)
    with Patterns() as patterns:
        getattr(nn.functional, act)(inputs)
    above = (inputs > 0).double()
    expected = above @ above.T + (1 - above) @ (1 - above).T
    assert patterns.kernel is not None and torch.equal(patterns.kernel, expected)


@option
class Straight(Model):
    """Network without a rectifier and without a linear classifier."""

    name: Literal["straight"] = "straight"

    def build(self, signature: Signature) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, signature.classes, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("name", "message"), [("naswot", "needs activations such as ReLUs, and straight has none")]
)
def test_unsupported_networks_raise(name: str, message: str, digits: ProxyContext) -> None:
    with pytest.raises(ValueError, match=message):
        build_proxy(name).scorer(digits)(Straight())


def test_diswot_requires_linear_classifier(digits: ProxyContext) -> None:
    with pytest.raises(ValueError, match="linear classifier, and straight has none"):
        Diswot().scorer(digits)(Straight())


# Zen


def test_zen_score_by_hand() -> None:
    """Distances 5 and 1, mean 3; variances 4 and 8, mean 6: log 3 + log sqrt 6 + log sqrt 9."""
    here = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    scale = [torch.tensor([4.0, 8.0]), torch.tensor([9.0])]
    expected = math.log(3) + 0.5 * math.log(6) + 0.5 * math.log(9)
    assert zen_score(here, torch.zeros(2, 2), scale) == pytest.approx(expected)


def test_zen_uses_batch_norm_variances() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    inputs = torch.randn(4, 2, 5, 5)
    with torch.no_grad(), batch_variances(network) as variances:
        network(inputs)
        into = network[0](inputs)
    assert len(variances) == 1
    expected = into.numpy().transpose(1, 0, 2, 3).reshape(3, -1).var(axis=1)
    np.testing.assert_allclose(variances[0].numpy(), expected, rtol=1e-4)
    assert not network[1]._forward_pre_hooks


@option
class Flat(Model):
    """Two linear layers without normalization."""

    name: Literal["flat"] = "flat"
    width: int = 5

    def build(self, signature: Signature) -> nn.Module:
        network = nn.Sequential(nn.Flatten())
        network.add_module("stage1", nn.Linear(math.prod(signature.input_shape), self.width))
        network.add_module("classifier", nn.Linear(self.width, signature.classes))
        return network


def test_zen_score_of_linear_network(digits: ProxyContext) -> None:
    """f is linear, so log E ||f(x) - f(x + a e)|| = log a + log E ||W e||: twice the step, log 2
    more; and W is N(0, 1), so the mean is near sqrt(width x inputs)."""
    model = Flat(width=200)
    small_step = Zen(alpha=0.01, batch=256).scorer(digits)(model)
    twice = Zen(alpha=0.02, batch=256).scorer(digits)(model)
    assert twice - small_step == pytest.approx(math.log(2), abs=1e-4)
    assert small_step == pytest.approx(math.log(0.01 * math.sqrt(200 * 64)), abs=0.05)


def test_gaussian_weights_are_drawn_and_norms_reset(digits: ProxyContext) -> None:
    network = build_initialized(Resnet(depth=8, width=16), digits, seed=1, gaussian=True)
    convs = [m.weight.detach() for m in network.modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([weight.flatten() for weight in convs])
    assert float(weights.std()) == pytest.approx(1, abs=0.02)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(bool((m.weight == 1).all() and (m.bias == 0).all()) for m in norms)


# DisWOT


def test_diswot_matrices_by_hand() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-6.0, -8.0]])
    assert class_cosines(gradient).numpy() == pytest.approx(
        np.array([[1, 0.8, -1], [0.8, 1, -0.8], [-1, -0.8, 1]])
    )
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # products [[1, 1], [1, 2]]
    rows = np.array([[1, 1] / np.sqrt(2), [1, 2] / np.sqrt(5)])
    assert relations(features).numpy() == pytest.approx(rows)


def test_diswot_is_mean_squared_difference_of_both_matrices(digits: ProxyContext) -> None:
    """Both networks with their weights, and the gradient in closed form (p - y) z^T / B."""
    screen = Diswot(gaussian=False, batch=16)
    student = Flat(width=6)
    teacher = Flat(width=9)
    about = dataclasses.replace(digits, teacher=teacher)
    seeds: list[int] = []
    looks = []
    inputs, targets = digits.inputs[:16].double(), digits.targets[:16]  # type: ignore[index]
    original = Diswot._similarities

    def watched(self: Diswot, model: Model, about: ProxyContext, seed: int) -> Any:
        seeds.append(seed)
        return original(self, model, about, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diswot, "_similarities", watched)
        score = screen.scorer(about)(student)
    for model, seed in zip((teacher, student), seeds, strict=True):
        network = build_initialized(model, about, seed).double()
        with torch.no_grad():
            hidden = network[1](network[0](inputs))  # type: ignore[index]
            missed = torch.softmax(network[2](hidden), dim=1)  # type: ignore[index]
        missed[torch.arange(16), targets] -= 1
        gradient = (missed.T @ hidden / 16).numpy()
        rows = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        products = (hidden @ hidden.T).numpy()
        related = products / np.linalg.norm(products, axis=1, keepdims=True)
        looks.append((rows @ rows.T, related))
    (semantic_t, relation_t), (semantic_s, relation_s) = looks
    expected = -((semantic_t - semantic_s) ** 2).sum() / 100
    expected -= ((relation_t - relation_s) ** 2).sum() / 16**2
    assert score == pytest.approx(expected, rel=1e-3)


def test_diswot_of_identical_networks_is_maximal(digits: ProxyContext) -> None:
    looks = Diswot()._similarities(TEACHER, digits, seed=1)
    assert similarity_score(looks, looks) == 0
    assert Diswot().scorer(digits)(TEACHER) < 0, "other first weights"


def test_diswot_requires_teacher(digits: ProxyContext) -> None:
    with pytest.raises(ValueError, match=r"compares students with a teacher.*teacher\.model"):
        Diswot().scorer(dataclasses.replace(digits, teacher=None))


# What every screen must do


@pytest.mark.parametrize("name", RANKING)
def test_scores_rank_sizes(name: str, digits: ProxyContext) -> None:
    """Networks that differ only in depth and width: the larger has the higher score."""
    score = build_proxy(name, **({"repeats": 2} if name in MEASURED else {})).scorer(digits)
    small_one, large = Resnet(depth=8, width=4), Resnet(depth=20, width=12)
    if name in ("params", "macs"):
        assert score(large) == getattr(profile_model(large, DIGITS), name)
    if name != "diswot":  # ranks by likeness
        assert score(large) > score(small_one)


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("family", NAMES)
def test_every_proxy_scores_every_family(name: str, family: str, digits: ProxyContext) -> None:
    screen = build_proxy(name, **({"batch": 8} if name in MEASURED else {}))
    model = small(family)
    state = torch.random.get_rng_state()
    value = screen.scorer(digits)(model)
    assert math.isfinite(value)
    assert screen.scorer(digits)(model) == value, "the same for the same seed"
    assert torch.equal(torch.random.get_rng_state(), state), "no random numbers are used up"


@pytest.mark.parametrize("name", MEASURED)
def test_scores_depend_on_seed_and_repeats_average(name: str, digits: ProxyContext) -> None:
    model = Cnn(stages=(CnnStage(width=4), CnnStage(width=6)))
    whole = build_proxy(name, repeats=3)
    assert isinstance(whole, NetworkProxy)
    seeds: list[int] = []
    original = type(whole).seeded_scorer

    def watched(self: Any, about: ProxyContext, seed: int) -> Any:
        seeds.append(seed)
        return original(self, about, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(whole), "seeded_scorer", watched)
        mean = whole.scorer(digits)(model)
    single = [whole.seeded_scorer(digits, seed)(model) for seed in seeds]
    assert len(set(single)) == 3
    assert mean == pytest.approx(sum(single) / 3)


@pytest.mark.parametrize("name", RANKING)
def test_texts(name: str) -> None:
    pytest.importorskip("transformers")
    written = {"name": "hf/bert", "config": {**BERT, "intermediate_size": 32}}
    model = TypeAdapter(AnyModel).validate_python(written)
    tokens = torch.randint(2, 50, (8, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones(8, 12, dtype=torch.long)}
    about = ProxyContext(WORDS, inputs, torch.arange(8) % 3, model, seed=0)
    screen = build_proxy(name)
    if not screen.takes_text:
        with pytest.raises(ValueError, match="not possible with texts; use naswot"):
            screen.scorer(about)
        with pytest.raises(ValueError, match="not possible with texts"):
            screen.check(WORDS)
        return
    screen.check(WORDS)
    assert math.isfinite(screen.scorer(about)(model))


@option
class Dropping(Model):
    """Functional dropout, as in many transformers."""

    name: Literal["dropping"] = "dropping"

    def build(self, signature: Signature) -> nn.Module:
        class Dropped(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return nn.functional.dropout(inputs, 0.5, self.training)

        hidden = nn.Linear(64, 16)
        stage = nn.Sequential(hidden, nn.BatchNorm1d(16), nn.ReLU(), Dropped())
        network = nn.Sequential(nn.Flatten())
        network.add_module("stage1", stage)
        network.add_module("classifier", nn.Linear(16, signature.classes))
        return network


@pytest.mark.parametrize("name", MEASURED)
def test_dropout_does_not_change_score(name: str, digits: ProxyContext) -> None:
    score = build_proxy(name).scorer(digits)
    torch.manual_seed(0)
    first = score(Dropping())
    torch.manual_seed(1)
    assert score(Dropping()) == first
    norms = [
        m
        for m in build_initialized(Dropping(), digits, 0).modules()
        if isinstance(m, nn.BatchNorm1d)
    ]
    assert [norm.training for norm in norms] == [True]


FOREIGN: tuple[dict[str, Any], ...] = (
    {"name": "torchvision/shufflenet_v2_x0_5", "stem": "small"},
    {
        "name": "timm/vit_tiny_patch16_224",
        "args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 3},
    },
)


@pytest.mark.parametrize("written", FOREIGN, ids=lambda written: written["name"])
@pytest.mark.parametrize("name", MEASURED)
def test_networks_of_other_libraries(
    name: str, written: dict[str, Any], digits: ProxyContext
) -> None:
    pytest.importorskip(written["name"].partition("/")[0])
    model = TypeAdapter(AnyModel).validate_python(written)
    assert math.isfinite(build_proxy(name, batch=8).scorer(digits)(model))
