"""The deployed network of a concrete study: the student, perhaps with a part of its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from raykd.errors import Infeasible
from raykd.losses import Loss, LossContext, Pair, Term
from raykd.losses.shapes import Shape
from raykd.models import Model, ModelProfile, Signature, profile_network
from raykd.models.introspection.flops import SkipInit
from raykd.models.introspection.layers import random_inputs
from raykd.models.introspection.memory import peak_memory
from raykd.models.introspection.profile import build_without_init
from raykd.schemes.base import teacher_chain
from raykd.schemes.classifier_reuse import Reusing
from raykd.study.checks.layer_pairs import PairError
from raykd.study.config import Study

RANGED = 8
"""Number of random samples that a network sees before it is converted."""


@dataclass(frozen=True)
class DeployedModel:
    """The network that is kept after training, not yet built.

    Attributes:
        model: of the student.
        reuse: the part of a teacher that it is deployed with; None: it is deployed alone.
    """

    model: Model
    reuse: Reuse | None = None

    def network(self, signature: Signature) -> nn.Module:
        """Build the network as it is kept, untrained, on the CPU.

        The state of the random number generator is preserved.

        Raises:
            ValueError: it cannot be built, or not be cut at its pair.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            network = self._built(signature)
            if self.is_converted:  # quantization ranges need samples
                with torch.no_grad():
                    network.train()(random_inputs(signature, RANGED, torch.device("cpu")))
            return self.model.deployed(network)

    @property
    def is_converted(self) -> bool:
        """True if the kept network is a conversion of the trained one."""
        return type(self.model).deployed is not Model.deployed

    def blank(self, signature: Signature) -> nn.Module:
        """Build the network as it is trained, with uninitialized weights.

        Raises:
            ValueError: as `network`.
        """
        if self.reuse is None:
            return build_without_init(self.model, signature)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), SkipInit():
            return self._built(signature, blank=True)

    def _built(self, signature: Signature, *, blank: bool = False) -> nn.Module:
        ours = self.model.blueprint(signature) if blank else self.model.build(signature)
        if self.reuse is None:
            return ours
        teacher, pair, loss = self.reuse.teacher, self.reuse.pair, self.reuse.loss
        theirs = teacher.blueprint(signature) if blank else teacher.build(signature)
        context = LossContext(
            pairs=(pair,),
            guided_shapes=(_shape(profile_network(ours, signature), pair.guided),),
            hint_shapes=(_shape(profile_network(theirs, signature), pair.hint),),
            classes=signature.classes,
            train_size=1,
            data_size=1,
        )
        projector = loss.build(context).give_projector(signed=False)
        whole = Reusing(ours, theirs, pair, projector, signature)
        whole.check_left(self.reuse.other_layers)
        return whole


@dataclass(frozen=True)
class Reuse:
    """The part of a teacher that a student is deployed with.

    Attributes:
        teacher: the model whose classifier the student gets.
        loss: the loss that replaces the classifier.
        pair: the layers at which the two networks are cut.
        other_layers: layers of the student that other terms use.
    """

    teacher: Model
    loss: Loss
    pair: Pair
    other_layers: tuple[str, ...] = ()


def deployed_profile(study: Study, student: ModelProfile, signature: Signature) -> ModelProfile:
    """Return `student` with the parameters and multiply-accumulates of the deployed network.

    They are those of the student, unless a loss of the study deploys it with its teacher's
    classifier (`Loss.deploys`).

    Args:
        study: concrete, its pairs resolved.
        student: profile of its model.
        signature: input shape and classes of the models.

    Raises:
        Infeasible: the scheme does not allow such a loss.
        PairError: the teacher cannot be cut at the pair, or another term uses a layer of the
            student that is removed.
    """
    model = deployed_model(study)
    if model.reuse is None:
        return student
    try:
        whole = _profile(model, signature)
    except ValueError as error:
        number = next(_deploying(study.knowledge))[0]
        raise PairError(("knowledge", number, "pairs"), str(error)) from None
    return replace(student, params=whole.params, macs=whole.macs)


def deployed_model(study: Study) -> DeployedModel:
    """Return the network that is kept after training a concrete study, its pairs resolved.

    Raises:
        Infeasible: the scheme does not allow a loss that deploys the student with its teacher's
            classifier.
        PairError: there are two such losses, or the teacher's model is unknown.
    """
    _check_assistants(study)
    student = study.student.model
    deploying = list(_deploying(study.knowledge)) if study.scheme.takes_knowledge else []
    if not deploying:
        return DeployedModel(student)
    number, loss, pairs = deploying[0]
    if len(deploying) > 1:
        raise PairError(
            ("knowledge", deploying[1][0]),
            f"loss '{loss.name}' replaces the student's classifier and is used twice; remove one",
        )
    if not study.scheme.lends_classifier:
        raise Infeasible(
            f"loss '{loss.name}' gives the student the classifier of its only teacher, which "
            f"scheme '{study.scheme.name}' does not lend with these settings; use `scheme: "
            "{name: offline}`, or another loss"
        )
    (teacher,) = study.teacher_specs()
    if teacher.model is None:
        raise PairError(
            ("knowledge", number),
            f"loss '{loss.name}' deploys a part of the teacher, so its size must be known; "
            "name the `model` under `teacher`",
        )
    (pair,) = pairs
    other_layers = tuple(
        each.guided for term in study.knowledge if term.active for each in term.pairs or ()
    )
    return DeployedModel(student, Reuse(teacher.model, loss, pair, other_layers))


def _deploying(terms: tuple[Term, ...]) -> Iterator[tuple[int, Loss, tuple[Pair, ...]]]:
    for number, term in enumerate(terms):
        if term.active and term.loss is not None and term.loss.deploys:
            yield number, term.loss, term.pairs or ()


def _check_assistants(study: Study) -> None:
    """Check that no teacher has a replaced classifier: only the weights of its model are stored."""
    for prepared in teacher_chain(study.teacher_specs()):
        for _, loss, _ in _deploying(prepared.knowledge):
            raise Infeasible(
                f"loss '{loss.name}' replaces the classifier of the network it trains, but of "
                "networks that teach others only the weights of their model are stored; use "
                "another loss for them"
            )


@lru_cache(maxsize=1024)
def _profile(model: DeployedModel, signature: Signature) -> ModelProfile:
    return profile_network(model.blank(signature), signature)


@lru_cache(maxsize=4096)
def peak_memory_of(model: DeployedModel, signature: Signature) -> int:
    """Peak memory of one sample's forward through the deployed network, in bytes."""
    network = model.network(signature) if model.is_converted else model.blank(signature)
    return peak_memory(network, signature)


def _shape(model_profile: ModelProfile, name: str) -> Shape:
    return model_profile.resolve([name])[0].shape
