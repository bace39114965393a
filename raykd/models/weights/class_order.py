"""Match the classes of a network's outputs with those of the data, by name."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raykd.models.introspection.hooks import first_tensor
from raykd.models.introspection.layers import blank_inputs, evaluating, random_inputs

if TYPE_CHECKING:
    from raykd.models.base import Signature

_BY_NAME = ("label2id", "class_to_idx", "class2idx", "class_to_index")
"""Keys of mappings from name to index, whose names may be numbers."""

KEYS = (
    *("raykd.classes", "class_names", "classes", "CLASSES", "label_names", "labels", "categories"),
    *("id2label", "idx_to_class", "idx2class", "index_to_class"),
    *_BY_NAME,
)
"""Keys of checkpoints, or attributes of networks, that hold class names."""

_HOLDERS = ("meta", "hyper_parameters", "hparams", "config", "pretrained_cfg", "default_cfg")
"""Mappings of a checkpoint, or attributes of a network, that may contain one of `KEYS`."""

_GENERIC = re.compile(r"(?:label|class|category|target|cls)?[\s_-]*(\d+)", re.IGNORECASE)

_LISTED = 12


class UnmatchedClasses(ValueError):
    """Class names that do not match those of the data."""


def find_class_names(source: object) -> tuple[str, ...]:
    """Find class names in a checkpoint, a configuration or a network, in output order.

    Reads lists of names, mappings from index to name and from name to index, under `KEYS`; values
    may be JSON text.  The `config` of a network is also read.

    Returns:
        The names; () if there are none.
    """
    get = _getter(source)
    for key in KEYS:
        names = _parse_names(get(key), by_name=key in _BY_NAME)
        if names:
            return names
    for key in _HOLDERS:
        inner = get(key)
        names = find_class_names(inner) if inner is not None and inner is not source else ()
        if names:
            return names
    return ()


def class_rows(
    theirs: Sequence[str], ours: Sequence[str], source: str
) -> tuple[tuple[int, ...] | None, str]:
    """Find the network output of each class of the data, by name.

    Names match regardless of case, white space and Unicode form; if that is not enough, `-` and
    `_` count as white space.

    Args:
        theirs: class names in the order of the network's outputs; () if unknown.
        ours: class names of the data; () if unknown.
        source: name of the network in messages.

    Returns:
        `rows`, so that `outputs[:, rows]` has the order of the data, or None if the order is the
        same or unknown; and a note on what was done, empty if the orders agree.

    Raises:
        UnmatchedClasses: the names differ; the message lists both.
    """
    if not ours:
        return None, ""
    rows = _matched(theirs, ours)  # numbers are names if the data have the same ones
    if not theirs or (is_generic(theirs) and (rows is None or not _is_reordered(rows))):
        names = f"generic class names ({_listing(theirs)})" if theirs else "no class names"
        return None, f"{source} has {names}; its class order is assumed to be {_listing(ours)}"
    if rows is None and _is_counted(ours) and len(theirs) == len(ours):
        names = f"{source} has the classes {_listing(theirs)}, the data {_listing(ours)}"
        return None, f"{names}; their order is assumed to be the same"
    if rows is None:
        raise UnmatchedClasses(
            f"the class names of {source} differ from those of the data: it has "
            f"{_listing(theirs)} ({len(theirs)}), the data have {_listing(ours)} ({len(ours)})"
            f"{_difference(theirs, ours)}"
        )
    if not _is_reordered(rows):
        return None, ""
    return rows, f"classes of {source} reordered by name: {_listing(theirs)} -> {_listing(ours)}"


def named_rows(names: Sequence[str], ours: Sequence[str], source: str) -> tuple[int, ...] | None:
    """Find outputs as `class_rows`, for names set by the user, which must be those of the data.

    Raises:
        UnmatchedClasses: the names differ.
    """
    rows = _matched(names, ours)
    if rows is None:
        raise UnmatchedClasses(
            f"{source} must list each class of the data once ({_listing(ours)}), it lists "
            f"{_listing(names)}{_difference(names, ours)}"
        )
    return rows if _is_reordered(rows) else None


def is_generic(names: Sequence[str]) -> bool:
    """Return whether names only count the outputs: `LABEL_0`, `LABEL_1`, ... or `0`, `1`, ..."""
    matches = [_GENERIC.fullmatch(name.strip()) for name in names]
    return all(match is not None and int(match[1]) == i for i, match in enumerate(matches))


def reorder_classes(
    network: nn.Module, rows: Sequence[int], signature: Signature, source: str
) -> None:
    """Permute the outputs of a network, in place, by permuting the rows of its final layer.

    A forward before and one after verify the result.

    Args:
        network: on the CPU or a GPU, with its weights.
        rows: as `class_rows` returns them.
        signature: the network's inputs and number of classes.
        source: name of the network in messages.

    Raises:
        ValueError: no layer permutes the outputs.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = random_inputs if signature.text is None else blank_inputs
        inputs = make(signature, 2, device)
    before = _outputs(network, inputs)
    heads = [module for module in network.modules() if _is_head(module, signature.classes)]
    # Try the last layer of that size, the first, all of them, then each one.
    for modules in ([heads[-1:], heads[:1], heads, *([head] for head in heads)]) if heads else []:
        undo = [_permute_rows(module, rows) for module in modules]
        after = _outputs(network, inputs)
        if torch.allclose(after, before[:, list(rows)], rtol=1e-4, atol=1e-5):
            return
        for back in undo:
            back()
    raise ValueError(
        f"the classes of {source} are in another order and cannot be reordered, because no single "
        "layer outputs the logits; save the network with the rows of its final layer in the order "
        "of the data's classes"
    )


