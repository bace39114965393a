"""Class names of a network's outputs, matched with the class names of the data."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import blank_inputs, evaluating, random_inputs

if TYPE_CHECKING:
    from raykd.models.base import Task

_BY_NAME = ("label2id", "class_to_idx", "class2idx", "class_to_index")
"""Keys of mappings from name to index: names may be numbers, too."""

KEYS = (
    *("raykd.classes", "class_names", "classes", "CLASSES", "label_names", "labels", "categories"),
    *("id2label", "idx_to_class", "idx2class", "index_to_class"),
    *_BY_NAME,
)
"""Keys under which training scripts, and the attributes under which networks, keep class names."""

_HOLDERS = ("meta", "hyper_parameters", "hparams", "config", "pretrained_cfg", "default_cfg")
"""Mappings of a checkpoint, or attributes of a network, that may hold one of `KEYS`."""

_GENERIC = re.compile(r"(?:label|class|category|target|cls)?[\s_-]*(\d+)", re.IGNORECASE)

_SHOWN = 12


class UnmatchedClasses(ValueError):
    """Class names that cannot be matched with those of the data."""


def find_class_names(held: Any) -> tuple[str, ...]:
    """Class names kept in a checkpoint's mapping, a configuration or a network, in output order.

    Read are lists of names, mappings from index to name and mappings from name to index, under
    `KEYS`; values may be JSON text.  A network's `config` is read, too.

    Returns:
        () where there are none.
    """
    get = _getter(held)
    for key in KEYS:
        names = _listed(get(key), by_name=key in _BY_NAME)
        if names:
            return names
    for key in _HOLDERS:
        inner = get(key)
        names = find_class_names(inner) if inner is not None and inner is not held else ()
        if names:
            return names
    return ()


def class_rows(
    theirs: Sequence[str], ours: Sequence[str], source: str
) -> tuple[tuple[int, ...] | None, str]:
    """The output of a network for each class of the data, by name.

    Names match if they are equal but for case, white space and Unicode form; where that leaves
    names over, `-` and `_` count as white space.

    Args:
        theirs: class names in the order of the network's outputs; () where they are unknown.
        ours: class names of the data; () where they are unknown.
        source: name of the network in messages.

    Returns:
        `rows`, so that `outputs[:, rows]` has the order of the data, None where the order is the
        same or unknown; and a sentence that says what was done, empty where names agree.

    Raises:
        UnmatchedClasses: both have names, and they are not the same ones; lists both.
    """
    if not ours:
        return None, ""
    rows = _matched(theirs, ours)  # numbers count as names where the data have the same ones
    if not theirs or (is_generic(theirs) and (rows is None or not _is_reordered(rows))):
        what = f"has generic class names ({_shown(theirs)})" if theirs else "names no classes"
        return None, f"{source} {what}; its class order is assumed to be {_shown(ours)}"
    if rows is None and _is_counted(ours) and len(theirs) == len(ours):
        named = f"{source} names its classes {_shown(theirs)}, the data {_shown(ours)}"
        return None, f"{named}; their order is assumed to be the same"
    if rows is None:
        raise UnmatchedClasses(
            f"the class names of {source} are not those of the data: it has "
            f"{_shown(theirs)} ({len(theirs)}), the data have {_shown(ours)} ({len(ours)})"
            f"{_difference(theirs, ours)}"
        )
    if not _is_reordered(rows):
        return None, ""
    return rows, f"classes of {source} reordered by name: {_shown(theirs)} -> {_shown(ours)}"


def named_rows(given: Sequence[str], ours: Sequence[str], source: str) -> tuple[int, ...] | None:
    """As `class_rows`, for names that a user gives: they have to be those of the data.

    Raises:
        UnmatchedClasses: they are not.
    """
    rows = _matched(given, ours)
    if rows is None:
        raise UnmatchedClasses(
            f"{source} must hold each class of the data once ({_shown(ours)}), it holds "
            f"{_shown(given)}{_difference(given, ours)}"
        )
    return rows if _is_reordered(rows) else None


def is_generic(names: Sequence[str]) -> bool:
    """Return whether names only count the outputs: `LABEL_0`, `LABEL_1`, ... or `0`, `1`, ..."""
    found = [_GENERIC.fullmatch(name.strip()) for name in names]
    return all(match is not None and int(match[1]) == i for i, match in enumerate(found))


def reorder_classes(network: nn.Module, rows: Sequence[int], task: Task, source: str) -> None:
    """Permute the outputs of a network, in place, by permuting the rows of its final layer.

    The result is verified by a forward before and one after.

    Args:
        network: on the CPU or a GPU, with its weights.
        rows: as `class_rows` returns them.
        task: the network's inputs and number of classes.
        source: name of the network in messages.

    Raises:
        ValueError: no layer was found whose permutation permutes the outputs.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = random_inputs if task.text is None else blank_inputs
        inputs = make(task, 2, device)
    before = _outputs(network, inputs)
    heads = [module for module in network.modules() if _is_head(module, task.classes)]
    for chosen in ([heads[-1:], heads[:1], heads, *([head] for head in heads)]) if heads else []:
        undo = [_permuted(module, rows) for module in chosen]
        after = _outputs(network, inputs)
        if torch.allclose(after, before[:, list(rows)], rtol=1e-4, atol=1e-5):
            return
        for back in undo:
            back()
    raise ValueError(
        f"the classes of {source} are in another order, and none of its layers gives its outputs "
        "alone, so they cannot be reordered; save the network with the final layer's rows in the "
        "order of the data's classes"
    )


