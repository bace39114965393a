"""Match the tensors of a file with a network: names, classes, vocabulary, number format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from raykd.models.base import Signature
    from raykd.models.weights.files import WeightFile

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor shapes by name."""

LISTED = 4
"""Maximum number of tensors that a message lists."""

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_ddp_params")
"""Parts of names that wrappers (torch.compile, FSDP) add anywhere."""

_USUAL = ("module", "model", "net", "network", "backbone", "encoder")
"""Parts of the preferred prefix, if several match."""

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
"""Prefixes of auxiliary classifiers, which are used in training only."""

_OPTIONAL = ("num_batches_tracked", "position_ids")
"""Suffixes of buffers that are constant or do not affect a forward."""

PAD_TO = 1024
"""Maximum number of embedding rows beyond the tokenizer's vocabulary that count as padding."""


@dataclass(frozen=True)
class MatchedWeights:
    """Tensors under the names of a network.

    Attributes:
        tensors: by name; some may be missing (tied weights, counters).
        notes: sentences on what was changed.
        warnings: sentences on possible mistakes.
        is_same: whether nothing was changed.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_same: bool = True


def match_weights(
    network: nn.Module,
    file: WeightFile,
    signature: Signature,
    replaceable: frozenset[str] = frozenset(),
) -> MatchedWeights:
    """Match the tensors of a file with a network, which may be on the meta device.

    Removes prefixes that wrappers and training scripts add, and cuts padded embeddings to the
    tokenizer's vocabulary.  Number formats are only compared; `load_state_dict` casts.

    Args:
        network: network that takes the weights.
        file: content of the file.
        signature: inputs and number of classes of the network.
        replaceable: tensors whose shape may differ; they are not changed.

    Raises:
        ValueError: tensors are missing, unexpected, of another shape, not floating point or not
            finite; the message lists the first ones, with a fix.
    """
    expected = network.state_dict()
    # Names
    tensors, notes = _renamed(dict(file.tensors), expected, file.source)
    warnings: list[str] = []
    # Vocabulary
    cut = _cut_vocabulary(network, tensors, expected, signature)
    if cut:
        name, rows, all_rows = cut
        notes.append(
            f"{file.source}: used the first {rows} of the {all_rows} rows of {name}, the "
            "vocabulary of the tokenizer"
        )
        if all_rows - rows > PAD_TO:
            warnings.append(
                f"{file.source} has {all_rows} tokens and the data's tokenizer {rows}; check that "
                f"{signature.text_key('tokenizer')} is the one these weights were trained with"
            )
    # Shapes, values and number formats
    _check_shapes(file.source, tensors, expected, _aliases(network), signature, replaceable)
    is_same = all(tensors.get(name) is tensor for name, tensor in file.tensors.items())
    tensors = {name: tensor for name, tensor in tensors.items() if name in expected}
    parameters = {name for name, _ in network.named_parameters()}
    _check_values(file.source, tensors, expected, parameters)
    notes += _casts(file.source, tensors, expected)
    return MatchedWeights(tensors, (*file.notes, *notes), tuple(warnings), is_same)


def check_shapes(model: nn.Module, shapes: Shapes, source: str) -> None:
    """Check that tensors have the names and shapes of a network, which may be on the meta device.

    A missing `num_batches_tracked` is accepted, since it does not affect a forward.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    mismatches = _mismatches(shapes, expected, _aliases(model), frozenset())
    if mismatches:
        raise ValueError(_other_model(source, shapes, expected, mismatches))


# Names


