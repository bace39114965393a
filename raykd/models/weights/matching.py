"""Tensors of a file made to fit a network: names, classes, vocabulary, number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from raykd.models.base import Task
    from raykd.models.weights.files import WeightFile

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor shapes by name."""

NAMED = 4
"""Tensors that a message names before it only counts them."""

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_ddp_params")
"""Parts of names that wrappers (torch.compile, FSDP) add, wherever they stand."""

_USUAL = ("module", "model", "net", "network", "backbone", "encoder")
"""Parts of prefixes of the network that is meant, where several would do."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Beginnings of the names of classifiers that only help a training."""

_FORGIVEN = ("num_batches_tracked", "position_ids")
"""Ends of names of buffers that play no part in a forward, or are the same always."""

PAD_TO = 1024
"""Rows of embeddings beyond the tokenizer's vocabulary that count as padding."""


@dataclass(frozen=True)
class MatchedWeights:
    """Tensors under a network's own names.

    Attributes:
        tensors: by name; some may be missing (tied weights, counters).
        notes: sentences on what was done.
        warnings: sentences on what may make results wrong.
        is_same: whether nothing was done.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_same: bool = True


def fit(
    network: nn.Module, file: WeightFile, task: Task, replaceable: frozenset[str] = frozenset()
) -> MatchedWeights:
    """Make a file's tensors fit a network, which may be on the meta device.

    Prefixes that wrappers and training scripts add are removed; embeddings of a vocabulary that
    was padded are cut to the tokenizer's.  Number formats are compared; `load_state_dict` casts.

    Args:
        network: to be filled.
        file: what was read.
        task: the network's inputs and number of classes.
        replaceable: tensors whose shape may differ; they are left as they are in the file.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, not floating point or not
            finite; the first few are named, with the remedy.
    """
    wanted = network.state_dict()
    tensors, notes = _named(dict(file.tensors), wanted, file.source)
    warnings: list[str] = []
    cut = _cut_vocabulary(network, tensors, wanted, task)
    if cut:
        name, rows, more = cut
        said = f"took the first {rows} of the {more} rows of {name}, the tokenizer's vocabulary"
        notes.append(f"{file.source}: {said}")
        if more - rows > PAD_TO:
            warnings.append(
                f"{file.source} knows {more} tokens and the data's tokenizer {rows}; check that "
                "data.tokenizer is the one these weights were trained with"
            )
    _check_shapes(file.source, tensors, wanted, _aliases(network), task, replaceable)
    is_same = all(tensors.get(name) is tensor for name, tensor in file.tensors.items())
    tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
    _check_values(file.source, tensors, wanted, {name for name, _ in network.named_parameters()})
    notes += _casts(file.source, tensors, wanted)
    return MatchedWeights(tensors, (*file.notes, *notes), tuple(warnings), is_same)


def check_shapes(model: nn.Module, found: Shapes, source: str) -> None:
    """See that `found` are the tensors `model` needs; the model may be on the meta device.

    A missing `num_batches_tracked` is accepted: it plays no part in a forward.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = _faults(found, wanted, _aliases(model), frozenset())
    if faults:
        raise ValueError(_other_model(source, found, wanted, faults))


# Names