def _getter(held: Any) -> Callable[[str], Any]:
    if isinstance(held, Mapping):
        return held.get
    return lambda key: None if callable(value := getattr(held, key, None)) else value


def _listed(value: Any, *, by_name: bool) -> tuple[str, ...]:
    """Names in the order of the outputs, from any of the forms in use; () where it is none."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    if isinstance(value, Mapping):
        return _of_mapping(value, by_name=by_name)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) < 2:
        return ()
    plain = all(isinstance(name, str | int) and not isinstance(name, bool) for name in value)
    return tuple(map(str, value)) if plain and len(set(value)) == len(value) else ()


def _of_mapping(value: Mapping[Any, Any], *, by_name: bool) -> tuple[str, ...]:
    pairs = list(value.items())
    turned = [(index, name) for name, index in pairs]
    for flipped in (turned, pairs) if by_name else (pairs, turned):
        numbers = [_number(index) for index, _ in flipped]
        if len(pairs) > 1 and sorted(n for n in numbers if n is not None) == [*range(len(pairs))]:
            by_index = {n: name for n, (_, name) in zip(numbers, flipped, strict=True)}
            return tuple(str(by_index[n]) for n in range(len(pairs)))
    return ()


def _number(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _is_counted(names: Sequence[str]) -> bool:
    """Return whether the names of the data are consecutive numbers, or generic."""
    numbers = [int(name) if re.fullmatch(r"-?\d+", name) else None for name in names]
    first = numbers[0] if numbers else None
    if first is not None and numbers == list(range(first, first + len(names))):
        return True
    return is_generic(names)


def _is_reordered(rows: tuple[int, ...]) -> bool:
    return rows != tuple(range(len(rows)))


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _loose(name: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", _plain(name)).split())


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    for form in (str, _plain, _loose):
        place = {form(name): number for number, name in enumerate(theirs)}
        wanted = [form(name) for name in ours]
        distinct = len(place) == len(theirs) == len(set(wanted)) == len(ours)
        if distinct and set(wanted) == place.keys():
            return tuple(place[name] for name in wanted)
    return None


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    known, wanted = {_loose(name) for name in theirs}, {_loose(name) for name in ours}
    missing = [name for name in ours if _loose(name) not in known]
    extra = [name for name in theirs if _loose(name) not in wanted]
    parts = [f"missing: {_shown(missing)}"] if missing else []
    parts += [f"not in the data: {_shown(extra)}"] if extra else []
    return f"; {'; '.join(parts)}" if parts else ""


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", ... ({len(listed) - _SHOWN} more)" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _is_head(module: nn.Module, classes: int) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() >= 2 and len(weight) == classes


def _outputs(network: nn.Module, inputs: Any) -> Tensor:
    with evaluating(network), torch.no_grad():
        outputs = first_tensor(network(inputs))
    assert outputs is not None, "a classifier gives a tensor"
    return outputs.float()


def _permuted(module: nn.Module, rows: Sequence[int]) -> Callable[[], None]:
    """Permute a layer's rows; the function that is returned undoes it."""
    kept = [(p, p.detach().clone()) for p in module._parameters.values() if p is not None]
    kept = [(p, old) for p, old in kept if p.dim() and len(p) == len(rows)]
    with torch.no_grad():
        for parameter, old in kept:
            parameter.copy_(old[list(rows)])

    def undo() -> None:
        with torch.no_grad():
            for parameter, old in kept:
                parameter.copy_(old)

    return undo
