"""Losses on layers against the papers' formulas in NumPy float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.arrays import Array, draw, kl, softmax, tensor, unit
from helpers.built_losses import array, built, built_value, evidence
from raykd.losses import ModelOutputs, Pair, Progress, Term, Terms
from raykd.losses.ab_ofd import ActivationBoundaries, OverhaulFeature
from raykd.losses.base import PROJECTED, PairLoss
from raykd.losses.crd import Crd
from raykd.losses.ft import Ft
from raykd.losses.hint_at import AttentionTransfer, Hint
from raykd.losses.mgd import Mgd
from raykd.losses.nst_pkt import Nst, Pkt
from raykd.losses.reviewkd import ReviewKD
from raykd.losses.semckd import Semckd
from raykd.losses.simkd import SimKD
from raykd.losses.terms import LayerShapes
from raykd.losses.vid import Vid

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

    def test_cross_entropy_minus_teacher_entropy(self) -> None:
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

    def test_benchmark_form_is_mean_of_squares(self) -> None:
        expected = np.mean((attention(MAPS[0], 2) - attention(MAPS[1], 2)) ** 2)
        assert value(AttentionTransfer(scale="benchmark"), MAPS) == pytest.approx(expected)

    def test_larger_map_is_averaged_to_smaller(self) -> None:
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

    def test_value_is_invariant_to_channel_order(self) -> None:
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
    """Kim 2018: the factor transfer loss with p = 1, and the paraphraser's reconstruction."""

    def test_factor_distance(self) -> None:
        student, teacher = (unit(side.reshape(4, -1)) for side in SAME)
        expected = np.mean(np.sum(np.abs(student - teacher), axis=1))
        assert value(Ft(), SAME) == pytest.approx(expected)

    def test_benchmark_form_compares_energy_per_position(self) -> None:
        student, teacher = (unit(np.mean(side**2, axis=1).reshape(len(side), -1)) for side in SAME)
        assert value(Ft(scale="benchmark"), SAME) == pytest.approx(
            np.mean(np.abs(student - teacher))
        )

    def test_only_paraphraser_learns_first_for_any_weight(self) -> None:
        module = built(Ft(), [(3, 4, 4)], [(5, 4, 4)], weight=50)
        judge = module.judges[0]
        restored = array(judge.decoder(judge.encoder(tensor(MAPS[1]))))
        restoration = np.mean((restored - MAPS[1]) ** 2)
        value = built_value(module, [MAPS[0]], [MAPS[1]], epoch=0)
        assert 50 * value == pytest.approx(restoration)

    def test_paraphraser_is_frozen_afterwards_and_translator_learns(self) -> None:
        module = built(Ft(), [(3, 4, 4)], [(5, 4, 4)])
        judge = module.judges[0]
        built_value(module, [MAPS[0]], [MAPS[1]], epoch=0)
        before = {name: value.clone() for name, value in judge.encoder.state_dict().items()}
        factors = judge.translator(tensor(MAPS[0])), judge.encoder.eval()(tensor(MAPS[1]))
        expected = value(Ft(), (array(factors[0]), array(factors[1])))
        assert built_value(module, [MAPS[0]], [MAPS[1]], epoch=1) == pytest.approx(expected)
        student, teacher = evidence("s", [MAPS[0]]), evidence("t", [MAPS[1]])
        rows = torch.arange(4)
        module(student, teacher, rows, rows, Progress(1, 4)).backward()
        learned = {name for name, p in module.named_parameters() if p.grad is not None}
        assert learned and all("translator" in name for name in learned)
        after = judge.encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_pretraining_starts_with_term(self) -> None:
        pairs = (Pair(hint="t0", guided="s0"),)
        terms = Terms(
            [Term(loss=Ft(pretrain_epochs=2), weight=1, pairs=pairs, start_epoch=3)],
            classes=3,
            train_size=4,
            data_size=4,
            shapes=LayerShapes({"s0": (3, 4, 4)}, {"t0": (5, 4, 4)}),
        ).double()
        student, teacher = evidence("s", [MAPS[0]]), evidence("t", [MAPS[1]])
        rows = torch.arange(4)
        judge: Any = terms.get_submodule("losses.ft.judges.0")
        restoration = judge.restoration(tensor(MAPS[1])).item()
        early, first, later = (
            terms(student, teacher, rows, rows, Progress(epoch, 8))[1] for epoch in (2, 4, 5)
        )
        assert "ft" not in early
        assert first["ft"].item() == pytest.approx(restoration)
        distance = judge(tensor(MAPS[0]), tensor(MAPS[1])).item()
        assert later["ft"].item() == pytest.approx(distance)


