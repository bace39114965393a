"""Data sets whose networks take one input of each sample (`teacher.input`, `student.input`)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from raykd.data.dataset import Dataset, FileSplit, InputFacts, Raw, Split
from raykd.data.splits import channel_statistics
from raykd.input_forms import ColumnForm, InputForm, PartForm, find_form

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
    if data.vocabulary:
        raise ValueError(f"unknown input '{name}'; texts have one input: leave `input` out")
    form = find_form(name, data.forms, whole.input_shape)
    if (data.is_dense or data.has_boxes) and form.shape(whole.input_shape)[1:] != (
        whole.input_shape[1:]
    ):
        raise ValueError(f"'{name}': targets are positions of the whole image; keep its size")
    return _with_facts(data, _facts(data, form, whole), form, whole)


def _with_facts(
    data: Dataset, facts: InputFacts, form: InputForm | None, whole: InputFacts | None
) -> Dataset:
    return dataclasses.replace(
        data,
        input_shape=facts.input_shape,
        mean=facts.mean,
        std=facts.std,
        raw=facts.raw,
        categories=facts.categories,
        form=form,
        whole=whole,
    )


def _facts(data: Dataset, form: InputForm, whole: InputFacts) -> InputFacts:
    if isinstance(form, PartForm):
        return data.parts[form.name]
    shape, raw = form.shape(whole.input_shape), whole.raw
    if isinstance(form, ColumnForm):
        mean, scale = ([values[n] for n in form.columns] for values in (raw.mean, raw.scale))
        preparation = f"columns {', '.join(form.names)}; of a category its code"
        chosen = Raw(preparation=preparation, mean=tuple(mean), scale=tuple(scale))
        return InputFacts(shape, raw=chosen, categories=form.codes)
    if shape == whole.input_shape:
        return whole
    mean, std = _statistics(data, form) if whole.mean else ((), ())
    before = f" of {raw.preparation}" if raw.preparation else ""
    chosen = Raw(preparation=f"input '{form.name}' ({'x'.join(map(str, shape))}){before}, 8-bit")
    return InputFacts(shape, mean, std, chosen)


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
        _STATISTICS[key] = channel_statistics(form.take(_stored(data, rows)).cpu())
    return _STATISTICS[key]


def _stored(data: Dataset, rows: Tensor) -> Tensor:
    train = data.train
    if isinstance(train, Split):
        rows = rows.to(train.targets.device)
    inputs = train.take(rows)
    assert isinstance(inputs, Tensor), "images are one tensor"
    return inputs
