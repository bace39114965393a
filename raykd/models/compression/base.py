"""Base of models that compress another model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from raykd.models.base import AnyModel, Model, Signature
from raykd.models.introspection.layers import EMBEDDING, discover, stage_aliases
from raykd.registry import option


@option
class CompressedModel(Model):
    """Base of the models that compress a base model: that of the teacher, or another one.

    If the base is the model of the study's teacher, networks inherit the weights of the trained
    teacher under every scheme, so that the student trained alone starts from the same weights.
    With another base they start from the initial weights of that base (pretrained, if it is).
    Peers that a scheme builds next to the student are initialized randomly.
    """

    foreign = True  # a base of another library may fail in any way once it is changed
    takes_text = True  # if the base does

    name: str
    base: Annotated[
        AnyModel | None,
        Field(description="Base model. null: the teacher of the study"),
    ] = None
    inherit_weights: Annotated[
        bool, Field(description="Initialize from the weights of the trained teacher")
    ] = True

    @property
    def base_model(self) -> Model:
        """The model to compress.

        Raises:
            ValueError: neither `base` nor the teacher names one.
        """
        if self.base is None:
            raise ValueError(
                f"`{self.name}` has no base model; set `base`, or a `model` under `teacher`"
            )
        return self.base

    @property
    def origin(self) -> Model | None:
        if not self.inherit_weights or self.base is None:
            return None
        return self.base.origin if _uses_trained_weights(self.base) else self.base

    def bind_teacher(self, teacher: Model | None) -> Model:
        base = teacher if self.base is None else self.base.bind_teacher(teacher)
        return self if base == self.base else replace(self, base=base)

    def build(self, signature: Signature) -> nn.Module:
        return self._compressed(
            self._checked_base(signature).build(signature), signature, with_weights=True
        )

    def blueprint(self, signature: Signature) -> nn.Module:
        network = self._checked_base(signature).blueprint(signature)
        return self._compressed(network, signature, with_weights=False)

    def build_from(self, trained: nn.Module, signature: Signature) -> nn.Module:
        base = self._checked_base(signature)
        if _uses_trained_weights(base):
            network = base.build_from(trained, signature)
        else:
            _check_same_tensors(trained, base.blueprint(signature), base)
            network = copy.deepcopy(trained).to("cpu").requires_grad_(True).train()
        return self._compressed(network, signature, with_weights=True)

    def compress(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        """Change a network of the base model into one of this model, keeping its weights.

        Args:
            network: on the CPU; modified.
            signature: inputs and outputs of the network.
            with_weights: whether the weights decide what is kept and what new layers start from;
                if false they are arbitrary, and only the shapes of the result matter.

        Raises:
            ValueError: the network cannot be compressed this way.
        """
        raise NotImplementedError

    def files(self) -> tuple[Path, ...]:
        return () if self.base is None else self.base.files()

    def prepare(self, signature: Signature) -> None:
        self.base_model.prepare(signature)

    def _compressed(
        self, network: nn.Module, signature: Signature, *, with_weights: bool
    ) -> nn.Module:
        mode = network.training
        return self.compress(network, signature, with_weights=with_weights).train(mode)

    def _checked_base(self, signature: Signature) -> Model:
        base = self.base_model
        if signature.text is not None and not base.takes_text:
            raise ValueError(
                f"{base.name}, the base of {self.name}, does not take texts; choose another base"
            )
        return base


def _uses_trained_weights(base: Model) -> bool:
    """Return whether a base is itself built from the trained network, whose model it is not."""
    return isinstance(base, CompressedModel) and base.inherit_weights


def inheritance_metrics(network: nn.Module) -> dict[str, float]:
    """Count what a network inherited: `inherited_params` and `inherited_tensors`.

    All parameters of a network built from a trained one are inherited or computed from it.
    """
    parameters = list(network.parameters())
    return {
        "inherited_params": float(sum(parameter.numel() for parameter in parameters)),
        "inherited_tensors": float(len(parameters)),
    }


def replace_module(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Replace the module at a dotted name; "" replaces the whole network."""
    if not path:
        return module
    network.set_submodule(path, module)
    return network


def find_classifier(network: nn.Module, signature: Signature) -> str:
    """Return the dotted name of the linear layer that outputs the logits; "" if there is none."""
    aliases = stage_aliases(discover(network, signature))
    return aliases[EMBEDDING].module if EMBEDDING in aliases else ""


def _check_same_tensors(trained: nn.Module, blueprint: nn.Module, base: Model) -> None:
    """Raise ValueError unless a trained network has the tensors of its model."""
    actual, expected = _shapes(trained.state_dict()), _shapes(blueprint.state_dict())
    names = actual.keys() | expected
    different = sorted(name for name in names if actual.get(name) != expected.get(name))
    if different:
        raise ValueError(
            f"the trained network does not match `{base.name}`: {len(different)} tensors differ, "
            f"such as {different[0]}; correct the teacher's `model`"
        )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