class TestActivationBoundaries:
    """Heo 2019 (AAAI), the alternative loss."""

    def hinge(self, student: Array, teacher: Array, margin: float) -> Array:
        on = (teacher > 0).astype(float)
        return on * np.maximum(margin - student, 0) + (1 - on) * np.maximum(margin + student, 0)

    @pytest.mark.parametrize("margin", [1.0, 2.5])
    def test_mean(self, margin: float) -> None:
        expected = np.mean(self.hinge(*SAME, margin) ** 2)
        assert value(ActivationBoundaries(margin=margin), SAME) == pytest.approx(expected)

    def test_benchmark_form_sums_and_halves_shallower_pairs(self) -> None:
        shapes = [(3, 4, 4), (4, 2, 2), (5, 2, 2)]
        module = built(ActivationBoundaries(scale="benchmark"), list(shapes), list(shapes))
        guided = [draw(4, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(4, *shape, seed=9 + i) for i, shape in enumerate(shapes)]
        expected = 0.0
        for i, share in enumerate((1 / 4, 1 / 2, 1)):
            carried = array(module.judges[i].connector(tensor(guided[i])))
            expected += share * 3 / 1000 * np.sum(self.hinge(carried, hints[i], 1) ** 2) / 4
        assert built_value(module, guided, hints) == pytest.approx(expected)

    def test_zero_beyond_margin(self) -> None:
        teacher = SAME[1]
        assert value(ActivationBoundaries(), (1.5 * np.sign(teacher), teacher)) == 0


class TestOverhaulFeature:
    """Heo 2019 (ICCV), margin ReLU and partial L2 distance."""

    def distance(self, student: Array, teacher: Array) -> float:
        margins = [channel[channel < 0].mean() for channel in np.moveaxis(teacher, 1, 0)]
        target = np.maximum(teacher, np.array(margins)[None, :, None, None])
        harmless = (student <= target) & (target <= 0)
        squares = np.where(harmless, 0, (target - student) ** 2)
        return float(squares.reshape(len(student), -1).sum(axis=1).mean())

    def test_formula(self) -> None:
        assert value(OverhaulFeature(), SAME) == pytest.approx(self.distance(*SAME))

    @pytest.mark.parametrize("scale", ["paper", "benchmark"])
    def test_pair_weights_equal_or_halved_toward_shallow_pairs(self, scale: str) -> None:
        shapes = [(3, 4, 4), (4, 2, 2), (5, 2, 2)]
        loss = OverhaulFeature() if scale == "paper" else OverhaulFeature(scale="benchmark")
        module = built(loss, list(shapes), list(shapes))
        guided = [draw(4, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(4, *shape, seed=9 + i) for i, shape in enumerate(shapes)]
        expected = 0.0
        for i in range(3):
            carried = array(module.judges[i].connector(tensor(guided[i])))
            share = 1 if scale == "paper" else 2 ** (i - 2)
            expected += share * self.distance(carried, hints[i])
        assert built_value(module, guided, hints) == pytest.approx(expected)

    def test_nonnegative_hint_is_target(self) -> None:
        student, teacher = SAME[0], np.abs(SAME[1])
        expected = ((teacher - student) ** 2).reshape(4, -1).sum(axis=1).mean()
        assert value(OverhaulFeature(), (student, teacher)) == pytest.approx(expected)


class TestVid:
    """Ahn 2019, the Gaussian negative log-likelihood with a softplus variance a channel."""

    @pytest.mark.parametrize(
        ("guided", "hint"),
        [((3, 4, 4), (5, 4, 4)), ((3, 8, 8), (5, 4, 4)), ((3, 4, 4), (5, 8, 8)), ((3,), (5,))],
        ids=["one size", "larger", "smaller", "embeddings"],
    )
    def test_formula(self, guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
        judge = built(Vid(), [guided], [hint]).judges[0]
        spread = draw(5, seed=3)
        judge.spread.data = tensor(spread)
        student, teacher = draw(4, *guided, seed=1), draw(4, *hint, seed=2)
        value = judge(tensor(student), tensor(teacher)).item()
        if len(hint) == 3:
            side = min(guided[1], hint[1])
            student, teacher = pooled(student, side), pooled(teacher, side)
        mean = student
        for step in (0, 2, 4):
            weight = array(judge.mean[step].weight).reshape(5, -1)
            mean = np.einsum("oc,bc...->bo...", weight, np.maximum(mean, 0) if step else mean)
        variance = np.log1p(np.exp(spread)) + 1e-5
        variance = variance.reshape(1, 5, *[1] * (mean.ndim - 2))
        expected = np.mean(((teacher - mean) ** 2 / variance + np.log(variance)) / 2)
        assert value == pytest.approx(expected)

    @pytest.mark.parametrize("variance", [0.001, 3.0, 900.0])
    def test_initial_variance(self, variance: float) -> None:
        judge = built(Vid(variance=variance), [(3,)], [(4,)]).judges[0]
        first = np.logaddexp(0, array(judge.spread)) + 1e-5
        np.testing.assert_allclose(first, np.full(4, variance), rtol=1e-4)


class TestCrd:
    """Tian 2020, section 3.1: the contrastive objective with memories, and the form of h."""

    targets = (0, 1, 2, 0, 1)

    def setting(self, loss: Crd) -> tuple[Any, Any]:
        """Loss with a memory of 12 samples; the batch is at positions 3 to 7."""
        module = built(loss, [(3,)], [(4,)], train_size=12)
        judge = module.judges[0]
        judge.memory.copy_(tensor(unit(draw(2, 12, 4, seed=5))))
        judge.slot_of.copy_((torch.arange(12) + 3) % 12)
        judge.class_of.copy_(torch.arange(12) % 3)
        judge.class_of[3:8] = torch.tensor(self.targets)
        judge.used_slots.fill_(12)
        return module, judge

    def embedded(self, judge: Any) -> tuple[Array, Array]:
        return tuple(  # type: ignore[return-value]
            unit(layer @ array(head.weight).T + array(head.bias))
            for layer, head in zip(EMBEDDINGS, judge.heads, strict=True)
        )

    def expected(
        self, judge: Any, drawn: list[list[int]], scales: Array, memory: Array, scale: str
    ) -> float:
        s, t = self.embedded(judge)
        classes = judge.class_of.numpy()
        total = 0.0
        ways = ((s, t, memory[1], scales[0]), (t, s, memory[0], scales[1]))
        for anchors, negatives, memory_rows, z in ways:
            for i, label in enumerate(self.targets):
                positive = negatives[i] if scale == "batch" else memory_rows[3 + i]
                negative_rows = [j for j in drawn[i] if classes[j] != label]
                odds = len(drawn[i]) / 12
                total -= np.log(self.h(anchors[i] @ positive, z, odds))
                share = len(drawn[i]) / len(negative_rows)
                for j in negative_rows:
                    total -= share * np.log(1 - self.h(anchors[i] @ memory_rows[j], z, odds))
        return total / 5

    def h(self, product: float, z: float, odds: float) -> float:
        e = np.exp(product / 0.07) / z
        return float(e / (e + odds))

    def sums(self, judge: Any, memory: Array) -> Array:
        """Z of this batch, for the student's anchors and for the teacher's."""
        s, t = self.embedded(judge)
        return np.array(
            [np.exp(a @ m.T / 0.07).sum(axis=1).mean() for a, m in ((s, memory[1]), (t, memory[0]))]
        )

    @pytest.mark.parametrize("scale", ["batch", "benchmark"])
    @pytest.mark.parametrize("negatives", [6, 100], ids=["drawn", "all"])
    def test_formula(self, scale: str, negatives: int) -> None:
        loss = Crd(width=4, negatives=negatives)
        if scale == "benchmark":
            loss = dataclasses.replace(loss, scale="benchmark")
        module, judge = self.setting(loss)
        memory = array(judge.memory).copy()
        torch.manual_seed(1)
        value = built_value(module, [EMBEDDINGS[0]], [EMBEDDINGS[1]], list(self.targets))
        torch.manual_seed(1)
        drawn = torch.randint(12, (5, 6)).tolist() if negatives < 12 else [list(range(12))] * 5
        expected = self.expected(judge, drawn, self.sums(judge, memory), memory, scale)
        assert value == pytest.approx(expected)

    @pytest.mark.parametrize("scale", ["batch", "benchmark"])
    def test_z_is_estimated_from_this_or_first_batch(self, scale: str) -> None:
        loss = Crd(width=4, negatives=100)
        if scale == "benchmark":
            loss = dataclasses.replace(loss, scale="benchmark")
        module, judge = self.setting(loss)
        sums, memories, value = [], [], 0.0
        for _ in range(3):
            memories.append(array(judge.memory).copy())
            sums.append(self.sums(judge, memories[-1]))
            value = built_value(module, [EMBEDDINGS[0]], [EMBEDDINGS[1]], list(self.targets))
        used = sums[2] if scale == "batch" else sums[0]
        drawn = [list(range(12))] * 5
        assert value == pytest.approx(self.expected(judge, drawn, used, memories[-1], scale))

    def test_memory_update_uses_momentum_and_unit_norm(self) -> None:
        module, judge = self.setting(Crd(width=4, momentum=0.25))
        before = array(judge.memory).copy()
        built_value(module, [EMBEDDINGS[0]], [EMBEDDINGS[1]], list(self.targets))
        for side, rows in enumerate(self.embedded(judge)):
            expected = unit(0.25 * before[side, 3:8] + 0.75 * rows)
            np.testing.assert_allclose(array(judge.memory[side, 3:8]), expected)
        untouched = [0, 1, 2, 8, 9, 10, 11]
        np.testing.assert_array_equal(array(judge.memory[:, untouched]), before[:, untouched])

    def test_memory_has_one_row_per_sample(self) -> None:
        module = built(Crd(width=4, negatives=6, momentum=0), [(3,)], [(4,)])
        judge = module.judges[0]
        student, teacher = evidence("s", [EMBEDDINGS[0]]), evidence("t", [EMBEDDINGS[1]])
        labels = torch.tensor(self.targets)
        for index in ([4, 2, 7, 0, 1], [7, 4, 1, 2, 0]):
            module(student, teacher, labels, torch.tensor(index), Progress(0, 1))
        assert judge.used_slots.item() == 5
        slots = judge.slot_of[torch.tensor([7, 4, 1, 2, 0])]
        assert sorted(slots.tolist()) == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(judge.class_of[slots].numpy(), labels.numpy())
        np.testing.assert_allclose(array(judge.memory[0, slots]), self.embedded(judge)[0])

    def test_evaluation_does_not_change_memory(self) -> None:
        module, judge = self.setting(Crd(width=4))
        before = {name: buffer.clone() for name, buffer in judge.named_buffers()}
        module.eval()
        built_value(module, [EMBEDDINGS[0]], [EMBEDDINGS[1]], list(self.targets))
        assert all(torch.equal(before[name], buffer) for name, buffer in judge.named_buffers())


class TestSemckd:
    """Chen 2021 (AAAI), section "Semantic Calibration"."""

    def test_formula(self) -> None:
        shapes, hints = [(3, 4, 4), (3, 2, 2)], [(3, 4, 4), (6, 2, 2)]
        module = built(Semckd(width=8), list(shapes), list(hints))
        guided = [draw(4, *shape, seed=i) for i, shape in enumerate(shapes)]
        taught = [draw(4, *shape, seed=9 + i) for i, shape in enumerate(hints)]
        queries = [self.summary(module.queries[i], side) for i, side in enumerate(guided)]
        keys = [self.summary(module.keys[i], side) for i, side in enumerate(taught)]
        total = 0.0
        for s in range(2):
            for t in range(2):
                carried = array(module.connectors[2 * s + t](tensor(guided[s])))
                hint = pooled(taught[t], min(shapes[s][1], hints[t][1]))
                for b in range(4):
                    weights = softmax(np.array([queries[s][b] @ key[b] for key in keys]))
                    total += weights[t] * np.mean((hint[b] - carried[b]) ** 2)
        assert built_value(module, guided, taught) == pytest.approx(total / 8)

    def summary(self, module: nn.Module, features: Array) -> Array:
        first, second = (part for part in module.modules() if isinstance(part, nn.Linear))
        hidden = features.mean(axis=(2, 3)) @ array(first.weight).T + array(first.bias)
        return unit(np.maximum(hidden, 0) @ array(second.weight).T + array(second.bias))

    def test_hidden_width_of_projection(self) -> None:
        module = built(Semckd(middle=1.5), [(3, 4, 4)], [(6, 2, 2)])
        widths = [c.out_channels for c in module.modules() if isinstance(c, nn.Conv2d)]
        assert widths == [9, 9, 6]


def pooled(features: Array, level: int) -> Array:
    batch, channels, height, width = features.shape
    grid = features.reshape(batch, channels, level, height // level, level, width // level)
    return grid.mean(axis=(3, 5))


class TestReviewKD:
    """Chen 2021 (CVPR), section 3: attention based fusion and hierarchical context loss."""

    def hcl(self, student: Array, teacher: Array) -> float:
        levels = [student.shape[2], *(level for level in (4, 2, 1) if level < student.shape[2])]
        values = [
            np.mean((pooled(student, level) - pooled(teacher, level)) ** 2) for level in levels
        ]
        weights = np.array([1, 1 / 2, 1 / 4, 1 / 8])[: len(levels)]
        return float(np.dot(weights, values) / weights.sum())

    @pytest.mark.parametrize("size", [8, 4, 2, 1])
    def test_hierarchical_context_loss(self, size: int) -> None:
        student, teacher = draw(2, 3, size, size, seed=1), draw(2, 3, size, size, seed=2)
        assert value(ReviewKD(), (student, teacher)) == pytest.approx(self.hcl(student, teacher))

    def test_deeper_layers_get_gradient_from_shallow_hints(self) -> None:
        shapes, hint_shapes = [(3, 4, 4), (4, 2, 2), (5,)], [(5, 8, 8), (6, 2, 2), (7,)]
        module = built(ReviewKD(), list(shapes), list(hint_shapes)).eval()
        guided = [draw(4, *shape, seed=i) for i, shape in enumerate(shapes)]
        hints = [draw(4, *shape, seed=9 + i) for i, shape in enumerate(hint_shapes)]
        fused, expected = None, 0.0
        for i in (2, 1, 0):
            fusion = module.fusions[i]
            fused = self.fuse(
                fusion, guided[i].reshape(4, shapes[i][0], *([1, 1], shapes[i][1:])[i < 2]), fused
            )
            hint = hints[i] if i < 2 else hints[i][:, :, None, None]
            fused = repeated(fused, hint.shape[2])
            expected += self.hcl(array(fusion.leave(tensor(fused))), hint)
        assert built_value(module, guided, hints) == pytest.approx(expected)

    def fuse(self, fusion: Any, guided: Array, deeper: Array | None) -> Array:
        entered = array(fusion.enter(tensor(guided)))
        if deeper is None:
            return entered
        deeper = repeated(deeper, entered.shape[2])
        weight = array(fusion.attention.weight)[:, :, 0, 0]
        scores = np.einsum("oc,bchw->bohw", weight, np.concatenate([entered, deeper], axis=1))
        shares = 1 / (1 + np.exp(-scores - array(fusion.attention.bias)[:, None, None]))
        return entered * shares[:, :1] + deeper * shares[:, 1:]


def repeated(features: Array, size: int) -> Array:
    """(B, C, H, H) -> (B, C, size, size), each position repeated."""
    times = size // features.shape[2]
    return features.repeat(times, axis=2).repeat(times, axis=3)


class TestMgd:
    """Yang 2022, section 3.2, as a mean."""

    @pytest.mark.parametrize(
        ("loss", "shape"),
        [
            (Mgd(mask=0.5), (4, 1, 4, 4)),
            (Mgd(mask=0.5, masked="channels"), (4, 3, 1, 1)),
        ],
        ids=["places", "channels"],
    )
    def test_formula(self, loss: Mgd, shape: tuple[int, ...]) -> None:
        judge = built(loss, [(3, 4, 4)], [(3, 4, 4)]).judges[0]
        torch.manual_seed(1)
        value = judge(tensor(SAME[0]), tensor(SAME[1])).item()
        torch.manual_seed(1)
        mask = (torch.rand(shape) >= 0.5).double().numpy()
        generated = array(judge.generate(tensor(SAME[0] * mask)))
        assert 0 < mask.mean() < 1
        assert value == pytest.approx(np.mean((SAME[1] - generated) ** 2))

    def test_channels_and_sizes_are_aligned_before_masking(self) -> None:
        judge = built(Mgd(mask=0), [(3, 4, 4)], [(5, 2, 2)]).judges[0]
        student, teacher = draw(4, 3, 4, 4, seed=1), draw(4, 5, 2, 2, seed=2)
        weight, bias = array(judge.align[1].weight)[:, :, 0, 0], array(judge.align[1].bias)
        aligned = np.einsum("oc,bchw->bohw", weight, pooled(student, 2)) + bias[:, None, None]
        generated = array(judge.generate(tensor(aligned)))
        expected = np.mean((teacher - generated) ** 2)
        assert judge(tensor(student), tensor(teacher)).item() == pytest.approx(expected)


class TestSimKD:
    """Chen 2022, section 3.2: the mean square between the projected and the teacher's features."""

    @pytest.mark.parametrize(
        ("guided", "hint"),
        [((3, 4, 4), (6, 4, 4)), ((3, 8, 8), (6, 4, 4)), ((3, 4, 4), (6, 8, 8)), ((3,), (6,))],
        ids=["one size", "larger", "smaller", "embeddings"],
    )
    def test_formula(self, guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
        module = built(SimKD(), [guided], [hint])
        student, teacher = draw(4, *guided, seed=1), draw(4, *hint, seed=2)
        value = built_value(module, [student], [teacher])
        if len(hint) == 3:
            side = min(guided[1], hint[1])
            student, teacher = pooled(student, side), pooled(teacher, side)
        projected = array(module.projector.steps(tensor(student)))
        assert value == pytest.approx(np.mean((projected - teacher) ** 2))

    @pytest.mark.parametrize(("factor", "middle"), [(2, 4), (4, 2), (100, 1)])
    def test_projector_is_bottleneck_of_paper(self, factor: int, middle: int) -> None:
        module = built(SimKD(factor=factor), [(3, 4, 4)], [(8, 4, 4)])
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == [middle, middle, 8]
        assert [c.kernel_size[0] for c in convolutions] == [1, 3, 1]
        assert isinstance(module.projector.steps[-1], nn.ReLU)

    def test_signed_hint_layer_drops_last_relu(self) -> None:
        projector = built(SimKD(), [(3, 4, 4)], [(8, 4, 4)]).give_projector(signed=True)
        assert (projector(tensor(draw(4, 3, 4, 4))) < 0).any()
        rectified = built(SimKD(), [(3, 4, 4)], [(8, 4, 4)]).give_projector(signed=False)
        assert not (rectified(tensor(draw(4, 3, 4, 4))) < 0).any()

    def test_released_projector_is_not_registered_twice(self) -> None:
        module = built(SimKD(), [(3, 4, 4)], [(6, 4, 4)])
        projector = module.give_projector(signed=False)
        assert not list(module.parameters())
        projected = projector(tensor(MAPS[0]))
        teacher = draw(4, 6, 4, 4, seed=2)
        student = ModelOutputs(torch.zeros(4, 3), {PROJECTED: projected})
        rows = torch.arange(4)
        value = module(student, evidence("t", [teacher]), rows, rows, Progress(0, 1))
        assert value.item() == pytest.approx(np.mean((array(projected) - teacher) ** 2))

    @pytest.mark.parametrize(
        ("guided", "hint", "reason"),
        [
            ([(3, 4, 4)] * 2, [(6, 4, 4)] * 2, "takes one pair"),
            ([(3, 4, 4)], [(6,)], "of the hint layer's kind"),
            ([(5, 4)], [(6, 4)], "as many tokens"),
        ],
    )
    def test_invalid_pairs_raise(self, guided: list[Any], hint: list[Any], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            built(SimKD(), guided, hint)


def test_kl_of_helper() -> None:
    assert kl(np.array([0.75, 0.25]), np.array([0.5, 0.5])) == pytest.approx(0.130812)
