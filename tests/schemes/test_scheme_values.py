"""Schemes against the papers' formulas in NumPy float64."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.scheme_cases import BATCH, SIZE, STEPS_PER_EPOCH, TASK, Case, batch, build, ready
from raykd.data.batch import Batch, ExtraInputs
from raykd.losses import KD, AttentionTransfer, Hint, Pair, Progress, Term
from raykd.models import MODELS, AnyModel, CompressedModel, Mlp, Model, Resnet, Signature, Vit
from raykd.models.base import Text
from raykd.models.introspection.layers import random_inputs
from raykd.schemes import AnyScheme, Byot, CsKd, Dml, Kdcl, One, PsKd, Scheme, SchemeInputs, TfKd
from raykd.schemes.byot import Distance, distance, lesson
from raykd.schemes.kdcl import (
    Collaborative,
    Ensemble,
    best_mixture,
    combine,
    correlated_errors,
    general_shares,
)
from raykd.schemes.one import Branching, find_cut, upper_part
from raykd.schemes.ps_kd import Progressive
from raykd.schemes.tf_kd import virtual_lesson

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


def logits_of(network: nn.Module, inputs: object = None) -> Array:
    network.train()
    with torch.no_grad():
        return array(network(batch(0).inputs if inputs is None else inputs))


def networks_of(case: Case) -> list[nn.Module]:
    """The student and its peers."""
    return [case.distiller.student, *case.distiller.get_submodule("others").children()]


class TestDml:
    """Zhang 2018, section 2: L_k = CE_k + 1 / (K - 1) x sum over the others of KL(p_j || p_k)."""

    @pytest.mark.parametrize("together", ["mean", "sum", "ensemble"])
    def test_three_peers(self, together: Literal["mean", "sum", "ensemble"]) -> None:
        case = ready(Dml(peers=3, together=together), terms=())
        z = [logits_of(peer) for peer in networks_of(case)]
        expected = 0.0
        for k in range(3):
            peers = [softmax(z[j]) for j in range(3) if j != k]
            lessons = {
                "mean": np.mean([kl(p, softmax(z[k])) for p in peers]),
                "sum": np.sum([kl(p, softmax(z[k])) for p in peers]),
                "ensemble": kl(np.mean(peers, axis=0), softmax(z[k])),
            }
            expected += cross_entropy(z[k], batch(0).targets) + lessons[together]
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-4)

    def test_teaching_peer_gets_no_gradient(self) -> None:
        """KL(p_j || p_k) has a gradient for k only: with no weight on the labels, peer 0 is
        moved as if the others were fixed."""
        case = ready(Dml(peers=2, task_weight=0), terms=())
        case.step(0).loss.backward()
        student, other = networks_of(case)
        gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
        student.zero_grad()
        with torch.no_grad():
            taught = other(batch(0).inputs)
        KD(temperature=1)(student(batch(0).inputs), taught, batch(0).targets).backward()
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)

    def test_peers_start_from_different_weights(self) -> None:
        case = ready(Dml())
        named = dict(case.distiller.named_parameters())
        first = next(name for name, parameter in named.items() if parameter.dim() == 4)
        other = named[first.replace("student.", "others.0.")]
        assert other is not named[first] and not torch.equal(other, named[first])

    @pytest.mark.parametrize("together", ["mean", "ensemble"])
    def test_terms_of_study_apply_between_peers(
        self, together: Literal["mean", "ensemble"]
    ) -> None:
        stage2 = (Pair(hint="stage2", guided="stage2"),)
        terms = (Term(loss=AttentionTransfer(), weight=2, pairs=stage2),)
        output = ready(Dml(task_weight=0, together=together), terms=terms).step(0)
        assert set(output.terms) == {"task", "at", "peers_task"}
        torch.testing.assert_close(output.loss.detach(), 2 * 2 * output.terms["at"])

    def test_peers_may_have_another_architecture(self) -> None:
        stage2 = (Pair(hint="stage3", guided="stage2"),)
        terms = (Term(loss=KD()), Term(loss=Hint(), pairs=stage2))
        wide = Resnet(depth=8, width=8)
        case = ready(Dml(others=(wide,)), terms=terms)
        sizes = [sum(p.numel() for p in peer.parameters()) for peer in (build(wide),)]
        size = sum(p.numel() for p in case.distiller.get_submodule("others").parameters())
        assert [size] == sizes
        assert len(case.train(2)) == 2

    @pytest.mark.parametrize("name", ["dml", "kdcl"])
    def test_more_architectures_than_peers_raise(self, name: str) -> None:
        written = {"name": name, "others": [{"name": "resnet"}, {"name": "resnet"}]}
        with pytest.raises(ValidationError, match="set peers: 3"):
            TypeAdapter(AnyScheme).validate_python(written)


LOGITS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
TARGETS = torch.tensor([0, 3, 1, 1, 2])


class TestKdcl:
    """Guo 2020, section 3."""

    def test_naive_takes_best_peer_of_each_sample(self) -> None:
        ensemble = array(combine(list(LOGITS), TARGETS, "naive"))
        for b, target in enumerate(TARGETS.tolist()):
            best = max(range(3), key=lambda k: softmax(array(LOGITS[k, b]))[target])
            np.testing.assert_array_equal(ensemble[b], array(LOGITS[best, b]))

    def test_min_logit(self) -> None:
        ensemble = array(combine(list(LOGITS), TARGETS, "min_logit"))
        for b, target in enumerate(TARGETS.tolist()):
            relative = array(LOGITS[:, b]) - array(LOGITS[:, b, target])[:, None]
            np.testing.assert_allclose(ensemble[b], relative.min(axis=0))

    @pytest.mark.parametrize("of_batch", [False, True])
    def test_linear_is_optimal_convex_combination(self, of_batch: bool) -> None:
        """Against the solution of a quadratic program, per sample or per batch."""
        shares = array(best_mixture(LOGITS, TARGETS, of_batch=of_batch))
        np.testing.assert_allclose(shares.sum(axis=0), 1)
        assert (shares >= 0).all() and shares.shape == (3, 1 if of_batch else 5)
        groups = [list(range(5))] if of_batch else [[b] for b in range(5)]
        for column, rows in enumerate(groups):

            def error(mix: Array, rows: list[int] = rows) -> float:
                mixed = np.tensordot(mix, array(LOGITS[:, rows]), 1)
                return cross_entropy(mixed, TARGETS[rows])

            best = minimize(
                error,
                np.full(3, 1 / 3),
                bounds=[(0, 1)] * 3,
                constraints={"type": "eq", "fun": lambda mix: mix.sum() - 1},
            )
            assert error(shares[:, column]) == pytest.approx(best.fun, abs=5e-3)

    def test_general_shares_minimize_expected_squared_error(self) -> None:
        errors = correlated_errors(LOGITS, TARGETS) / 5
        wrong = softmax(array(LOGITS)) - np.eye(4)[TARGETS.numpy()]
        expected = np.einsum("ibk,jbk->ij", wrong, wrong) / 5
        np.testing.assert_allclose(array(errors), expected, rtol=1e-6)
        inverse = np.linalg.inv(expected)
        shares = array(general_shares(errors))
        np.testing.assert_allclose(shares, inverse.sum(axis=1) / inverse.sum(), rtol=1e-3)

        def error(mix: Array) -> float:
            return float(mix @ expected @ mix)

        for move in ([0.05, -0.05, 0], [0, -0.05, 0.05], [-0.05, 0, 0.05]):
            assert error(shares) < error(shares + np.array(move))

    def test_general_shares_come_from_previous_epoch(self) -> None:
        case = ready(Kdcl(ensemble="general"))
        assert isinstance(case.distiller, Collaborative) and case.distiller.shares is not None
        averages = case.distiller.shares
        gathered = torch.zeros(2, 2)
        for number in range(STEPS_PER_EPOCH + 1):
            if number % STEPS_PER_EPOCH == 0:
                case.distiller.begin_epoch(case.progress(number))
            if number < STEPS_PER_EPOCH:
                assert averages.shares.tolist() == [0.5, 0.5]
                data = case.batch(number)
                views = (data.inputs, *data.views)
                pairs = zip(networks_of(case), views, strict=True)
                z = torch.stack([torch.from_numpy(logits_of(*pair)) for pair in pairs])
                gathered += correlated_errors(z, data.targets).float()
                case.step(number)
        torch.testing.assert_close(
            averages.shares, general_shares(gathered / SIZE), rtol=1e-3, atol=0
        )
        assert averages.samples == 0 and averages.shares.sum().item() == pytest.approx(1)

    @pytest.mark.parametrize("ensemble", ["naive", "linear", "linear_batch", "min_logit", "mean"])
    def test_loss(self, ensemble: Ensemble) -> None:
        case = ready(Kdcl(ensemble=ensemble))
        data = case.batch(0)
        views = (data.inputs, *data.views)
        assert len(views) == 2
        z = [logits_of(*pair) for pair in zip(networks_of(case), views, strict=True)]
        taught = combine([torch.from_numpy(scores) for scores in z], batch(0).targets, ensemble)
        p = softmax(array(taught) / 2)
        expected = sum(
            cross_entropy(scores, batch(0).targets) + 4 * kl(p, softmax(scores / 2)) for scores in z
        )
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-3)

    def test_peers_may_share_one_view(self) -> None:
        case = ready(Kdcl(own_views=False, ensemble="mean"))
        assert case.distiller.extra_inputs == ExtraInputs()
        z = [logits_of(peer) for peer in networks_of(case)]
        p = softmax(np.mean(z, axis=0) / 2)
        expected = sum(
            cross_entropy(scores, batch(0).targets) + 4 * kl(p, softmax(scores / 2)) for scores in z
        )
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-3)

    def test_missing_views_raise(self) -> None:
        case = ready(Kdcl(peers=3))
        with pytest.raises(ValueError, match=r"2 further view\(s\).*own_views: false"):
            case.distiller(batch(0), case.progress(0))


class TestOne:
    """Lan 2018, section 3."""

    @pytest.mark.parametrize("gate", ["normalized", "plain"])
    def test_loss(self, gate: Literal["normalized", "plain"]) -> None:
        case = ready(One(gate=gate))
        distiller = case.distiller
        assert isinstance(distiller, Branching)
        distiller.train()
        with torch.no_grad():
            outputs = distiller.taps.run(batch(0).inputs)
            trunk = outputs.layers["stage2"]
            branches = [branch(batch(0).inputs, trunk) for branch in distiller.branches]
            judged = array(distiller.gate.judge(trunk.mean(dim=(2, 3))))
        if gate == "normalized":
            judged = (judged - judged.mean(axis=0)) / np.sqrt(judged.var(axis=0) + 1e-5)
            judged = np.maximum(judged, 0)
        shares = softmax(judged)
        z = [array(scores) for scores in (outputs.logits, *branches)]
        ensemble = np.einsum("bp,pbk->bk", shares, np.stack(z))
        expected = cross_entropy(ensemble, batch(0).targets)
        for scores in z:
            expected += cross_entropy(scores, batch(0).targets)
            expected += 9 * kl(softmax(ensemble / 3), softmax(scores / 3))
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-4)

    def test_ensemble_gets_gradient_from_lessons_only_if_enabled(self) -> None:
        gradients = []
        for weight, follows in ((0, False), (1, False), (1, True)):
            case = ready(One(weight=weight, ensemble_follows=follows))
            case.step(0).loss.backward()
            assert isinstance(case.distiller, Branching)
            gradients.append(case.distiller.gate.judge.weight.grad)
        torch.testing.assert_close(gradients[0], gradients[1])
        assert not torch.allclose(gradients[1], gradients[2], rtol=1e-2)

    def test_lesson_weight_ramps_up(self) -> None:
        scheme = One(ramp_epochs=80, weight=2)
        weights = [scheme.weight_at(Progress(epoch, 300)) for epoch in (0, 40, 80, 200)]
        assert weights == pytest.approx([2 * np.exp(-5), 2 * np.exp(-1.25), 2, 2])

    def test_branches_copy_only_modules_after_split(self) -> None:
        student = build(Resnet(depth=8, width=4))
        branch = upper_part(student, find_cut(student, TASK))
        names = {name.split(".")[1] for name, _ in branch.named_parameters()}
        assert names == {"stage3", "classifier"}

    def test_modules_before_split_are_shared(self) -> None:
        """A transformer's positions and class token are added before the split."""
        signature = Signature(input_shape=(1, 8, 8), classes=10)
        student = Vit(patch=4, depth=4, width=8, heads=2).build(signature)
        cut = find_cut(student, signature)
        branch = upper_part(Vit(patch=4, depth=4, width=8, heads=2).build(signature), cut)
        inputs = torch.rand(3, *signature.input_shape)
        features = torch.rand(3, *cut.layer.shape)
        branch(inputs, features).sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in branch.parameters())

    def test_perceptron_can_be_split(self) -> None:
        student = Mlp().build(TASK)
        assert find_cut(student, TASK).layer.name == "stage1"

    @pytest.mark.parametrize("layer", ["stage2.0.conv1", "embedding"])
    def test_split_that_skips_modules_raises(self, layer: str) -> None:
        with pytest.raises(ValueError, match="cannot be cut after layer"):
            find_cut(build(Resnet(depth=8, width=4)), TASK, layer)

    def test_hooks_do_not_change_student(self) -> None:
        student = build(Resnet(depth=8, width=4))
        before = {name: value.clone() for name, value in student.state_dict().items()}
        find_cut(student, TASK)
        for name, value in student.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(parameter.requires_grad for parameter in student.parameters())


