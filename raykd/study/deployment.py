"""What is deployed of a concrete study: the student, or a network made of it and its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from raykd.errors import Infeasible
from raykd.losses import Loss, LossContext, Pair, Term
from raykd.losses.shapes import Shape
from raykd.models import Model, ModelProfile, Task, profile_network
from raykd.models.introspection.flops import SkipInit
from raykd.models.introspection.layers import random_inputs
from raykd.models.introspection.memory import peak_memory
from raykd.models.introspection.profile import build_without_init
from raykd.schemes.classifier_reuse import Reusing
from raykd.study.checks.layer_pairs import PairError
from raykd.study.config import Study
from raykd.study.teachers import teacher_chain, teachers_of

RANGED = 8
"""Random samples that a network sees before it is converted."""


@dataclass(frozen=True)
class DeployedModel:
    """The network that is kept of a concrete study, not yet built.

    Attributes:
        model: the student's.
        reuse: what of a teacher it is deployed with; None: it is deployed as it is.
    """

    model: Model
    reuse: Reuse | None = None

    def network(self, task: Task) -> nn.Module:
        """The network as it is kept, untrained, on the CPU.

        The state of the random numbers stays as it is.

        Raises:
            ValueError: it cannot be built, or not cut where its pair says.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            network = self._built(task)
            if self.is_converted:  # what depends on the range of the inputs has to see some
                with torch.no_grad():
                    network.train()(random_inputs(task, RANGED, torch.device("cpu")))
            return self.model.deployed(network)

    @property
    def is_converted(self) -> bool:
        """Whether what is kept is not the network that is trained."""
        return type(self.model).deployed is not Model.deployed

    def blank(self, task: Task) -> nn.Module:
        """The network as it is trained, with whatever its memory holds as weights.

        Raises:
            ValueError: as `network`.
        """
        if self.reuse is None:
            return build_without_init(self.model, task)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), SkipInit():
            return self._built(task, blank=True)

    def _built(self, task: Task, *, blank: bool = False) -> nn.Module:
        ours = self.model.blueprint(task) if blank else self.model.build(task)
        if self.reuse is None:
            return ours
        teacher, pair, loss = self.reuse.teacher, self.reuse.pair, self.reuse.loss
        theirs = teacher.blueprint(task) if blank else teacher.build(task)
        context = LossContext(
            pairs=(pair,),
            guided_shapes=(_shape(profile_network(ours, task), pair.guided),),
            hint_shapes=(_shape(profile_network(theirs, task), pair.hint),),
            classes=task.classes,
            train_size=1,
            data_size=1,
        )
        projector = loss.build(context).give_projector(signed=False)
        whole = Reusing(ours, theirs, pair, projector, task)
        whole.check_left(self.reuse.others)
        return whole


@dataclass(frozen=True)
class Reuse:
    """What a student is deployed with.

    Attributes:
        teacher: whose classifier it gets.
        loss: the loss that says so.
        pair: where the two networks are cut.
        others: layers of the student that other terms look at.
    """

    teacher: Model
    loss: Loss
    pair: Pair
    others: tuple[str, ...] = ()


def deployed_profile(study: Study, student: ModelProfile, task: Task) -> ModelProfile:
    """`student` with the parameters and multiply-accumulates of the network that is kept.

    These are the student's own, unless a loss of the study deploys it with its teacher's
    classifier (`Loss.deploys`).

    Args:
        study: concrete, its pairs resolved.
        student: what its model is made of.
        task: what the models take and give.

    Raises:
        Infeasible: the scheme does not go with such a loss.
        PairError: the teacher cannot be cut where the pair says, or another term looks at a layer
            of the student that is left out.
    """
    model = deployed_model(study)
    if model.reuse is None:
        return student
    try:
        whole = _profile(model, task)
    except ValueError as error:
        number = next(_deploying(study.knowledge))[0]
        raise PairError(("knowledge", number, "pairs"), str(error)) from None
    return replace(student, params=whole.params, macs=whole.macs)


def deployed_model(study: Study) -> DeployedModel:
    """Which network is kept of a concrete study, its pairs resolved.

    Raises:
        Infeasible: the scheme does not go with a loss that deploys the student with its teacher's
            classifier.
        PairError: there are two such losses, or the teacher's model is not known.
    """
    _check_assistants(study)
    student = study.student.model
    found = list(_deploying(study.knowledge)) if study.scheme.takes_knowledge else []
    if not found:
        return DeployedModel(student)
    number, loss, pairs = found[0]
    if len(found) > 1:
        raise PairError(
            ("knowledge", found[1][0]),
            f"loss '{loss.name}' replaces the student's classifier and stands here twice; keep one",
        )
    if not study.scheme.lends_classifier:
        raise Infeasible(
            f"loss '{loss.name}' gives the student the classifier of the one teacher it has, which "
            f"scheme '{study.scheme.name}' does not lend as it is set; take `scheme: {{name: "
            "offline}`, or another loss"
        )
    (teacher,) = teachers_of(study)
    if teacher.model is None:
        raise PairError(
            ("knowledge", number),
            f"loss '{loss.name}' deploys a part of the teacher, whose size is known only when its "
            "`model` is; name it under `teacher`",
        )
    (pair,) = pairs
    others = tuple(
        other.guided for term in study.knowledge if term.active for other in term.pairs or ()
    )
    return DeployedModel(student, Reuse(teacher.model, loss, pair, others))


def _deploying(terms: tuple[Term, ...]) -> Iterator[tuple[int, Loss, tuple[Pair, ...]]]:
    for number, term in enumerate(terms):
        if term.active and term.loss is not None and term.loss.deploys:
            yield number, term.loss, term.pairs or ()


def _check_assistants(study: Study) -> None:
    """A network that teaches is kept as the weights of its own model."""
    for prepared in teacher_chain(teachers_of(study)):
        for _, loss, _ in _deploying(prepared.knowledge):
            raise Infeasible(
                f"loss '{loss.name}' replaces the classifier of whom it teaches, and those who "
                "teach others are kept as their model's weights alone; take another loss for them"
            )


@lru_cache(maxsize=1024)
def _profile(model: DeployedModel, task: Task) -> ModelProfile:
    return profile_network(model.blank(task), task)


@lru_cache(maxsize=4096)
def peak_memory_of(model: DeployedModel, task: Task) -> int:
    """Peak memory of one sample's forward through the deployed network, in bytes."""
    network = model.network(task) if model.is_converted else model.blank(task)
    return peak_memory(network, task)


def _shape(model_profile: ModelProfile, name: str) -> Shape:
    return model_profile.resolve([name])[0].shape
