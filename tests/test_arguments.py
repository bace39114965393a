"""Options constructed in Python are checked by the rules of study files, for every option."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from raykd.data import SOURCES
from raykd.data.augment import AUGMENTATIONS
from raykd.data.image_folder import ImageFolder
from raykd.errors import StudyError
from raykd.losses import KD, LOSSES, Hint, Pair, ResponseLoss, Term
from raykd.models import MODELS
from raykd.models.proxies import PROXIES
from raykd.models.zoo.resnet import Resnet
from raykd.registry import option
from raykd.schemes import SCHEMES, Assistant, Teacher
from raykd.study import config as schema
from raykd.study.config import Bounds, Search, plain
from raykd.study.samplers import SAMPLERS
from raykd.study.schedulers import SCHEDULERS
from raykd.train_config import OPTIMIZERS, SCHEDULES, SGD, AdamW, Step, Train

FAMILIES = (
    *(LOSSES, SCHEMES, MODELS, SOURCES, AUGMENTATIONS, PROXIES),
    *(OPTIMIZERS, SCHEDULES, SAMPLERS, SCHEDULERS),
)
PARTS = (
    *(Pair, Term, Teacher, Train, schema.Bounds, schema.PairStudy),
    *(schema.Search, schema.Cluster, schema.Cache, schema.Tracking, schema.Latency),
)
OPTIONS = [
    *(cls for family in FAMILIES for cls in (*family, *family.forms.values())),
    *PARTS,
]
NEEDED: dict[str, dict[str, Any]] = {
    "Pair": {"hint": "stage1", "guided": "stage2"},
    "Texts": {"file": "train.csv", "tokenizer": "tokenizer"},
    "Hf": {"name": "hf/bert"},
    "Timm": {"name": "timm/resnet18"},
    "Torchvision": {"name": "torchvision/resnet18"},
    "Imported": {"name": "networks:build"},
    "Stored": {"name": "models:/student"},
    "TabularSource": {"file": "train.csv", "target": "y"},
    "Assistant": {"chain": [{}]},
    "MultiTeacher": {"others": [{}]},
}
VALUES: list[Any] = [
    *("no such choice", "l2", "", "7", True, False, None, {}, [], [1.0, 2.0], [0.25, 0.5]),
    *(-1, -0.5, 0, 0.5, 1, 1.0, 2, 3, 7, 8.5, 10**9, 2**31, 1e30),
]


def needed(cls: type) -> dict[str, Any]:
    """The arguments without which the option cannot be constructed."""
    found = dict(NEEDED.get(cls.__name__, {}))
    for key in ("chain", "others"):
        if key in found:
            found[key] = (Teacher(),)
    return found


adapter = cache(TypeAdapter)


def read(cls: type, values: dict[str, Any]) -> Any:
    """The option as a study file gives it; None where that is refused.

    It is read again with all its defaults written out, because pydantic does not check defaults
    against the rules of other fields; Python does.
    """
    try:
        found = adapter(cls).validate_json(json.dumps(values), strict=True)
        adapter(cls).validate_json(json.dumps(plain(found)), strict=True)
    except ValidationError:
        return None
    return None if list(getattr(found, "conflicts", list)()) else found


def constructed(cls: type, values: dict[str, Any]) -> Any:
    """The option as Python constructs it; None where that is refused with the option's name."""
    try:
        return cls(**values)
    except StudyError as error:
        if not all(problem.path.startswith(cls.__name__) for problem in error.problems):
            raise
        return None


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_python_accepts_what_study_file_accepts(cls: type) -> None:
    written = NEEDED.get(cls.__name__, {})
    for field in dataclasses.fields(cls):
        for value in VALUES:
            expected = read(cls, {**written, field.name: value})
            assert same(constructed(cls, {**needed(cls), field.name: value}), expected), (
                f"{cls.__name__}({field.name}={value!r})"
            )


def same(made: Any, expected: Any) -> bool:
    """Whether both are refused or both are equal; Python takes no mappings for nested options."""
    if expected is not None and any(map(dataclasses.is_dataclass, vars(expected).values())):
        return made is None or made == expected
    return made == expected


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_every_option_refuses_nan_wrong_types_and_unknown_names(cls: type) -> None:
    arguments = needed(cls)
    hints = get_type_hints(cls, include_extras=True)  # the string may be the name of an alias
    for field in dataclasses.fields(cls):
        default = getattr(cls, field.name, None)
        wrong: list[Any] = [object()]
        wrong += [math.nan, math.inf, -math.inf, "0.5"] if type(default) in (int, float) else []
        number = type(default) in (int, float) and "Literal" not in str(hints[field.name])
        wrong += [True] if number else []
        wrong += [0, 1, "true"] if isinstance(default, bool) else []
        for value in wrong:
            with pytest.raises(StudyError, match=rf"{cls.__name__}\.{field.name}"):
                cls(**{**arguments, field.name: value})
    with pytest.raises(StudyError, match=f"{cls.__name__}: unknown argument `not_a_field`"):
        cls(**arguments, not_a_field=1)
    with pytest.raises(StudyError, match="without a name"):
        cls(1, **arguments)


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_defaults_pass_checks(cls: type) -> None:
    made = cls(**needed(cls))
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(cls)}
    if cls is not schema.Bounds:  # without a bound it bounds nothing
        assert cls(**values) == made
    for copied in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert copied == made