class TestByot:
    """Zhang 2019, section 3."""

    @pytest.mark.parametrize("times_t2", [False, True])
    def test_lesson_of_exit(self, times_t2: bool) -> None:
        z, taught = LOGITS[0].float(), LOGITS[1].float()
        value = lesson(z, taught, Byot(temperature=3, times_t2=times_t2)).item()
        expected = kl(softmax(array(taught) / 3), softmax(array(z) / 3))
        assert value == pytest.approx(expected * (9 if times_t2 else 1), rel=1e-4)

    @pytest.mark.parametrize("reduction", ["mean", "squared", "norm"])
    def test_features_of_exit(self, reduction: Distance) -> None:
        ours, deepest = (torch.randn(4, 3, 2, 2) for _ in range(2))
        apart = array(ours) - array(deepest)
        expected = {
            "mean": np.mean(apart**2),
            "squared": np.mean(np.sum(apart**2, axis=(1, 2, 3))),
            "norm": np.sqrt(np.sum(apart**2)),
        }
        assert distance(ours, deepest, reduction).item() == pytest.approx(
            expected[reduction], rel=1e-5
        )

    def test_loss_is_sum_of_its_parts(self) -> None:
        output = ready(Byot()).step(0)
        parts = {name: value.item() for name, value in output.terms.items()}
        exits = 0.7 * parts["exits_task"] + 0.3 * parts["exits_kd"] + 0.03 * parts["exits_feature"]
        assert output.loss.item() == pytest.approx(parts["task"] + 2 * exits, rel=1e-5)

    def test_shallow_exits_do_not_teach_deepest(self) -> None:
        gradients = []
        for alpha in (0.1, 1.0):
            case = ready(Byot(alpha=alpha, feature=0))
            case.step(0).loss.backward()
            named = dict(case.distiller.student.named_parameters())
            gradients.append(named["classifier.weight"].grad)
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_too_few_stages_raise(self) -> None:
        with pytest.raises(ValueError, match="byot"):
            case_of(Byot(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


class TestCsKd:
    """Yun 2020, section 2."""

    def test_loss(self) -> None:
        case = ready(CsKd())
        data = case.batch(0)
        assert data.partners is not None and case.distiller.extra_inputs == ExtraInputs(
            partners=True
        )
        z, taught = (logits_of(case.distiller.student, x) for x in (data.inputs, data.partners))
        expected = cross_entropy(z, data.targets) + 16 * kl(softmax(taught / 4), softmax(z / 4))
        assert case.step(0).loss.item() == pytest.approx(expected, rel=1e-3)

    def test_partners_get_no_gradient(self) -> None:
        original = ready(CsKd()).batch(0)
        assert isinstance(original.inputs, Tensor) and isinstance(original.partners, Tensor)
        inputs, partners = original.inputs.requires_grad_(), original.partners.requires_grad_()
        case = ready(CsKd())
        paired = Batch(inputs, original.targets, original.index, partners=partners)
        case.distiller(paired, case.progress(0)).loss.backward()
        assert inputs.grad is not None and partners.grad is None

    def test_batch_without_partners_raises(self) -> None:
        case = ready(CsKd())
        with pytest.raises(ValueError, match="needs a partner"):
            case.distiller(batch(0), case.progress(0))


class TestPsKd:
    """Kim 2021, section 3."""

    def test_first_epoch_is_plain(self) -> None:
        output = ready(PsKd(alpha=0.8)).step(0)
        torch.testing.assert_close(output.loss.detach(), output.terms["task"])

    def test_second_epoch_uses_predictions_of_first(self) -> None:
        case = ready(PsKd(alpha=0.8))
        case.distiller.train()
        first = array(case.step(0).logits)
        assert isinstance(case.distiller, Progressive)
        assert case.distiller.has_prediction.sum() == BATCH
        second = case.step(3)
        share = 0.8 * 2 / 4
        targets = batch(3).targets
        assert torch.equal(targets, batch(0).targets)
        label = np.eye(10)[targets.numpy()]
        soft = (1 - share) * label + share * softmax(first)
        expected = -np.mean(np.sum(soft * np.log(softmax(array(second.logits))), axis=1))
        assert second.loss.item() == pytest.approx(expected, rel=1e-3)

    def test_evaluation_does_not_change_memory(self) -> None:
        case = ready(PsKd(alpha=0.8))
        case.distiller.eval()
        case.step(0)
        assert isinstance(case.distiller, Progressive)
        assert (
            len(case.distiller.has_prediction) == SIZE and not case.distiller.has_prediction.any()
        )


class TestTfKd:
    """Yuan 2020, section 4 (Tf-KD_reg)."""

    def test_loss(self) -> None:
        output = ready(TfKd(alpha=0.3)).step(0)
        z, targets = array(output.logits), batch(0).targets
        taught = softmax(np.log(virtual(targets, 10)) / 20)
        expected = 0.7 * cross_entropy(z, targets) + 0.3 * 400 * kl(taught, softmax(z / 20))
        assert output.loss.item() == pytest.approx(expected, rel=1e-3)

    def test_form_of_authors_code(self) -> None:
        """Mean over samples and classes, times 100, on 100 classes."""
        z, targets = torch.randn(6, 100), torch.arange(6)
        taught = softmax(virtual(targets, 100) / 20)
        elements = taught * (np.log(taught) - np.log(softmax(array(z))))
        value = virtual_lesson(z, targets, TfKd(form="code")).item()
        assert value == pytest.approx(elements.mean() * 100, rel=1e-4)


def virtual(targets: Tensor, classes: int) -> Array:
    certain = np.full((len(targets), classes), 0.01 / (classes - 1))
    certain[np.arange(len(targets)), targets.numpy()] = 0.99
    return certain


FAMILIES = [
    cls for cls in MODELS if not cls.__module__.endswith("crd_benchmark") and "sample" in cls.gives
]


@pytest.mark.parametrize("scheme", [One(), Byot()], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("model", FAMILIES, ids=lambda cls: cls.name)
def test_branches_and_exits_work_for_every_family(scheme: Scheme, model: type[Model]) -> None:
    signature = Signature(input_shape=(1, 32, 32), classes=10)
    derived: dict[str, Any] = {"base": Resnet()} if issubclass(model, CompressedModel) else {}
    student = model(**derived)
    draw = torch.Generator().manual_seed(0)
    inputs, rows = torch.rand(4, *signature.input_shape, generator=draw), torch.arange(4)
    parts = SchemeInputs(
        student=student.build(signature),
        build_student=lambda: student.build(signature),
        teacher=None,
        terms=(),
        task_loss=F.cross_entropy,
        signature=signature,
        train_size=4,
        data_size=4,
    )
    distiller = scheme.build(parts)
    output = distiller(Batch(inputs, rows, rows), Progress(0, 1))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


@pytest.mark.parametrize("scheme", [One(), Byot(), CsKd()], ids=lambda scheme: scheme.name)
def test_text_models_can_be_students(scheme: Scheme) -> None:
    """Its inputs are a mapping, and its blocks take more than their features."""
    pytest.importorskip("transformers")
    signature = Signature((12,), 3, Text(vocabulary=50, padding=1))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    written = {"name": "hf/bert", "config": {**small, "intermediate_size": 32}}
    model: Model = TypeAdapter(AnyModel).validate_python(written)
    torch.manual_seed(0)
    parts = SchemeInputs(
        model.build(signature),
        lambda: model.build(signature),
        None,
        (),
        F.cross_entropy,
        signature,
        4,
        4,
    )
    distiller = scheme.build(parts)
    texts, rows = random_inputs(signature, 4, torch.device("cpu")), torch.arange(4)
    output = distiller(Batch(texts, rows % 3, rows, partners=texts), Progress(0, 1))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)


def case_of(scheme: Byot, student: nn.Module) -> Case:
    parts = SchemeInputs(student, lambda: student, None, (), F.cross_entropy, TASK, SIZE, SIZE)
    return Case(scheme.build(parts), [student])
