"""Data sets whose networks take one input of each sample (`teacher.input`, `student.input`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from raykd.data.dataset import Dataset, FileSplit, InputFacts, Raw, Split
from raykd.data.splits import channel_statistics
from raykd.input_forms import ColumnForm, InputForm, find_form

SAMPLE = 2000
"""Maximum number of files that are decoded for the mean and deviation of their pixels."""

_STATISTICS: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {}
"""Mean and deviation by fingerprint and input: each is computed once in a process."""


def choose_input(data: Dataset, name: str | None) -> Dataset:
    """Return a data set whose networks take one input of each sample; see `Dataset.as_input`.

    Raises:
        ValueError: the samples have no such input.
    """
    whole = data.whole or InputFacts(
        data.input_shape, data.mean, data.std, data.raw, data.categories
    )
    if name is None:
        return _with_facts(data, whole, None, None)
    form = find_form(
        name,
        data.forms,
        whole.input_shape,
        is_text=bool(data.vocabulary),
        has_positions=data.is_dense or data.has_boxes,
    )
    return _with_facts(data, _facts(data, form, whole), form, whole)


def _with_facts(
    data: Dataset, facts: InputFacts, form: InputForm | None, whole: InputFacts | None
) -> Dataset:
    text = None if form is None else form.text
    return dataclasses.replace(
        data,
        input_shape=facts.input_shape,
        mean=facts.mean,
        std=facts.std,
        raw=facts.raw,
        categories=facts.categories,
        vocabulary=0 if text is None else text.vocabulary,
        padding=0 if text is None else text.padding,
        form=form,
        whole=whole,
    )


def _facts(data: Dataset, form: InputForm, whole: InputFacts) -> InputFacts:
    if form.name in data.parts:
        return data.parts[form.name]
    shape, raw = form.shape(whole.input_shape), whole.raw
    if isinstance(form, ColumnForm):
        return column_facts(form, raw.mean, raw.scale)
    if shape == whole.input_shape:
        return whole
    mean, std = _statistics(data, form) if whole.mean else ((), ())
    before = f" of {raw.preparation}" if raw.preparation else ""
    chosen = Raw(preparation=f"input '{form.name}' ({'x'.join(map(str, shape))}){before}, 8-bit")
    return InputFacts(shape, mean, std, chosen)


def column_facts(form: ColumnForm, mean: Sequence[float], scale: Sequence[float]) -> InputFacts:
    """Return the facts of some columns of a table.

    Args:
        form: the columns.
        mean, scale: of all columns.
    """
    chosen = Raw(
        preparation=columns_text(form.names),
        mean=tuple(mean[place] for place in form.columns),
        scale=tuple(scale[place] for place in form.columns),
    )
    return InputFacts((len(form.columns),), raw=chosen, categories=form.codes)


def columns_text(names: Sequence[str], rest: str = "of a category its code") -> str:
    """Describe how columns become an input."""
    return f"columns {', '.join(names)}; {rest}"


def _statistics(data: Dataset, form: InputForm) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel over the training split, values from 0 to 1.

    Of files that stay on disk, at most `SAMPLE` are decoded.
    """
    key = (data.fingerprint, form.name)
    if key not in _STATISTICS:
        count = len(data.train) - data.unlabeled
        rows = torch.arange(count)
        if isinstance(data.train, FileSplit) and count > SAMPLE:
            rows = torch.linspace(0, count - 1, SAMPLE).long()
        images = form.take(_stored(data, rows))
        assert isinstance(images, Tensor), "images are one tensor"
        _STATISTICS[key] = channel_statistics(images.cpu())
    return _STATISTICS[key]


def _stored(data: Dataset, rows: Tensor) -> Tensor:
    train = data.train
    if isinstance(train, Split):
        rows = rows.to(train.targets.device)
    inputs = train.take(rows)
    assert isinstance(inputs, Tensor), "images are one tensor"
    return inputs
