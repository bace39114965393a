"""Inputs of the rows of a table of texts: other columns, another tokenizer, another length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PlainSerializer
from torch import Tensor

from raykd.data.dataset import InputFacts, Raw, Split
from raykd.data.inputs import columns_text
from raykd.data.named_inputs import NamedInputs
from raykd.data.tokens import MAX_LENGTH, Encoding, Tokens
from raykd.input_forms import WHOLE, Text, TextForm
from raykd.registry import option

Column = Annotated[str, Field(min_length=1, description="Column of the table")]


@option
class TextInput:
    """One input of the rows of a table of texts.

    `null`: as in `data`; an input that names `text` has no `second` unless it names one.
    """

    text: Column | None = None
    second: Column | None = None
    tokenizer: Annotated[str | None, Field(min_length=1, description="Folder of the tokenizer")] = (
        None
    )
    max_length: Annotated[int | None, Field(ge=2, le=MAX_LENGTH, description="Tokens per text")] = (
        None
    )


class TextInputs(NamedInputs[TextInput]):
    """Inputs of the rows of a table of texts by name."""

    def plain(self) -> dict[str, object]:
        return {
            name: {key: value for key, value in dataclasses.asdict(each).items() if value}
            for name, each in self.items()
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> object:
        read = Annotated[
            dict[str, TextInput],
            Field(min_length=1),
            AfterValidator(cls),
            PlainSerializer(cls.plain),
        ]
        return handler.generate_schema(read)


def encoding_of(settings: TextInput, name: str, data: Encoding) -> Encoding:
    """Return the way from texts to tokens of an input.

    Args:
        settings: of the input.
        name: of the input.
        data: the way of the data, for the keys that the input leaves out.
    """
    text, *second = data.columns
    if settings.text or settings.second:
        second = [settings.second] if settings.second else []
    return Encoding(
        (settings.text or text, *second),
        settings.tokenizer or data.tokenizer,
        settings.max_length or data.length,
        f"{data.place}.inputs.{name}",
    )


def unused_keys(inputs: Mapping[str, TextInput], text: str, second: str | None) -> Iterator[str]:
    """Yield the keys of the data, `text` or `second`, that are set and belong to no input.

    Args:
        inputs: by name; none: the data have one input.
        text, second: columns of the data.
    """
    if inputs and text != "text" and all(each.text for each in inputs.values()):
        yield "text"
    if inputs and second and all(each.text or each.second for each in inputs.values()):
        yield "second"


def stored_tokens(tokens: Mapping[str, Tokens]) -> dict[str, Tensor]:
    """Return the tokens of all inputs under the keys that `Split` stores them by.

    Args:
        tokens: by input, or of `WHOLE` alone.
    """
    return {
        key if name == WHOLE else f"{name}/{key}": values
        for name, each in tokens.items()
        for key, values in each.inputs.items()
    }


def forms_of(tokens: Mapping[str, Tokens], train: Split) -> tuple[TextForm, ...]:
    """Return the inputs that networks may take, in the order of the study.

    Args:
        tokens: of all rows by input, or of `WHOLE` alone.
        train: split with these tokens.
    """
    assert isinstance(train.inputs, Mapping), "texts are mappings of tensors"
    forms = []
    for name, each in tokens.items():
        if name == WHOLE:
            continue
        rows = {key: train.inputs[f"{name}/{key}"][:1] for key in each.inputs}
        text = Text.of(each.vocabulary, each.padding, rows)
        forms.append(TextForm(name, rows["input_ids"].shape[1], text))
    return tuple(forms)


def parts_of(encodings: Mapping[str, Encoding]) -> dict[str, InputFacts]:
    """Return the facts of the inputs by name; none of `WHOLE`."""
    return {
        name: InputFacts(
            (each.length,),
            raw=Raw(preparation=columns_text(each.columns, each.preparation)),
        )
        for name, each in encodings.items()
        if name != WHOLE
    }


def each_input(remarks: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Yield sentences on inputs, each with the name of its input unless it is `WHOLE`."""
    for name, sentences in remarks:
        start = "" if name == WHOLE else f"input '{name}': "
        yield from (f"{start}{sentence}" for sentence in sentences)
