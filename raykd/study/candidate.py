"""A concrete study bound to the signature of its data: its networks, layer pairs and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from raykd.losses import Loss
from raykd.models import Model, ModelProfile, Signature, profile_model
from raykd.schemes import TeacherSpec
from raykd.schemes.base import teacher_chain
from raykd.study.checks.layer_pairs import aligned_inputs, resolve_pairs
from raykd.study.config import Study
from raykd.study.costs import check_costs, required_costs
from raykd.study.deployment import DeployedModel, deployed_model, deployed_profile, peak_memory_of
from raykd.study.objectives import Cost
from raykd.study.yaml_file import Place, dotted


class ModelError(ValueError):
    """A model that cannot be built for the data; `place` is where the study names it."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{dotted(place)}: {message}")
        self.place = place
        self.message = message


@dataclass(frozen=True, eq=False)
class Candidate:
    """One point of a study's space, or any other concrete study, bound to the signature
    of its data.

    Each fact is computed once, when it is first read.

    Attributes:
        study: the concrete study, its layer pairs as they were written or drawn.
        data_signature: input shape and classes of the data.
        seed: random seed of the networks that many trials share.
        origins: place in the study file of each place of `study`; empty for a study that was not
            drawn.
    """

    study: Study
    data_signature: Signature
    seed: int
    origins: Mapping[Place, Place] = field(default_factory=dict, repr=False)

    @cached_property
    def signature(self) -> Signature:
        """Input shape and classes of the student.

        Raises:
            ModelError: the samples have no such input.
        """
        return self._network_signature(self.study.student.input, ("student", "input"))

    @cached_property
    def teachers(self) -> tuple[TeacherSpec, ...]:
        """The networks that teach, in the order of the scheme."""
        return self.study.teacher_specs(self.seed)

    @cached_property
    def networks(self) -> tuple[TeacherSpec, ...]:
        """All networks that must exist before training: the teachers, then the one that the
        student inherits weights from."""
        return self.study.required_networks(self.seed)

    @property
    def student(self) -> ModelProfile:
        """Profile of the student's network.

        Raises:
            ModelError: a model of the study cannot be built for this signature.
        """
        return self._profiles[0]

    @property
    def teacher_profiles(self) -> tuple[ModelProfile | None, ...]:
        """Profiles of `teachers`; None for a teacher whose weights alone are given.

        Raises:
            ModelError: a model of the study cannot be built for this signature.
        """
        return self._profiles[1]

    @cached_property
    def _profiles(self) -> tuple[ModelProfile, tuple[ModelProfile | None, ...]]:
        study = self.study
        student = _profile(study.student.model, self.signature, ("student", "model"))
        model = study.teacher.model if study.teacher is not None else None
        if study.teacher is not None and model is not None:
            signature = self._network_signature(study.teacher.input, ("teacher", "input"))
            _profile(model, signature, ("teacher", "model"))
        profiles: dict[TeacherSpec, ModelProfile | None] = {}
        for teacher in teacher_chain(self.teachers):
            place = ("teacher", "model") if teacher.model == model else ("scheme",)
            signature = self._network_signature(teacher.input, place)
            profiles[teacher] = (
                None if teacher.model is None else _profile(teacher.model, signature, place)
            )
        return student, tuple(profiles[teacher] for teacher in self.teachers)

    @property
    def has_inputs(self) -> bool:
        """True if the samples have the inputs that its networks take."""
        teacher = self.study.teacher
        names = {None if teacher is None else teacher.input, self.study.student.input}
        names |= {spec.input for spec in teacher_chain(self.teachers)}
        try:
            return all(self.data_signature.as_input(name) for name in names)
        except ValueError:
            return False

    def _network_signature(self, name: str | None, place: Place) -> Signature:
        try:
            return self.data_signature.as_input(name)
        except ValueError as error:
            raise ModelError(place, str(error)) from None

    @cached_property
    def resolved(self) -> Study:
        """The study with the layer pairs of its terms written out and checked.

        Raises:
            ModelError: a model of the study cannot be built for this signature.
            PairError: a layer does not exist, or no connector fits a pair.
        """
        return resolve_pairs(
            self.study,
            self.student,
            self.teacher_profiles,
            self.signature.classes,
            aligned=[aligned_inputs(self.study, each.input) for each in self.teachers],
        )

    @cached_property
    def deployed(self) -> DeployedModel:
        """The network that is kept after training.

        Raises:
            ValueError: as `resolved`, or `deployed_model`.
        """
        return deployed_model(self.resolved)

    @cached_property
    def costs(self) -> dict[Cost, float]:
        """Costs of the deployed network that need no measurement, as far as the study asks for
        them.

        Raises:
            ValueError: as `deployed`.
        """
        profile = deployed_profile(self.resolved, self.student, self.signature)
        costs: dict[Cost, float] = {"params": float(profile.params), "macs": float(profile.macs)}
        if "memory" in required_costs(self.study.search):
            costs["memory"] = float(peak_memory_of(self.deployed, self.signature))
        return costs

    def check(self) -> None:
        """Check models, layer pairs, and the constraints on costs that need no measurement.

        Raises:
            Infeasible: a constraint is broken.
            ValueError: as `costs`.
        """
        check_costs(self.study.search, self.costs)


def pairing_losses(
    study: Study, origins: Mapping[Place, Place]
) -> Iterator[tuple[Place, str, set[Loss]]]:
    """For each pairing that was drawn: its place in the study file, the name of its term's loss,
    and the losses of its pairs."""
    for number, term in enumerate(study.knowledge):
        source = origins.get(("knowledge", number, "pairs"))
        if term.loss is not None and term.loss.takes_pairs and term.pairs and source is not None:
            yield source, term.loss.name, {pair.loss or term.loss for pair in term.pairs}


def _profile(model: Model, signature: Signature, place: Place) -> ModelProfile:
    try:
        return profile_model(model, signature)
    except (ValueError, RuntimeError) as error:  # a forward that fails raises RuntimeError
        raise ModelError(place, str(error)) from None