def _renamed(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under the names of the network, and notes on what was changed."""
    notes = []
    strip_preprocessing = {_unwrapped(name, expected): tensor for name, tensor in tensors.items()}
    if strip_preprocessing.keys() != tensors.keys():
        parts = [part for part in _WRAPPED if any(part in name.split(".") for name in tensors)]
        notes.append(f"{source}: removed {', '.join(f'{part!r}' for part in parts)} from names")
        tensors = strip_preprocessing
    needed = {name for name in expected if not name.endswith(_OPTIONAL)}
    if needed <= tensors.keys():
        return tensors, notes
    prefix = _prefix(tensors, needed, source)
    if prefix:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        outside = [name for name in tensors if not name.startswith(prefix)]
        omitted = f" (left out: {_listing(outside)})" if outside else ""
        notes.append(f"{source}: removed the prefix {prefix!r} from names{omitted}")
        return inside, notes
    added = _common_prefix(needed)
    if added and needed <= {added + name for name in tensors}:
        notes.append(f"{source}: added the prefix {added!r} to names")
        return {added + name: tensor for name, tensor in tensors.items()}, notes
    return tensors, notes


def _unwrapped(name: str, expected: Mapping[str, Tensor]) -> str:
    if name in expected or not any(part in name for part in _WRAPPED):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _prefix(tensors: Mapping[str, Tensor], needed: set[str], source: str) -> str:
    """Return the prefix whose removal gives most of the needed names; may be empty.

    Raises:
        ValueError: several prefixes match equally well.
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
            f"{source} holds matching weights under the prefixes {', '.join(map(repr, best))}; "
            "save only the weights to use"
        )
    return best[0]


def _prefixes(name: str, needed: set[str]) -> Iterator[str]:
    """Yield the prefixes of a name that end before a needed name."""
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
    """Return the other names of each parameter with several names (tied weights)."""
    names: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in names.values() for name in group if len(group) > 1}


# Vocabulary


def _cut_vocabulary(
    network: nn.Module,
    tensors: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    signature: Signature,
) -> tuple[str, int, int] | None:
    """Cut, in place, embeddings to the vocabulary of the tokenizer.

    Returns:
        A name, the number of its rows after and before; None if nothing was cut.
    """
    if signature.text is None:
        return None
    cut = None
    for name in _embeddings(network):
        tensor = tensors.get(name)
        if tensor is None or tensor.dim() != 2 or name not in expected:
            continue
        rows, width = expected[name].shape
        if rows == signature.text.vocabulary and tensor.shape[1] == width and len(tensor) > rows:
            tensors[name] = tensor[:rows]
            cut = cut or (name, rows, len(tensor))
    return cut


def _embeddings(network: nn.Module) -> list[str]:
    """Return the names of the tensors with one vector per token."""
    get = getattr(network, "get_input_embeddings", None)  # of transformers
    module = get() if callable(get) else None
    modules = [module] if isinstance(module, nn.Module) else network.modules()
    embeddings = [m for m in modules if m is module or isinstance(m, nn.Embedding)]
    weights = {id(m._parameters.get("weight")) for m in embeddings}  # private in torch 2.15
    named = network.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in weights]


# Mismatches

Mismatches = Mapping[str, list[str]]
"""Names of tensors by kind of mismatch."""


