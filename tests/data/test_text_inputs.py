"""Several inputs of the rows of a table of texts: columns, tokenizers and lengths of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from helpers.language_cases import ROWS, WordMean, write_languages
from raykd.data import BatchLoader, Dataset, Split, ViewOptions
from raykd.data.text import Texts
from raykd.data.text_inputs import TextInput, TextInputs
from raykd.errors import StudyError
from raykd.models import AnyModel, profile_model
from raykd.training.build import signature_of
from raykd.training.stored_networks import raw_samples, with_preprocessing

INPUTS = {
    "english": {"text": "english"},
    "german": {"text": "german", "tokenizer": "small", "max_length": 40},
    "both": {"text": "english", "second": "german"},
}


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a table and two tokenizers."""
    return write_languages(tmp_path_factory.mktemp("languages"))


@pytest.fixture(scope="module")
def whole(languages: Path) -> Dataset:
    return source(languages).load()


def source(folder: Path, inputs: dict[str, Any] | None = INPUTS, **fields: Any) -> Texts:
    """Return a source whose tokenizers are in the folder."""
    placed = inputs and {
        name: {**each, "tokenizer": str(folder / each["tokenizer"])}
        if "tokenizer" in each
        else each
        for name, each in inputs.items()
    }
    usual = {"label": "kind", "tokenizer": str(folder / "large"), "max_length": 16}
    usual["file"] = str(folder / "pairs.parquet")
    return Texts(inputs=placed, **{**usual, **fields})  # type: ignore[arg-type]


def test_tokens_of_an_input_are_those_of_its_tokenizer(languages: Path, whole: Dataset) -> None:
    from transformers import AutoTokenizer

    table = pd.read_parquet(languages / "pairs.parquet")
    for name, folder, length, columns in (
        ("english", "large", 16, ("english",)),
        ("german", "small", 40, ("german",)),
        ("both", "large", 16, ("english", "german")),
    ):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(languages / folder))
        data = whole.as_input(name)
        assert data.form is not None
        inputs = data.form.take(data.train.take(torch.arange(len(data.train))))
        assert not isinstance(inputs, torch.Tensor)
        for row in range(0, len(data.train), 9):
            texts = table.loc[int(data.train.index[row]), list(columns)]
            expected = tokenizer(*texts, truncation=True, padding="max_length", max_length=length)
            for key, values in inputs.items():
                assert values[row].tolist() == expected[key], (name, key)
        pair_keys = {"token_type_ids"} if len(columns) > 1 else set()
        assert set(inputs) == {"input_ids", "attention_mask"} | pair_keys


def test_signatures_are_those_of_the_inputs(whole: Dataset) -> None:
    assert whole.input_shape == () and whole.vocabulary == 0
    assert signature_of(whole).text is None
    sizes = {}
    for form in whole.forms:
        data = whole.as_input(form.name)
        signature = signature_of(data)
        assert signature == signature_of(whole).as_input(form.name)
        assert signature.text is not None and signature.text.sample
        assert signature_of(data.as_input(None)) == signature_of(whole)
        sent = Dataset.from_arrays(whole.arrays()).as_input(form.name)
        assert signature_of(sent) == signature
        assert data.fingerprint == whole.fingerprint and data.train is whole.train
        assert data.padding == signature.text.padding == 0
        sizes[form.name] = (signature.text.vocabulary, signature.input_shape)
        other = data.as_input("german")
        assert other.input == "german" and other.input_shape == (40,)
    assert sizes["english"] == sizes["both"] and sizes["english"][1] == (16,)
    assert sizes["german"][0] < sizes["english"][0] and sizes["german"][1] == (40,)


def test_inputs_of_a_batch_are_of_the_same_rows(whole: Dataset) -> None:
    english, german = whole.as_input("english"), whole.as_input("german")
    loader = BatchLoader(
        german.train,
        german,
        batch_size=8,
        shuffle_seed=0,
        views=ViewOptions(more_inputs=[english]),
    )
    alone = BatchLoader(english.train, english, batch_size=8, shuffle_seed=0)
    for batch, expected in zip(loader.epoch(2), alone.epoch(2), strict=True):
        assert torch.equal(batch.index, expected.index)
        ours, theirs = batch.more_inputs["english"], expected.inputs
        assert isinstance(ours, dict) and isinstance(theirs, dict)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", INPUTS)
