"""Losses on layers against formulas written anew from the papers, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from arrays import Array, draw, kl, softmax, tensor, unit
from built import array, built, built_value, evidence
from raykd.knowledge import Progress
from raykd.knowledge.activation import ActivationBoundaries, OverhaulFeature
from raykd.knowledge.crd import Crd
from raykd.knowledge.factors import Ft
from raykd.knowledge.feature import AttentionTransfer, Hint
from raykd.knowledge.loss import PairLoss
from raykd.knowledge.mgd import Mgd
from raykd.knowledge.nst import Nst
from raykd.knowledge.pkt import Pkt
from raykd.knowledge.review import ReviewKD
from raykd.knowledge.semckd import Semckd
from raykd.knowledge.vid import Vid

MAPS = draw(4, 3, 4, 4, seed=1), draw(4, 5, 4, 4, seed=2)
SAME = draw(4, 3, 4, 4, seed=1), draw(4, 3, 4, 4, seed=2)
EMBEDDINGS = draw(5, 3, seed=1), draw(5, 4, seed=2)


def value(loss: PairLoss | Ft | ReviewKD, arrays: tuple[Array, Array]) -> float:
    return loss(tensor(arrays[0]), tensor(arrays[1])).item()


class TestHint:
    """Romero 2015, Eq. 3, as a mean; Gou 2021, Table 3."""

    def test_l2(self) -> None:
        assert value(Hint(), SAME) == pytest.approx(np.mean((SAME[0] - SAME[1]) ** 2))

    def test_l1(self) -> None:
        expected = np.mean(np.abs(SAME[0] - SAME[1]))
        assert value(Hint(similarity="l1"), SAME) == pytest.approx(expected)

    def test_cross_entropy_less_the_teachers_entropy(self) -> None:
        q, p = (softmax(np.moveaxis(side, 1, -1)) for side in SAME)
        entropy = -np.sum(p * np.log(p), axis=-1)
        expected = np.mean(-np.sum(p * np.log(q), axis=-1) - entropy)
        assert value(Hint(similarity="cross_entropy"), SAME) == pytest.approx(expected)

    def test_mmd(self) -> None:
        places = [side.reshape(4, 3, 16).transpose(0, 2, 1) for side in SAME]
        expected = np.mean([gaussian_mmd(s, t) for s, t in zip(*places, strict=True)])
        assert value(Hint(similarity="mmd"), SAME) == pytest.approx(expected)


def gaussian_mmd(student: Array, teacher: Array) -> float:
    def distances(left: Array, right: Array) -> Array:
        return np.array([[np.sum((a - b) ** 2) for b in right] for a in left])

    width = distances(teacher, teacher).mean()

    def kernel(left: Array, right: Array) -> float:
        return float(np.exp(-distances(left, right) / (2 * width)).mean())

    return kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)


def attention(features: Array, power: float) -> Array:
    return unit(np.sum(np.abs(features) ** power, axis=1).reshape(len(features), -1))


class TestAttentionTransfer:
    """Zagoruyko 2017, Eq. 2."""

    @pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
    def test_formula(self, power: float) -> None:
        difference = attention(MAPS[0], power) - attention(MAPS[1], power)
        expected = np.mean(np.linalg.norm(difference, axis=1))
        assert value(AttentionTransfer(power=power), MAPS) == pytest.approx(expected)

    def test_benchmark_takes_the_mean_of_squares(self) -> None:
        expected = np.mean((attention(MAPS[0], 2) - attention(MAPS[1], 2)) ** 2)
        assert value(AttentionTransfer(scale="benchmark"), MAPS) == pytest.approx(expected)

    def test_larger_map_is_averaged_to_the_smaller(self) -> None:
        student = draw(4, 3, 2, 2, seed=1)
        pooled = MAPS[1].reshape(4, 5, 2, 2, 2, 2).mean(axis=(3, 5))
        loss = AttentionTransfer()
        assert value(loss, (student, MAPS[1])) == pytest.approx(value(loss, (student, pooled)))


class TestNst:
    """Huang 2017, the NST loss and its three kernels."""

    @pytest.mark.parametrize("power", [1, 2])
    def test_polynomial_and_linear(self, power: int) -> None:
        student, teacher = (unit(side.reshape(4, side.shape[1], -1)) for side in MAPS)
        expected = np.mean(
            [
                np.mean((s @ s.T) ** power)
                + np.mean((t @ t.T) ** power)
                - 2 * np.mean((s @ t.T) ** power)
                for s, t in zip(student, teacher, strict=True)
            ]
        )
        loss = Nst() if power == 2 else Nst(kernel="linear")
        assert value(loss, MAPS) == pytest.approx(expected)

    def test_gaussian(self) -> None:
        student, teacher = (unit(side.reshape(4, side.shape[1], -1)) for side in MAPS)
        expected = np.mean([gaussian_mmd(s, t) for s, t in zip(student, teacher, strict=True)])
        assert value(Nst(kernel="gaussian"), MAPS) == pytest.approx(expected)

    def test_order_of_channels_does_not_matter(self) -> None:
        assert value(Nst(), (MAPS[1][:, ::-1], MAPS[1])) == pytest.approx(0, abs=1e-12)


class TestPkt:
    """Passalis 2018, conditional probabilities with the cosine kernel."""

    @pytest.mark.parametrize("scale", ["paper", "benchmark"])
    def test_formula(self, scale: str) -> None:
        def probabilities(features: Array) -> Array:
            near = (unit(features) @ unit(features).T + 1) / 2
            if scale == "paper":
                np.fill_diagonal(near, 0)
            return near / near.sum(axis=1, keepdims=True)

        learned, taught = map(probabilities, EMBEDDINGS)
        total = 0.0
        for i in range(5):
            for j in range(5):
                if i != j or scale == "benchmark":
                    total += taught[i, j] * np.log(taught[i, j] / learned[i, j])
        loss = Pkt() if scale == "paper" else Pkt(scale="benchmark")
        expected = total / (5 if scale == "paper" else 25)
        assert value(loss, EMBEDDINGS) == pytest.approx(expected, abs=1e-12)


class TestFt:
    """Kim 2018, Eqs. 2 and 3."""

    def test_distance_of_factors(self) -> None:
        student, teacher = (unit(side.reshape(4, -1)) for side in SAME)
        expected = np.mean(np.sum(np.abs(student - teacher), axis=1))
        assert value(Ft(), SAME) == pytest.approx(expected)

    def test_paraphraser_learns_alone_at_first_and_never_from_the_factors(self) -> None:
        module = built(Ft(), [(3, 4, 4)], [(5, 4, 4)])
        judge = module.judges[0]
        factor = judge.encoder(tensor(MAPS[1]))
        restoration = np.mean((array(judge.decoder(factor)) - MAPS[1]) ** 2)
        assert built_value(module, [MAPS[0]], [MAPS[1]], epoch=0) == pytest.approx(restoration)
        later = built_value(module, [MAPS[0]], [MAPS[1]], epoch=1)
        distance = value(Ft(), (array(judge.translator(tensor(MAPS[0]))), array(factor)))
        assert later == pytest.approx(restoration + distance)
        judge(tensor(MAPS[0]), tensor(MAPS[1]))[1].backward()
        assert all(parameter.grad is None for parameter in judge.encoder.parameters())


class TestActivationBoundaries:
    """Heo 2019 (AAAI), Eq. 6, as a mean."""

    def test_formula(self) -> None:
        student, teacher = SAME
        on = (teacher > 0).astype(float)
        hinge = on * np.maximum(1 - student, 0) + (1 - on) * np.maximum(1 + student, 0)
        assert value(ActivationBoundaries(), SAME) == pytest.approx(np.mean(hinge**2))

    def test_zero_beyond_the_margin(self) -> None:
        teacher = SAME[1]
        assert value(ActivationBoundaries(), (1.5 * np.sign(teacher), teacher)) == 0


class TestOverhaulFeature:
    """Heo 2019 (ICCV), Eqs. 1 to 4."""

    def test_formula(self) -> None:
        student, teacher = SAME
        margins = [channel[channel < 0].mean() for channel in np.moveaxis(teacher, 1, 0)]
        target = np.maximum(teacher, np.array(margins)[None, :, None, None])
        harmless = (student <= target) & (target <= 0)
        squares = np.where(harmless, 0, (target - student) ** 2)
        expected = squares.reshape(4, -1).sum(axis=1).mean()
        assert value(OverhaulFeature(), SAME) == pytest.approx(expected)

    def test_without_negatives_the_target_is_the_hint(self) -> None:
        student, teacher = SAME[0], np.abs(SAME[1])
        expected = ((teacher - student) ** 2).reshape(4, -1).sum(axis=1).mean()
        assert value(OverhaulFeature(), (student, teacher)) == pytest.approx(expected)


class TestVid:
    """Ahn 2019, Eqs. 5 and 6."""

    def test_formula(self) -> None:
        judge = built(Vid(), [(3, 4, 4)], [(5, 4, 4)]).judges[0]
        spread = draw(5, seed=3)
        judge.spread.data = tensor(spread)
        variance = (np.log1p(np.exp(spread)) + 1e-5)[None, :, None, None]
        mean = array(judge.mean(tensor(MAPS[0])))
        expected = np.mean(((MAPS[1] - mean) ** 2 / variance + np.log(variance)) / 2)
        assert judge(tensor(MAPS[0]), tensor(MAPS[1])).item() == pytest.approx(expected)

    def test_first_variance(self) -> None:
        judge = built(Vid(variance=3), [(3,)], [(4,)]).judges[0]
        first = np.log1p(np.exp(array(judge.spread))) + 1e-5
        np.testing.assert_allclose(first, np.full(4, 3.0), rtol=1e-6)


class TestCrd:
    """Tian 2020, Eqs. 17 to 19."""

    def test_formula(self) -> None:
        module = built(Crd(width=4, negatives=6), [(3,)], [(4,)])
        judge = module.judges[0]
        targets = [0, 1, 2, 0, 1]
        built_value(module, list(EMBEDDINGS[:1]), list(EMBEDDINGS[1:]), targets)
        torch.manual_seed(1)
        found = built_value(module, list(EMBEDDINGS[:1]), list(EMBEDDINGS[1:]), targets)
        torch.manual_seed(1)
        drawn = torch.randint(8, (5, 6)).numpy()
        s = unit(array(judge.guided_head(tensor(EMBEDDINGS[0]))))
        t = unit(array(judge.hint_head(tensor(EMBEDDINGS[1]))))
        ways = [
            (s, t, array(judge.hint_memory), np.exp(judge.log_scales[0].item())),
            (t, s, array(judge.guided_memory), np.exp(judge.log_scales[1].item())),
        ]
        classes = judge.class_of.numpy()
        expected = 0.0
        for anchors, positives, memory, scale in ways:
            for i, label in enumerate(targets):
                expected -= np.log(self.h(anchors[i] @ positives[i], scale))
                for j in drawn[i]:
                    if classes[j] != label:
                        expected -= np.log(1 - self.h(anchors[i] @ memory[j], scale))
        assert found == pytest.approx(expected / 5)

    def h(self, product: float, scale: float) -> float:
        e = np.exp(product / 0.07) / scale
        return e / (e + 6 / 8)

    def test_memory_keeps_a_place_for_every_sample(self) -> None:
        module = built(Crd(width=4, negatives=6, momentum=0), [(3,)], [(4,)])
        judge = module.judges[0]
        student, teacher = evidence("s", [EMBEDDINGS[0]]), evidence("t", [EMBEDDINGS[1]])
        labels = torch.tensor([0, 1, 2, 0, 1])
        for index in ([4, 2, 7, 0, 1], [7, 4, 1, 2, 0]):
            module(student, teacher, labels, torch.tensor(index), Progress(0, 1))
        assert judge.taken.item() == 5
        slots = judge.slot_of[torch.tensor([7, 4, 1, 2, 0])]
        assert sorted(slots.tolist()) == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(judge.class_of[slots].numpy(), labels.numpy())
        expected = unit(array(judge.guided_head(tensor(EMBEDDINGS[0]))))
        np.testing.assert_allclose(array(judge.guided_memory[slots]), expected)


class TestSemckd:
    """Chen 2021 (AAAI), Eqs. 4 to 8."""

    def test_formula(self) -> None:
        shapes, hints = [(3, 4, 4), (3, 2, 2)], [(3, 4, 4), (6, 2, 2)]
        module = built(Semckd(width=8), list(shapes), list(hints))
        guided = [draw(4, *shape, seed=i) for i, shape in enumerate(shapes)]
        taught = [draw(4, *shape, seed=9 + i) for i, shape in enumerate(hints)]
        queries = [self.summary(module.queries[i], side) for i, side in enumerate(guided)]
        keys = [self.summary(module.keys[i], side) for i, side in enumerate(taught)]
        total = 0.0
        for b in range(4):
            for s in range(2):
                weights = softmax(np.array([queries[s][b] @ keys[t][b] for t in range(2)]))
                for t in range(2):
                    carried = array(module.connectors[2 * s + t](tensor(guided[s])))
                    total += weights[t] * np.mean((taught[t][b] - carried[b]) ** 2)
        assert built_value(module, guided, taught) == pytest.approx(total / 8)

    def summary(self, module: nn.Module, features: Array) -> Array:
        linear = next(part for part in module.modules() if isinstance(part, nn.Linear))
        return unit(features.mean(axis=(2, 3)) @ array(linear.weight).T + array(linear.bias))


def pooled(features: Array, level: int) -> Array:
    batch, channels, height, width = features.shape
    grid = features.reshape(batch, channels, level, height // level, level, width // level)
    return grid.mean(axis=(3, 5))


class TestReviewKD:
    """Chen 2021 (CVPR), Figure 4 and Eq. 6."""

    def test_hierarchical_context_loss(self) -> None:
        student, teacher = draw(2, 3, 8, 8, seed=1), draw(2, 3, 8, 8, seed=2)
        values = [
            np.mean((pooled(student, level) - pooled(teacher, level)) ** 2)
            for level in (8, 4, 2, 1)
        ]
        weights = np.array([1, 1 / 2, 1 / 4, 1 / 8])
        expected = np.dot(weights, values) / weights.sum()
        assert value(ReviewKD(), (student, teacher)) == pytest.approx(expected)

    def test_deeper_layers_reach_shallow_hints(self) -> None:
        module = built(ReviewKD(), [(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (6, 2, 2)])
        guided = [draw(4, 3, 4, 4, seed=1), draw(4, 4, 2, 2, seed=2)]
        hints = [draw(4, 5, 4, 4, seed=3), draw(4, 6, 2, 2, seed=4)]
        module.eval()
        deep, carried_deep = module.fusions[1](tensor(guided[1]), None)
        _, carried = module.fusions[0](tensor(guided[0]), deep)
        loss = ReviewKD()
        expected = value(loss, (array(carried), hints[0])) + value(
            loss, (array(carried_deep), hints[1])
        )
        assert built_value(module, guided, hints) == pytest.approx(expected)
        student = tensor(guided[1]).requires_grad_()
        fused, _ = module.fusions[1](student, None)
        module.fusions[0](tensor(guided[0]), fused)[1].sum().backward()
        assert student.grad is not None and student.grad.abs().sum() > 0


class TestMgd:
    """Yang 2022, Eqs. 3 to 5, as a mean."""

    def test_formula(self) -> None:
        judge = built(Mgd(mask=0.5), [(3, 4, 4)], [(3, 4, 4)]).judges[0]
        torch.manual_seed(1)
        found = judge(tensor(SAME[0]), tensor(SAME[1])).item()
        torch.manual_seed(1)
        mask = (torch.rand(4, 1, 4, 4) >= 0.5).double().numpy()
        generated = array(judge.generate(tensor(SAME[0] * mask)))
        assert 0 < mask.mean() < 1
        assert found == pytest.approx(np.mean((SAME[1] - generated) ** 2))


def test_kl_of_the_helper() -> None:
    assert kl(np.array([0.75, 0.25]), np.array([0.5, 0.5])) == pytest.approx(0.130812)