def message(make: Any) -> str:
    with pytest.raises(StudyError) as refused:
        make()
    return str(refused.value)


def test_message_names_option_field_value_and_allowed_values() -> None:
    assert message(lambda: Hint(similarity="mse")) == (  # type: ignore[arg-type]
        "Hint.similarity: got 'mse'; must be 'l2', 'l1', 'cross_entropy' or 'mmd'"
    )
    assert message(lambda: KD(temperature=0)) == "KD.temperature: got 0; must be > 0"
    assert message(lambda: KD(temprature=4)) == (  # type: ignore[call-arg]
        "KD: unknown argument `temprature`; KD has temperature\n    -> did you mean 'temperature'?"
    )
    assert message(lambda: Step(milestones=(150, 0))) == "Step.milestones[1]: got 0; must be >= 1"
    assert message(lambda: Pair(hint="stage1")) == (  # type: ignore[call-arg]
        "Pair: `guided` is missing"
    )
    assert message(lambda: Term(loss="kd")) == (  # type: ignore[arg-type]
        "Term.loss: got 'kd'; must be Loss(...)\n    -> pass KD(...)"
    )
    assert message(lambda: Train(precision="fp16")) == (  # type: ignore[arg-type]
        "Train.precision: got 'fp16'; must be 'auto', 'fp32' or 'bf16'\n    -> did you mean 'bf16'?"
    )


def test_every_wrong_argument_is_named_at_once() -> None:
    said = message(lambda: Train(epochs=0, batch_size=8.0))  # type: ignore[arg-type]
    assert said == (
        "Train.epochs: got 0; must be >= 1\nTrain.batch_size: got 8.0; must be an integer"
    )


def test_replace_is_checked() -> None:
    assert dataclasses.replace(KD(), temperature=2).temperature == 2
    with pytest.raises(StudyError, match=r"KD\.temperature: got -1; must be > 0"):
        dataclasses.replace(KD(), temperature=-1)


def test_natural_python_values_are_taken(tmp_path: Path) -> None:
    assert KD(temperature=4) == KD(temperature=4.0)
    assert type(KD(temperature=4).temperature) is float
    assert Step(milestones=[1, 2]).milestones == (1, 2)  # type: ignore[arg-type]
    assert ImageFolder(root=tmp_path).root == str(tmp_path)  # type: ignore[arg-type]
    train = Train(epochs=np.int64(3), label_smoothing=np.float32(0.5))  # type: ignore[arg-type]
    assert (train.epochs, train.label_smoothing) == (3, 0.5)
    assert (type(train.epochs), type(train.label_smoothing)) == (int, float)


def test_rules_between_fields_hold_in_python() -> None:
    assert "6n+2" in message(lambda: Resnet(depth=21))
    assert "10, 18, 34, not 20" in message(lambda: Resnet(stages=4))
    assert "reversed bounds" in message(lambda: Bounds(min=2, max=1))
    assert "stop_epoch 1 is not after" in message(lambda: Term(start_epoch=2, stop_epoch=1))
    assert "drop is 0.5" in message(lambda: Assistant(chain=(Teacher(),), drop=0.5))
    assert ">= 0 and < 1" in message(lambda: AdamW(betas=(0.9, 1.5)))
    assert "Search.objectives.val_acc: unknown objective" in message(
        lambda: Search(objectives={"val_acc": "max"})
    )
    pair = Pair(hint="stage1", guided="stage1")
    assert message(lambda: Term(loss=KD(), pairs=(pair,))) == (
        "Term.pairs: loss 'kd' works on logits and takes no pairs\n    -> remove `pairs`"
    )
    assert "Term.pairs[1]: stage1 -> stage1 is listed twice" in message(
        lambda: Term(loss=Hint(), pairs=(pair, pair))
    )


def test_unregistered_option_is_checked_and_accepted() -> None:
    @option
    class Sharp(ResponseLoss):
        """A loss from a notebook."""

        name: str = "sharp"
        power: float = 1.0

    assert Term(loss=Sharp(power=2)).loss == Sharp(power=2.0)
    assert message(lambda: Sharp(power="2")) == (  # type: ignore[arg-type]
        "Sharp.power: got '2'; must be a number"
    )


def test_infinite_number_is_refused_in_study_file_too() -> None:
    with pytest.raises(ValidationError, match="finite"):
        TypeAdapter(SGD).validate_json('{"lr": Infinity}', strict=True)