def _check_shapes(
    source: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    aliases: Mapping[str, set[str]],
    signature: Signature,
    replaceable: frozenset[str],
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected_shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    mismatches = _mismatches(shapes, expected_shapes, aliases, replaceable)
    if not mismatches:
        return
    if list(mismatches) == [OTHER_SHAPE]:
        names = mismatches[OTHER_SHAPE]
        problem = _other_classes(names, shapes, expected_shapes, signature)
        problem = problem or _few_tokens(names, shapes, signature)
        if problem:
            raise ValueError(f"{source} {problem}")
    raise ValueError(_other_model(source, shapes, expected_shapes, mismatches))


OTHER_SHAPE = "of another shape"


def _mismatches(
    shapes: Shapes,
    expected: Shapes,
    aliases: Mapping[str, set[str]],
    replaceable: frozenset[str],
) -> Mismatches:
    missing = [
        name
        for name in expected
        if name not in shapes
        and not name.endswith(_OPTIONAL)
        and aliases.get(name, set()).isdisjoint(shapes)
    ]
    unexpected = [
        name
        for name in shapes
        if name not in expected
        and not name.endswith("position_ids")
        and not name.startswith(_AUXILIARY)
    ]
    shared = [name for name in expected if name in shapes and name not in replaceable]
    different = [name for name in shared if shapes[name] != expected[name]]
    kinds = {"missing": missing, "unexpected": unexpected, OTHER_SHAPE: different}
    return {kind: names for kind, names in kinds.items() if names}


def _other_classes(names: list[str], shapes: Shapes, expected: Shapes, signature: Signature) -> str:
    """Return the message for a final layer with another number of classes; else empty."""
    sizes = {shapes[name][:1] for name in names}
    are_heads = all(
        expected[name][:1] == (signature.classes,) and shapes[name][1:] == expected[name][1:]
        for name in names
    )
    if not are_heads or len(sizes) != 1 or not all(shapes[name] for name in names):
        return ""
    name = names[0]
    return (
        f"is a classifier of {shapes[name][0]} classes ({name} is {_size(shapes[name])}), the data "
        f"have {signature.classes} ({_size(expected[name])} in the model); use weights trained on "
        "the data's classes. To train a new final layer and keep all others, name the file under "
        "the model (`model: {name: ..., weights: FILE}`; torchvision, timm, transformers) and "
        "leave `teacher.weights` out"
    )


def _few_tokens(names: list[str], shapes: Shapes, signature: Signature) -> str:
    """Return the message for embeddings with fewer rows than the tokenizer has tokens."""
    text = signature.text
    if text is None or any(len(shapes[name]) != 2 for name in names):
        return ""
    rows = {shapes[name][0] for name in names}
    if len(rows) != 1 or max(rows) >= text.vocabulary:
        return ""
    return (
        f"has {rows.pop()} tokens ({names[0]}), the data's tokenizer has {text.vocabulary}; use "
        f"the tokenizer that these weights were trained with ({signature.text_key('tokenizer')})"
    )


def _other_model(source: str, shapes: Shapes, expected: Shapes, mismatches: Mismatches) -> str:
    sizes = {
        name: f"{name} ({_size(shapes[name])} in the file, {_size(expected[name])} in the model)"
        for name in mismatches.get(OTHER_SHAPE, ())
    }
    listed = [
        f"{len(names)} {kind}: {_listing([sizes.get(name, name) for name in names])}"
        for kind, names in mismatches.items()
    ]
    return (
        f"{source} does not hold the weights of this model: of its {len(expected)} tensors and the "
        f"file's {len(shapes)}, {'; '.join(listed)}. Name the model (depth, width, input shape, "
        "classes) of these weights"
    )


def _check_values(
    source: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    parameters: set[str],
) -> None:
    """Raise ValueError unless values are finite and floating point."""
    integers = [
        name
        for name, tensor in tensors.items()
        if expected[name].is_floating_point() and not _is_precise(tensor)
    ]
    if integers:
        name = integers[0]
        raise ValueError(
            f"{source} holds quantized weights: {name} is {_dtype(tensors[name])}, and the model "
            f"computes in {_dtype(expected[name])}; use the weights in full or half precision"
        )
    broken = [name for name, t in tensors.items() if _is_broken(t, finite=name in parameters)]
    if broken:
        raise ValueError(
            f"{source} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors: "
            f"{_listing(broken)}; that training diverged, use an earlier checkpoint"
        )


def _is_precise(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def _is_broken(tensor: Tensor, *, finite: bool) -> bool:
    if not tensor.is_floating_point():
        return False
    valid = torch.isfinite(tensor) if finite else ~torch.isnan(tensor)
    return not bool(valid.all())


def _casts(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    counts = Counter(
        (_dtype(tensor), _dtype(expected[name]))
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != expected[name].dtype
    )
    return [
        f"{source}: cast {count} tensors from {old} to {new}"
        for (old, new), count in counts.items()
    ]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
