"""Schemes against formulas written anew from the papers, in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from raykd.architecture import Mlp, Resnet, Task, discover, resolve
from raykd.knowledge import KD, AttentionTransfer, Hint, Pair, Term
from raykd.schemes import SCHEMES, Byot, CsKd, Dml, Kdcl, One, Parts, PsKd, TfKd
from raykd.schemes.cs_kd import agreement, partners
from raykd.schemes.kdcl import best_mixture, ensembled
from raykd.schemes.one import Branching, check_chain, split_layer, upper_part
from raykd.schemes.ps_kd import Progressive
from scheme_cases import BATCH, SIZE, TASK, Case, batch, build, ready

Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl(p: Array, q: Array) -> float:
    return float(np.mean(np.sum(p * np.log(p / q), axis=-1)))


def cross_entropy(logits: Array, targets: Tensor) -> float:
    return float(-np.mean(np.log(softmax(logits))[np.arange(len(logits)), targets.numpy()]))


def logits_of(network: nn.Module) -> Array:
    network.train()
    with torch.no_grad():
        return array(network(batch(0).inputs))


class TestDml:
    """Zhang 2018, Eqs. 5, 8 and 9."""

    def test_three_peers(self) -> None:
        case = ready(Dml(peers=3), terms=())
        others = case.distiller.get_submodule("others").children()
        z = [logits_of(peer) for peer in (case.distiller.student, *others)]
        expected = 0.0
        for k in range(3):
            expected += cross_entropy(z[k], batch(0).targets)
            expected += sum(kl(softmax(z[j]), softmax(z[k])) for j in range(3) if j != k) / 2
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-4)

    def test_peers_start_from_other_weights(self) -> None:
        case = ready(Dml())
        named = dict(case.distiller.named_parameters())
        first = next(name for name, parameter in named.items() if parameter.dim() == 4)
        other = named[first.replace("student.", "others.0.")]
        assert other is not named[first] and not torch.equal(other, named[first])

    def test_knowledge_of_the_study_passes_between_peers(self) -> None:
        stage2 = (Pair(hint="stage2", guided="stage2"),)
        terms = (Term(loss=AttentionTransfer(), weight=2, pairs=stage2),)
        output = ready(Dml(task_weight=0), terms=terms).step(0)
        assert set(output.terms) == {"task", "at", "peers_task"}
        torch.testing.assert_close(output.loss.detach(), 2 * 2 * output.terms["at"])

    def test_peers_of_another_architecture(self) -> None:
        stage2 = (Pair(hint="stage3", guided="stage2"),)
        terms = (Term(loss=KD()), Term(loss=Hint(), pairs=stage2))
        wide = Resnet(depth=8, width=8)
        case = ready(Dml(others=(wide,)), terms=terms)
        sizes = [sum(p.numel() for p in peer.parameters()) for peer in (build(wide),)]
        found = sum(p.numel() for p in case.distiller.get_submodule("others").parameters())
        assert [found] == sizes
        assert len(case.train(2)) == 2

    def test_more_architectures_than_peers_are_refused(self) -> None:
        written = {"name": "dml", "others": [{"name": "resnet"}, {"name": "resnet"}]}
        with pytest.raises(ValidationError, match="set peers: 3"):
            TypeAdapter(SCHEMES.annotation).validate_python(written)


LOGITS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
TARGETS = torch.tensor([0, 3, 1, 1, 2])


class TestKdcl:
    """Guo 2020, Eqs. 4 to 9."""

    def test_naive_takes_the_best_peer_of_each_sample(self) -> None:
        found = array(ensembled(list(LOGITS), TARGETS, "naive"))
        for b, target in enumerate(TARGETS.tolist()):
            best = max(range(3), key=lambda k: softmax(array(LOGITS[k, b]))[target])
            np.testing.assert_array_equal(found[b], array(LOGITS[best, b]))

    def test_min_logit(self) -> None:
        found = array(ensembled(list(LOGITS), TARGETS, "min_logit"))
        for b, target in enumerate(TARGETS.tolist()):
            relative = array(LOGITS[:, b]) - array(LOGITS[:, b, target])[:, None]
            np.testing.assert_allclose(found[b], relative.min(axis=0))

    def test_linear_is_the_best_convex_combination(self) -> None:
        shares = array(best_mixture(LOGITS, TARGETS))
        assert shares.sum() == pytest.approx(1) and (shares >= 0).all()

        def error(mix: Array) -> float:
            return cross_entropy(np.tensordot(mix, array(LOGITS), 1), TARGETS)

        grid = [
            np.array([a, b, 1 - a - b])
            for a in np.linspace(0, 1, 21)
            for b in np.linspace(0, 1 - a, 21)
        ]
        assert error(shares) < min(map(error, grid)) + 0.01

    @pytest.mark.parametrize("ensemble", ["naive", "linear", "min_logit", "mean"])
    def test_loss(self, ensemble: str) -> None:
        scheme = TypeAdapter(Kdcl).validate_python({"ensemble": ensemble})
        case = ready(scheme)
        others = case.distiller.get_submodule("others").children()
        z = [logits_of(peer) for peer in (case.distiller.student, *others)]
        taught = ensembled([torch.from_numpy(one) for one in z], batch(0).targets, scheme.ensemble)
        p = softmax(array(taught) / 2)
        expected = sum(
            cross_entropy(one, batch(0).targets) + 4 * kl(p, softmax(one / 2)) for one in z
        )
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-3)


class TestOne:
    """Lan 2018, Eqs. 4 to 9."""

    def test_loss(self) -> None:
        case = ready(One())
        distiller = case.distiller
        assert isinstance(distiller, Branching)
        distiller.train()
        with torch.no_grad():
            shown = distiller.watched(batch(0).inputs)
            trunk = shown.layers["stage2"]
            branches = [branch(batch(0).inputs, trunk) for branch in distiller.branches]
            shares = softmax(array(distiller.gate(trunk)))
        z = [array(one) for one in (shown.logits, *branches)]
        ensemble = np.einsum("bp,pbk->bk", shares, np.stack(z))
        expected = cross_entropy(ensemble, batch(0).targets)
        for one in z:
            expected += cross_entropy(one, batch(0).targets)
            expected += 9 * kl(softmax(ensemble / 3), softmax(one / 3))
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-4)

    def test_branches_own_only_what_follows_the_split(self) -> None:
        student = build(Resnet(depth=8, width=4))
        branch = upper_part(student, split_layer(student, TASK, None))
        names = {name.split(".")[1] for name, _ in branch.named_parameters()}
        assert names == {"stage3", "classifier"}

    def test_a_perceptron_can_be_cut(self) -> None:
        task = Task(input_shape=(1, 8, 8), classes=10)
        student = Mlp().build(task)
        check_chain(student, split_layer(student, task, None), task)

    def test_a_cut_through_a_residual_block_is_refused(self) -> None:
        student = build(Resnet(depth=8, width=4))
        layer = resolve(discover(student, TASK), "stage2.0.conv1")
        with pytest.raises(ValueError, match="do not form a chain"):
            check_chain(student, layer, TASK)

    def test_looking_does_not_change_the_student(self) -> None:
        student = build(Resnet(depth=8, width=4))
        before = {name: value.clone() for name, value in student.state_dict().items()}
        check_chain(student, split_layer(student, TASK, None), TASK)
        for name, value in student.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class TestByot:
    """Zhang 2019, Eqs. 2 to 5."""

    def test_loss_is_the_sum_of_its_parts(self) -> None:
        output = ready(Byot()).step(0)
        parts = {name: value.item() for name, value in output.terms.items()}
        exits = 0.9 * parts["exits_task"] + 0.1 * parts["exits_kd"] + 0.03 * parts["exits_feature"]
        assert output.loss.item() == pytest.approx(parts["task"] + 2 * exits, rel=1e-5)

    def test_the_deepest_exit_is_not_taught_by_shallow_ones(self) -> None:
        gradients = []
        for alpha in (0.1, 1.0):
            case = ready(Byot(alpha=alpha, feature=0))
            case.step(0).loss.backward()
            named = dict(case.distiller.student.named_parameters())
            gradients.append(named["classifier.weight"].grad)
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_too_few_stages_are_said(self) -> None:
        with pytest.raises(ValueError, match="byot"):
            case_of(Byot(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


class TestCsKd:
    """Yun 2020, Eqs. 2 and 3."""

    def test_partners_are_the_next_of_the_same_class(self) -> None:
        place, paired = partners(torch.tensor([0, 1, 0, 2, 1, 0]))
        assert paired.tolist() == [True, True, True, False, True, True]
        assert [place[i].item() for i in (0, 1, 2, 4, 5)] == [2, 4, 5, 1, 0]

    def test_formula(self) -> None:
        logits, targets = LOGITS[0], torch.tensor([0, 1, 0, 2, 1])
        z = array(logits)
        expected = 0.0
        for i, j in [(0, 2), (2, 0), (1, 4), (4, 1)]:
            expected += 16 * kl(softmax(z[j : j + 1] / 4), softmax(z[i : i + 1] / 4)) / 4
        assert agreement(logits, targets, 4).item() == pytest.approx(expected)

    def test_nobody_has_a_partner(self) -> None:
        assert agreement(LOGITS[0], torch.arange(5), 4).item() == 0
        assert ready(CsKd()).step(0).terms["class"] > 0


class TestPsKd:
    """Kim 2021, Eqs. 3 and 7."""

    def test_first_epoch_is_plain(self) -> None:
        output = ready(PsKd()).step(0)
        torch.testing.assert_close(output.loss.detach(), output.terms["task"])

    def test_second_epoch_is_softened_by_the_first(self) -> None:
        case = ready(PsKd())
        case.distiller.train()
        first = array(case.step(0).logits)
        assert isinstance(case.distiller, Progressive)
        assert case.distiller.seen.sum() == BATCH
        second = case.step(3)
        share = 0.8 * 2 / 4
        targets = batch(3).targets
        assert torch.equal(targets, batch(0).targets)
        label = np.eye(10)[targets.numpy()]
        soft = (1 - share) * label + share * softmax(first)
        expected = -np.mean(np.sum(soft * np.log(softmax(array(second.logits))), axis=1))
        assert second.loss.item() == pytest.approx(expected, rel=1e-3)

    def test_evaluation_is_not_remembered(self) -> None:
        case = ready(PsKd())
        case.distiller.eval()
        case.step(0)
        assert isinstance(case.distiller, Progressive)
        assert len(case.distiller.seen) == SIZE and not case.distiller.seen.any()


class TestTfKd:
    """Yuan 2020, Eqs. 9 and 10."""

    def test_loss(self) -> None:
        output = ready(TfKd(alpha=0.3)).step(0)
        z, targets = array(output.logits), batch(0).targets
        virtual = np.full((BATCH, 10), 0.01 / 9)
        virtual[np.arange(BATCH), targets.numpy()] = 0.99
        taught = softmax(np.log(virtual) / 20)
        expected = 0.7 * cross_entropy(z, targets) + 0.3 * 400 * kl(taught, softmax(z / 20))
        assert output.loss.item() == pytest.approx(expected, rel=1e-3)


def case_of(scheme: Byot, student: nn.Module) -> Case:
    parts = Parts(student, lambda: student, None, (), F.cross_entropy, TASK, SIZE, SIZE)
    return Case(scheme.build(parts), student)