def test_the_delivered_network_takes_tokens_of_its_input(name: str, whole: Dataset) -> None:
    data = whole.as_input(name)
    network = WordMean().build(signature_of(data)).eval()
    delivered = with_preprocessing(network, data)
    facts = delivered.preprocessing.facts()
    assert facts["vocabulary"] == data.vocabulary and facts["max_length"] == data.input_shape[0]
    tokenizer = "small" if name == "german" else "large"
    assert f"/{tokenizer} with truncation" in delivered.preprocessing.preparation
    raw = raw_samples(data, torch.arange(4))
    assert not isinstance(raw, torch.Tensor)
    stacked = torch.stack([raw[key] for key in delivered.preprocessing.keys], 1)
    assert torch.equal(delivered(raw), delivered(stacked))
    assert delivered(raw).shape == (4, 2)


@pytest.mark.parametrize(
    ("settings", "columns", "tokenizer", "length"),
    [
        ({}, ("english", "title"), "large", 16),
        ({"max_length": 5}, ("english", "title"), "large", 5),
        ({"second": "german"}, ("english", "german"), "large", 16),
        ({"text": "german"}, ("german",), "large", 16),
        ({"text": "german", "second": "title"}, ("german", "title"), "large", 16),
        ({"tokenizer": "small"}, ("english", "title"), "small", 16),
    ],
)
def test_keys_that_an_input_leaves_out_are_those_of_the_data(
    settings: dict[str, Any], columns: tuple[str, ...], tokenizer: str, length: int, languages: Path
) -> None:
    inputs = {"some": settings, "plain": {}}
    made = source(languages, inputs, text="english", second="title").encodings()["some"]
    assert (made.columns, made.folder.name, made.length) == (columns, tokenizer, length)


def test_without_inputs_a_text_is_as_before(languages: Path) -> None:
    """An input with the settings of the data has their tokens, and the data have none beside."""
    plain = source(languages, None, text="english").load()
    assert plain.forms == () and plain.parts == {} and plain.whole is None
    assert isinstance(plain.train, Split) and isinstance(plain.train.inputs, dict)
    assert list(plain.train.inputs) == ["input_ids", "attention_mask"]
    named = source(languages, {"only": {}}, text="english").load()
    taken = named.as_input("only").form
    assert taken is not None and isinstance(named.train, Split)
    tokens = taken.take(named.train.inputs)
    assert isinstance(tokens, dict)
    assert all(torch.equal(tokens[key], plain.train.inputs[key]) for key in tokens)
    assert named.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="texts have one input: leave `input` out"):
        plain.as_input("english")
    with pytest.raises(ValueError, match="texts have one input: leave `input` out"):
        signature_of(plain).as_input("english")


def test_the_definition_of_an_input_changes_the_fingerprint(
    languages: Path, whole: Dataset
) -> None:
    for changed in (
        {**INPUTS, "german": {**INPUTS["german"], "max_length": 12}},
        {**INPUTS, "german": {"text": "german", "max_length": 40}},
        {**INPUTS, "german": {**INPUTS["german"], "text": "title"}},
        {"english": INPUTS["english"], "german": INPUTS["german"]},
    ):
        assert source(languages, changed).load().fingerprint != whole.fingerprint


