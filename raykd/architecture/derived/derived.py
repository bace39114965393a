"""What all models have in common that are derived from another one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from torch import Tensor, nn

from raykd.architecture.model import Model, Task
from raykd.option import option


class _AnyModel:
    """Any option of the family of models, to which the derived ones belong themselves."""

    base = Model

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        from raykd.architecture import MODELS

        return MODELS.__get_pydantic_core_schema__(source, handler)


if TYPE_CHECKING:
    AnyModel = Model
else:
    AnyModel = Annotated[Any, _AnyModel]


@option
class Derived(Model):
    """Base of the models that are derived from a source: the teacher's model, or another one.

    Where the source is the study's teacher's model, networks inherit the trained teacher's
    weights, whatever the scheme: the same student alone starts from the same weights.  Those of
    another source start from what that one starts from itself (its pretrained weights, where it
    has any).  Further networks that a scheme builds beside the student (peers) draw their own.
    """

    foreign = True  # what a source of another library does with a changed network is its affair
    takes_text = True  # where the source does

    name: str
    base: Annotated[
        AnyModel | None,
        Field(description="Base model. null: the teacher of the study"),
    ] = None
    inherit_weights: Annotated[
        bool, Field(description="Initialize from the weights of the trained teacher")
    ] = True

    @property
    def source(self) -> Model:
        """What it is derived from.

        Raises:
            ValueError: nothing says so.
        """
        if self.base is None:
            raise ValueError(
                f"nothing says what `{self.name}` is derived from; name it under `base`, or name a "
                "`model` under `teacher`"
            )
        return self.base

    @property
    def origin(self) -> Model | None:
        if not self.inherit_weights or self.base is None:
            return None
        return self.base.origin if _inherits(self.base) else self.base

    def of_teacher(self, teacher: Model | None) -> Model:
        source = teacher if self.base is None else self.base.of_teacher(teacher)
        return self if source == self.base else replace(self, base=source)

    def build(self, task: Task) -> nn.Module:
        return self._derive(self._checked(task).build(task), task, weighed=True)

    def blueprint(self, task: Task) -> nn.Module:
        return self._derive(self._checked(task).blueprint(task), task, weighed=False)

    def build_from(self, trained: nn.Module, task: Task) -> nn.Module:
        source = self._checked(task)
        if _inherits(source):
            copied = source.build_from(trained, task)
        else:
            _check_same(trained, source.blueprint(task), source)
            copied = copy.deepcopy(trained).to("cpu").requires_grad_(True).train()
        return self._derive(copied, task, weighed=True)

    def derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        """A network of the source's, changed into one of this model's, its weights kept.

        Args:
            network: on the CPU; used up.
            task: what it takes and gives.
            weighed: whether its weights tell what is kept and what new weights are; if not they
                are anything, and only the shapes of what comes back count.

        Raises:
            ValueError: it cannot be changed so.
        """
        raise NotImplementedError

    def files(self) -> tuple[Path, ...]:
        return () if self.base is None else self.base.files()

    def prepare(self, task: Task) -> None:
        self.source.prepare(task)

    def _derive(self, network: nn.Module, task: Task, *, weighed: bool) -> nn.Module:
        mode = network.training
        return self.derive(network, task, weighed=weighed).train(mode)

    def _checked(self, task: Task) -> Model:
        if task.text is not None and not self.source.takes_text:
            raise ValueError(
                f"{self.source.name}, which {self.name} is derived from, takes no texts"
            )
        return self.source


def _inherits(source: Model) -> bool:
    """Whether a source is itself made of the trained network; else it is that network's model."""
    return isinstance(source, Derived) and source.inherit_weights


def inherited(network: nn.Module) -> dict[str, float]:
    """How much a network that was built from a trained one has from it.

    `inherited_params` and `inherited_tensors`: its parameters, one by one and by tensor.  All of
    them are the teacher's own or made of the teacher's.
    """
    parameters = list(network.parameters())
    return {
        "inherited_params": float(sum(parameter.numel() for parameter in parameters)),
        "inherited_tensors": float(len(parameters)),
    }


def replaced(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The network with another module at a place; "" is the whole of it."""
    if not path:
        return module
    network.set_submodule(path, module)
    return network


def classifier_of(network: nn.Module, task: Task) -> str:
    """The dotted name of the layer that gives the logits; "" where there is no linear one."""
    from raykd.architecture.layers import EMBEDDING, discover, stage_aliases

    found = stage_aliases(discover(network, task))
    return found[EMBEDDING].module if EMBEDDING in found else ""


def _check_same(trained: nn.Module, wanted: nn.Module, source: Model) -> None:
    """See that a trained network has the tensors of its model."""
    found, needed = _shapes(trained.state_dict()), _shapes(wanted.state_dict())
    odd = sorted(name for name in found.keys() | needed if found.get(name) != needed.get(name))
    if odd:
        raise ValueError(
            f"the trained network is none of `{source.name}` as the study describes it, and "
            f"nothing can be derived from it: {len(odd)} of its tensors differ, such as {odd[0]}; "
            "correct the teacher's `model`"
        )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