def _named(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the network's names, and what was done to their own."""
    notes = []
    strip_preprocessing = {_unwrapped(name, wanted): tensor for name, tensor in tensors.items()}
    if strip_preprocessing.keys() != tensors.keys():
        parts = [part for part in _WRAPPED if any(part in name.split(".") for name in tensors)]
        notes.append(f"{source}: removed {', '.join(f'{part!r}' for part in parts)} from names")
        tensors = strip_preprocessing
    needed = {name for name in wanted if not name.endswith(_FORGIVEN)}
    if needed <= tensors.keys():
        return tensors, notes
    prefix = _prefix(tensors, needed, source)
    if prefix:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        outside = [name for name in tensors if not name.startswith(prefix)]
        more = f" (left out: {_first(outside)})" if outside else ""
        notes.append(f"{source}: removed the prefix {prefix!r} from names{more}")
        return inside, notes
    added = _common_prefix(needed)
    if added and needed <= {added + name for name in tensors}:
        notes.append(f"{source}: added the prefix {added!r} to names")
        return {added + name: tensor for name, tensor in tensors.items()}, notes
    return tensors, notes


def _unwrapped(name: str, wanted: Mapping[str, Tensor]) -> str:
    if name in wanted or not any(part in name for part in _WRAPPED):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _prefix(tensors: Mapping[str, Tensor], needed: set[str], source: str) -> str:
    """The prefix whose removal gives most of the names that are needed; empty for none.

    Raises:
        ValueError: several would do as well.
    """
    counts = Counter(prefix for name in tensors for prefix in _prefixes(name, needed))
    most = max(counts.values(), default=0)
    if 2 * most <= len(needed) or counts[""] == most:
        return ""
    best = [prefix for prefix, count in counts.items() if count == most]
    usual = [prefix for prefix in best if set(prefix.split(".")[:-1]) <= {*_USUAL}]
    best = usual or [prefix for prefix in best if "ema" not in prefix.lower()] or best
    if len(best) > 1:
        raise ValueError(
            f"{source} holds such weights under several prefixes: {', '.join(map(repr, best))}; "
            "save those that are meant alone"
        )
    return best[0]


def _prefixes(name: str, needed: set[str]) -> Iterator[str]:
    """What stands before one of the needed names at the end of a name."""
    rest, prefix = name, ""
    while rest:
        if rest in needed:
            yield prefix
        head, dot, rest = rest.partition(".")
        prefix += head + dot


def _common_prefix(names: set[str]) -> str:
    heads = {name.partition(".")[0] for name in names}
    return f"{heads.pop()}." if len(heads) == 1 else ""


def _aliases(network: nn.Module) -> dict[str, set[str]]:
    """The other names of each parameter that has several (tied weights)."""
    names: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in names.values() for name in group if len(group) > 1}


# Vocabulary


def _cut_vocabulary(
    network: nn.Module, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], task: Task
) -> tuple[str, int, int] | None:
    """Leave out, in place, the rows of embeddings that no token of the tokenizer reads.

    Returns:
        A name, the rows it has now and those it had; None where nothing was left out.
    """
    if task.text is None:
        return None
    cut = None
    for name in _embeddings(network):
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() != 2 or name not in wanted:
            continue
        rows, width = wanted[name].shape
        if rows == task.text.vocabulary and tensor.shape[1] == width and len(tensor) > rows:
            tensors[name] = tensor[:rows]
            cut = cut or (name, rows, len(tensor))
    return cut


def _embeddings(network: nn.Module) -> list[str]:
    """The names of the tensors that hold a vector a token."""
    ask = getattr(network, "get_input_embeddings", None)
    own = ask() if callable(ask) else None
    modules = (
        [own] if isinstance(own, nn.Module) else [m for m in network.modules() if _is_embedding(m)]
    )
    held = {id(module._parameters.get("weight")) for module in modules}
    named = network.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in held]


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


# Faults

Faults = Mapping[str, list[str]]
"""Names of tensors by what is wrong with them."""


def _check_shapes(
    source: str,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    aliases: Mapping[str, set[str]],
    task: Task,
    replaceable: frozenset[str],
) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    needed = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    faults = _faults(found, needed, aliases, replaceable)
    if not faults:
        return
    if list(faults) == ["of another shape"]:
        other = faults["of another shape"]
        said = _other_classes(other, found, needed, task) or _few_tokens(other, found, task)
        if said:
            raise ValueError(f"{source} {said}")
    raise ValueError(_other_model(source, found, needed, faults))