def _getter(source: object) -> Callable[[str], object]:
    if isinstance(source, Mapping):
        return source.get
    return lambda key: None if callable(value := getattr(source, key, None)) else value


def _parse_names(value: object, *, by_name: bool) -> tuple[str, ...]:
    """Return names in output order from any of the common formats; () if there are none."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    if isinstance(value, Mapping):
        return _parse_mapping(value, by_name=by_name)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) < 2:
        return ()
    are_names = all(isinstance(name, str | int) and not isinstance(name, bool) for name in value)
    return tuple(map(str, value)) if are_names and len(set(value)) == len(value) else ()


def _parse_mapping(value: Mapping[object, object], *, by_name: bool) -> tuple[str, ...]:
    pairs = list(value.items())
    swapped = [(index, name) for name, index in pairs]
    for items in (swapped, pairs) if by_name else (pairs, swapped):
        numbers = [_number(index) for index, _ in items]
        if len(pairs) > 1 and sorted(n for n in numbers if n is not None) == [*range(len(pairs))]:
            by_index = {n: name for n, (_, name) in zip(numbers, items, strict=True)}
            return tuple(str(by_index[n]) for n in range(len(pairs)))
    return ()


def _number(value: object) -> int | None:
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


def _normalized(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _loose(name: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", _normalized(name)).split())


def _matched(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    for form in (str, _normalized, _loose):
        index = {form(name): number for number, name in enumerate(theirs)}
        names = [form(name) for name in ours]
        are_distinct = len(index) == len(theirs) == len(set(names)) == len(ours)
        if are_distinct and set(names) == index.keys():
            return tuple(index[name] for name in names)
    return None


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    their_names, our_names = {_loose(name) for name in theirs}, {_loose(name) for name in ours}
    missing = [name for name in ours if _loose(name) not in their_names]
    extra = [name for name in theirs if _loose(name) not in our_names]
    parts = [f"missing: {_listing(missing)}"] if missing else []
    parts += [f"not in the data: {_listing(extra)}"] if extra else []
    return f"; {'; '.join(parts)}" if parts else ""


def _listing(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", ... ({len(listed) - _LISTED} more)" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _is_head(module: nn.Module, classes: int) -> bool:
    # `_parameters` is private in torch 2.15; attributes may be computed, such as with weight norm.
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() >= 2 and len(weight) == classes


def _outputs(network: nn.Module, inputs: object) -> Tensor:
    with evaluating(network), torch.no_grad():
        outputs = first_tensor(network(inputs))
    assert outputs is not None, "a classifier returns a tensor"
    return outputs.float()


def _permute_rows(module: nn.Module, rows: Sequence[int]) -> Callable[[], None]:
    """Permute the rows of a layer; return a function that undoes it."""
    copies = [(p, p.detach().clone()) for p in module._parameters.values() if p is not None]
    copies = [(p, old) for p, old in copies if p.dim() and len(p) == len(rows)]
    with torch.no_grad():
        for parameter, old in copies:
            parameter.copy_(old[list(rows)])

    def undo() -> None:
        with torch.no_grad():
            for parameter, old in copies:
                parameter.copy_(old)

    return undo