def test_notes_and_warnings_name_the_input(languages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(languages, folder)
    table = pd.read_parquet(folder / "pairs.parquet")
    table.loc[3, "german"] = " "
    table["english"] = "\u4f60 \u597d " + table["english"]
    table.to_parquet(folder / "pairs.parquet")
    data = source(folder, {**INPUTS, "german": {**INPUTS["german"], "max_length": 4}}).load()
    assert any(
        note.startswith(f"input 'german': {ROWS - 1} of {ROWS} texts truncated to 4 tokens")
        and "(data.inputs.german.max_length)" in note
        for note in data.notes
    )
    assert not [note for note in data.notes if "input 'english'" in note]
    blank = [text for text in data.warnings if "1 text without a word" in text]
    assert [text.partition(":")[0] for text in blank] == ["input 'german'"]
    unknown = [text for text in data.warnings if "unknown to the tokenizer" in text]
    assert [text.partition(":")[0] for text in unknown] == ["input 'english'", "input 'both'"]


WRONG = [
    ({"german": {"text": "germn"}}, r"no column 'germn'.* did you mean 'german'"),
    ({"german": {"text": "german", "second": "titel"}}, "did you mean 'title'"),
    ({"german": {"text": "vector"}}, r"not a text; name the column .* data\.inputs\.german\.text"),
    (
        {"german": {"text": "german", "tokenizer": "none"}},
        r"no folder .*none with a tokenizer; .* set data\.inputs\.german\.tokenizer to it",
    ),
    ({"german": {"text": "german", "tokenizer": "."}}, "holds no tokenizer that transformers"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG, ids=[row[1][:20] for row in WRONG])
def test_wrong_inputs(inputs: dict[str, Any], message: str, languages: Path) -> None:
    with pytest.raises(ValueError, match=message):
        source(languages, inputs).load()


def test_unknown_inputs_are_named(whole: Dataset) -> None:
    for name in ("french", "gray", "input_ids"):
        for taking in (whole, whole.as_input("german"), signature_of(whole)):
            with pytest.raises(ValueError, match=r"unknown input .* english, german, both"):
                taking.as_input(name)


def test_a_vocabulary_that_is_larger_than_the_embeddings(languages: Path, whole: Dataset) -> None:
    import transformers

    folder = languages / "network"
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=60, intermediate_size=8, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    model = TypeAdapter(AnyModel).validate_python({"name": f"hf/{folder}", "pretrained": True})
    small = profile_model(model, signature_of(whole.as_input("german")))
    assert small.params > 0
    with pytest.raises(ValueError, match="have 60 tokens, and the input's tokenizer has"):
        profile_model(model, signature_of(whole.as_input("english")))


def test_named_inputs_are_immutable_and_equal_by_value(languages: Path) -> None:
    first, second = source(languages).inputs, source(languages).inputs
    assert isinstance(first, TextInputs) and first == second and hash(first) == hash(second)
    assert list(first) == list(INPUTS)
    turned = TextInputs(dict(reversed(list(first.items()))))
    assert turned == first and hash(turned) == hash(first)
    assert TextInputs({"a": TextInput(max_length=4)}).plain() == {"a": {"max_length": 4}}
    with pytest.raises(StudyError, match="max_length"):
        TextInput(max_length=1)


def test_exported_tokenizer_is_that_of_the_students_input(languages: Path) -> None:
    from raykd.export.hub_formats import tokenizer_of

    data = {"tokenizer": str(languages / "large"), "inputs": source(languages).inputs.plain()}  # type: ignore[union-attr]

    def size(name: str) -> int:
        return len(tokenizer_of({"data": data, "student": {"input": name}}))

    assert size("german") < size("english") == size("both")
    whole_text = {"data": {"tokenizer": str(languages / "small")}, "student": {}}
    assert len(tokenizer_of(whole_text)) == size("german")
    assert tokenizer_of({"data": {"name": "digits"}, "student": {}}) is None


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "", "x" * 65, " x"])
def test_names_that_cannot_be_part_of_a_file_name(languages: Path, name: str) -> None:
    with pytest.raises(StudyError, match="no name of an input"):
        source(languages, {name: {"text": "english"}})


def test_repeated_texts_are_counted_for_each_input(languages: Path, tmp_path: Path) -> None:
    """Each row has another English text, and two German texts are in all of them."""
    table = pd.read_parquet(languages / "pairs.parquet")
    table["german"] = table["kind"]
    table.to_parquet(tmp_path / "pairs.parquet")
    inputs = {"german": {"text": "german"}, "both": INPUTS["both"]}
    data = source(languages, inputs, file=str(tmp_path / "pairs.parquet")).load()
    repeated = [text for text in data.warnings if "also in the training" in text]
    assert any(text.startswith("input 'german': ") for text in repeated)
    assert not any(text.startswith("input 'both': ") for text in repeated)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"german": {"text": "deutsch"}}, "data.inputs.german names this column"),
        ({"german": {}}, "data.inputs.german has no `text`, so it takes that of data, 'text'"),
        ({"german": {"second": "german"}}, "data.inputs.german has no `text`"),
    ],
)
def test_missing_columns_name_their_input(
    languages: Path, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="has no column") as error:
        source(languages, inputs).load()
    assert message in str(error.value)