def _faults(
    found: Shapes,
    wanted: Shapes,
    aliases: Mapping[str, set[str]],
    replaceable: frozenset[str],
) -> Faults:
    missing = [
        name
        for name in wanted
        if name not in found
        and not name.endswith(_FORGIVEN)
        and aliases.get(name, set()).isdisjoint(found)
    ]
    unexpected = [
        name
        for name in found
        if name not in wanted
        and not name.endswith("position_ids")
        and not name.startswith(_AUXILIARY)
    ]
    shared = [name for name in wanted if name in found and name not in replaceable]
    other = [name for name in shared if found[name] != wanted[name]]
    named = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    return {what: names for what, names in named.items() if names}


def _other_classes(other: list[str], found: Shapes, wanted: Shapes, task: Task) -> str:
    """What to say where the final layer alone is of another number of classes."""
    sizes = {found[name][:1] for name in other}
    heads = all(
        wanted[name][:1] == (task.classes,) and found[name][1:] == wanted[name][1:]
        for name in other
    )
    if not heads or len(sizes) != 1 or not all(found[name] for name in other):
        return ""
    name = other[0]
    return (
        f"is a classifier of {found[name][0]} classes ({name} is {_size(found[name])}), the data "
        f"have {task.classes} ({_size(wanted[name])} in the model); take weights trained on the "
        "data's classes. To keep all but the final layer and train that anew, name the file under "
        "the model (`model: {name: ..., weights: FILE}`; torchvision, timm, transformers) and "
        "leave `teacher.weights` out"
    )


def _few_tokens(other: list[str], found: Shapes, task: Task) -> str:
    """What to say where the embeddings alone have fewer rows than the tokenizer has tokens."""
    text = task.text
    if text is None or any(len(found[name]) != 2 for name in other):
        return ""
    rows = {found[name][0] for name in other}
    if len(rows) != 1 or max(rows) >= text.vocabulary:
        return ""
    return (
        f"knows {rows.pop()} tokens ({other[0]}), the data's tokenizer has {text.vocabulary}; take "
        "the tokenizer that these weights were trained with (data.tokenizer)"
    )


def _other_model(source: str, found: Shapes, wanted: Shapes, faults: Faults) -> str:
    sizes = {
        name: f"{name} ({_size(found[name])} in the file, {_size(wanted[name])} in the model)"
        for name in faults.get("of another shape", ())
    }
    said = [
        f"{len(names)} {what}: {_first([sizes.get(name, name) for name in names])}"
        for what, names in faults.items()
    ]
    return (
        f"{source} does not hold the weights of this model: of its {len(wanted)} tensors and the "
        f"file's {len(found)}, {'; '.join(said)}. Name the model (depth, width, input shape, "
        "classes) that these weights were made for"
    )


def _check_values(
    source: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], parameters: set[str]
) -> None:
    """See that numbers are finite and stored as numbers."""
    integers = [
        name
        for name, tensor in tensors.items()
        if wanted[name].is_floating_point() and not _is_precise(tensor)
    ]
    if integers:
        name = integers[0]
        raise ValueError(
            f"{source} holds quantized weights: {name} is {_dtype(tensors[name])}, and the model "
            f"computes in {_dtype(wanted[name])}; take the weights in full or half precision"
        )
    broken = [name for name, t in tensors.items() if _is_broken(t, finite=name in parameters)]
    if broken:
        raise ValueError(
            f"{source} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors: "
            f"{_first(broken)}; the training that wrote it diverged, take an earlier checkpoint"
        )


def _is_precise(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def _is_broken(tensor: Tensor, *, finite: bool) -> bool:
    if not tensor.is_floating_point():
        return False
    fine = torch.isfinite(tensor) if finite else ~torch.isnan(tensor)
    return not bool(fine.all())


def _casts(source: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    counts = Counter(
        (_dtype(tensor), _dtype(wanted[name]))
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != wanted[name].dtype
    )
    return [
        f"{source}: cast {count} tensors from {there} to {here}"
        for (there, here), count in counts.items()
    ]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
