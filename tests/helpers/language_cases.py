"""Small studies whose teacher and student read different texts of a row."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from helpers.docstrings import write_tokenizer
from raykd.data import Dataset, Split
from raykd.data.text import Texts
from raykd.data.text_inputs import forms_of, parts_of, stored_tokens
from raykd.data.tokens import Tokens
from raykd.losses import LOSSES, Term
from raykd.models import Model, Signature
from raykd.registry import option
from raykd.schemes import Offline, Teacher
from raykd.study.config import Student, Study
from raykd.tasks import Classification
from raykd.train_config import SGD, Train

ENGLISH = [
    *("the", "cat", "sat", "on", "red", "mat", "dog", "runs"),
    *("fast", "home", "blue", "bird", "sings", "old", "song", "night"),
]
GERMAN = [word[::-1] + "en" for word in ENGLISH]
ROWS = 90
SMALL_VOCABULARY = 50


def write_languages(folder: Path) -> Path:
    """Write `pairs.parquet` of two languages, and the tokenizers `large` and `small`."""
    draw = random.Random(0)
    rows = []
    for number in range(ROWS):
        words = draw.choices(range(len(ENGLISH)), k=6)
        english, german = ([names[word] for word in words] for names in (ENGLISH, GERMAN))
        rows.append(
            {
                "english": " ".join([*english, ("good", "bad")[number % 2]]),
                "german": " ".join([*german, ("gut", "schlecht")[number % 2]]),
                "title": english[0],
                "kind": "xy"[number % 2],
                "vector": [words.count(word) / 6 for word in range(4)],
            }
        )
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "pairs.parquet")
    write_tokenizer(folder / "large", [*table["english"], *table["german"]])
    write_tokenizer(folder / "small", [*table["german"]], SMALL_VOCABULARY)
    return folder


@option
class WordMean(Model):
    """A linear classifier of the mean of embeddings of tokens."""

    takes_text = True

    name: Literal["word_mean"] = "word_mean"
    width: int = 8

    def build(self, signature: Signature) -> nn.Module:
        assert signature.text is not None
        return _WordMean(signature.text.vocabulary, self.width, signature.classes)


class _WordMean(nn.Module):
    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"].float()[..., None]
        return self.classifier((self.words(inputs["input_ids"]) * mask).mean(1))


SOURCE = Texts(
    file="pairs.parquet",
    label="kind",
    tokenizer="large",
    max_length=8,
    inputs={  # type: ignore[arg-type]
        "english": {"text": "english"},
        "german": {"text": "german", "second": "title", "tokenizer": "small", "max_length": 6},
    },
)


@lru_cache(maxsize=1)
def languages() -> Dataset:
    """Return the data of `SOURCE` with random tokens, without tables and tokenizers."""
    generator = torch.Generator().manual_seed(0)
    encodings = SOURCE.encodings()
    tokens = {}
    for name, each in encodings.items():
        vocabulary = 40 if name == "english" else 12
        ids = torch.randint(1, vocabulary, (ROWS, each.length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": (ids % 5 > 0).long()}
        if len(each.columns) > 1:
            inputs["token_type_ids"] = (ids % 2).long()
        tokens[name] = Tokens(inputs, vocabulary, 0, (), ())
    stored, targets = stored_tokens(tokens), torch.arange(ROWS) % 3
    train, val, test = (
        Split({key: value[rows] for key, value in stored.items()}, targets[rows], rows)
        for rows in torch.arange(ROWS).split([50, 20, 20])
    )
    return Dataset(
        name="text",
        train=train,
        val=val,
        test=test,
        classes=3,
        class_names=("a", "b", "c"),
        input_shape=(),
        mean=(),
        std=(),
        fingerprint="languages",
        origin="memory",
        forms=forms_of(tokens, train),
        parts=parts_of(encodings),
    )


def teacher() -> nn.Module:
    """Return an untrained network of English."""
    from raykd.training.build import signature_of

    torch.manual_seed(0)
    return WordMean().build(signature_of(languages().as_input("english"))).eval()


def study(*terms: Term, **changed: Any) -> Study:
    """Return a study whose teacher reads English and whose student reads German."""
    values: dict[str, Any] = {
        "name": "languages",
        "data": SOURCE,
        "task": Classification(metrics=("accuracy", "teacher_agreement")),
        "teacher": Teacher(model=WordMean(), input="english"),
        "student": Student(model=WordMean(width=4), input="german"),
        "scheme": Offline(),
        "knowledge": terms or (Term(loss=LOSSES["kd"]()),),
        "train": Train(epochs=2, batch_size=16, optimizer=SGD(lr=0.1)),
    }
    return Study(**{**values, **changed})
